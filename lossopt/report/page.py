"""A page is one HTML file that only shows itself: templates escape every text, the policy forbids every request."""

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from lossopt.durable import write_whole
from lossopt.report.record import without_paths

HOME = Path(__file__).parent
SCRIPT, STYLE = "page.js", "page.css"


def render(
    template: str,
    values: Mapping[str, Any],
    filters: Mapping[str, Callable[..., str]] | None = None,
    scripts: Sequence[str] = (SCRIPT,),
) -> str:
    """A page from a template of this folder.

    The template finds, beside `values`: `policy`, the content security policy, which names the one script by its hash;
    `style` and `script`, our own files; the filters `percent`, `metric`, `distance`, `count`, `no_path`.

    Args:
        template: its file name.
        values: what it shows; every text in them is escaped.
        filters: more of them, by name.
        scripts: files of this folder that are its one script, one after the other.
    """
    environment = Environment(
        loader=FileSystemLoader(HOME), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": percent, "metric": metric_name, "distance": distance_text, "count": count_text}
    environment.filters |= {"no_path": without_paths} | dict(filters or {})
    script = "".join((HOME / name).read_text(encoding="utf-8") for name in scripts)
    own = {
        "script": Markup(script),  # a file of ours, in which nothing is filled in
        "style": Markup((HOME / STYLE).read_text(encoding="utf-8")),
        "policy": policy(script),
    }
    return environment.get_template(template).render(own | dict(values))


def policy(script: str) -> str:
    """The content security policy of a page whose only script is this text, to the byte."""
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def write_page(path: Path, page: str) -> Path:
    """Writes a page as a whole; an earlier one stays if this one cannot be written.

    Raises:
        LossoptError: it cannot be written.
    """
    # names on disk need not be text: a byte that is not becomes a visible escape
    content = page.encode("utf-8", "backslashreplace")
    write_whole(path, lambda file: file.write(content))
    return path


def percent(share: float | None, decimals: int = 1) -> str:
    """A share in [0, 1] in per cent; a dash for None."""
    return "–" if share is None else f"{100 * share:.{decimals}f}\N{NO-BREAK SPACE}%"


def metric_name(key: str) -> str:
    """The name of a metric as people write it."""
    written = {"map@r": "MAP@R", "map": "MAP", "mrr": "MRR", "r_precision": "R-precision"}
    return written.get(key, key.replace("ndcg@", "NDCG@"))


def distance_text(distance: float) -> str:
    """Three decimals while distances are small, four digits beyond."""
    return f"{distance:.3f}" if distance < 10 else f"{distance:.4g}"


def count_text(number: int) -> str:
    """A count with commas between thousands."""
    return f"{number:,}"
