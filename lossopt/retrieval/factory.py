"""FAISS's factory strings as text: what would end the process is refused, and few rows get a smaller index.

A factory string is a list of components: "PCA32,IVF256,Flat" turns, deals out to 256 lists, and keeps whole vectors.
"""

import re
from typing import NamedTuple

from lossopt.errors import ConfigError

FLAT = "Flat"
# "np": without it FAISS takes a minute to sort the codes for a filter ("ht") that is off unless asked for
EXAMPLES = "Flat; IVF256,Flat; HNSW32,Flat; SQ8; IVF256,PQ16np; OPQ16_64,IVF256,PQ16np; PCA32,Flat; PQ16np,Refine(Flat)"
ROWS_PER_CENTRE = 39  # FAISS's own least for k-means; with fewer it goes on, but prints a warning
_LINKS = (2, 1024)


class Fitted(NamedTuple):
    """A factory string that so many rows can train; `notes` say in words what was changed or is to be doubted."""

    factory: str
    notes: tuple[str, ...] = ()


def check_factory(factory: str, cosine: bool) -> None:
    """Refuses what FAISS itself would not survive, or would answer with something that is no distance.

    Args:
        factory: FAISS's factory string.
        cosine: whether the distance is stated as cosine, which already scales vectors to length 1.

    Raises:
        ConfigError: says which part, and what to write instead.
    """
    if re.search(r"(?<!\d)0+(?!\d)", factory):  # PQ8x0 divides by it, RQ0x8 reads beyond its memory, NSG0 never ends
        raise ConfigError(f"{factory!r} holds the number 0, which no part of an index can be. Examples: {EXAMPLES}.")
    for kind, digits in re.findall(r"(HNSW|NSG)(\d+)", factory):
        if not _LINKS[0] <= int(digits) <= _LINKS[1]:  # HNSW1 ends the process
            raise ConfigError(f"{kind}{digits}: a graph has {_LINKS[0]} to {_LINKS[1]:,} links per row, such as 32.")
    if factory.startswith("IDMap"):
        raise ConfigError(f"{factory!r}: leave IDMap out. Rows keep their names beside the index, by position.")
    if "L2norm" in factory and cosine:
        raise ConfigError(
            f"{factory!r} and the distance cosine both scale vectors to length 1. Leave L2norm out: say cosine once."
        )
    if "LSH" in factory and "Refine" not in factory and "RFlat" not in factory:
        raise ConfigError(
            f"{factory!r} counts differing bits, which is no distance. Add the vectors for the last step: "
            f"'{factory},Refine(Flat)'."
        )


def fit_to_rows(factory: str, n: int) -> Fitted:
    """The same index with as many inverted lists as n rows can train, or none.

    Args:
        factory: FAISS's factory string.
        n: rows of the gallery.
    """
    parts, notes = components(factory), []
    for place, part in enumerate(parts):
        lists = re.match(r"IVF(\d+)", part)
        if lists and int(lists[1]) * ROWS_PER_CENTRE > n:
            wanted, fits = int(lists[1]), n // ROWS_PER_CENTRE
            rest = part[lists.end() :]
            parts[place] = f"IVF{fits}{'' if rest.startswith('(') else rest}" if fits > 1 else ""
            became = f"{fits} lists" if fits > 1 else "no lists"
            notes.append(
                f"{became} instead of {wanted:,}: each needs {ROWS_PER_CENTRE} rows to be trained, and there are {n:,}."
            )
    fitted = (",".join(part for part in parts if part) or FLAT) if notes else factory
    centres = [2 ** int(bits or 8) for bits in re.findall(r"PQ\d+(?:x(\d+)|_\d+)?", fitted)]
    if centres and n < max(centres) * ROWS_PER_CENTRE:
        notes.append(
            f"the codes of {fitted} are learnt from {n:,} rows, FAISS advises {max(centres) * ROWS_PER_CENTRE:,} or "
            "more; look at the measured recall."
        )
    if "L2norm" in fitted:
        notes.append("L2norm scales vectors to length 1: distances are those between such vectors.")
    return Fitted(fitted, tuple(notes))


def keeps_vectors(factory: str) -> bool:
    """Whether the index answers with distances between whole vectors, and not with estimates from codes."""
    last = components(factory)[-1]
    if last in ("RFlat", "Refine(Flat)"):
        return True
    return bool(re.fullmatch(r"Flat|(HNSW|NSG)\d*", last)) and not re.search("PCA|OPQ|ITQ|RR|L2norm", factory)


def components(factory: str) -> list[str]:
    """The parts between commas that stand outside brackets."""
    return re.findall(r"(?:[^,(]|\([^)]*\))+", factory)


def training_rows(factory: str, least: int) -> int:
    """How many rows to train on at most: `least`, or what the lists need if that is more."""
    lists = [int(digits) for digits in re.findall(r"IVF(\d+)", factory)]
    return max([least, *(number * ROWS_PER_CENTRE for number in lists)])


def shortened(words: str) -> str:
    """FAISS's own words without the places in its source: "could not parse index string bogus"."""
    words = re.sub(r"^.* at \S+:\d+: (Error: )?", "", words.strip(), flags=re.DOTALL)
    condition, failed, explanation = words.partition("' failed")
    return explanation.lstrip(": ").strip() or (condition.lstrip("'") if failed else words)
