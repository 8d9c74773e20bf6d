"""What is made of the measurements of benchmark_mining.py: tables, targets, the figure; nothing is measured here."""

import itertools
import math
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any, NamedTuple

PEERS = ("pml", "oml", "st")
Found = dict[str, Any]  # one measurement: ms, mib, calls, loss, gradient; or failed
Results = dict[tuple[str, str, int, int], Found]  # by task ("" for the floor), engine, N, D


def figure_of(results: Results, task: str, engine: str, n: int, d: int, name: str) -> float | None:
    """One number of a measurement; None if it was not taken or failed."""
    return results.get(("" if engine == "gemm" else task, engine, n, d), {}).get(name)


def best_peer(results: Results, task: str, n: int, d: int) -> float | None:
    """The least time of a peer in ms; infinite if all that were tried failed, None if none was tried."""
    asked = [results[task, peer, n, d] for peer in PEERS if (task, peer, n, d) in results]
    tried = [found.get("ms", math.inf) for found in asked if found.get("failed") != "not tried"]
    return min(tried, default=None)


def difference(results: Results, task: str, n: int, d: int, peers: Sequence[str]) -> float | None:
    """Largest relative difference of loss and of gradient norm between lossopt and these peers."""
    apart = []
    for name in ("loss", "gradient"):
        ours = figure_of(results, task, "lossopt", n, d, name)
        for peer in peers:
            theirs = figure_of(results, task, peer, n, d, name)
            if ours is not None and theirs is not None:
                apart.append(abs(ours - theirs) / max(abs(ours), abs(theirs), 1e-30))
    return max(apart, default=None)


def table_head(task: str, words: str, d: int, engines: Sequence[str]) -> str:
    """Two lines above the rows of a task."""
    columns = "".join(f"{name:>18}" for name in engines)
    return f"\n{task}: {words}; D = {d}; ms / MiB\n{'N':>7}{columns}{'x best peer':>13}{'x floor':>9}{'difference':>12}"


def table_row(results: Results, task: str, n: int, d: int, engines: Sequence[str], same: Sequence[str]) -> str:
    """One N: every engine, how many times faster than the best peer, how many times the floor, and agreement."""
    cells = [_cell(results.get(("" if name == "gemm" else task, name, n, d), {})) for name in engines]
    ours = figure_of(results, task, "lossopt", n, d, "ms")
    floor, best = figure_of(results, task, "gemm", n, d, "ms"), best_peer(results, task, n, d)
    apart = difference(results, task, n, d, same)
    ratios = [
        "-" if not ours or best is None else "all fail" if math.isinf(best) else f"{best / ours:.1f}",
        "-" if not ours or not floor else f"{ours / floor:.1f}",
        "-" if apart is None else f"{apart:.0e}",
    ]
    return f"{n:>7,}{''.join(f'{cell:>18}' for cell in cells)}{ratios[0]:>13}{ratios[1]:>9}{ratios[2]:>12}"


def _cell(found: Found) -> str:
    if "ms" not in found:
        reason = str(found.get("failed", "-"))
        return "fails" if ":" in reason or len(reason) > 17 else reason
    ms = found["ms"]
    return f"{ms:,.{0 if ms >= 1000 else 1 if ms >= 10 else 2}f} / {found['mib']:,.0f}"


class Target(NamedTuple):
    """A bound, and the figure that is furthest from keeping it."""

    words: str
    reached: float
    bound: float
    at_least: bool

    @property
    def kept(self) -> bool:
        """Whether the worst figure is within the bound."""
        return self.reached >= self.bound if self.at_least else self.reached <= self.bound

    def __str__(self) -> str:
        ordered = "at least" if self.at_least else "at most"
        return f"{'pass ' if self.kept else 'SHORT'}  {self.words}: {self.reached:.3g} ({ordered} {self.bound:g})"


def targets(results: Results, against_one: Sequence[str]) -> Iterator[Target]:
    """What the measurements say about each target that they touch.

    Args:
        results: of any tasks, sizes and dimensions.
        against_one: tasks with targets against pytorch-metric-learning and the best peer.
    """
    for task, d in sorted({(task, d) for task, engine, _, d in results if engine == "lossopt"}):
        sizes = sorted(n for of, engine, n, of_d in results if (of, engine, of_d) == (task, "lossopt", d))
        ours = {n: figure_of(results, task, "lossopt", n, d, "ms") or math.inf for n in sizes}
        grown = {n: value for n in sizes if (value := figure_of(results, task, "lossopt", n, d, "mib")) is not None}
        floor = {n: value for n in sizes if (value := figure_of(results, task, "gemm", n, d, "ms"))}
        best = {n: value for n in sizes if (value := best_peer(results, task, n, d)) is not None}
        pml = {n: results[task, "pml", n, d].get("ms", math.inf) for n in sizes if (task, "pml", n, d) in results}
        where = f"{task}, D = {d}"
        if task in against_one:
            for n, bound in ((1024, 100), (8192, 40)):
                yield from _worst(f"{where}: times faster than pml", {n: pml[n] / ours[n]} if n in pml else {}, bound)
            yield from _worst(f"{where}: times faster than the best peer, N >= 512", _ratio(best, ours, 512), 5)
        yield from _worst(f"{where}: times faster than the best peer, N = 64", _ratio(best, ours, 64, 64), 1)
        yield from _worst(f"{where}: times the floor, N >= 2,048", _ratio(ours, floor, 2048), 4, at_least=False)
        for least, most, bound in ((0, 8192, 100), (16384, 16384, 200)):
            of = {n: value for n, value in grown.items() if least <= n <= most}
            yield from _worst(f"{where}: MiB of growth", of, bound, at_least=False)


def _ratio(one: dict[int, float], other: dict[int, float], least: int, most: int = 1 << 40) -> dict[int, float]:
    return {n: one[n] / other[n] for n in one if n in other and least <= n <= most}


def _worst(words: str, figures: dict[int, float], bound: float, at_least: bool = True) -> Iterator[Target]:
    if figures:
        n = (min if at_least else max)(figures, key=lambda n: figures[n])
        yield Target(f"{words} (worst at {n:,})", figures[n], bound, at_least)


# The figure: two panels, logarithmic both ways; each curve is named where it ends.

STYLE = """
svg { --page: #fbfbf9; --ink: #1b1d22; --quiet: #5d636e; --rule: #e3e4e0; font-family: system-ui, -apple-system,
  "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
svg { --lossopt: #2a5bd7; --pml: #c2500f; --oml: #a3338a; --st: #1a7f52; --gemm: #7d828c; }
@media (prefers-color-scheme: dark) {
  svg { --page: #14161a; --ink: #e9eaec; --quiet: #a0a6b1; --rule: #2c3038; }
  svg { --lossopt: #8fb0ff; --pml: #ff9560; --oml: #ee86d3; --st: #55cf95; --gemm: #8b919c; }
}
text { fill: var(--ink); font-size: 13px; } .quiet { fill: var(--quiet); font-size: 12px; }
.title { font-size: 16px; font-weight: 650; } .panel { font-weight: 600; }
.name { font-weight: 600; } .end { paint-order: stroke; stroke: var(--page); stroke-width: 4px; }
.rule { stroke: var(--rule); } path { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
""" + "".join(
    f"path.{name} {{ stroke: var(--{name}); }} circle.{name}, text.{name} {{ fill: var(--{name}); }}\n"
    for name in ("lossopt", "pml", "oml", "st", "gemm")
)
NAMES = {
    "lossopt": "lossopt",
    "pml": "pytorch-metric-learning",
    "oml": "open-metric-learning",
    "st": "sentence-transformers",
    "gemm": "floor",
}
WIDTH, HEIGHT, PLOT, LEFT, TOP, PANEL = 1000, 440, (240, 290), 66, 96, 498
TIME_TICKS: dict[float, str] = {
    0.1: "0.1 ms",
    1: "1 ms",
    10: "10 ms",
    100: "0.1 s",
    1000: "1 s",
    10_000: "10 s",
    100_000: "100 s",
}
MEMORY_TICKS: dict[float, str] = {1: "≤ 1 MiB", 10: "10 MiB", 100: "100 MiB", 1024: "1 GiB", 10_240: "10 GiB"}


class Curve(NamedTuple):
    """Points (N, value) of one engine, and what is said at their end; `failed`: a larger N was too much."""

    engine: str
    points: list[tuple[int, float]]
    said: str
    failed: bool


def figure(results: Results, d: int, task: str = "triplet") -> str:
    """An SVG of time and memory of a step over all triplets against N."""
    title = "One step over all triplets of a batch: loss and gradient"
    note = f"4 images per class, {d} numbers per image, one thread; a curve ends with × where the next size fails"
    head = f'<text class="title" x="20" y="32">{title}</text><text class="quiet" x="20" y="53">{note}</text>'
    time = _panel("Time", _curves(results, task, d, "ms", 0.01), TIME_TICKS, LEFT)
    with_memory = [curve for curve in _curves(results, task, d, "mib", 1.0) if curve.engine != "gemm"]
    memory = _panel("Memory, on top of the images' vectors", with_memory, MEMORY_TICKS, LEFT + PANEL)
    box = f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
    page = f'<rect width="{WIDTH}" height="{HEIGHT}" rx="8" style="fill: var(--page)"/>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {box}><title>{title}. {note}.</title><style>{STYLE}</style>{page}'
        f"{head}{time}{memory}</svg>\n"
    )


def _curves(results: Results, task: str, d: int, name: str, least: float) -> list[Curve]:
    curves = []
    for engine in NAMES:
        found = {n: one for (of, by, n, of_d), one in results.items() if (by, of_d) == (engine, d) and of in (task, "")}
        points = [(n, max(least, found[n][name])) for n in sorted(found) if name in found[n]]
        failed = [n for n in sorted(found) if name not in found[n]]
        if points:
            n, value = points[-1]
            said = f"{_in_words(value, name)} at {n:,}"
            if failed:
                reason = found[failed[0]]["failed"]
                said = f"{'fails' if ':' in reason else reason} at {failed[0]:,}"
            said = "its three matrix products" if engine == "gemm" else said
            curves.append(Curve(engine, points, said, bool(failed)))
    return curves


def _in_words(value: float, name: str) -> str:
    large, unit, small = (1000, "s", "ms") if name == "ms" else (1024, "GiB", "MiB")
    if value >= large:
        return f"{value / large:.2g} {unit}"
    return f"{value:.{0 if value >= 10 else 1}f} {small}"


def _panel(title: str, curves: list[Curve], ticks: dict[float, str], left: float) -> str:
    values = [value for curve in curves for _, value in curve.points]
    sizes = sorted({n for curve in curves for n, _ in curve.points})
    if not values:
        return ""
    low, high = math.log10(min(values)) - 0.1, math.log10(max(values)) + 0.8  # room for words above
    right, bottom = left + PLOT[0], TOP + PLOT[1]
    doublings = max(1.0, math.log2(sizes[-1] / sizes[0]))

    def along(n: int) -> float:
        return round(left + PLOT[0] * math.log2(n / sizes[0]) / doublings, 1)

    def up(value: float) -> float:
        return round(bottom - PLOT[1] * (math.log10(value) - low) / (high - low), 1)

    parts = [f'<text class="panel" x="{left}" y="{TOP - 8}">{title}</text>']
    for value, words in ticks.items():
        if low <= math.log10(value) <= high:
            parts.append(f'<line class="rule" x1="{left}" x2="{right}" y1="{up(value)}" y2="{up(value)}"/>')
            parts.append(f'<text class="quiet" x="{left - 8}" y="{up(value) + 4}" text-anchor="end">{words}</text>')
    for n in sizes[::2]:
        parts.append(f'<text class="quiet" x="{along(n)}" y="{bottom + 20}" text-anchor="middle">{n:,}</text>')
    parts.append(f'<text class="quiet" x="{right}" y="{bottom + 38}" text-anchor="end">images in the batch</text>')
    early = {curve.engine for curve in curves if along(curve.points[-1][0]) < right - 0.3 * PLOT[0]}
    beside = _apart({curve.engine: up(curve.points[-1][1]) for curve in curves if curve.engine not in early}, 34)
    for curve in curves:
        points = [(along(n), up(value)) for n, value in curve.points]
        x, y = points[-1]
        parts.append(_line(curve, points))
        if curve.engine in early:
            parts.append(_words(curve, x, y - 28, "middle"))
        else:
            parts.append(_words(curve, right + 13, beside[curve.engine] - 2, "start"))
    return "".join(parts)


def _line(curve: Curve, points: list[tuple[float, float]]) -> str:
    line = "M" + "L".join(f"{x:g} {y:g}" for x, y in points)
    look = {"gemm": ' stroke-dasharray="2 5"', "lossopt": ' style="stroke-width: 3.5"'}.get(curve.engine, "")
    x, y = points[-1]
    cross = f'<path class="{curve.engine}" d="M{x - 5:g} {y - 5:g}l10 10m0 -10l-10 10"/>'
    dot = f'<circle class="{curve.engine}" cx="{x:g}" cy="{y:g}" r="3.5"/>'
    end = cross if curve.failed else "" if curve.engine == "gemm" else dot
    return f'<path class="{curve.engine}"{look} d="{line}"/>{end}'


def _words(curve: Curve, x: float, y: float, anchor: str) -> str:
    at = f'x="{x:g}" text-anchor="{anchor}"'
    return (
        f'<text class="end name {curve.engine}" {at} y="{y:g}">{NAMES[curve.engine]}</text>'
        f'<text class="end quiet" {at} y="{y + 15:g}">{escape(curve.said)}</text>'
    )


def _apart(wanted: dict[str, float], least: float) -> dict[str, float]:
    """Heights in the same order, at least so far from each other, moved as little as that takes."""
    order = sorted(wanted, key=lambda name: wanted[name])
    placed = dict(wanted)
    for _ in range(100):
        for one, next_one in itertools.pairwise(order):
            short = least - (placed[next_one] - placed[one])
            if short > 0:
                placed[one], placed[next_one] = placed[one] - short / 2, placed[next_one] + short / 2
    return placed
