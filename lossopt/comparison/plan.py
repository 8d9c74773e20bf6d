"""A plan: what is compared, on which seeds, at which budget, by which metric. Read and checked before any work.

name: omniglot_miners                   # default: the file's name
base: ../omniglot_triplet.yaml          # relative to the plan; a list is merged, the last one wins
set: {data.init_args.source.init_args.image_size: 28}                 # for all variants
variants:
  all: {}
  semi-hard: {model.init_args.miner: lossopt.miners.SemiHardMiner}
seeds: 10                               # 0 to 9, or a list
images: 96000                           # seen by every run
"""

import json
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from lossopt.comparison.statistics import Correction
from lossopt.comparison.tuning import TuningSettings, check_tuning
from lossopt.errors import ConfigError
from lossopt.explain import nearest
from lossopt.runs import flattened

Unit = Literal["class", "group"]
OWN_KEYS = {  # what a plan sets for every run, and where it says so
    "trainer.max_epochs": "images and validations",
    "trainer.max_steps": "images",
    "trainer.max_time": "images",
    "trainer.min_epochs": "images",
    "trainer.min_steps": "images",
    "trainer.limit_train_batches": "images",
    "trainer.fast_dev_run": "images",
    "trainer.check_val_every_n_epoch": "validations",
    "data.init_args.batches_per_epoch": "images and validations",
    "trainer.devices": "--workers",
    "seed": "seeds",
    "data.init_args.seed": "seeds",
    "name": "name",
    "output": "output",
    "retrieval.test": "metric",
    "retrieval.report": "metric",
}
_RESERVED = ("untrained", "raw-pixels")
_NAME = re.compile(r"(?!\.)[\w.+()-]+( [\w.+()-]+)*")
_LAST_SEED = 2**32 - 1  # that NumPy and Lightning take


@dataclass(frozen=True)
class Plan:
    """What is compared.

    name: of the folder of its runs. base: configuration files. set: dotted keys and values for all variants.
    variants: name to dotted keys and values. seeds: of every variant. images: budget of every run, in images seen.
    validations: of every run, at equal distances. metric: the primary one, on the test split ("map@r").
    tuning: None: the variants are taken as they stand. correction: for the comparisons of all pairs. unit: what the
    intervals draw anew besides seeds. threads: of each run; part of its identity, for they change the last bits.
    output: folder of all runs. path: of the plan's file.
    """

    name: str
    base: Sequence[Path]
    variants: Mapping[str, Mapping[str, Any]]
    seeds: Sequence[int]
    images: int
    path: Path
    set: Mapping[str, Any] = field(default_factory=dict)
    validations: int = 5
    metric: str = "map@r"
    tuning: TuningSettings | None = None
    correction: Correction = "holm"
    unit: Unit = "class"
    threads: int = 1
    output: Path = Path("runs")

    @property
    def folder(self) -> Path:
        """Where the runs and the report lie."""
        return self.output / self.name


def read_plan(path: Path) -> Plan:
    """Reads and checks a plan; what its runs are is looked at later (`lossopt.comparison.settings`).

    Raises:
        ConfigError: there is no such file, it is not YAML, or an entry is unknown, missing or out of its bounds.
    """
    checked = read_entries(path, [own.name for own in fields(Plan)], ("base", "variants", "seeds", "images"), 2)
    if checked.get("tuning") is not None:
        checked["tuning"] = check_tuning(checked["tuning"], list(checked["variants"]), checked["seeds"])
    for reserved in set(_RESERVED) & {one.replace(" ", "-").lower() for one in checked["variants"]}:
        raise ConfigError(f"{path}: no variant can be called {reserved!r}; the table has a row of that name anyway.")
    _refuse_own_keys(path, checked.get("set", {}), "set")
    for name, changed in checked["variants"].items():
        _refuse_own_keys(path, changed, f"variant {name!r}")
    return Plan(path=path, **checked)


def read_entries(path: Path, known: Sequence[str], needed: Sequence[str], least_seeds: int) -> dict[str, Any]:
    """The entries of a YAML file, each checked by its name; `name` is the file's where it has none.

    Args:
        path: of the file.
        known: names that it may have, besides "path".
        needed: names that it must have.
        least_seeds: fewer are refused.

    Raises:
        ConfigError: as `read_plan`.
    """
    content = _read(path)
    known = [name for name in known if name != "path"]
    for key in content:
        if key not in known:
            raise ConfigError(f"{path}: there is no {key!r} in a plan{nearest(str(key), known)}")
    for key in needed:
        if key not in content:
            raise ConfigError(f"{path}: a plan needs {key!r}. It has {', '.join(map(repr, content)) or 'nothing'}.")
    checks = _checks(path, least_seeds)
    checked = {key: checks[key](value, key) if key in checks else value for key, value in content.items()}
    return {"name": path.stem} | checked


def _read(path: Path) -> Mapping[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)  # a SafeLoader
    except OSError as error:
        raise ConfigError(f"Cannot read the plan {path} ({error.strerror}). Give the path of a YAML file.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no plan: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} is no plan: it holds {type(content).__name__}, not keys and values.")
    return content


class _StrictLoader(yaml.SafeLoader):
    """A key that is there twice would silently hide a variant."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: list[Any] = []
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":  # <<: what it brings in may be set anew
                continue
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is there twice", key_node.start_mark)
            seen.append(key)
        return super().construct_mapping(node, deep)


def _checks(path: Path, least_seeds: int) -> dict[str, Callable[[Any, str], Any]]:
    """How each entry is checked and brought into its type."""
    whole, text = partial(_whole, path), partial(_text, path)
    return {
        "name": partial(_called, path),
        "base": partial(_base, path),
        "set": partial(_changes, path),
        "variants": partial(_variants, path),
        "seeds": partial(_seeds, path, least_seeds),
        "images": whole,
        "validations": whole,
        "metric": text,
        "correction": partial(_one_of, path, get_args(Correction)),
        "unit": partial(_one_of, path, get_args(Unit)),
        "threads": whole,
        "output": lambda value, key: Path(text(value, key)),
    }


def _refusal(path: Path, key: str, value: Any, rule: str) -> ConfigError:
    return ConfigError(f"{path}: {key} is {_short(value)}; it must be {rule}.")


def _whole(path: Path, value: Any, key: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise _refusal(path, key, value, "a whole number of 1 or more")
    return value


def _text(path: Path, value: Any, key: str) -> str:
    if not isinstance(value, str) or not value:
        raise _refusal(path, key, value, "a text")
    return value


def _one_of(path: Path, allowed: Sequence[str], value: Any, key: str) -> str:
    if value not in allowed:
        raise _refusal(path, key, value, " or ".join(allowed))
    return str(value)


def _called(path: Path, value: Any, key: str) -> str:
    """A name that is also that of a folder."""
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise _refusal(path, key, value, "words of letters, digits and - _ . + ( ), and begin with no dot")
    return value


def _base(path: Path, value: Any, key: str) -> list[Path]:
    files = [path.parent / _text(path, one, key) for one in (value if isinstance(value, list) else [value])]
    for file in files:
        if not file.is_file():
            raise ConfigError(f"{path}: there is no base configuration {file}. Paths are relative to the plan.")
    return files


def _changes(path: Path, value: Any, key: str) -> dict[str, Any]:
    if not isinstance(value, dict | None) or any(not isinstance(one, str) for one in value or ()):
        raise _refusal(path, key, value, "dotted keys and values, such as {model.init_args.miner: null}")
    return dict(value or {})


def _variants(path: Path, value: Any, key: str) -> dict[str, dict[str, Any]]:
    if not isinstance(value, dict) or len(value) < 2:
        rule = "two or more names, each with the keys that it changes, or {} for the base itself"
        raise _refusal(path, key, value, rule)
    if len({str(one).replace(" ", "-").lower() for one in value}) < len(value):
        raise _refusal(path, key, list(value), "names that differ by more than spaces and capitals")
    return {
        _called(path, one, "the name of a variant"): _changes(path, inner, f"variant {one!r}")
        for one, inner in value.items()
    }


def _seeds(path: Path, least: int, value: Any, key: str) -> list[int]:
    seeds = list(range(value)) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(seeds, list) or any(type(s) is not int or not 0 <= s <= _LAST_SEED for s in seeds):
        raise ConfigError(
            f"{path}: {key} is {_short(value)}; give how many, or a list of whole numbers from 0 to {_LAST_SEED:,}."
        )
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"{path}: {key} is {_short(value)}; each may be there once.")
    if len(seeds) < least:
        raise ConfigError(
            f"{path}: {key} is {_short(value)}, but one run of each variant cannot tell a difference from chance. Give "
            "2 or more for intervals, 8 or more for a verdict, such as seeds: 10."
            if least > 1
            else f"{path}: {key} is {_short(value)}; give one or more."
        )
    return seeds


def _refuse_own_keys(path: Path, changed: Mapping[str, Any], where: str) -> None:
    for key in flattened(dict(changed)):  # a key may also hold further keys
        if key in OWN_KEYS:
            raise ConfigError(f"{path}: {where} sets {key}, which a plan sets for all runs by {OWN_KEYS[key]!r}.")


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."
