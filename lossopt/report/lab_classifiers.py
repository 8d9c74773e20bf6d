"""The page of a grid of classifiers: accuracy over epochs, one curve each, and the table beside published figures."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lossopt.lab.classifiers import Classifier
from lossopt.report.chart import Chart, Series, round_numbers, share_chart
from lossopt.report.page import render, write_page


def write_classifiers_page(path: Path, name: str, data: str, rows: Sequence[Classifier]) -> Path:
    """Writes the page.

    Args:
        path: of the page.
        name: of the grid.
        data: what was trained and tested on, in a sentence.
        rows: one for each variant.

    Raises:
        LossoptError: it cannot be written.
    """
    epochs = sorted({one.epoch for row in rows for one in row.listed if one.epoch})
    cells = [(row, [next((one for one in row.listed if one.epoch == epoch), None) for epoch in epochs]) for row in rows]
    values = {"name": name, "data": data, "rows": cells, "epochs": epochs, "chart": _chart(rows)}
    return write_page(path, render("lab_classifiers.html.j2", values))


def _chart(rows: Sequence[Classifier]) -> Chart | None:
    """Mean accuracy after each epoch of training; the band reaches from the least to the greatest seed."""
    series = []
    for place, row in enumerate(rows):
        trained = [one for one in row.curve if one.epoch]
        if trained:
            low, high = (np.array([pick(one.values) for one in trained]) for pick in (min, max))
            x, y = np.array([one.epoch for one in trained]), np.array([one.mean for one in trained])
            series.append(Series(row.name, f"c{place % 12}", x, y, low, high))
    if not series:
        return None
    least = min(float(one.low.min()) for one in series if one.low is not None)
    most = max(float(one.high.max()) for one in series if one.high is not None)
    last = max(int(one.x[-1]) for one in series)
    step = max(1, last // 10)
    return share_chart(
        "Validation accuracy by epoch",
        series,
        "epochs",
        [(epoch, str(epoch)) for epoch in range(1, last + 1, step)],
        y_label="accuracy, %",
        y_ticks=round_numbers(least, most),
        size=(640, 340),
    )
