"""A comparison as text: for the terminal, as Markdown and as CSV; the same comparison gives the same bytes.

No path and no time is in any of it, except in `costs_as_csv`, which holds what differs from one sitting to the next.
"""

import csv
import io
import re
import textwrap
from collections.abc import Callable, Sequence

from lossopt.comparison.conclusion import conclude, metric_words
from lossopt.comparison.result import Comparison, PairComparison, Standing

Interval = tuple[float, float]

_MAIN = ("recall@1", "map@r")  # beside the primary metric, where there is room for few
_FORMULA = ("=", "+", "-", "@")  # what a spreadsheet would run
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>|#~&])")
_WIDEST = 24  # of a cell, in letters
_WIDTH = 110  # of a line of words
_WORDS = ("variant", "a", "b", "verdict")  # columns of words


def as_text(comparison: Comparison) -> str:
    """Conclusion, ranking, a line for each pair, and how the verdicts were reached; at most 120 columns wide."""
    found = conclude(comparison)
    name = metric_words(comparison)
    lines = [*map(_wrapped, (found.headline, *found.words, *found.cautions))]
    lines += ["", f"{name} in per cent on the test split, mean over {_seeds(comparison)}", ""]
    lines += _aligned(_ranking(comparison), _WORDS)
    if comparison.pairs:
        lines += ["", f"each pair: difference in points of {name}", ""]
        lines += [*_aligned(_pairs(comparison), _WORDS), "", _wrapped(_tested(comparison))]
    return "\n".join([*lines, *map(_wrapped, comparison.notes)]) + "\n"


def as_markdown(comparison: Comparison) -> str:
    """Conclusion, ranking and verdicts as Markdown, for a README: tables, and every name escaped."""
    found = conclude(comparison)
    lines = [f"**{_escaped(found.headline)}**", "", *map(_escaped, (*found.words, *found.cautions))]
    lines += ["", f"{metric_words(comparison)} in per cent on the test split, mean over {_seeds(comparison)}.", ""]
    lines += _table(_ranking(comparison), _WORDS)
    if comparison.pairs:
        lines += ["", *_table(_pairs(comparison), _WORDS), "", _tested(comparison)]
    lines += [f"\n{_escaped(note)}" for note in comparison.notes]
    return "\n".join(lines) + "\n"


def as_csv(comparison: Comparison) -> str:
    """The ranking: shares in [0, 1] with all their digits, one row for each standing."""
    metrics = metrics_of(comparison)
    head = ["rank", "variant", "role", "metric", "mean", "low", "high", "deviation", "runs", "failed", "collapsed"]
    rows = [
        [
            *(place, one.variant, one.role, comparison.metric, float(one.mean), *_ends(one.interval)),
            *(float(one.deviation), len(one.runs), one.failed, one.collapsed),
            *(one.means.get(name) for name in metrics),
        ]
        for place, one in enumerate(comparison.standings, start=1)
    ]
    return _csv([*head, *metrics], rows)


def pairs_as_csv(comparison: Comparison) -> str:
    """The pairs: differences in [-1, 1] with all their digits, one row for each pair."""
    head = ["a", "b", "metric", "difference", "low", "high", "p", "p_corrected", "correction"]
    head += ["probability_a_above_b", "probability_low", "probability_high", "detectable", "verdict"]
    rows = [
        [
            *(pair.a, pair.b, comparison.metric, float(pair.difference), *_ends(pair.interval), float(pair.p)),
            *(float(pair.adjusted), comparison.correction, float(pair.improvement), *_ends(pair.improvement_interval)),
            *(pair.detectable, pair.verdict),
        ]
        for pair in comparison.pairs
    ]
    return _csv(head, rows)


def costs_as_csv(comparison: Comparison) -> str:
    """What each run cost, and how it ended; differs from one sitting to the next."""
    head = [
        "variant",
        "seed",
        "status",
        "epoch",
        "images",
        "seconds",
        "images_per_second",
        "peak_memory_bytes",
        "score",
    ]
    rows = [
        [
            *(one.variant, run.seed, run.status, run.epoch, run.images, float(run.seconds), run.images_per_second),
            *(run.peak_memory, run.figures.get(comparison.metric)),
        ]
        for one in comparison.standings
        for run in one.runs
    ]
    return _csv(head, rows)


def metrics_of(comparison: Comparison) -> list[str]:
    """Every metric that a standing has, the primary one first, then in their own order."""
    names = dict.fromkeys([comparison.metric, *(name for one in comparison.standings for name in one.means)])
    return list(names)


def _ranking(comparison: Comparison) -> list[list[str]]:
    metrics = [name for name in _MAIN if name in metrics_of(comparison) and name != comparison.metric]
    head = ["", "variant", "mean", "95 % interval", "sd", *metrics, "failed", "collapsed"]
    return [
        head,
        *(
            [
                *(str(place), _named(one), _percent(one.mean), _between(one.interval, _percent), _spread(one)),
                *(_percent(one.means.get(name)) for name in metrics),
                *(_of(one.failed, one), _of(one.collapsed, one)),
            ]
            for place, one in enumerate(comparison.standings, start=1)
        ),
    ]


def _pairs(comparison: Comparison) -> list[list[str]]:
    head = ["a", "b", "a - b", "95 % interval", "corrected p", "P(a > b)", "verdict"]
    return [
        head,
        *(
            [
                *(pair.a, pair.b, _points(pair.difference), _between(pair.interval, _points)),
                *(_probability(pair.adjusted), f"{pair.improvement:.2f}", _told(pair)),
            ]
            for pair in comparison.pairs
        ),
    ]


def _told(pair: PairComparison) -> str:
    return {"better": "a is better", "open": "not shown"}.get(pair.verdict, pair.verdict)


def _tested(comparison: Comparison) -> str:
    """How the verdicts were reached, in two sentences."""
    corrected = "Holm" if comparison.correction == "holm" else "max-t"
    pairs = f"{len(comparison.pairs)} comparison" + "s" * (len(comparison.pairs) != 1)
    return (
        f"Paired by seed, {_seeds(comparison)}: exact sign-flip permutation, p corrected for {pairs} "
        f"({corrected}), better at {100 * comparison.alpha:g} %. "
        f"Intervals draw seeds and {comparison.units} {_units(comparison)} anew."
    )


def _seeds(comparison: Comparison) -> str:
    count = len(comparison.seeds)
    return f"{count} seed" + "s" * (count != 1)


def _units(comparison: Comparison) -> str:
    return {"class": "classes", "group": "groups"}[comparison.unit] if comparison.units != 1 else comparison.unit


def _wrapped(words: str) -> str:
    return textwrap.fill(_plain(words), _WIDTH)


def _plain(text: str) -> str:
    """Text on one line, without control characters."""
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))


def _named(one: Standing) -> str:
    return one.variant if one.role in ("variant", one.variant) else f"{one.variant} ({one.role})"


def _of(count: int, one: Standing) -> str:
    return f"{count}/{len(one.runs)}" if one.role in ("variant", "random miner") else "-"


def _spread(one: Standing) -> str:
    return f"{100 * one.deviation:.2f}" if len(one.runs) > 1 else "-"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"


def _points(share: float) -> str:
    return f"{100 * share:+.2f}"


def _probability(p: float) -> str:
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}"


def _between(interval: Interval | None, words: Callable[[float], str]) -> str:
    return "-" if interval is None else f"{words(interval[0])} to {words(interval[1])}"


def _ends(interval: Interval | None) -> tuple[float | None, float | None]:
    return (None, None) if interval is None else (float(interval[0]), float(interval[1]))


def _aligned(table: Sequence[Sequence[str]], texts: Sequence[str]) -> list[str]:
    """Columns of equal width; those of words, by their heads, to the left, the others to the right."""
    table = [[_shortened(cell) for cell in row] for row in table]
    widths = [max(len(cell) for cell in column) for column in zip(*table, strict=True)]
    left = [name in texts for name in table[0]]
    return [
        "  ".join(
            cell.ljust(width) if first else cell.rjust(width)
            for cell, width, first in zip(row, widths, left, strict=True)
        ).rstrip()
        for row in table
    ]


def _shortened(cell: str) -> str:
    """A cell that is not so long that it pushes all others out of sight."""
    cell = _plain(cell)
    return cell if len(cell) <= _WIDEST else f"{cell[: _WIDEST - 1]}…"


def _table(table: Sequence[Sequence[str]], texts: Sequence[str]) -> list[str]:
    rule = ["---" if name in texts else "---:" for name in table[0]]
    rows = [[_escaped(cell) for cell in row] for row in table]
    return [f"| {' | '.join(row)} |" for row in (rows[0], rule, *rows[1:])]


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is."""
    return _MARKDOWN.sub(r"\\\1", _plain(text))


def _csv(head: Sequence[str], rows: Sequence[Sequence[str | int | float | None]]) -> str:
    """Numbers stay numbers, None is an empty cell; a text that a spreadsheet would run gets an apostrophe in front."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows([_inert(cell) if isinstance(cell, str) else cell for cell in row] for row in rows)
    return text.getvalue()


def _inert(cell: str) -> str:
    cell = _plain(cell)
    return f"'{cell}" if cell.startswith(_FORMULA) else cell
