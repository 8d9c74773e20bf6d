"""Data as drawings: where a number stands in an SVG, and arrays as 16-bit numbers for the page's script."""

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from lossopt.report.chart import Tick, round_numbers

_MOST, _GAP = 32_767, -32_768  # a number is a step from -_MOST to _MOST; no number is _GAP
_FAR = 4_000.0  # SVG units; what lies farther out is drawn there, well outside of any picture
_LABEL_HEIGHT = 14.0
_FEW = 12  # points of a line that are drawn as dots, too
_GHOSTS = 5


class Frame(NamedTuple):
    """A plot's place and axes. left, right, top, bottom: in SVG units. x, y: what stands at its ends (log10 if log)."""

    left: float
    right: float
    top: float
    bottom: float
    x: tuple[float, float]
    y: tuple[float, float]

    def across(self, x: np.ndarray | float) -> np.ndarray:
        """Where x stands; the script does the same."""
        return self.left + (np.asarray(x, dtype=np.float64) - self.x[0]) / (self.x[1] - self.x[0]) * self.width

    def down(self, y: np.ndarray | float) -> np.ndarray:
        """Where y stands; the script does the same."""
        return self.bottom - (np.asarray(y, dtype=np.float64) - self.y[0]) / (self.y[1] - self.y[0]) * self.height

    @property
    def width(self) -> float:
        """Of the plot."""
        return self.right - self.left

    @property
    def height(self) -> float:
        """Of the plot."""
        return self.bottom - self.top

    @property
    def clip(self) -> str:
        """The name of the page's clip path that holds lines inside."""
        return "clip-" + "-".join(f"{end:g}" for end in self[:4])

    def as_json(self) -> list[float]:
        """For the script."""
        return [self.left, self.right, self.top, self.bottom, *self.x, *self.y]


def pack(values: np.ndarray, bounds: tuple[float, float] | None = None) -> dict[str, Any]:
    """An array as text: each number one of 65,535 steps between `low` and `high`.

    Args:
        values: any shape; what is NaN or infinite stays a gap.
        bounds: (low, high); what lies outside is moved there. None: the least and the greatest finite value.

    Returns:
        {"low", "high", "shape", "data"}; data: base64 of little-endian int16, -32,768 for a gap.
    """
    values = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(values)
    low, high = bounds if bounds else ends(values)
    steps = (np.clip(np.where(finite, values, low), low, high) - low) / (high - low) * 2 * _MOST - _MOST
    whole = np.where(finite, np.rint(steps), _GAP).astype("<i2")
    data = base64.b64encode(whole.tobytes()).decode("ascii")
    return {"low": low, "high": high, "shape": list(values.shape), "data": data}


def ends(values: np.ndarray) -> tuple[float, float]:
    """The least and the greatest finite value, apart even where all are equal or none is finite."""
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    return (low, high) if high > low else (low, low + max(1.0, abs(low)))


def trace(across: np.ndarray, down: np.ndarray) -> str:
    """SVG path data through (n,) points, in tenths of a unit; a gap wherever one is not finite."""
    parts: list[str] = []
    last: tuple[int, int] | None = None
    for place in _tenths(across, down):
        if place is None:
            last = None
            continue
        # steps from the point before are shorter to write than places, and being whole tenths they do not add up errors
        parts.append(f"M{_text(*place)}l" if last is None else _text(place[0] - last[0], place[1] - last[1]))
        last = place
    return " ".join(parts).replace("l M", "M").removesuffix("l")


def dotted(across: np.ndarray, down: np.ndarray) -> str:
    """Path data of a dot at each of (n,) points: strokes of no length, round at their ends."""
    return "".join(f"M{_text(*place)}h0" for place in _tenths(across, down) if place is not None)


def _tenths(across: np.ndarray, down: np.ndarray) -> list[tuple[int, int] | None]:
    """Points in tenths of a unit; what lies too far outside is moved towards the picture."""
    both = np.column_stack([across, down])
    there = np.isfinite(both).all(axis=1)
    places = np.rint(10 * np.clip(np.where(there[:, None], both, 0.0), -_FAR, _FAR)).astype(np.int64)
    return [(x, y) if is_there else None for (x, y), is_there in zip(places.tolist(), there.tolist(), strict=True)]


def _text(x: int, y: int) -> str:
    return f"{x / 10:g} {y / 10:g}"


def number(value: float, digits: int = 3) -> str:
    """A number as people write it: 3 digits, a true minus sign, no exponent where it would not help."""
    if not math.isfinite(value):
        return "–"
    rounded = float(f"{value:.{digits}g}")
    if rounded == 0:
        return "0"
    if 1e-4 <= abs(rounded) < 1e6:
        text = f"{rounded:,.{max(0, digits - 1 - math.floor(math.log10(abs(rounded))))}f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
    else:
        mantissa, exponent = f"{rounded:.{digits - 1}e}".split("e")
        text = f"{float(mantissa):g} × 10{_raised(int(exponent))}"
    return text.replace("-", "\N{MINUS SIGN}")


def _raised(exponent: int) -> str:
    return str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def decade(power: float) -> str:
    """10 to a whole power, as an axis says it."""
    whole = round(power)
    return f"{10.0**whole:,.10g}" if -3 <= whole <= 4 else f"10{_raised(whole)}"


def ticks_of(bounds: tuple[float, float], log: bool = False, about: int = 4) -> list[tuple[float, str]]:
    """(place, words) along an axis, enclosing `bounds`; in log10 where the axis is logarithmic."""
    if not log:
        return [(value, f"{value:,.10g}".replace("-", "\N{MINUS SIGN}")) for value in round_numbers(*bounds, about)]
    low, high = math.floor(bounds[0] + 1e-9), math.ceil(bounds[1] - 1e-9)
    step = max(1, math.ceil((high - low) / (about + 1)))
    first = math.floor(low / step) * step
    return [(float(power), decade(power)) for power in range(first, high + step, step) if power - step < high]


@dataclass(frozen=True)
class PlotLine:
    """A line of a plot.

    kind: its class in the style sheet. d: path data. label, label_y: beside its end, if it has one. dots: path data of
    its points, where these are few and stay. ghosts: path data of other places of its sliders.
    """

    name: str
    kind: str
    d: str
    dots: str
    ghosts: list[str]
    label: str = ""
    label_y: float = 0.0


@dataclass(frozen=True)
class Plot:
    """What the template draws. key: its place in the script's data. hand: where the upright hand stands, if it has one.

    x_words: lines of words under the axis. side: on which side of the plot the lines are labelled.
    """

    key: str
    frame: Frame
    lines: list[PlotLine]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    x_words: list[str]
    y_label: str
    described: str
    side: str = "right"
    hand: float | None = None
    origin: tuple[float | None, float | None] = (None, None)


class Moving(NamedTuple):
    """A line that sliders move. values: (one length per slider, ..., n) of the plot's own scale (log10 if log).

    sliders: key of each leading axis, None where it has one place only. start: the place of each. array: the key of
    its values, where several drawings share them; "": the plot's own.
    """

    name: str
    kind: str
    values: np.ndarray
    sliders: Sequence[str | None]
    start: Sequence[int]
    label: str = ""
    array: str = ""

    @property
    def shown(self) -> np.ndarray:
        """(n,) where its sliders stand at first."""
        row: np.ndarray = self.values[tuple(self.start)]
        return row


@dataclass
class Script:
    """What the page's script reads: arrays, sliders and what they move, each by its key. frames: that hold lines."""

    arrays: dict[str, dict[str, Any]] = field(default_factory=dict)
    sliders: dict[str, list[str]] = field(default_factory=dict)
    drawings: dict[str, dict[str, Any]] = field(default_factory=dict)
    frames: dict[str, Frame] = field(default_factory=dict)

    def keep(self, key: str, values: np.ndarray, bounds: tuple[float, float] | None = None) -> str:
        """Packs an array under a key, once."""
        if key not in self.arrays:
            self.arrays[key] = pack(values, bounds)
        return key

    def as_json(self) -> dict[str, Any]:
        """For the page."""
        return {"arrays": self.arrays, "sliders": self.sliders, "drawings": self.drawings}


class Axes(NamedTuple):
    """Words, scales and ticks of both axes. x, y: what a plot must show (log10 if log); y is enlarged to its ticks."""

    x: tuple[float, float]
    y: tuple[float, float]
    x_label: str
    y_label: str = ""
    log: tuple[bool, bool] = (False, False)
    about: tuple[int, int] = (5, 4)


def plot(
    script: Script,
    key: str,
    place: tuple[float, float, float, float],
    axes: Axes,
    x: np.ndarray,
    lines: Sequence[Moving],
    side: str = "right",
    hand: tuple[str, int] | None = None,
    described: str = "",
    ghosts: bool = True,
) -> Plot:
    """A plot as it stands at first, and what the script needs to move it.

    Args:
        script: where its data go.
        key: of the plot; the arrays of its lines are kept under their own names in it.
        place: (left, right, top, bottom) in SVG units.
        axes: words and ends.
        x: (n,) of all lines, in the scale of the axis.
        lines: each with values over x.
        side: "left" or "right": where the labels of lines stand.
        hand: (key of its slider, its place in x) of an upright line that moves along x.
        described: in words, for those who do not see it.
        ghosts: whether other places of a line's slider are drawn faintly.
    """
    y_ticks = ticks_of(axes.y, axes.log[1], axes.about[1])
    frame = Frame(*place, axes.x, (y_ticks[0][0], y_ticks[-1][0]))
    script.frames[frame.clip] = frame
    across = frame.across(x)
    heights = [_end_height(frame, line.shown, side) for line in lines]
    spread = spread_out([one for one, line in zip(heights, lines, strict=True) if line.label], frame)
    places = iter(spread)
    drawn = [_drawn(frame, across, line, next(places) if line.label else 0.0, ghosts) for line in lines]
    script.drawings[key] = {
        "kind": "plot",
        "frame": frame.as_json(),
        "x": script.keep(f"{key} x", x),
        "lines": [_line_json(script, line.array or f"{key} {line.name}", line, frame) for line in lines],
        "side": side,
        "hand": hand[0] if hand else None,
        "log": axes.log,
    }
    shown = [tick for tick in ticks_of(axes.x, axes.log[0], axes.about[0]) if axes.x[0] <= tick[0] <= axes.x[1]]
    origin = (
        round(float(frame.across(0.0)), 1) if axes.x[0] < 0 < axes.x[1] and not axes.log[0] else None,
        round(float(frame.down(0.0)), 1) if frame.y[0] <= 0 <= frame.y[1] and not axes.log[1] else None,
    )
    return Plot(
        key=key,
        frame=frame,
        lines=drawn,
        x_ticks=[Tick(round(float(frame.across(at)), 1), words) for at, words in shown],
        y_ticks=[Tick(round(float(frame.down(at)), 1), words) for at, words in y_ticks],
        x_words=axes.x_label.split("; ") if len(axes.x_label) > 0.17 * frame.width else [axes.x_label],
        y_label=axes.y_label,
        described=described,
        side=side,
        hand=round(float(across[hand[1]]), 1) if hand else None,
        origin=origin,
    )


def _drawn(frame: Frame, across: np.ndarray, line: Moving, label_y: float, ghosts: bool) -> PlotLine:
    still = not any(line.sliders)
    return PlotLine(
        name=line.name,
        kind=line.kind,
        d=trace(across, frame.down(line.shown)),
        dots=dotted(across, frame.down(line.shown)) if still and len(across) <= _FEW else "",
        ghosts=[trace(across, frame.down(line.values[at])) for at in _others(line) if ghosts],
        label=line.label,
        label_y=label_y,
    )


def _others(line: Moving) -> list[int]:
    """Some places of a line's only slider, from end to end, so that a page on paper shows what it does."""
    if len(line.sliders) != 1 or not line.sliders[0]:
        return []
    places = np.linspace(0, len(line.values) - 1, min(_GHOSTS, len(line.values)))
    return sorted({round(place) for place in places.tolist()} - set(line.start))


def _line_json(script: Script, key: str, line: Moving, frame: Frame) -> dict[str, Any]:
    """Numbers far outside of the picture are moved towards it, so that 16 bits are enough for those inside."""
    low, high = ends(line.values)
    reach = 8 * (frame.y[1] - frame.y[0])
    bounds = (max(low, frame.y[0] - reach), min(high, frame.y[1] + reach))
    bounds = bounds if bounds[1] > bounds[0] else frame.y
    return {"y": script.keep(key, line.values, bounds), "sliders": list(line.sliders), "label": bool(line.label)}


def _end_height(frame: Frame, values: np.ndarray, side: str) -> float:
    """Where a line is labelled: beside the outermost of its numbers."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return frame.bottom
    return float(frame.down(finite[-1 if side == "right" else 0]))


def spread_out(wanted: Sequence[float], frame: Frame) -> list[float]:
    """Heights of labels near the wanted ones, in their order, inside the frame, 14 units apart; so does the script."""
    order = sorted(range(len(wanted)), key=lambda at: round(wanted[at]))  # packed numbers must not part what is equal
    placed = [0.0] * len(wanted)
    above = frame.top - _LABEL_HEIGHT
    for at in order:
        placed[at] = above = max(min(wanted[at], frame.bottom), above + _LABEL_HEIGHT)
    below = frame.bottom + _LABEL_HEIGHT
    for at in reversed(order):
        placed[at] = below = min(placed[at], below - _LABEL_HEIGHT)
    return [round(value, 1) for value in placed]


class Handle(NamedTuple):
    """A slider of the page. key: its place in the script's data. texts: what stands beside it, place by place."""

    key: str
    name: str
    texts: list[str]
    start: int


def handle(script: Script, key: str, name: str, texts: Sequence[str], start: int) -> Handle:
    """A slider, known to the script."""
    script.sliders[key] = list(texts)
    return Handle(key, name, list(texts), start)
