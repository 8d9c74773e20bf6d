"""What was measured, and what each figure means, in words: the definitions stand on the page that shows the figures."""

import numpy as np

from lossopt.report.findings import Findings
from lossopt.report.page import metric_name, percent
from lossopt.retrieval.index import Distance
from lossopt.retrieval.text import MEANINGS

_RULES = {
    "none": "A query may find everything but itself.",
    "same class": "A query may not find images of its class from its own group (camera, sequence, shelf).",
    "all": "A query may not find any image of its own group (camera, sequence, shelf).",
}


def measured(findings: Findings) -> list[tuple[str, str, str]]:
    """(name, value, what it means) of everything that a reader needs to know about the evaluation."""
    result, collapse = findings.result, findings.result.collapse
    unit = _unit_length(findings)
    rows = [
        ("Queries", f"{result.queries:,}", "They ask, one by one, and have at least one image of their class to find."),
        ("Left out", f"{result.excluded:,}", "Queries without anything to find; counted here, in no mean."),
        ("Gallery", f"{result.gallery:,}", "Images that are searched. A query never finds itself."),
        ("Searched per query", _range(result.candidates), "What is left of the gallery for one query."),
        ("To find per query", _range(result.relevant), "Images of the query's class among these: R."),
        ("Classes", f"{result.classes:,}", "In the gallery."),
        ("Distractors", f"{result.distractors:,}", "Gallery images of classes that no query has."),
        ("Left out by group", "no rule" if result.exclude == "none" else result.exclude, _RULES[result.exclude]),
        ("Distance", distance_name(result.distance), "Smaller is closer. " + unit),
        ("Dimensions", f"{result.dimensions:,}", f"Numbers per embedding, {findings.vectors.vectors.dtype}."),
        (
            "Index",
            "exact",
            "Every query meets every gallery image: the recall of the search itself is 100 %.",
        ),
        ("Tied at rank 1", percent(collapse.tie_share), "Queries whose nearest distance several images share."),
        ("Duplicates", percent(collapse.duplicates), "Embeddings that equal another one to the last bit."),
    ]
    if result.graded > 1:
        rows.append(("Levels for NDCG", f"{result.graded}", "An image scores one point per level that it shares."))
    return rows


def distance_name(distance: Distance) -> str:
    """As people write it."""
    return "Euclidean" if distance == "euclidean" else distance


def _range(counts: np.ndarray) -> str:
    low, high = int(counts.min()), int(counts.max())
    return f"{low:,}" if low == high else f"{int(np.median(counts)):,} ({low:,} to {high:,})"


def _unit_length(findings: Findings) -> str:
    vectors = findings.vectors.vectors
    some = np.asarray(vectors[:: max(1, len(vectors) // 1_000)], dtype=np.float64)
    norms = np.linalg.norm(some, axis=1)
    if np.abs(norms - 1).max() < 1e-3:
        return "The vectors have length 1."
    between = f"between {norms.min():.3g} and {norms.max():.3g}"
    if findings.result.distance == "cosine":
        return f"The vectors have lengths {between} and are scaled to 1 first."
    return f"The vectors have lengths {between}, which count."


def definitions(findings: Findings) -> list[tuple[str, str]]:
    """(name, meaning) of every figure on the page."""
    result = findings.result
    left_out = f"{result.excluded:,} here" if result.excluded else "there is none here"
    names = {"recall": "recall@k", "precision": "precision@k", "found": "found@k", "ndcg": "NDCG@k"}
    more = {
        "recall": " (Hit rate, CMC.)",
        "found": " (What information retrieval calls recall.)",
        "map@r": " For a query with R images to find: the precision at each place from 1 to R that holds a right "
        "image, summed and divided by R. 100 % means that all R come first. Of one query it is called AP here. "
        "(Musgrave, Belongie & Lim 2020.)",
        "ndcg": f" Images have {result.graded} levels: a point for the class, and one for each coarser level shared."
        if result.graded > 1
        else "",
    }
    return [
        *((names.get(key, metric_name(key)), _sentence(words) + more.get(key, "")) for key, words in MEANINGS.items()),
        (
            "Interval",
            "95 %: where the figure might be with other classes of the same kind. Classes are drawn anew, with all of "
            "their queries, because queries of one class succeed or fail together.",
        ),
        ("Chance", "What a random order of the gallery would reach, worked out for each query."),
        ("Itself", "An image never finds itself. It is taken out by its row, not by being first, so duplicates count."),
        ("Ties", "Images at one distance count as the mean over all their orders: the order of files changes nothing."),
        ("Nothing to find", f"A query without another image of its class is left out and counted: {left_out}."),
        (
            "FAR, TAR, EER",
            "A threshold accepts all pairs that are at most so far apart. FAR is the share of pairs of different "
            "classes that it accepts, TAR the share of pairs of one class. At the EER, as many of the one are accepted "
            "as of the other refused.",
        ),
        ("NMI, AMI", "Agreement of k-means clusters with the classes; AMI is adjusted so that chance scores 0."),
    ]


def _sentence(words: str) -> str:
    return words[0].upper() + words[1:] + "."
