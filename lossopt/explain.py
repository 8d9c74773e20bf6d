"""A configuration parser's complaint in plain words: where, what was given, what is allowed, the nearest valid name."""

import difflib
import importlib
import inspect
import re
from collections.abc import Iterable, Sequence
from typing import Any

_PLACES = (  # where the classes live that a configuration usually names
    "lossopt.losses",
    "lossopt.miners",
    "lossopt.encoders",
    "lossopt.modules",
    "lossopt.data",
    "lossopt.data.augment",
    "lossopt.schedules",
    "pytorch_metric_learning.losses",
    "pytorch_metric_learning.miners",
    "torch.optim",
    "torch.optim.lr_scheduler",
    "pytorch_metric_learning.distances",
    "pytorch_metric_learning.reducers",
    "pytorch_lightning.callbacks",
    "torchvision.transforms.v2",
)
_NOISE = re.compile(
    r"Does not validate|Subtypes: |Errors:$|Expected a <class 'NoneType'>|Given value|Expected a path but"
)
_KEY = re.compile(r'Parser key "([\w.]+)":?\s*(.*)')
_CLASS = re.compile(r"Problem with given class_path '([\w.]+)':?\s*(.*)")


def explain(message: str, known_keys: Sequence[str]) -> str:
    """The innermost cause of a nested complaint, with the key it belongs to.

    Args:
        message: what jsonargparse said: an outline whose deepest lines name the cause.
        known_keys: the parser's keys, for a key that it does not know.
    """
    path: list[str] = []
    classes: list[str] = []
    causes: list[str] = []
    for line in (line.strip(" -\t") for line in message.splitlines()):
        if found := _KEY.match(line):
            path, line = [*path, found.group(1)], found.group(2)
        elif found := _CLASS.match(line):
            classes, line = [*classes, found.group(1)], found.group(2)
        if line.startswith("Given value"):
            break
        if line and not _NOISE.match(line):
            causes.append(line)
    where = ".init_args.".join(path)
    text = " ".join(dict.fromkeys(causes)) or message.strip()
    text = re.sub(r"NestedArg\(key='[\w.]+', val=(.*)\)", r"\1", text)
    if "Got value" not in text and (given := re.search(r"Given value: (\w.{0,60})$", message, re.MULTILINE)):
        text += f". Got value: {given.group(1)}"
    return f"{where}: {_reword(text, classes, known_keys)}" if where else _reword(text, classes, known_keys)


def _reword(text: str, classes: list[str], known_keys: Sequence[str]) -> str:
    """Says the commonest complaints in our own words; leaves the others as they are."""
    return _about_a_key(text, classes, known_keys) or _about_a_class(text, classes) or _about_a_value(text)


def _about_a_key(text: str, classes: list[str], known_keys: Sequence[str]) -> str | None:
    for pattern in (r"[Uu]nrecognized arguments: --([\w.]+)", r"[Kk]ey ['\"]([\w.]+)['\"] is not expected"):
        if found := re.search(pattern, text):
            return _unknown(found.group(1), known_keys, "key")
    if found := re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", text):
        return _unknown(f"{found.group(1)}.{found.group(2)}", known_keys, "key")
    if found := re.search(r"Option '([\w.]+)' is not accepted", text):
        if not classes:
            return _unknown(found.group(1), known_keys, "key")
        return f"{classes[-1]}: " + _unknown(found.group(1), _arguments(_import(classes[-1])), "argument")
    return None


def _about_a_class(text: str, classes: list[str]) -> str | None:
    if found := re.search(r"module '([\w.]+)' has no attribute '(\w+)'", text):
        return _no_class(f"{found.group(1)}.{found.group(2)}")
    if found := re.search(r"Expected a dot import path string: (\S*\w)", text):
        return _no_class(found.group(1))
    if found := re.search(r"No module named '([\w.]+)'", text):
        return f"There is no module {found.group(1)!r}. " + _no_class(classes[-1] if classes else found.group(1))
    if "does not implement protocol" in text and "ImageSource" in text:
        return f"{text.split(' does not')[0]} is no data source: it needs a method `def splits(self) -> Splits`."
    return None


def _about_a_value(text: str) -> str:
    if text.startswith("Unexpected config"):
        return "The configuration file is empty or no mapping of keys to values."
    if choices := re.findall(r"Expected a typing\.Literal\[(.*?)\]", text):
        got = f"got {found.group(1)!r}, " if (found := re.search(r"Got value: (.*)$", text)) else ""
        return f"{got}allowed are {', '.join(dict.fromkeys(choices))}."
    return re.sub(r"[Ee]xpected a <class '([\w.]+)'>", r"expected \1", text)


def _unknown(given: str, names: Iterable[str], kind: str) -> str:
    names = sorted(names)
    close = difflib.get_close_matches(given, names, n=3, cutoff=0.6)
    if close:
        return f"Unknown {kind} {given!r}. Did you mean {' or '.join(map(repr, close))}?"
    return f"Unknown {kind} {given!r}. Known: {', '.join(name for name in names if '.' not in name)}."


def _no_class(path: str) -> str:
    close = nearest_classes(path)
    hint = (
        f"Did you mean {' or '.join(close)}?" if close else "Give the import path of a class, such as my_file.MyLoss."
    )
    return f"There is no class {path!r}. {hint}"


def nearest(given: str, known: Sequence[str]) -> str:
    """What was perhaps meant, as the end of a sentence, its stop included."""
    near = difflib.get_close_matches(given, known, 1)
    return f"; did you mean {near[0]!r}?" if near else f" (known: {', '.join(known)})."


def nearest_classes(path: str) -> list[str]:
    """Import paths of the classes that a misspelt path most likely meant, those of the same module first.

    "semi-hard" finds SemiHardMiner: case, signs and the kind at the end of a name do not count.
    """
    module, _, last = path.rpartition(".")
    known: dict[str, str] = {}
    own = [module] if module and module not in _PLACES and _importable(module) else []
    for place in [*own, *sorted(_PLACES, key=lambda place: place != module)]:
        for name, thing in vars(importlib.import_module(place)).items():
            if inspect.isclass(thing) and not name.startswith("_"):
                for spelling in (_signless(name), _bare(name)):
                    known.setdefault(spelling, f"{place}.{name}")
    close = difflib.get_close_matches(_signless(last), list(known), n=2, cutoff=0.75)
    return list(dict.fromkeys(known[name] for name in close))


def _signless(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _bare(name: str) -> str:
    return re.sub(r"(?<=.)(miner|loss|network|encoder)$", "", _signless(name))


def _arguments(cls: Any) -> set[str]:
    """Names of the constructor's arguments, its bases' included where it passes arguments on."""
    names: set[str] = set()
    for one in inspect.getmro(cls) if inspect.isclass(cls) else ():
        if "__init__" not in vars(one) or one is object:
            continue
        parameters = inspect.signature(vars(one)["__init__"]).parameters.values()
        names |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)} - {"self"}
        if not any(p.kind == p.VAR_KEYWORD for p in parameters):
            break
    return names


def _importable(module: str) -> bool:
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


def _import(path: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None
