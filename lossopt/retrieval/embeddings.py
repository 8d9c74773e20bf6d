"""Images to vectors with a trained network, in the table's own order."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm


@torch.inference_mode()
def embed(
    network: nn.Module, batches: Iterable[Tensor], n: int, device: torch.device | str = "cpu", title: str = "embedding"
) -> np.ndarray:
    """The embeddings of n images.

    Args:
        network: (b, c, h, w) float images in [0, 1] to (b, d); put into evaluation mode meanwhile.
        batches: (b, c, h, w) float images in [0, 1], n in all.
        n: images in all.
        device: where the network is.
        title: of the progress bar, which shows after a second and only in a terminal.

    Returns:
        (n, d) float32.
    """
    was_training = network.training
    network.eval()
    vectors: np.ndarray | None = None
    done = 0
    with tqdm(total=n, desc=title, unit="image", delay=1, disable=None, leave=False) as bar:
        for images in batches:
            found = network(images.to(device)).float().cpu().numpy()
            if vectors is None:
                vectors = np.empty((n, found.shape[1]), dtype=np.float32)
            vectors[done : done + len(found)] = found
            done += len(found)
            bar.update(len(found))
    network.train(was_training)
    return np.empty((0, 0), dtype=np.float32) if vectors is None else vectors[:done]
