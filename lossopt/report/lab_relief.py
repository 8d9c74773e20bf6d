"""Surfaces of two weights seen from above: bands between level lines, and the ways that optimisers take over them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np
from contourpy import FillType, LineType, contour_generator

from lossopt.lab.pieces import Descent, Paths, Surface
from lossopt.report.lab_curves import reach, scaled, slider_of
from lossopt.report.lab_drawing import Axes, Frame, Handle, Moving, Plot, Script, dotted, handle, number, plot, trace

_LEVELS = 11
_SIDE = 300.0  # of a small picture
_RACE = (64.0, 700.0, 24.0, 300.0)
_LOSSES = (58.0, 730.0, 24.0, 270.0)
_LOWEST = 1e-8  # of a height that is drawn on a logarithmic axis
_Filled = tuple[list[np.ndarray], list[np.ndarray]]  # points of areas, and where their rings begin
_MANY = 400  # points of a way
_STOPS = 160  # places of the slider that goes through the examples


@dataclass(frozen=True)
class Relief:
    """A surface as bands: one path per level, of all that is above it, so that the bands darken upwards.

    id: how the page refers to it. bands: path data, lowest first.
    """

    id: str
    frame: Frame
    bands: list[str]


@dataclass(frozen=True)
class Trail:
    """A way over a relief as it stands at first, drawn whole.

    key: its place in the script's data. line: path data; dots: a point per step; head: where it ends, None before its
    first point. said: what stands above it. many: points too many to be told apart.
    """

    key: str
    kind: str
    name: str
    line: str
    dots: str
    head: tuple[float, float] | None
    said: str
    many: bool


@dataclass(frozen=True)
class Panel:
    """An optimiser on a surface, with its sliders."""

    paths: Paths
    trail: Trail
    rate: Handle
    momentum: Handle | None


@dataclass(frozen=True)
class Ground:
    """A surface with every optimiser on it, and how low each is after each step. steps: the slider through them."""

    surface: Surface
    relief: Relief
    start: tuple[float, float]
    minimum: tuple[float, float] | None
    panels: list[Panel]
    race: Plot
    steps: Handle


@dataclass(frozen=True)
class DescentFigure:
    """Ways over one relief, and the loss of each over the examples looked at. hand: the slider through them."""

    descent: Descent
    relief: Relief
    start: tuple[float, float]
    minimum: tuple[float, float] | None
    trails: list[Trail]
    losses: Plot
    hand: Handle


class Level(NamedTuple):
    """A level line. d: path data. words: its height, at (x, y) of the picture, None where there is no room for it."""

    d: str
    words: str
    place: tuple[float, float] | None


def relief_of(id: str, surface: Surface, side: float = _SIDE) -> Relief:
    """A surface in a square picture."""
    frame = Frame(0.0, side, 0.0, side, _outer(surface.x), _outer(surface.y))
    return Relief(id, frame, bands(frame, surface.x, surface.y, surface.height, levels_of(surface.height)))


def levels_of(height: np.ndarray, count: int = _LEVELS) -> list[float]:
    """Heights of level lines: in equal ratios above a lowest point inside, in equal steps where there is none."""
    finite = height[np.isfinite(height)]
    if not finite.size or finite.min() == finite.max():
        return []
    rim = np.concatenate([height[0], height[-1], height[:, 0], height[:, -1]])
    low, high = np.percentile(finite, [2, 98]).tolist()
    if finite.min() < np.nanmin(rim):
        above = max(low - float(finite.min()), (high - float(finite.min())) * 1e-3)
        spaced = np.geomspace(above, high - float(finite.min()), count) + float(finite.min())
    else:
        spaced = np.linspace(low, high, count)
    levels: list[float] = spaced.tolist()
    return levels


def bands(frame: Frame, x: np.ndarray, y: np.ndarray, height: np.ndarray, levels: Sequence[float]) -> list[str]:
    """Path data of all that is above each level, to be filled by the even-odd rule."""
    contours = contour_generator(x, y, np.ma.masked_invalid(height), fill_type=FillType.OuterOffset)
    drawn = []
    for level in levels:
        points, offsets = cast(_Filled, contours.filled(level, np.inf))
        rings = [
            trace(frame.across(one[a:b, 0]), frame.down(one[a:b, 1])) + "Z"
            for one, cuts in zip(points, offsets, strict=True)
            for a, b in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True)
        ]
        drawn.append("".join(rings))
    return drawn


def level_lines(
    frame: Frame, x: np.ndarray, y: np.ndarray, height: np.ndarray, levels: Sequence[float], towards: float
) -> list[Level]:
    """Level lines, each with its height where it lies in one direction from the middle. towards: in radians."""
    contours = contour_generator(x, y, np.ma.masked_invalid(height), line_type=LineType.Separate)
    middle = np.array([(frame.left + frame.right) / 2, (frame.top + frame.bottom) / 2])
    taken: list[tuple[float, float]] = []
    found = []
    for level in levels:
        lines = [
            np.column_stack([frame.across(one[:, 0]), frame.down(one[:, 1])])
            for one in cast(list[np.ndarray], contours.lines(level))
        ]
        d = "".join(trace(one[:, 0], one[:, 1]) for one in lines)
        place = None
        if lines:
            points = np.concatenate(lines)
            aside = points - middle
            angle = np.arctan2(-aside[:, 1], aside[:, 0]) - towards
            best = points[int(np.argmax(np.cos(angle)))].tolist()
            inside = frame.left + 20 < best[0] < frame.right - 20 and frame.top + 10 < best[1] < frame.bottom - 10
            if inside and all(math.dist(best, other) > 26 for other in taken):
                place = (round(best[0], 1), round(best[1], 1))
                taken.append(place)
        found.append(Level(d, number(level), place))
    return found


def grounds_of(script: Script, surfaces: Sequence[Surface], paths: Sequence[Paths]) -> list[Ground]:
    """Every surface on which an optimiser walks."""
    walked = [(surface, [one for one in paths if one.surface == surface.name]) for surface in surfaces]
    return [_ground(script, place, surface, some) for place, (surface, some) in enumerate(walked) if some]


def _ground(script: Script, place: int, surface: Surface, paths: Sequence[Paths]) -> Ground:
    relief = relief_of(f"relief-{place}", surface)
    count = max(one.points.shape[2] for one in paths)
    steps = handle(script, f"steps {surface.name}", "step", [str(step) for step in range(count)], count - 1)
    log = surface.minimum is not None and bool(np.nanmin(surface.height) >= 0)
    panels = [_panel(script, relief.frame, one, f"k{place}", steps, log) for place, one in enumerate(paths)]
    return Ground(
        surface=surface,
        relief=relief,
        start=_spot(relief.frame, surface.start),
        minimum=None if surface.minimum is None else _spot(relief.frame, surface.minimum),
        panels=panels,
        race=_race(script, surface, paths, steps, log),
        steps=steps,
    )


def _panel(script: Script, frame: Frame, paths: Paths, kind: str, steps: Handle, log: bool) -> Panel:
    key = f"{paths.surface} {paths.optimizer}"
    rate = slider_of(script, f"{key} rate", paths.rate)
    momentum = slider_of(script, f"{key} momentum", paths.momentum) if paths.momentum else None
    start = (paths.rate.start, paths.momentum.start if paths.momentum else 0)
    heights = drawn_heights(paths.height, log)
    said = said_of(heights[start], steps.start, log)
    sliders = [rate.key, momentum.key if momentum else None]
    trail = _trail(script, key, kind, paths.optimizer, frame, paths.points, start, sliders, steps.key, said)
    heard = {"heights": script.keep(f"{key} heights", heights), "log": log, "floor": math.log10(_LOWEST)}
    script.drawings[key]["said"] = heard
    return Panel(paths, trail, rate, momentum)


def _trail(
    script: Script,
    key: str,
    kind: str,
    name: str,
    frame: Frame,
    points: np.ndarray,
    start: tuple[int, ...],
    sliders: Sequence[str | None],
    until: str,
    said: str = "",
) -> Trail:
    """A way over a relief. points: (one length per slider, ..., s, 2). until: the slider through its steps."""
    x, y = (np.asarray(points[..., axis], dtype=np.float64) for axis in (0, 1))
    script.drawings[key] = {
        "kind": "trail",
        "frame": frame.as_json(),
        "x": script.keep(f"{key} x", x),
        "y": script.keep(f"{key} y", y),
        "sliders": list(sliders),
        "until": until,
    }
    across, down = frame.across(x[start]), frame.down(y[start])
    there = np.flatnonzero(np.isfinite(across) & np.isfinite(down))
    head = (round(float(across[there[-1]]), 1), round(float(down[there[-1]]), 1)) if there.size else None
    return Trail(key, kind, name, trace(across, down), dotted(across, down), head, said, len(across) > _MANY)


def drawn_heights(heights: np.ndarray, log: bool) -> np.ndarray:
    """log10 where the axis is logarithmic, with a floor, so that a path at the bottom is drawn along the axis."""
    heights = np.asarray(heights, dtype=np.float64)
    return scaled(np.where(heights < _LOWEST, _LOWEST, heights), True) if log else heights


def said_of(heights: np.ndarray, step: int, log: bool) -> str:
    """How low a path is after a step; the script says the same."""
    there = np.flatnonzero(np.isfinite(heights))
    if not there.size:
        return "nowhere"
    if step > there[-1]:
        return f"left the map at step {there[-1]}"
    height = float(heights[step])
    if log and height <= math.log10(_LOWEST):
        return "at the bottom"
    return f"height {number(10**height if log else height)}"


def _race(script: Script, surface: Surface, paths: Sequence[Paths], steps: Handle, log: bool) -> Plot:
    """The height of every path over its steps."""
    key = f"race {surface.name}"
    lines = []
    for place, one in enumerate(paths):
        heights = drawn_heights(one.height, log)
        name = f"{one.surface} {one.optimizer}"
        sliders = [f"{name} rate", f"{name} momentum" if one.momentum else None]
        start = [one.rate.start, one.momentum.start if one.momentum else 0]
        lines.append(Moving(one.optimizer, f"k{place}", heights, sliders, start, one.optimizer, f"{name} heights"))
    if log:
        first = [float(line.shown[0]) for line in lines if np.isfinite(line.shown[0])]
        bounds = (math.log10(_LOWEST), max(first, default=0.0) + 0.5)
    else:
        bounds = (float(np.nanmin(surface.height)), float(np.nanmax(surface.height)))
    axes = Axes((0.0, float(steps.start)), bounds, "steps", "height", (False, log), (8, 5))
    x = np.arange(len(steps.texts), dtype=np.float64)
    described = f"Height of each optimiser on the {surface.name} over {steps.start} steps"
    return plot(script, key, _RACE, axes, x, lines, hand=(steps.key, steps.start), described=described)


def descent_of(script: Script, descent: Descent) -> DescentFigure:
    """Batch against stochastic descent: the same examples, looked at in different portions."""
    relief = relief_of("relief-descent", descent.surface)
    most = max(int(seen[-1]) for seen in descent.seen.values())
    stops = np.linspace(0, most, _STOPS + 1).round().astype(np.int64)
    hand = handle(script, "descent seen", "examples looked at", [f"{stop:,}" for stop in stops.tolist()], _STOPS)
    trails, lines = [], []
    for place, (way, points) in enumerate(descent.paths.items()):
        done = np.searchsorted(descent.seen[way], stops, side="right") - 1
        key = f"descent {way}"
        trails.append(_trail(script, key, f"k{place}", way, relief.frame, points, (), (), hand.key))
        script.drawings[key]["steps"] = done.tolist()
        # before its first step a way has no loss; after its last it stands where it is
        losses = np.where(done < 0, np.nan, np.asarray(descent.losses[way])[done])
        lines.append(Moving(way, f"k{place}", losses, (), (), way.partition(",")[0]))
    bounds = reach(np.concatenate([line.values for line in lines]), zero=False)
    axes = Axes((0.0, float(most)), bounds, "examples looked at", "loss of all examples", about=(8, 5))
    described = f"Loss over the examples looked at: {', '.join(descent.paths)}"
    return DescentFigure(
        descent=descent,
        relief=relief,
        start=_spot(relief.frame, descent.surface.start),
        minimum=None if descent.surface.minimum is None else _spot(relief.frame, descent.surface.minimum),
        trails=trails,
        losses=plot(
            *(script, "descent losses", _LOSSES, axes, stops.astype(np.float64), lines),
            hand=(hand.key, _STOPS),
            described=described,
        ),
        hand=hand,
    )


def _spot(frame: Frame, point: tuple[float, float]) -> tuple[float, float]:
    return round(float(frame.across(point[0])), 1), round(float(frame.down(point[1])), 1)


def _outer(axis: np.ndarray) -> tuple[float, float]:
    return float(axis[0]), float(axis[-1])
