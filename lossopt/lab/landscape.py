"""The loss of a trained network over a plane through its weights, and the way that its own training took there.

A place is a model with changed weights and everything else (batch norm's running statistics, memories, random streams)
as it was at the centre. Letters: w weights, k checkpoints, a and b sides of the plane.

Source: Li, Xu, Taylor, Studer & Goldstein 2018, NeurIPS, "Visualizing the loss landscape of neural nets", sections 4
(filter normalisation) and 7 (directions of the training), and its code, github.com/tomgoldstein/loss-landscape.
"""

import copy
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from sklearn.decomposition import PCA
from torch import Tensor, nn
from tqdm import tqdm

from lossopt.checkpoints import DurableCheckpointIO, read_manifest, restore_rng, rng_states, weight_history
from lossopt.config import instantiate, parse
from lossopt.data.dataset import Batch
from lossopt.data.module import ImageData
from lossopt.errors import ConfigError, LossoptError
from lossopt.lab.pieces import Landscape
from lossopt.modules.embedding import EmbeddingNetwork
from lossopt.modules.multitask import MultitaskNetwork
from lossopt.modules.network import ImageNetwork, TrainedNetwork
from lossopt.runs import LoadedRun, load_run

Kind = Literal["random", "training"]
State = Mapping[str, Any]
_MOST = 40  # checkpoints of the path: all are in memory at once
_A_WAY = 4  # checkpoints besides the centre; through fewer, as without `WeightHistory`, the plane shows a line
_TOO_SMALL = 1e-10  # of a filter, as in the authors' code: it has no direction


class Plane(NamedTuple):
    """Two directions through the centre, by name of the weight, on its device, and what they are, in words."""

    kind: Kind
    directions: tuple[dict[str, Tensor], dict[str, Tensor]]
    axes: tuple[str, str]


def landscape(
    run: Path,
    points: int = 21,
    reach: float = 1.0,
    images: int = 256,
    seed: int = 0,
    directions: Kind | None = None,
) -> Landscape:
    """The training loss around the best checkpoint of a run, with the path of its checkpoints.

    The loss is that of the model's own training step, in evaluation mode, on the first training batches of its own
    data, without augmentation, the same at every place. A miner is left out, and everything in a batch is compared: it
    would pick other triplets at every place, and the mean over those that it picks says nothing of how many there are.
    The same arguments give the same bits on one kind of processor.

    Args:
        run: a run folder, or a .ckpt file in one.
        points: a = b, odd, so that the centre is one of the places.
        reach: "random": half the side, 1 is a change of each filter by its own length. "training": how far the plane
            goes beyond the path, in quarters of its width.
        images: looked at at each place, at least; whole batches.
        seed: of the random directions.
        directions: "random", filter-normalised; "training": the two principal components of the checkpoints. None:
            those of the training where there are four checkpoints or more besides the centre.

    Raises:
        ConfigError: no run; a model without a loss; arguments that cannot be; no two further checkpoints.
        LossoptError: the checkpoint cannot be read.
    """
    check_extent(points, reach, images)
    loaded = load_run(run)
    model = loaded.model.to("cuda" if torch.cuda.is_available() else "cpu")
    simplified = compare_everything(model)
    epoch = int(DurableCheckpointIO().load_checkpoint(loaded.checkpoint)["epoch"]) + 1  # Lightning counts from 0
    kept, notes = _checkpoints(loaded, epoch)
    batches = training_batches(model, loaded.data, loaded.config["seed"], images)
    away = {other: _difference(model, state) for other, state in kept.items()}
    plane = _plane(model, directions, list(away.values()), seed)
    path, apart = project(plane, np.stack(list(away.values())))
    x, y = _sides(plane.kind, path, points, reach)
    if not np.isfinite(training_loss(model, batches)):
        raise ConfigError(
            f"The {type(model).__name__} at epoch {epoch} gives no finite loss on its training batches, so there is "
            "nothing to draw. Give a run whose network is trained with a loss."
        )
    loss = losses_on_plane(model, batches, plane, x, y)
    path_loss = np.array([loss_of_state(model, batches, state) for state in kept.values()])
    said = [*_notes(model, plane, batches, loss), *simplified, *notes]
    name = f"{loaded.config['name']}, seed {loaded.config['seed']}: {type(model).__name__} at epoch {epoch}"
    return Landscape(name, plane.axes, x, y, loss, path, list(kept), path_loss, apart, said)


def check_extent(points: int = 21, reach: float = 1.0, images: int = 256) -> None:
    """Refuses, before anything is read, a map that cannot be. Raises: ConfigError."""
    if points < 3 or points % 2 == 0:
        raise ConfigError(
            f"points is {points}; give an odd number, 3 or more, so that the centre is one of the places."
        )
    if not 0 < reach < float("inf"):
        raise ConfigError(f"reach is {reach}; it must be a positive number. 1 is usual.")
    if images < 1:
        raise ConfigError(f"images is {images}; the loss needs 1 or more.")


# ------------------------------------------------------------------------------------------------------ the loss


def training_batches(model: TrainedNetwork, data: ImageData, seed: int, images: int) -> list[Batch]:
    """The first training batches of a run with at least so many images together, on the model's device."""
    data.seed = seed if data.seed is None else data.seed
    found: list[Batch] = []
    for batch in data.train_dataloader():
        on_device = [part.to(model.device) if isinstance(part, Tensor) else part for part in batch]
        found.append(data.on_after_batch_transfer(Batch._make(on_device), 0))  # without a trainer it augments nothing
        if sum(len(one.labels) for one in found) >= images:
            break
    return found


def training_loss(model: TrainedNetwork, batches: Sequence[Batch]) -> float:
    """Mean of the training step's loss over the images of the batches; NaN where one has none or it is not finite.

    Raises:
        ConfigError: the training step returns something else than a loss.
    """
    devices = [model.device] if model.device.type == "cuda" else []
    total, images = 0.0, 0
    with torch.no_grad(), torch.random.fork_rng(devices), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*`self.log.*")  # what it logs goes nowhere, for there is no trainer
        torch.manual_seed(0)  # a step that draws numbers draws the same at every place
        for number, batch in enumerate(batches):
            loss = model.training_step(batch, number)
            if loss is None:
                return float("nan")
            if not isinstance(loss, Tensor) or loss.numel() != 1:
                raise ConfigError(
                    f"The training step of {type(model).__name__} returns {type(loss).__name__}, not a loss (a tensor "
                    "of one number). A landscape needs a network that is trained with a loss."
                )
            total, images = total + float(loss) * len(batch.labels), images + len(batch.labels)
    mean = total / images
    return mean if np.isfinite(mean) else float("nan")


def compare_everything(model: TrainedNetwork) -> list[str]:
    """Takes from a model what picks other examples at every place, a miner or hard examples; what was done, in words.

    The mean over those that are picked says nothing of how many there are.
    """
    if isinstance(model, MultitaskNetwork):
        notes = [] if model.hard_example_fraction == 1 else ["All examples count, hard or not."]
        model.hard_example_fraction = 1.0
        if model.embedding is not None and model.embedding.miner is not None:
            model.embedding.miner = None
            notes.append("The miner of the embedding is left out, and everything in a batch is compared.")
        return notes
    if not isinstance(model, EmbeddingNetwork) or model.miner is None:
        return []
    name, model.miner = type(model.miner).__name__, None
    return [
        f"The miner, {name}, is left out and everything in a batch is compared: it picks other tuples at every place, "
        "and their mean says nothing of how many there are."
    ]


def loss_of_state(model: TrainedNetwork, batches: Sequence[Batch], state: State) -> float:
    """`training_loss` of the model with another state dict, which may hold more (a miner's); its own is put back."""
    with _restored(model) as own:
        model.load_state_dict({name: state[name] for name in own})
        return training_loss(model, batches)


def losses_on_plane(
    model: TrainedNetwork, batches: Sequence[Batch], plane: Plane, x: np.ndarray, y: np.ndarray
) -> np.ndarray:
    """(b, a) `training_loss` at centre + x[j] first + y[i] second; NaN also where the loss refuses what it is given."""
    loss = np.full((len(y), len(x)), np.nan)
    weights = weights_of(model)
    with _restored(model) as centre:
        for row, along_y in enumerate(tqdm(y.tolist(), "loss landscape", disable=None, leave=False)):
            for column, along_x in enumerate(x.tolist()):
                model.load_state_dict(centre)
                _move(weights, plane, along_x, along_y)
                try:
                    loss[row, column] = training_loss(model, batches)
                except (ValueError, RuntimeError, LossoptError):  # of NaN or huge outputs; the centre gave a loss
                    continue
    return loss


@torch.no_grad()
def _move(weights: dict[str, Tensor], plane: Plane, along_x: float, along_y: float) -> None:
    first, second = plane.directions
    for name, weight in weights.items():
        weight.add_(along_x * first[name] + along_y * second[name])


@contextmanager
def _restored(model: nn.Module) -> Iterator[State]:
    """Yields the model's state; afterwards it has that again."""
    state = copy.deepcopy(model.state_dict())
    try:
        yield state
    finally:
        model.load_state_dict(state)


# ------------------------------------------------------------------------------------------------------ directions


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """The trained parameters, of the loss too where it has some, by name."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def filter_normalised(model: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
    """A random direction in which each filter is as long as the model's own, by name of the weight.

    A filter is a row (first dimension) of a weight of two or more dimensions. Weights of one dimension, that is biases
    and those of batch norm, get 0, as by the authors' `--xignore biasbn`.

    Args:
        generator: on the CPU, so that every device sees the same numbers.
    """
    direction = {}
    for name, weight in weights_of(model).items():
        if weight.ndim < 2:
            direction[name] = torch.zeros_like(weight)
            continue
        drawn = torch.randn(weight.shape, generator=generator).to(weight)
        rows = tuple(range(1, weight.ndim))
        own, given = (torch.linalg.vector_norm(one.detach(), dim=rows, keepdim=True) for one in (weight, drawn))
        direction[name] = drawn * (own / (given + _TOO_SMALL))
    return direction


def _plane(model: nn.Module, kind: Kind | None, away: Sequence[np.ndarray], seed: int) -> Plane:
    """The plane asked for. away: (w,) of each checkpoint, minus the centre."""
    elsewhere = sum(bool(one.any()) for one in away)
    if kind == "training" and elsewhere < 2:
        raise ConfigError(
            f"The plane of the training needs two checkpoints besides the centre, but this run has {elsewhere}. Train "
            "with trainer.callbacks lossopt.checkpoints.WeightHistory, or take the random directions."
        )
    if kind == "random" or (kind is None and elsewhere < _A_WAY):
        generator = torch.Generator().manual_seed(seed)
        first, second = (filter_normalised(model, generator) for _ in range(2))
        axes = ("random direction, filter-normalised", "another random direction, filter-normalised")
        return Plane("random", (first, second), axes)
    found = PCA(n_components=2, svd_solver="full").fit(np.stack(away))
    first, second = (_as_weights(model, component) for component in found.components_)
    shares = [f"{share:.0%}" for share in found.explained_variance_ratio_]
    axes = (f"first principal component, {shares[0]} of the path", f"second principal component, {shares[1]}")
    return Plane("training", (first, second), axes)


def _as_weights(model: nn.Module, values: np.ndarray) -> dict[str, Tensor]:
    """(w,) by name of the weight: the inverse of `_flat`."""
    weights = weights_of(model)
    parts = torch.from_numpy(values).split([weight.numel() for weight in weights.values()])
    return {
        name: part.view(weight.shape).to(weight) for part, (name, weight) in zip(parts, weights.items(), strict=True)
    }


def _flat(weights: Mapping[str, Tensor], names: Sequence[str]) -> np.ndarray:
    """(w,) float32, which is what weights are, for all checkpoints are in memory at once."""
    return torch.cat([weights[name].detach().float().cpu().flatten() for name in names]).numpy()


def project(plane: Plane, away: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where checkpoints lie on the plane, by least squares.

    Args:
        plane: its directions need not be orthogonal.
        away: (k, w) checkpoints minus the centre.

    Returns:
        (k, 2) coordinates; (k,) share of the squared distance from the centre that is off the plane, 0 at the centre.
    """
    names = list(plane.directions[0])
    basis = np.stack([_flat(direction, names) for direction in plane.directions], axis=1)
    path = np.linalg.lstsq(basis, away.T, rcond=None)[0].T
    squared = np.square(away).sum(axis=1, dtype=np.float64)
    left = np.square(away - path @ basis.T).sum(axis=1, dtype=np.float64)
    return path.astype(np.float64), np.divide(left, squared, out=np.zeros_like(left), where=squared > 0)


def _sides(kind: Kind, path: np.ndarray, points: int, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """The places of the two axes; one of each is exactly 0, the centre."""
    if kind == "random":
        side = np.arange(-(points // 2), points // 2 + 1) * (reach / (points // 2))
        return side, side
    low, high = np.minimum(path.min(axis=0), 0), np.maximum(path.max(axis=0), 0)
    width = np.maximum(high - low, (high - low).max() / 20)  # a path that is nearly a line still gets a plane
    step = width * (1 + reach / 2) / (points - 2)
    first = np.floor((low - width * reach / 4) / step)
    x, y = ((np.arange(points) + start) * one for start, one in zip(first, step, strict=True))
    return x, y


# ------------------------------------------------------------------------------------------------------ the path


def _checkpoints(loaded: LoadedRun, centre: int) -> tuple[dict[int, State], list[str]]:
    """State dicts by completed epochs, from the untrained network to the last; what is to be said of them."""
    folder, io = loaded.checkpoint.absolute().parent, DurableCheckpointIO()
    history = weight_history(folder.parent)
    kept = {entry.epoch: folder / entry.file for entry in read_manifest(folder)} | history
    kept[centre] = loaded.checkpoint
    epochs, states = sorted(kept), {}
    if len(epochs) > _MOST:
        evenly = {epochs[place] for place in np.linspace(0, len(epochs) - 1, _MOST).astype(int)}
        epochs = sorted({*evenly, centre})
    notes = [f"The path shows {len(epochs)} of {len(kept)} kept checkpoints."] if len(epochs) < len(kept) else []
    if 0 not in kept:
        states[0] = untrained(loaded.config)
        notes.append("The untrained network, epoch 0, was made again from the seed of the run.")
    if not history:
        notes.append("The run kept its newest and its best epoch. With lossopt.checkpoints.WeightHistory it keeps all.")
    for epoch in epochs:
        try:
            content = io.load_checkpoint(kept[epoch])
        except LossoptError:  # whose text names the folder
            notes.append(f"Epoch {epoch} is left out: its file is damaged.")
        else:
            states[epoch] = content.get("state_dict", content)  # a file of `WeightHistory` is a state dict
    return states, notes


def untrained(config: dict[str, Any]) -> State:
    """The state dict with which `lossopt train` begins, made again from the seed; random streams are left as they were.

    Args:
        config: the resolved configuration.
    """
    before = rng_states()
    try:
        random.seed(config["seed"])
        np.random.seed(config["seed"])
        torch.manual_seed(config["seed"])
        made = instantiate(parse((), config))
        if isinstance(made.model, ImageNetwork):  # it learns there what is no weight: means and deviations of targets
            made.model.check_data(made.data.splits)
        state: State = made.model.state_dict()
        return state
    finally:
        restore_rng(before)


def _difference(model: nn.Module, state: State) -> np.ndarray:
    """(w,) a state dict minus the model."""
    names = list(weights_of(model))
    return _flat(state, names) - _flat(weights_of(model), names)


# ------------------------------------------------------------------------------------------------------ words


def _notes(model: nn.Module, plane: Plane, batches: Sequence[Batch], loss: np.ndarray) -> list[str]:
    images = sum(len(batch.labels) for batch in batches)
    loss_fn = getattr(model, "loss_fn", None)
    what = "the training loss" if loss_fn is None else type(loss_fn).__name__
    notes = [f"Height is {what} on {images} training images, the same at every place, without augmentation."]
    if getattr(loss_fn, "reduction", "") == "mean_active" or getattr(loss_fn, "select", "all") != "all":
        notes.append(f"{what} is a mean over the tuples that it selects, which are others at every place.")
    if plane.kind == "random":
        notes.append(
            "Each filter of a direction is as long as the network's own; biases and batch norm stay (Li et al. 2018). "
            "Random directions show next to nothing of the way that training took: it runs off this plane."
        )
    else:
        notes.append(
            "The plane holds the centre and the two principal components of the kept checkpoints, which are of length "
            "1 and not filter-normalised (Li et al. 2018, section 7): the axes are distances between weights."
        )
    if any(name.endswith("running_mean") for name, _ in model.named_buffers()):
        notes.append(
            "Batch norm keeps the running statistics of the centre at every place; the checkpoints of the path are "
            "scored with their own, so their loss is not the height beneath them."
        )
    gaps = int(np.isnan(loss).sum())
    if gaps:
        notes.append(f"{gaps} of {loss.size} places have no finite loss and are left empty.")
    return notes
