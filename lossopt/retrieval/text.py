"""A retrieval result as a few lines of text, with the definitions and what was left out."""

from collections.abc import Mapping

from lossopt.retrieval.evaluation import RetrievalResult

_BY_K = ("recall", "precision", "found", "ndcg")
MEANINGS = {
    "recall": "share of queries with an image of their class among the k nearest; an image never finds itself",
    "precision": "share of the k nearest that are of the query's class",
    "found": "share of the images of the query's class that are among the k nearest",
    "ndcg": "discounted gain of the k nearest, over that of the best order",
    "r_precision": "precision@R, R being how many there are to find",
    "map@r": "mean average precision over the R nearest",
    "map": "mean average precision over the whole ranking",
    "mrr": "mean of 1 / rank of the first image of the class",
}


def as_text(result: RetrievalResult) -> str:
    """Metrics in per cent, then everything that a reader needs to know what they mean."""
    lines = [*_doubts(result), *_table(result), "", *_whole(result), "", *_measured(result), ""]
    lines += [f"{name + ('@k' if name in _BY_K else ''):<13}{meaning}" for name, meaning in MEANINGS.items()]
    if result.graded > 1:
        lines.append(f"ndcg counts {result.graded} levels: a point for the class, one for each coarser level shared")
    brackets = " In brackets: 95 % intervals over classes." if result.intervals else ""
    lines.append(f"Ties count as expected under random order.{brackets}")
    return "\n".join(lines)


def _doubts(result: RetrievalResult) -> list[str]:
    """What must be read before any figure."""
    lines = []
    if result.collapse.collapsed:
        lines.append("DO NOT BELIEVE THESE FIGURES: " + "; ".join(result.collapse.reasons) + ".")
        lines.append("A model in training: try a lower learning rate, a larger batch, or a miner that is less hard.")
    if result.trivial:
        lines.append("THESE FIGURES SAY NOTHING: " + "; ".join(result.trivial) + ".")
    return [*lines, ""] if lines else []


def _table(result: RetrievalResult) -> list[str]:
    """A line per k, a column per metric."""
    ks = [int(name.removeprefix("recall@")) for name in result.metrics if name.startswith("recall@")]
    width = 10 + 16 * bool(result.intervals)
    head = "".join(f"{name + '@k':<{width if name == 'recall' else 12}}" for name in _BY_K)
    lines = [f"{'k':>6}  {head}".rstrip()]
    for k in ks:
        cells = [f"{_figure(result, f'{name}@{k}'):<{width if name == 'recall' else 12}}" for name in _BY_K]
        lines.append(f"{k:>6}  " + "".join(cells).rstrip())
    return lines


def _figure(result: RetrievalResult, name: str) -> str:
    figure = f"{100 * result.metrics[name]:.2f} %"
    interval = result.intervals.get(name) if not name.startswith(_BY_K[1:]) else None
    return f"{figure} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]" if interval else figure


def _whole(result: RetrievalResult) -> list[str]:
    return [f"{name:<13}{_figure(result, name)}" for name in ("map@r", "r_precision", "map", "mrr")]


def _measured(result: RetrievalResult) -> list[str]:
    collapse = result.collapse
    lines = [
        f"{result.queries:,} queries, {result.gallery:,} gallery images of {result.classes:,} classes, "
        f"{result.dimensions} dimensions, {result.distance} distance, exact",
        f"effective rank {collapse.effective_rank:.1f}, spread {collapse.spread:.2f}, "
        f"queries tied at rank 1 {collapse.tie_share:.1%}, rows with an exact twin {collapse.duplicates:.1%}",
    ]
    if result.distractors:
        lines.append(f"{result.distractors:,} gallery images are of classes that no query has (distractors)")
    if result.exclude != "none":
        what = "images of its class and group" if result.exclude == "same class" else "images of its group"
        lines.append(f"a query does not find {what} (exclude: {result.exclude})")
    if result.excluded:
        headline = next(iter(result.metrics))
        lines.append(
            f"{result.excluded:,} more queries have no image of their class to find and are left out; with them as "
            f"failures {headline} is {100 * result.metrics_all_queries[headline]:.2f} %, "
            f"map@r {100 * result.metrics_all_queries['map@r']:.2f} %"
        )
    return lines


def as_line(metrics: Mapping[str, float]) -> str:
    """The recall@k and MAP@R of a run, in per cent, on one line; keys may have a split before them ("val/map@r")."""
    short = {name.rpartition("/")[2]: value for name, value in metrics.items()}
    shown = [name for name in short if name.startswith("recall@") or name == "map@r"]
    return "  ".join(f"{name} {100 * short[name]:.1f}" for name in shown)
