"""The page of a grid of autoencoders: images rebuilt epoch by epoch, losses by measures, rates, times, failures."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import numpy as np
from PIL import Image

from lossopt.lab.autoencoder import Cell, Found, Run
from lossopt.report.chart import Chart, Series, round_numbers, share_chart
from lossopt.report.page import render, write_page

_MEASURES = (("error", "error per image", 2), ("mse", "MSE", 5), ("l1", "L1", 5), ("smooth_l1", "smooth L1", 5))
_CEILING = 1.1  # a chart ends at so many errors of the mean image; what is worse is drawn there


class Score(NamedTuple):
    """A figure of the table of measures; best: no other loss does better under this optimiser."""

    text: str
    best: bool


class Row(NamedTuple):
    """One trained loss in the table of measures."""

    cell: Cell
    loss: str
    scores: tuple[Score, ...]
    seconds: str
    target: str


class Strip(NamedTuple):
    """One epoch of the pictures. words: which. pictures: a data URI for each optimiser, "" where there is none."""

    words: str
    pictures: tuple[str, ...]


class Filmed(NamedTuple):
    """The pictures of one trained loss. heads: the optimisers with their rates, in words."""

    loss: str
    heads: tuple[str, ...]
    strips: tuple[Strip, ...]


def write_autoencoder_page(path: Path, name: str, data: str, found: Found) -> Path:
    """Writes the page.

    Args:
        path: of the page.
        name: of the grid.
        data: what was trained and tested on, in a sentence.
        found: by the runs of the grid.

    Raises:
        LossoptError: it cannot be written.
    """
    values = {
        "name": name,
        "data": data,
        "found": found,
        "best": min((cell for cell in found.cells.values() if cell.scores), key=_on_validation, default=None),
        "films": [_film(found, loss) for loss in found.losses],
        "tables": [(optimizer, _rows(found, optimizer)) for optimizer in found.optimizers],
        "measures": [words for _, words, _ in _MEASURES],
        "charts": [_rates(found, optimizer) for optimizer in found.optimizers],
        "curves": [_curves(found, optimizer) for optimizer in found.optimizers],
    }
    filters = {"loss": loss_words, "number": lambda value: f"{value:g}"}
    return write_page(path, render("lab_autoencoder.html.j2", values, filters))


def loss_words(name: str) -> str:
    """The name of a loss of torch.nn as people write it."""
    kind, bracket, arguments = name.partition(" (")
    words = {"MSELoss": "MSE", "L1Loss": "L1", "SmoothL1Loss": "smooth L1"}.get(kind, kind.removesuffix("Loss"))
    return words + bracket + arguments


def _on_validation(cell: Cell) -> float:
    """The squared error by which the best is chosen: that of the last epoch, on images that the figure is not of."""
    return mean(run.curve[-1][1] for run in cell.runs if run.fault is None)


def _film(found: Found, loss: str) -> Filmed:
    """The first seed of each optimiser's best rate."""
    cells = [found.cells[loss, optimizer] for optimizer in found.optimizers if (loss, optimizer) in found.cells]
    strips = []
    epochs = max((cell.runs[0].curve for cell in cells), key=len, default=())  # one picture for each validation
    names = ["the images", *("untrained" if epoch == 0 else f"epoch {epoch}" for epoch, _ in epochs)]
    rows = max((len(cell.strip) for cell in cells), default=0)
    for row, words in enumerate(names[:rows]):
        strips.append(Strip(words, tuple(_uri(cell.strip[row]) if row < len(cell.strip) else "" for cell in cells)))
    heads = tuple(f"{cell.optimizer}, rate {cell.rate:g}" for cell in cells)
    return Filmed(loss_words(loss), heads, tuple(strips))


def _uri(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _rows(found: Found, optimizer: str) -> list[Row]:
    cells = [found.cells[loss, optimizer] for loss in found.losses if (loss, optimizer) in found.cells]
    least = {
        name: min((c.scores[name] for c in cells if name in c.scores), default=math.nan) for name, _, _ in _MEASURES
    }
    rows = []
    for cell in cells:
        scores = tuple(
            Score(f"{cell.scores[name]:.{digits}f}", cell.scores[name] == least[name])
            if name in cell.scores
            else Score("failed", False)
            for name, _, digits in _MEASURES
        )
        times = [run.seconds_per_epoch for run in cell.runs if not math.isnan(run.seconds_per_epoch)]
        to_target = [run.seconds_to(found.baselines.pca_validation) for run in cell.runs]
        target = "never" if math.inf in to_target else f"{mean(to_target):.0f} s"
        rows.append(Row(cell, loss_words(cell.loss), scores, f"{mean(times):.1f} s" if times else "–", target))
    return rows


def _rates(found: Found, optimizer: str) -> Chart:
    """Squared error after the last epoch over the learning rate."""
    runs = [run for run in found.runs if run.optimizer == optimizer]
    rates = sorted({run.rate for run in runs})
    series = []
    for place, loss in enumerate(found.losses):
        at = {rate: [run for run in runs if run.loss == loss and run.rate == rate] for rate in rates}
        points = {math.log10(rate): [(run, run.at_end) for run in own] for rate, own in at.items() if own}
        series += _series(loss, place, points, found)
    ticks = [(math.log10(rate), f"{rate:g}") for rate in rates]
    return _chart(optimizer, series, "learning rate", ticks, found)


def _curves(found: Found, optimizer: str) -> Chart:
    """Squared error by epoch at the best rates."""
    series = []
    for place, loss in enumerate(found.losses):
        cell = found.cells.get((loss, optimizer))
        points: dict[float, list[tuple[Run, float]]] = {}
        for run in cell.runs if cell else ():
            for epoch, error in run.curve:
                points.setdefault(epoch, []).append((run, error))
        series += _series(loss, place, points, found)
    last = max((int(one.x[-1]) for one in series), default=1)
    ticks = [(epoch, str(epoch)) for epoch in range(0, last + 1, max(1, last // 5))]
    return _chart(optimizer, series, "epochs", ticks, found)


def _series(loss: str, place: int, points: Mapping[float, Sequence[tuple[Run, float]]], found: Found) -> list[Series]:
    """One line, none without points: the mean of the seeds without a fault; the band reaches over all seeds."""
    if not points:
        return []
    y, low, high = [], [], []
    for own in points.values():
        errors = [min(error, _ceiling(found)) for _, error in own]
        well = [error for (run, _), error in zip(own, errors, strict=True) if run.fault is None]
        y.append(mean(well or errors))
        low.append(min(errors))
        high.append(max(errors))
    x = np.array(list(points), dtype=np.float64)
    return [Series(loss_words(loss), f"c{place}", x, np.array(y), np.array(low), np.array(high))]


def _ceiling(found: Found) -> float:
    return _CEILING * found.baselines.mean_image


def _chart(
    title: str, series: Sequence[Series], x_label: str, x_ticks: Sequence[tuple[float, str]], found: Found
) -> Chart:
    return share_chart(
        title,
        series,
        x_label,
        x_ticks,
        y_label="squared error per image",
        room=78,
        y_ticks=round_numbers(0, _ceiling(found), 6),
        size=(360, 260),
        factor=1,
        unit="",
    )
