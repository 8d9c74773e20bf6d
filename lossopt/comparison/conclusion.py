"""What a comparison lets one conclude, in a headline and a few sentences, wherever it is shown."""

from collections.abc import Sequence
from dataclasses import dataclass

from lossopt.comparison.result import Comparison, PairComparison, Standing

TRAINED = ("variant", "random miner")
_NAMED = 4  # of a longer list of names, all but the first three are counted


@dataclass(frozen=True)
class Conclusion:
    """The answer to "which one?".

    headline: one sentence. words: what it rests on. cautions: what a reader must know before believing it.
    leader: the trained variant with the highest mean; None without any. enough: whether there are seeds for a verdict.
    """

    headline: str
    words: Sequence[str]
    cautions: Sequence[str]
    leader: Standing | None
    enough: bool


def conclude(comparison: Comparison) -> Conclusion:
    """Who is best, whether that is shown, and by how much; or why nobody can say."""
    trained = trained_of(comparison)
    cautions = [*_failures(comparison), *_baselines(comparison)]
    leader = trained[0] if trained else None
    if leader is None or not comparison.pairs:
        only = "no variant was trained" if leader is None else f"{leader.variant} is the only trained variant"
        return Conclusion(f"Nothing to compare: {only}.", [], cautions, leader, False)
    if any(pair.verdict == "too few seeds" for pair in comparison.pairs):
        seeds, needed = len(comparison.seeds), comparison.seeds_needed
        first = f"{leader.variant} has the highest mean so far, {_share(leader.mean)} {metric_words(comparison)}"
        words = [f"{first}{_lead(comparison, leader, trained)}. More {_seeds(comparison)} may turn the order round."]
        headline = f"Not enough seeds for a verdict: {seeds} of at least {needed}."
        return Conclusion(headline, words, cautions, leader, False)
    headline, words = _verdict(comparison, trained)
    return Conclusion(headline, [*words, *_against_random(comparison)], cautions, leader, True)


def trained_of(comparison: Comparison) -> list[Standing]:
    """The standings of what was trained, best mean first."""
    return [one for one in comparison.standings if one.role in TRAINED]


def pair_of(comparison: Comparison, one: str, other: str) -> PairComparison | None:
    """The comparison of two variants, whichever of them is its `a`; None: there is none."""
    return next((pair for pair in comparison.pairs if {pair.a, pair.b} == {one, other}), None)


def metric_words(comparison: Comparison) -> str:
    """The primary metric as people write it."""
    return "MAP@R" if comparison.metric == "map@r" else comparison.metric


def listed_names(names: Sequence[str]) -> str:
    """As a sentence lists them; of more than four, the first three and how many others."""
    if len(names) > _NAMED:
        return f"{', '.join(names[: _NAMED - 1])} and {len(names) - _NAMED + 1} others"
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1] if names else "")))


def _verdict(comparison: Comparison, trained: Sequence[Standing]) -> tuple[str, list[str]]:
    leader = trained[0]
    others = [one.variant for one in trained[1:]]
    beaten = [name for name in others if _better(comparison, leader.variant, name)]
    open_ = [name for name in others if name not in beaten]
    mean = f"{leader.variant} reaches {_share(leader.mean)} {metric_words(comparison)}"
    mean += _lead(comparison, leader, trained)
    if not open_:
        whom = others[0] if len(others) == 1 else f"each of the other {len(others)}"
        return f"{leader.variant} is best: it is shown to be better than {whom}.", [mean + "."]
    if not beaten:
        whom = others[0] if len(others) == 1 else f"any of the other {len(others)}"
        headline = f"No best one is shown: {leader.variant} has the highest mean, but is not told apart from {whom}."
        return headline, [mean + "." + _detectable(comparison, leader.variant, open_)]
    headline = f"{leader.variant} has the highest mean, but is not told apart from {listed_names(open_)}."
    words = f"{mean}.{_detectable(comparison, leader.variant, open_)}"
    return headline, [words, f"{leader.variant} is shown to be better than {listed_names(beaten)}."]


def _lead(comparison: Comparison, leader: Standing, trained: Sequence[Standing]) -> str:
    """ ", 1.2 points more than the next" with its interval."""
    pair = pair_of(comparison, leader.variant, trained[1].variant)
    if pair is None:
        return ""
    within = ""
    if pair.interval is not None:
        within = f" (95 % interval of the difference {_points(pair.interval[0])} to {_points(pair.interval[1])})"
    return f", {100 * abs(pair.difference):.1f} points more than {trained[1].variant}, the next{within}"


def _detectable(comparison: Comparison, leader: str, open_: Sequence[str]) -> str:
    """How large a difference would have to be, at the seeds there are."""
    pairs = [pair_of(comparison, leader, name) for name in open_]
    sizes = [pair.detectable for pair in pairs if pair is not None and pair.detectable is not None]
    if not sizes:
        return ""
    low, high = f"{100 * min(sizes):.1f}", f"{100 * max(sizes):.1f}"
    size = low if low == high else f"{low} to {high}"
    return f" With {len(comparison.seeds)} seeds, a true difference of {size} points would be found 4 times in 5."


def _against_random(comparison: Comparison) -> list[str]:
    """Whether mining was worth it at all."""
    variants = [one.variant for one in comparison.standings if one.role == "variant"]
    random = next((one.variant for one in comparison.standings if one.role == "random miner"), None)
    if random is None or not variants:
        return []
    above = [name for name in variants if _better(comparison, name, random)]
    below = [name for name in variants if _better(comparison, random, name)]
    total = len(variants)
    told = [f"{len(above)} of {total} variants are shown to be better than the random miner" if above else ""]
    told[0] = told[0] or f"None of {total} variants is shown to be better than the random miner"
    told += [f"{listed_names(below)} to be worse"] if below else []
    return [", ".join(told) + "."]


def _better(comparison: Comparison, one: str, other: str) -> bool:
    pair = pair_of(comparison, one, other)
    return pair is not None and pair.verdict == "better" and pair.a == one


def _failures(comparison: Comparison) -> list[str]:
    words = []
    for name, count, end in (
        ("collapsed", lambda one: one.collapsed, "they count with the epoch that validation chose"),
        ("failed", lambda one: one.failed, "each counts with the figures of the untrained network of its seed"),
    ):
        found = [f"{one.variant} {count(one)} of {len(one.runs)}" for one in trained_of(comparison) if count(one)]
        if found:
            words.append(f"Runs that {name}: {', '.join(found)}; {end}.")
    return words


def _baselines(comparison: Comparison) -> list[str]:
    """Trained variants that end no higher than what was not trained, in one sentence for each set of baselines."""
    told: dict[tuple[str, ...], list[str]] = {}
    for one in trained_of(comparison):
        above = tuple(
            f"{'the untrained network' if base.role == 'untrained' else 'raw pixels'} ({_share(base.mean)})"
            for base in comparison.standings
            if base.role not in TRAINED and base.mean >= one.mean
        )
        if above:
            told.setdefault(above, []).append(one.variant)
    return [
        f"{listed_names(names)} {'ends' if len(names) == 1 else 'end'} no higher than {listed_names(above)}."
        for above, names in told.items()
    ]


def _seeds(comparison: Comparison) -> str:
    return "seeds" if len(comparison.seeds) > 1 else "seeds than one"


def _share(share: float) -> str:
    return f"{100 * share:.1f} %"


def _points(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "\N{MINUS SIGN}")
