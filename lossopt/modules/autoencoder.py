"""The autoencoder: an encoder and a decoder, trained so that the images that come out are those that went in.

Letters: b batch, c channels, h height, w width, d numbers of a code.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lossopt.data.dataset import Batch, Splits
from lossopt.data.module import to_float
from lossopt.decoders import Decoder
from lossopt.errors import ConfigError
from lossopt.health import Kind, Sign
from lossopt.losses.preconditions import check_first_batch, check_output_range
from lossopt.modules.network import ImageNetwork

SMOOTH_BETA = 0.1  # of the measure smooth_l1; with 1 it would be half the mse, for pixels are in [0, 1]
VARIES = 0.02  # share of the images' variance below which reconstructions count as one image
_LOOKED_AT = 64  # training images that the check before training rebuilds
NEAR = 0.2  # a constant image's error may exceed that of the best one by this share: momentum makes it swing
ON_THE_WAY = 300  # steps in which a healthy network may still be near the mean image, which is learnt first


class Autoencoder(ImageNetwork):
    """Squeezes each image into a short code and rebuilds it; every measure below scores it, whichever it is trained on.

    error: squared error per image, summed over its pixels (784 times the mse for 28 x 28). mse, l1, smooth_l1: per
    pixel, as torch.nn defines them, smooth_l1 with a beta of 0.1. loss: the one that is trained. variation: how much
    the reconstructions vary from image to image, as a share of how much the images do; near 0 every image becomes the
    same one (see `one_image`).

    Args:
        encoder: (b, c, h, w) images in [0, 1] to (b, d) codes; afterwards any command that embeds can use it.
        decoder: (b, d) codes to (b, c, h, w).
        loss_fn: called as loss_fn(reconstructions, images); None: `nn.MSELoss`. `nn.BCEWithLogitsLoss` sees what the
            decoder gives, and its sigmoid is then the reconstruction.
        optimizer, lr_scheduler: as for `ImageNetwork`.

    Source: Hinton & Salakhutdinov 2006, Reducing the Dimensionality of Data with Neural Networks, Science 313.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        loss_fn: nn.Module | None = None,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(optimizer, lr_scheduler)
        self.encoder, self.decoder = encoder, decoder
        self.loss_fn: nn.Module = nn.MSELoss() if loss_fn is None else loss_fn

    @property
    def metrics(self) -> tuple[str, ...]:
        """The squared error per image first."""
        return ("error", "mse", "l1", "smooth_l1", "loss", "variation")

    @property
    def embedder(self) -> nn.Module:
        """The encoder: any command that searches takes codes for embeddings."""
        return self.encoder

    def codes(self, images: Tensor) -> Tensor:
        """images: (b, c, h, w) float in [0, 1]. Returns (b, d)."""
        codes: Tensor = self.encoder(images)
        return codes

    def forward(self, images: Tensor) -> Tensor:
        """images: (b, c, h, w) float in [0, 1]. Returns reconstructions of the same shape."""
        return self._pixels(self.decoder(self.codes(images)))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One batch to one loss."""
        outputs = self.decoder(self.codes(batch.images))
        self.keep(batch, outputs)
        loss: Tensor = self.loss_fn(outputs, batch.images)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Scores a batch of the validation split."""
        self.log_scores("val", self.scores(batch.images), len(batch.images))

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Scores a batch of the test split."""
        self.log_scores("test", self.scores(batch.images), len(batch.images))

    def scores(self, images: Tensor) -> dict[str, Tensor]:
        """The metrics of (b, c, h, w) images, 0-dim each."""
        outputs = self.decoder(self.codes(images))
        made = self._pixels(outputs)
        mse = F.mse_loss(made, images)
        return {
            "error": mse * images[0].numel(),
            "mse": mse,
            "l1": F.l1_loss(made, images),
            "smooth_l1": F.smooth_l1_loss(made, images, beta=SMOOTH_BETA),
            "loss": self.loss_fn(outputs, images),
            "variation": variation(images, made),
        }

    def check_data(self, splits: Splits) -> None:
        """Rebuilds some training images, untrained, and asks whether loss and decoder fit each other and the images.

        Raises:
            ConfigError: the images do not fit the encoder, or come out in another shape; the loss is not defined for
                what the decoder's output activation gives, or gives no single number.
        """
        images = to_float(splits.train.batch(range(min(_LOOKED_AT, len(splits.train)))).images)
        shape = _sides(images)
        was = self.training
        try:
            with torch.no_grad():
                outputs = self.eval().decoder(self.codes(images))
        except RuntimeError as unfit:
            raise ConfigError(
                f"The images are {shape}, which does not fit the autoencoder ({' '.join(str(unfit).split())}). Set "
                "image_size and channels of encoder and decoder to those of the images, and embedding_size of both to "
                "one number."
            ) from unfit
        finally:
            self.train(was)
        if outputs.shape != images.shape:
            raise ConfigError(
                f"The images are {shape}, but the decoder makes {_sides(outputs)}. Set the decoder's image_size and "
                "channels to those of the images."
            )
        self._check_loss(outputs, images)

    def _check_loss(self, outputs: Tensor, images: Tensor) -> None:
        name = type(self.loss_fn).__name__
        try:
            check_output_range(self.loss_fn, self.decoder.output if isinstance(self.decoder, Decoder) else self.decoder)
            check_first_batch(self.loss_fn, outputs, images)
            loss = self.loss_fn(outputs, images)
        except ValueError as unfit:
            raise ConfigError(f"The loss does not fit the autoencoder. {unfit}") from unfit
        except (TypeError, RuntimeError, IndexError) as unfit:
            raise ConfigError(
                f"{name} cannot compare images with images ({' '.join(str(unfit).split())}). Take a reconstruction "
                "loss: torch.nn.MSELoss, L1Loss, SmoothL1Loss, HuberLoss or BCELoss, lossopt.losses.MSLELoss."
            ) from unfit
        if not isinstance(loss, Tensor):
            raise ConfigError(
                f"{name} gives a {type(loss).__name__}; a loss must be a tensor, so that it has a gradient."
            )
        if not bool(torch.isfinite(loss).all()):
            raise ConfigError(f"{name} is {float(loss.sum())} on the first images. Look at what it does with 0 and 1.")
        if outputs.numel() > len(outputs) and bool((outputs == outputs.flatten()[0]).all()):
            raise ConfigError(
                f"The decoder gives {float(outputs.flatten()[0]):g} everywhere, whatever the image. Look at its output "
                "activation: a softmax over one channel is 1."
            )
        if loss.numel() != 1:
            raise ConfigError(
                f"{name} gives {_sides(loss[None])} numbers for a batch. Set its reduction to mean or sum."
            )

    def faults(self) -> Mapping[Kind, Sign | None]:
        """The mean-image trap, once there were steps enough to leave it."""
        if self.last_step is None or self.global_step < ON_THE_WAY:
            return {}
        return {"mean image": one_image(self.last_step.batch.images, self._pixels(self.last_step.outputs))}

    def _pixels(self, outputs: Tensor) -> Tensor:
        """What the decoder's outputs are as an image."""
        return outputs.sigmoid() if isinstance(self.loss_fn, nn.BCEWithLogitsLoss) else outputs


def variation(images: Tensor, reconstructions: Tensor) -> Tensor:
    """How much the reconstructions vary over a batch against the images: sums over pixels of their variances, divided.

    Args:
        images, reconstructions: (b, ...) of one shape.

    Returns:
        0-dim, 0 or more. NaN where the images themselves do not vary, as in a batch of one.
    """
    made, real = (part.flatten(1).var(dim=0, correction=0).sum() for part in (reconstructions, images))
    return made / real.where(real > 0, torch.nan)


def one_image(images: Tensor, reconstructions: Tensor) -> Sign | None:
    """The trap of one image for all: reconstructions that hardly vary; which image it is, and what it costs.

    Most often it is the mean image, the best constant for squared errors, or the median image, that for absolute ones.
    On MNIST the mean image has a squared error of 52.90. A network that has learnt nothing yet also gives a constant.

    Args:
        images, reconstructions: (b, ...) of one shape.

    Returns:
        The sign, or None. A batch of one image, or of equal ones, shows nothing.

    Source: seen in 10 of 10 momentum runs and 4 of 10 SGD runs of Schneider, Balles & Hennig 2019, DeepOBS, mnist_vae.
    """
    images, reconstructions = images.detach(), reconstructions.detach()
    share = float(variation(images, reconstructions))
    if not share < VARIES:  # also NaN
        return None
    real, constant = images.flatten(1), reconstructions.flatten(1).mean(dim=0)
    best = {"mean": real.mean(dim=0), "median": real.median(dim=0).values}
    name = min(best, key=lambda one: float(torch.linalg.vector_norm(constant - best[one])))
    measure, power = ("squared", 2) if name == "mean" else ("absolute", 1)
    given, least = (float((real - one).abs().pow(power).sum(dim=1).mean()) for one in (constant, best[name]))
    which = f"the {name} image" if given <= (1 + NEAR) * least else f"and worse than the {name} image"
    return Sign(
        {"variation": share, "error": given, f"{name}_image_error": least},
        f"every image is rebuilt as nearly the same one, {which}: reconstructions vary {share:.2%} as much as the "
        f"images; {measure} error per image {given:.2f}, {least:.2f} for the {name} of the batch",
    )


def _sides(images: Tensor) -> str:
    """The shape of one of them."""
    return " x ".join(map(str, images.shape[1:]))
