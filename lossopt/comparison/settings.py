"""From a plan to the resolved configuration of each run: variants, budget, seeds, the hash that finds a run again."""

import copy
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from lossopt.comparison.plan import Plan
from lossopt.comparison.result import Role
from lossopt.config import instantiate, parse, resolved
from lossopt.errors import ConfigError
from lossopt.explain import nearest
from lossopt.runs import CONFIG, ENVIRONMENT, config_hash, flattened
from lossopt.training import own_code

RANDOM = "random miner"
_OF_A_CLASS = ("class_path", "init_args", "dict_kwargs")
RANDOM_MINERS = ("lossopt.miners.RandomTripletMiner", "lossopt.miners.RandomPairMiner")
_MOST_UNEVEN = 0.05  # share by which the images of two variants may differ where batches do not divide the budget


@dataclass(frozen=True)
class Variant:
    """One variant of a plan, ready to run.

    overrides: dotted keys and values that it changes. config: resolved, budget included; its seed is not yet set.
    tuned: those values that tuning chose, dotted.
    """

    name: str
    role: Role
    overrides: Mapping[str, Any]
    config: Mapping[str, Any]
    tuned: Mapping[str, Any] = field(default_factory=dict)

    @property
    def images_per_batch(self) -> int:
        """P x K."""
        data = self.config["data"]["init_args"]
        return int(data["classes_per_batch"] * data["images_per_class"])

    @property
    def images(self) -> int:
        """Seen by a run: whole batches, the same number in every epoch."""
        epochs = self.config["trainer"]["max_epochs"]
        return int(epochs * self.config["data"]["init_args"]["batches_per_epoch"] * self.images_per_batch)


class Task(NamedTuple):
    """One run of a plan. digest: of its resolved configuration. folder: that its run folders lie in."""

    variant: str
    seed: int
    config: Mapping[str, Any]
    digest: str
    folder: Path

    def found(self) -> Path | None:
        """Its newest run folder, finished or not, under whatever name the variant had; None: there is none.

        Runs of other code do not count, where the configuration names classes of one's own.
        """
        there = self.folder.parent.glob(f"*/*-{self.digest}/{CONFIG}")  # without that it was killed as it began
        code = [f"code {module}={digest}" for module, digest in own_code(self.config).items()]
        for folder in sorted((file.parent for file in there), key=lambda one: one.name, reverse=True):
            file = folder / ENVIRONMENT
            lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
            if [line for line in lines if line.startswith("code ")] == code:
                return folder
        return None


def variants_of(plan: Plan) -> list[Variant]:
    """All variants, with a random miner added if none has one.

    Raises:
        ConfigError: a key or value does not fit (nearest valid one named), two variants are equal, the budget is too
            small for the batches of a variant, or their budgets would differ.
    """
    found = [_variant(plan, name, changed) for name, changed in plan.variants.items()]
    if not any(one.role == "random miner" for one in found):
        if RANDOM.replace(" ", "-") in {one.name.replace(" ", "-").lower() for one in found}:
            raise ConfigError(
                f"{plan.path}: no variant has a random miner, so one is added under the name {RANDOM!r}, which another "
                f"variant has. Give that one another name, or the miner {' or '.join(RANDOM_MINERS)}."
            )
        found.append(_random_miner(plan))
    by_hash: dict[str, str] = {}
    for one in found:
        twin = by_hash.setdefault(config_hash(dict(one.config), without=("seed",)), one.name)
        if twin != one.name:
            raise ConfigError(
                f"{plan.path}: the variants {twin!r} and {one.name!r} are the same configuration. Remove one of them, "
                "or look for a key in which they were to differ."
            )
    most, least = max(found, key=lambda one: one.images), min(found, key=lambda one: one.images)
    if most.images - least.images > _MOST_UNEVEN * most.images:
        raise ConfigError(
            f"{plan.path}: with {plan.validations} validations {most.name!r} would see {most.images:,} images, but "
            f"{least.name!r} {least.images:,}, for {least.images_per_batch:,} of them are a batch. Choose images that "
            f"the batches of all variants divide, such as {_even_budget(plan, found):,}."
        )
    return found


def _even_budget(plan: Plan, variants: Sequence[Variant]) -> int:
    """The least budget of at least the plan's that leaves no variant's last batch short."""
    whole = math.lcm(*(one.images_per_batch for one in variants)) * plan.validations
    return -(-plan.images // whole) * whole


def _variant(plan: Plan, name: str, changed: Mapping[str, Any]) -> Variant:
    config = changed_config(plan.base, (plan.set, changed), f"{plan.path}, variant {name!r}")
    config = with_budget(config, plan.images, plan.validations, f"{plan.path}, variant {name!r}")
    config["name"], config["output"] = f"{plan.name}/{name.replace(' ', '-')}", str(plan.output)
    config["seed"], config["data"]["init_args"]["seed"] = 0, None  # the run's seed is that of its data, too
    config["trainer"]["devices"] = 1
    config["retrieval"] |= {"test": True, "report": False}
    _check_metric(plan, config)
    role: Role = (
        "random miner" if _class_path(config["model"]["init_args"].get("miner")) in RANDOM_MINERS else "variant"
    )
    return Variant(name, role, dict(changed), config)


def changed_config(base: Sequence[Path], changes: Sequence[Mapping[str, Any]], where: str) -> dict[str, Any]:
    """The resolved configuration of some files with dotted keys put into it; a class named there begins anew.

    Raises:
        ConfigError: a key or value does not fit; the message begins with `where`.
    """
    unknown: list[str] = []
    try:
        config = resolved(parse([f"--config={file}" for file in base]))
        for one in changes:
            for key, value in one.items():
                _put(config, key.split("."), value, unknown)
        return resolved(parse([], config))
    except ConfigError as wrong:
        raise ConfigError(f"{where}: {unknown[0] if unknown else wrong}") from wrong


def with_budget(config: Mapping[str, Any], images: int, validations: int, where: str) -> dict[str, Any]:
    """A copy of a configuration that sees so many images, in whole epochs with a validation after each.

    Raises:
        ConfigError: there would not be a batch in every epoch.
    """
    made: dict[str, Any] = copy.deepcopy(dict(config))
    data = made["data"].get("init_args", {})
    if "classes_per_batch" not in data or "images_per_class" not in data:
        raise ConfigError(f"{where}: `lossopt compare` trains on RetrievalData, not on {config['data']['class_path']}.")
    size = data["classes_per_batch"] * data["images_per_class"]
    batches = images // (size * validations)
    if not batches:
        raise ConfigError(
            f"{where}: a budget of {images:,} images is less than one batch of {size:,} before each of {validations} "
            f"validations. Give images: {size * validations:,} or more, or fewer validations."
        )
    data["batches_per_epoch"] = batches
    free = {"max_steps": -1, "max_time": None, "min_epochs": None, "min_steps": None, "limit_train_batches": None}
    made["trainer"] |= free | {"max_epochs": validations, "check_val_every_n_epoch": 1, "fast_dev_run": False}
    return made


def _random_miner(plan: Plan) -> Variant:
    """The base with a random miner; where its loss takes no miner's choice, with the plain loss of its kind."""
    base = _variant(plan, RANDOM, {})
    pairs = str(base.config["model"]["class_path"]).endswith("SiameseNetwork")
    miner, loss = (RANDOM_MINERS[pairs], ("lossopt.losses.TripletLoss", "lossopt.losses.ContrastiveLoss")[pairs])
    with_own_loss = _variant(plan, RANDOM, {"model.init_args.miner": miner})
    try:
        instantiate(parse([], dict(with_own_loss.config)))
    except ConfigError:
        return _variant(plan, RANDOM, {"model.init_args.miner": miner, "model.init_args.loss_fn": loss})
    return with_own_loss


def _class_path(component: Any) -> str | None:
    return component.get("class_path") if isinstance(component, Mapping) else component


def _put(config: dict[str, Any], path: Sequence[str], value: Any, unknown: list[str], above: str = "") -> None:
    """Sets a dotted key of a configuration in place.

    A class that is named begins with its own defaults: nothing of what the class before it was given stays. Keys that
    are not there are added to `unknown`, in words, for a parser that refuses them without knowing where.
    """
    first, *others = path
    there = config.get(first)
    if first not in config and config and first not in _OF_A_CLASS:
        where = f" in {above}" if above else ""
        unknown.append(f"there is no key {first!r}{where}{nearest(first, list(config))}")
    if others:
        inner = {"class_path": there} if isinstance(there, str) else dict(there) if isinstance(there, Mapping) else {}
        _put(inner, others, value, unknown, f"{above}.{first}" if above else first)
        config[first] = inner
    elif isinstance(value, Mapping) and "class_path" not in value and isinstance(there, Mapping):
        inner = dict(there)
        for key, one in value.items():
            _put(inner, [str(key)], one, unknown, f"{above}.{first}" if above else first)
        config[first] = inner
    else:
        config[first] = _number(value) if isinstance(there, float) else value


def _number(value: Any) -> Any:
    """YAML takes 1e-3 for a text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _check_metric(plan: Plan, config: Mapping[str, Any]) -> None:
    """The primary metric must be one that a run logs, and that validation can choose by."""
    logged = [*(f"recall@{k}" for k in config["retrieval"]["ks"]), "map@r", "map", "mrr", "r_precision"]
    if plan.metric not in logged:
        raise ConfigError(
            f"{plan.path}: metric is {plan.metric!r}, which no run logs{nearest(plan.metric, logged)} For another "
            "recall@k add its k to retrieval.ks."
        )


def with_values(variant: Variant, plan: Plan, values: Mapping[str, Any]) -> Variant:
    """A variant with values that tuning chose."""
    tuned = _variant(plan, variant.name, {**variant.overrides, **values})  # values last: they may lie in an override
    return replace(tuned, role=variant.role, overrides=variant.overrides, tuned=dict(values))


def tasks_of(plan: Plan, variants: Sequence[Variant]) -> list[Task]:
    """Every run, seed by seed: after a part of them, there is a part of every variant."""
    return [_task(plan, one, seed) for seed in plan.seeds for one in variants]


def _task(plan: Plan, variant: Variant, seed: int) -> Task:
    config = {**variant.config, "seed": seed}
    return Task(
        variant.name, seed, config, config_hash(config), plan.folder / str(variant.config["name"]).split("/")[1]
    )


def trial_task(plan: Plan, variant: Variant, values: Mapping[str, Any], images: int, seed: int) -> Task:
    """A run of tuning: fewer images, perhaps, and never a look at the test split."""
    task = _task(plan, with_values(variant, plan, values), seed)
    config = with_budget(task.config, images, plan.validations, f"{plan.path}, tuning of {variant.name!r}")
    config["name"] = f"{plan.name}/tuning-{variant.name.replace(' ', '-')}"
    config["retrieval"] = {**config["retrieval"], "test": False}
    return Task(variant.name, seed, config, config_hash(config), plan.folder / config["name"].split("/")[1])


def differing_data(variants: Sequence[Variant]) -> dict[str, list[str]]:
    """Variant to the keys below `data` in which it differs from most others: its batches differ by design."""
    flat = {one.name: flattened(one.config["data"], "data.") for one in variants}
    keys = sorted({key for config in flat.values() for key in config})
    usual = {key: Counter(str(config.get(key)) for config in flat.values()).most_common(1)[0][0] for key in keys}
    found = {name: [key for key in keys if str(config.get(key)) != usual[key]] for name, config in flat.items()}
    return {name: keys for name, keys in found.items() if keys}
