"""What changed query by query between two variants: averaged over seeds, with the pictures of one seed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lossopt.report.difference import Figures, summarise
from lossopt.report.thumbnails import Pictures
from lossopt.retrieval.difference import Difference, Pair, compare
from lossopt.retrieval.evaluation import RetrievalResult
from lossopt.retrieval.queries import QueryFigures


@dataclass(frozen=True)
class Changes:
    """Two variants, a and b.

    names: of them. seeds: how many the figures of the queries are means over. seed: of the runs in the galleries.
    found: the difference of the means; one: that of the seed. figures: what the page shows of them.
    """

    names: tuple[str, str]
    seeds: int
    seed: int | None
    found: Difference
    one: Difference
    figures: Figures


def changes_between(
    names: tuple[str, str],
    pair: Pair,
    one: Difference,
    seed: int | None,
    per_seed: Sequence[tuple[QueryFigures, QueryFigures]],
    pictures: Sequence[Pictures],
) -> Changes:
    """Compares two variants query by query.

    Args:
        names: of the variants, a and b.
        pair: the embeddings of one run of each, of the same seed (`pair_by_name`).
        one: their difference (`lossopt.retrieval.difference.difference`).
        seed: theirs.
        per_seed: what each run of a and of b found for each query of the test split, seed by seed; queries in the
            order of `one.a.query_rows`.
        pictures: of the rows of `pair`; where the first has no image, the next is asked.

    Raises:
        ValueError: a run was asked other queries than the pair, or there is no seed.
    """
    asked = [pair.a.names[row] for row in one.a.query_rows.tolist()]
    for figures in (side for both in per_seed for side in both):
        if list(figures.names) != asked:
            raise ValueError(
                f"The figures of a run are of {len(figures.names):,} queries that are not the {len(asked):,} of the "
                "embeddings, or stand in another order. Give those of the same test split."
            )
    if not per_seed:
        raise ValueError("No seed: give the figures of at least one run of each variant.")
    a, b = (_averaged(result, [both[side] for both in per_seed]) for side, result in enumerate((one.a, one.b)))
    found = compare(a, b, pair.a.labels, pair.a.class_names, resamples=100)  # the intervals are not shown
    return Changes(names, len(per_seed), seed, found, one, summarise(found, pair, pictures, one, names))


def _averaged(result: RetrievalResult, per_seed: Sequence[QueryFigures]) -> RetrievalResult:
    """An evaluation whose figures of each query are means over seeds."""
    names = [name for name in per_seed[0].metrics if all(name in one.metrics for one in per_seed)]
    per_query = {name: np.mean([one.metrics[name] for one in per_seed], axis=0) for name in names}
    return replace(result, per_query=per_query, metrics={name: float(each.mean()) for name, each in per_query.items()})
