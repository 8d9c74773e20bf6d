"""Whether a figure can be believed: each reason to doubt it as a line of a list, and the signs of health behind it."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from lossopt.report.findings import Findings
from lossopt.report.page import percent

State = Literal["good", "doubtful", "bad"]
_FEW_CLASSES = 20
_MANY_LEFT_OUT = 0.05
_MANY_TIES = 0.01
_MANY_DUPLICATES = 0.01
_MANY_SUSPECTS = 0.1
_PRECISION = 0.01
_ADVICE = "Try a lower learning rate, a larger batch, or a miner that is less hard."


class Check(NamedTuple):
    """One question about the figures: the answer in a word or number, and what it means."""

    state: State
    name: str
    value: str
    meaning: str


class Sign(NamedTuple):
    """One figure of health and a sentence on what it means."""

    name: str
    value: str
    meaning: str


@dataclass(frozen=True)
class Withheld:
    """Why no headline is given, and what to do about it."""

    why: str
    reasons: list[str]
    advice: str


def withheld(findings: Findings) -> Withheld | None:
    """None if a headline can be given."""
    collapse = findings.result.collapse
    if collapse.collapsed:
        return Withheld(
            f"The embeddings have collapsed (effective rank {collapse.effective_rank:.1f} of "
            f"{findings.result.dimensions}, spread {collapse.spread:.2f}, {percent(collapse.tie_share)} of the queries "
            "tied at rank 1):",
            list(collapse.reasons),
            _ADVICE,
        )
    if reasons := findings.result.trivial:
        return Withheld("The task is trivial:", list(reasons), "Evaluate on more classes, and on more images of each.")
    return None


def checks(findings: Findings, class_disjoint: bool | None) -> list[Check]:
    """Every question of the list, answered.

    Args:
        findings: of the evaluation.
        class_disjoint: whether training saw none of these classes; None: nobody knows.
    """
    found = [_spread(findings), _interval(findings), _unseen(class_disjoint), _left_out(findings), _ties(findings)]
    found += [_precision(findings), _suspects(findings)]
    if trivial := findings.result.trivial:
        found.insert(0, Check("bad", "The task is not trivial", "trivial", "; ".join(trivial).capitalize() + "."))
    return found


def _spread(findings: Findings) -> Check:
    collapse, d = findings.result.collapse, findings.result.dimensions
    if collapse.collapsed:
        return Check("bad", "Embeddings are spread out", "collapsed", "; ".join(collapse.reasons).capitalize() + ".")
    return Check(
        *("good", "Embeddings are spread out", f"rank {collapse.effective_rank:.1f} of {d}"),
        "They use many directions, and are far from being one point or one line.",
    )


def _interval(findings: Findings) -> Check:
    classes = len(np.unique(findings.task.labels[findings.result.query_rows]))
    bounds = findings.result.intervals.get(findings.headline)
    name = "Enough classes"
    if bounds is None:
        return Check("doubtful", name, f"{classes:,}", "With a single class nobody can tell how another would fare.")
    width = f"± {50 * (bounds[1] - bounds[0]):.1f} points"
    if classes < _FEW_CLASSES:
        return Check(
            "doubtful", name, width, f"The interval stands on {classes} classes; {_FEW_CLASSES} are a minimum."
        )
    return Check("good", name, width, f"Half the 95 % interval, from drawing the {classes:,} classes anew.")


def _unseen(class_disjoint: bool | None) -> Check:
    name = "Classes unseen in training"
    if class_disjoint is None:
        return Check("doubtful", name, "unknown", "The vectors do not say what their model was trained on.")
    if class_disjoint:
        return Check("good", name, "yes", "No class of the test split was trained on.")
    return Check(
        *("doubtful", name, "no"),
        "Test classes were also trained on (with other images), so this does not measure unseen classes.",
    )


def _left_out(findings: Findings) -> Check:
    result = findings.result
    share = result.excluded / (result.excluded + result.queries)
    return Check(
        "doubtful" if share > _MANY_LEFT_OUT else "good",
        "Queries with something to find",
        percent(1 - share),
        f"{result.excluded:,} queries are left out because nothing of their class can be found."
        if result.excluded
        else "Every query has at least one image of its class to find.",
    )


def _ties(findings: Findings) -> Check:
    collapse = findings.result.collapse
    many = collapse.tie_share > _MANY_TIES or collapse.duplicates > _MANY_DUPLICATES
    return Check(
        "doubtful" if many else "good",
        "Free of ties and duplicates",
        f"{percent(collapse.tie_share)} tied",
        f"{percent(collapse.duplicates)} of the embeddings equal another one exactly. Ties count as expected.",
    )


def _precision(findings: Findings) -> Check:
    gap = findings.result.collapse.precision_gap
    return Check(
        "doubtful" if gap > _PRECISION else "good",
        "Precise enough",
        f"{100 * gap:.2f} points",
        "How far recall@1 of unit vectors moves if a plain float32 inner product decides."
        + (" The figures here are exact; other tools may show others." if gap > _PRECISION else ""),
    )


def _suspects(findings: Findings) -> Check:
    looked_at = max(1, len(findings.listed))
    share = findings.all_suspects / looked_at
    return Check(
        "doubtful" if share > _MANY_SUSPECTS else "good",
        "Labels that neighbours support",
        percent(1 - share),
        f"{findings.all_suspects:,} of {looked_at:,} images have neighbours most of which are of one other class: the "
        "label is wrong, or the model is.",
    )


def health(findings: Findings) -> list[Sign]:
    """The figures behind the checks, of the vectors."""
    collapse, clustering = findings.result.collapse, findings.clustering
    signs = [
        Sign(
            "Effective rank",
            f"{collapse.effective_rank:.1f} of {findings.result.dimensions}",
            "How many directions the embeddings use. Near 1 they lie on a line and say almost nothing.",
        ),
        Sign(
            "Spread",
            f"{collapse.spread:.2f}",
            "How far the embeddings, at unit length, spread around their mean: near 1 is wide, 0 is a single point.",
        ),
        Sign(
            "Mean cosine of two images",
            f"{collapse.mean_cosine:.2f}",
            "Of random pairs. Near 0 they point everywhere; near 1 all point one way.",
        ),
        Sign(
            "Ties at rank 1",
            percent(collapse.tie_share),
            "Queries whose nearest distance is shared by several images: duplicates in the data, or a collapse.",
        ),
        Sign(
            "Exact duplicates",
            percent(collapse.duplicates),
            "Embeddings that equal another one to the last bit: most often one image twice.",
        ),
        Sign(
            "Precision gap",
            f"{100 * collapse.precision_gap:.2f} points",
            "Difference of recall@1 between exact distances and a float32 inner product, both of unit vectors.",
        ),
    ]
    if clustering.nmi is not None and clustering.ami is not None:
        drawn = "" if clustering.clusters == clustering.all_classes else f", {clustering.clusters:,} classes drawn"
        signs.append(
            Sign(
                "Clusters and classes: AMI",
                percent(clustering.ami),
                f"Agreement of k-means with the classes, adjusted for chance{drawn}; NMI, which chance helps, is "
                f"{percent(clustering.nmi)}.",
            )
        )
    return signs
