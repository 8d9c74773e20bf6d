"""Images to vectors with a trained network, in the table's own order, a batch at a time."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm


@torch.inference_mode()
def embedded(
    network: nn.Module, batches: Iterable[Tensor], n: int, device: torch.device | str = "cpu", title: str = "embedding"
) -> Iterator[np.ndarray]:
    """The embeddings of n images, batch by batch: only one batch is held.

    Args:
        network: (b, c, h, w) float images in [0, 1] to (b, d); in evaluation mode until the last batch is taken.
        batches: (b, c, h, w) float images in [0, 1], n in all.
        n: images in all.
        device: where the network is.
        title: of the progress bar, which shows after a second and only in a terminal.

    Yields:
        (b, d) float32.
    """
    was_training = network.training
    network.eval()
    try:
        with tqdm(total=n, desc=title, unit="image", delay=1, disable=None, leave=False) as bar:
            for images in batches:
                vectors: np.ndarray = network(images.to(device)).float().cpu().numpy()
                yield vectors
                bar.update(len(vectors))
    finally:
        network.train(was_training)


def embed(
    network: nn.Module, batches: Iterable[Tensor], n: int, device: torch.device | str = "cpu", title: str = "embedding"
) -> np.ndarray:
    """(n, d) float32, the embeddings of n images in memory; arguments as for `embedded`."""
    return collected(embedded(network, batches, n, device, title), n)


def collected(parts: Iterable[np.ndarray], n: int) -> np.ndarray:
    """(n, d) float32 from (b, d) batches, without holding them twice."""
    vectors: np.ndarray | None = None
    done = 0
    for part in parts:
        if vectors is None:
            vectors = np.empty((n, part.shape[1]), dtype=np.float32)
        vectors[done : done + len(part)] = part
        done += len(part)
    return np.empty((0, 0), dtype=np.float32) if vectors is None else vectors[:done]
