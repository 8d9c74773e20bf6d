"""A retrieval result as a few lines of text, with the definitions and what was left out."""

from collections.abc import Mapping

from lossopt.retrieval.evaluation import RetrievalResult


def as_text(result: RetrievalResult) -> str:
    """Metrics in per cent, then everything that a reader needs to know what they mean."""
    lines = [f"{name:<10}{100 * value:6.2f} %" for name, value in result.metrics.items()]
    collapse = result.collapse
    lines += [
        "",
        f"{result.queries:,} queries, {result.gallery:,} gallery images of {result.classes:,} classes, "
        f"{result.dimensions} dimensions, {result.distance} distance, exact FAISS index",
        f"effective rank {collapse.effective_rank:.1f}, spread {collapse.spread:.2f}, "
        f"queries tied at rank 1 {collapse.tie_share:.1%}",
        "recall@k: share of queries with an image of their class among the k nearest; an image never finds itself.",
        "map@r: mean average precision over the R nearest, R being how many there are to find. Ties count as expected.",
    ]
    if result.excluded:
        all_queries = ", ".join(f"{name} {100 * value:.2f}" for name, value in result.metrics_all_queries.items())
        lines.append(
            f"{result.excluded:,} more queries have no image of their class in the gallery and are left out; counting "
            f"them as failures: {all_queries}"
        )
    if collapse.collapsed:
        lines.append(
            "DO NOT BELIEVE THESE FIGURES: the embeddings have collapsed (nearly equal, on a line, or tied). Try a "
            "lower learning rate, a larger batch, or a miner that is less hard."
        )
    return "\n".join(lines)


def as_line(metrics: Mapping[str, float]) -> str:
    """The recall@k and MAP@R of a run, in per cent, on one line; keys may have a split before them ("val/map@r")."""
    short = {name.rpartition("/")[2]: value for name, value in metrics.items()}
    return "  ".join(f"{name} {100 * value:.1f}" for name, value in short.items() if "@" in name)
