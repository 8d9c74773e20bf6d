"""The house as it is drawn: imports point one way, heavy libraries stay in their rooms, every module imports."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import lossopt
from lossopt.cli import _JOBS

ROOT = Path(lossopt.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
# what a room may import of lossopt, besides itself; a room that is not named here may import everything
MAY_IMPORT = {
    "errors": set(),
    "activations": set(),
    "losses": set(),
    "samplers": set(),
    "schedules": set(),
    "encoders": set(),
    "decoders": {"encoders"},
    "retrieval.metrics": set(),
    "retrieval": {"errors", "durable"},
    "miners": {"durable", "losses", "errors", "retrieval"},
    "tracking": {"errors"},
    "durable": {"errors"},
    "checkpoints": {"errors", "durable"},
    "processes": {"errors"},
    "signals": {"errors", "processes"},
    "data": {"errors", "miners", "samplers"},
    "modules": {"data", "decoders", "durable", "errors", "health", "losses", "miners", "retrieval", "schedules"},
    "callbacks": {"data", "durable", "errors", "health", "modules", "retrieval", "tables", "tracking"},
    "tables": {"data", "retrieval"},
    "health": {"errors"},
    "mining": {"callbacks", "data", "errors", "health", "miners", "retrieval", "samplers"},
    "explain": set(),
    "config": {"errors", "explain", "retrieval"},
    "comparison": {
        *("config", "data", "durable", "errors", "explain", "health", "preflight", "retrieval", "runs", "tables"),
        *("tracking", "training"),
    },
    "comparison.statistics": {"retrieval"},
    "comparison.result": {"health"},
    "comparison.conclusion": {"comparison"},
    "comparison.text": {"comparison"},
    "lab": {
        *("activations", "callbacks", "checkpoints", "comparison", "config", "data", "errors", "health", "losses"),
        *("modules", "preflight", "runs", "tracking", "training"),
    },
    "lab.pieces": set(),
    "report": {"checkpoints", "comparison", "data", "durable", "errors", "health", "lab", "retrieval", "tracking"},
    "runs": {
        *("checkpoints", "config", "data", "durable", "errors", "modules", "report", "retrieval", "tables"),
        "tracking",
    },
}
FENCES = {
    "faiss": {"retrieval/index.py"},
    "numba": {"retrieval/kernels.py"},
    "wandb": {"tracking/"},
    "optuna": {"comparison/tuning.py"},
    "matplotlib": {"report/", "lab/"},
    "pytorch_lightning": {
        *("data/module.py", "modules/", "callbacks/", "checkpoints.py", "tracking/"),
        *("config.py", "preflight.py", "processes.py", "mining.py", "training.py"),
        *("comparison/baselines.py", "comparison/conduct.py", "comparison/workers.py"),
    },
}
HEAVY = {"torch", "numpy", "faiss", "wandb", "jsonargparse", "tqdm"}


def imports(path):
    """(module, whether at the top level of the file) of every import."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node in tree.body) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = (
                [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "lossopt" else [node.module]
            )
            yield from ((name, node in tree.body) for name in names)


def room(path):
    """ "retrieval.metrics" if that file has rules of its own, else its folder or its own name."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    dotted = ".".join(parts)
    return dotted if dotted in MAY_IMPORT else parts[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path):
    allowed = MAY_IMPORT.get(room(path))
    if allowed is None:
        return
    for name, _ in imports(path):
        parts = name.split(".")
        if parts[0] != "lossopt" or len(parts) < 2 or parts[1] == "__version__":
            continue
        inside = parts[1] == room(path).split(".")[0] and "." not in room(path)
        assert inside or parts[1] in allowed, f"{path.name} imports {name}"


@pytest.mark.parametrize("library", FENCES)
def test_heavy_libraries_stay_in_their_rooms(library):
    for path in FILES:
        where = path.relative_to(ROOT).as_posix()
        if any(name.split(".")[0] == library for name, _ in imports(path)):
            assert any(where.startswith(home) for home in FENCES[library]), f"{where} imports {library}"


def test_every_module_imports_and_says_what_it_is():
    names = [module.name for module in pkgutil.walk_packages(lossopt.__path__, "lossopt.")]
    assert len(names) > 30
    for name in names:
        assert (importlib.import_module(name).__doc__ or "").strip(), name


def test_there_is_no_drawer():
    for path in FILES:
        assert not {"utils", "helpers", "common", "misc", "base"} & set(path.with_suffix("").parts[-2:]), path


def test_every_command_is_where_its_table_says_and_its_file_loads_nothing_heavy():
    homes = [home for home, _ in _JOBS.values()]
    names = sorted({f"lossopt.commands.{home.split(':')[0]}" for home in homes})
    script = f"import sys, {', '.join(names)}; print(*{{name.split('.')[0] for name in sys.modules}} & {HEAVY})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
    for name, home in zip(_JOBS, homes, strict=True):
        job = pkgutil.resolve_name(f"lossopt.commands.{home}")
        assert callable(job) and job.__name__ == name
