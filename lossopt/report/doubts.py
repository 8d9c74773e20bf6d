"""Contact sheets of images to look at again: labels that the neighbours doubt, and images that are there twice."""

from typing import NamedTuple

from lossopt.report.findings import Findings
from lossopt.report.galleries import Album, Shown
from lossopt.report.page import distance_text
from lossopt.report.record import without_paths

_SHOWN = 24


class Suspect(NamedTuple):
    """An image whose neighbours agree on another class, and images of that class; score: of the doubt, at most 1."""

    image: Shown
    examples: list[Shown]
    given: str
    suggested: str
    score: str


class Twin(NamedTuple):
    """Two images that are all but one."""

    first: Shown
    second: Shown
    words: str


class Doubts(NamedTuple):
    """What is shown, and words on how many there are."""

    labels_words: str
    labels: list[Suspect]
    twins_words: str
    twins: list[Twin]


def doubts_view(findings: Findings, album: Album) -> Doubts:
    """The surest doubts of labels, and the closest pairs."""
    names, looked_at = findings.vectors.class_names, len(findings.listed)
    suspects, twins = findings.suspects[:_SHOWN], findings.duplicates
    labels = [
        Suspect(
            album.shown(doubt.row),
            [album.shown(row, False) for row in doubt.examples[:2]],
            without_paths(names[doubt.label]),
            without_paths(names[doubt.rival]),
            f"{doubt.score:.2f}",
        )
        for doubt in suspects
    ]
    pairs = [
        Twin(
            album.shown(twin.first),
            album.shown(twin.second),
            ("equal" if twin.exact else f"distance {distance_text(twin.distance)}")
            + (", one class" if twin.same_class else ", two classes"),
        )
        for twin in twins.pairs[:_SHOWN]
    ]
    shown = "it is shown" if len(labels) == 1 else f"the {len(labels)} surest are shown"
    closest = "it is shown" if len(pairs) == 1 else f"the {len(pairs)} closest are shown"
    return Doubts(
        f"{findings.all_suspects:,} of {looked_at:,} images have neighbours most of which are of one other class"
        + (f"; {shown}, each with two such neighbours" if labels else "")
        + ". Either the label is wrong or the model is: look. Score: the other class's share of the neighbours, less "
        "the own class's.",
        labels,
        f"Pairs at distance 0: {twins.exact:,}. Others closer than {distance_text(twins.threshold)}, a quarter of what "
        f"is usual between nearest neighbours: {twins.close:,}"
        + (f"; {closest}." if pairs else ".")
        + " One image in two classes is a wrong label; one image in two splits is a leak.",
        pairs,
    )
