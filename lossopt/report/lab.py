"""The lab page: losses, activations, optimisers and trained networks, each drawn for every place of its sliders."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup, escape

from lossopt.lab.pieces import Activity, Curve, Descent, Family, Landscape, Lines, Paths, Surface, TripletStep
from lossopt.report.lab_curves import Card, Comparison, LinesFigure, card_of, comparisons_of, lines_of
from lossopt.report.lab_drawing import Frame, Script, number
from lossopt.report.lab_networks import (
    ActivityTable,
    LandscapeFigure,
    StepFigure,
    activity_of,
    landscape_of,
    step_of,
)
from lossopt.report.lab_relief import DescentFigure, Ground, descent_of, grounds_of
from lossopt.report.page import render, write_page

_LOWERED = re.compile(r"(\)|(?<![A-Za-z0-9])[A-Za-zΣ])_(\([^()]*\)|[A-Za-z0-9](?![A-Za-z0-9]))")
_RAISED = re.compile(r"\^(\((?:[^()]|\([^()]*\))*\)|⌊[^⌋]*⌋|\w+)")


class FamilyWords(NamedTuple):
    """A family's place on the page. anchor: of its section."""

    family: Family
    anchor: str
    title: str
    says: str


FAMILIES = (
    FamilyWords(
        *("regression", "regression", "Losses for numbers"),
        "Value above, gradient below. The gradient is the pull on the weights: a loss whose gradient grows with the "
        "error lets a few wrong targets pull hardest; one whose gradient is bounded does not.",
    ),
    FamilyWords(
        *("classification", "classification", "Losses for classes"),
        "Where the gradient is 0, an example teaches nothing; where it grows, mistakes teach most.",
    ),
    FamilyWords(
        *("embedding", "embedding", "Losses for distances"),
        "Images of a class are pulled together, others pushed apart, but mostly only up to a margin.",
    ),
    FamilyWords(
        *("activation", "activations", "Activations"),
        "A gradient near 0 passes nothing on to the layers below: saturated at the ends of an S, dead where a "
        "line is flat.",
    ),
)


@dataclass(frozen=True)
class Lab:
    """What the page shows; see `lossopt.lab.pieces`. None or nothing leaves a part out."""

    curves: Sequence[Curve] = ()
    surfaces: Sequence[Surface] = ()
    paths: Sequence[Paths] = ()
    descent: Descent | None = None
    lines: Sequence[Lines] = ()
    triplet: TripletStep | None = None
    activity: Sequence[Activity] = ()
    landscape: Landscape | None = None


class FamilyFigures(NamedTuple):
    """A section of curves."""

    words: FamilyWords
    comparisons: list[Comparison]
    cards: list[Card]


@dataclass(frozen=True)
class Page:
    """Everything that the template shows, worked out. data: for the script."""

    contents: Sequence[tuple[str, str]]
    families: list[FamilyFigures]
    grounds: list[Ground]
    descent: DescentFigure | None
    lines: list[LinesFigure]
    triplet: StepFigure | None
    activity: list[ActivityTable]
    landscape: LandscapeFigure | None
    clips: list[Frame]
    data: dict[str, Any]


def write_lab_page(path: Path, lab: Lab) -> Path:
    """Writes the page; an earlier one there is replaced as a whole.

    Args:
        path: of the HTML file.
        lab: what it shows.

    Returns:
        `path`.

    Raises:
        LossoptError: it cannot be written.
    """
    filters: dict[str, Callable[..., str]] = {"number": number, "breakable": breakable}
    filters |= {"formula": formula, "scripted": scripted}
    return write_page(path, render("lab.html.j2", {"page": page_of(lab)}, filters, ("page.js", "lab.js")))


def formula(text: str) -> Markup:
    """A formula of plain text, escaped: scripts set high and low, true minus signs, a line for each of its parts."""
    return Markup(str(scripted(text.replace(" - ", " \N{MINUS SIGN} "))).replace(";  ", "<br>"))


def scripted(text: str) -> Markup:
    """Text, escaped, in which e^(x y), Σ_(j≠y) and s_j are set high and low; names such as weight_decay stay."""
    lowered = _LOWERED.sub(lambda found: f"{found[1]}<sub>{_bare(found[2])}</sub>", str(escape(text)))
    return Markup(_RAISED.sub(lambda found: f"<sup>{_bare(found[1])}</sup>", lowered))


def _bare(text: str) -> str:
    return text[1:-1] if text.startswith("(") else text


def breakable(dotted: str) -> str:
    """A dotted name that may go on in the next line after each dot."""
    return dotted.replace(".", ".\N{ZERO WIDTH SPACE}")


def page_of(lab: Lab) -> Page:
    """Everything that the page shows, before any HTML."""
    script = Script()
    families = [
        FamilyFigures(words, comparisons_of(script, lab.curves, words.family), [card_of(script, one) for one in some])
        for words in FAMILIES
        if (some := [one for one in lab.curves if one.family == words.family])
    ]
    grounds = grounds_of(script, lab.surfaces, lab.paths)
    descent = None if lab.descent is None else descent_of(script, lab.descent)
    lines = [lines_of(script, one) for one in lab.lines]
    triplet = None if lab.triplet is None else step_of(script, lab.triplet)
    landscape = None if lab.landscape is None else landscape_of(script, lab.landscape)
    contents = [
        *((one.words.anchor, one.words.title) for one in families),
        *([("paths", "Optimiser paths")] if grounds else []),
        *([("descent", "Batch or stochastic")] if descent else []),
        *([("lines", "Gradients and averages")] if lines else []),
        *([("triplet", "A step on triplets")] if triplet else []),
        *([("units", "Units at work")] if lab.activity else []),
        ("landscape", "Loss landscape"),
    ]
    return Page(
        contents=contents,
        families=families,
        grounds=grounds,
        descent=descent,
        lines=lines,
        triplet=triplet,
        activity=activity_of(lab.activity),
        landscape=landscape,
        clips=list(script.frames.values()),
        data=script.as_json(),
    )
