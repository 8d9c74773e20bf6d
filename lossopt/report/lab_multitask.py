"""The page of a grid of a multitask network and its single-task networks: one table, and what it does not say."""

from pathlib import Path

from lossopt.lab.multitask import Sharing, cells
from lossopt.report.page import render, write_page


def write_multitask_page(path: Path, name: str, data: str, found: Sharing) -> Path:
    """Writes the page.

    Args:
        path: of the page.
        name: of the grid.
        data: what was trained and tested on, in a sentence.
        found: the comparison.

    Raises:
        LossoptError: it cannot be written.
    """
    seeds = max((len(figure.shared) for figure in found.figures), default=0)
    values = {
        "name": name,
        "data": data,
        "rows": [(figure.alone_as, cells(figure)) for figure in found.figures],
        "failed": found.failed,
        "seeds": seeds,
        "least_p": 2 / 2**seeds if seeds else 1.0,
    }
    return write_page(path, render("lab_multitask.html.j2", values))
