"""Networks that turn images into embeddings: float images in [0, 1] go in, one vector per image comes out.

Every encoder standardises its input itself, so that its weights and its preprocessing travel together.
Letters: b batch, c channels, h height, w width, d embedding.
"""

import copy
import difflib
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Pooling = Literal["average", "gem"]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class GeM(nn.Module):
    """Generalised-mean pooling: (mean of x^p)^(1/p) over places, p learned. p = 1 averages, large p takes the largest.

    Source: Radenovic, Tolias & Chum 2018, Fine-tuning CNN Image Retrieval with No Human Annotation, eq. 2.
    """

    def __init__(self, p: float = 3.0, eps: float = 1e-6) -> None:
        super().__init__()
        self.p, self.eps = nn.Parameter(torch.tensor(p)), eps

    def forward(self, maps: Tensor) -> Tensor:
        """maps: (b, c, h, w). Returns (b, c)."""
        return maps.clamp(min=self.eps).pow(self.p).mean(dim=(2, 3)).pow(1 / self.p)


class Encoder(nn.Module):
    """Standardise, run a trunk, pool, project to the embedding, normalise. The encoders below only choose the trunk.

    Args:
        trunk: (b, channels, h, w) images to (b, features, h', w') maps.
        features: channels of the maps.
        embedding_size: d; 0 leaves the projection out, and the pooled maps are the embedding.
        normalize: scale every embedding to length 1.
        pooling: "average" or "gem" (learned generalised mean).
        channels: of the images that go in; grey images are repeated where the trunk needs 3.
        mean, std: per channel, subtracted and divided by, on the scale [0, 1].
    """

    def __init__(
        self,
        trunk: nn.Module,
        features: int,
        embedding_size: int = 64,
        normalize: bool = True,
        pooling: Pooling = "average",
        channels: int = 1,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
    ) -> None:
        super().__init__()
        if pooling not in ("average", "gem"):
            raise ValueError(f"pooling must be 'average' or 'gem', got {pooling!r}.")
        if embedding_size < 0:
            raise ValueError(f"embedding_size must be 0 (no projection) or more, got {embedding_size}.")
        self.mean: Tensor
        self.std: Tensor
        self.trunk, self.normalize, self.channels = trunk, normalize, channels
        self.pool = GeM() if pooling == "gem" else nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.project = nn.Linear(features, embedding_size) if embedding_size else nn.Identity()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """images: (b, c, h, w) float in [0, 1]. Returns (b, d) float32, whatever precision the trunk ran in."""
        if images.shape[1] == 1 and self.channels == 3:
            images = images.expand(-1, 3, -1, -1)
        maps = self.trunk((images - self.mean) / self.std)
        embeddings = self.project(self.pool(maps)).float()
        return F.normalize(embeddings) if self.normalize else embeddings


def _conv_block(channels_in: int, channels_out: int, stride: int = 1, pool: bool = True) -> nn.Sequential:
    layers = [
        nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    ]
    return nn.Sequential(*layers, *([nn.MaxPool2d(2)] if pool else []))


class Conv4(Encoder):
    """conv4-64, the standard network of few-shot learning: four blocks of convolution, batch norm, ReLU, 2x2 maximum.

    The convolutions have no bias, since batch norm takes it away again. With 28-pixel images the last map is 1 x 1.

    Args:
        embedding_size, normalize, pooling, channels: as for `Encoder`.
        width: channels of every block.

    Source: Snell, Swersky & Zemel 2017, Prototypical Networks, section 3.1.
    """

    def __init__(
        self,
        embedding_size: int = 64,
        normalize: bool = True,
        pooling: Pooling = "average",
        channels: int = 1,
        width: int = 64,
    ) -> None:
        if width < 1:
            raise ValueError(f"width must be 1 or more, got {width}.")
        widths = [channels, width, width, width, width]
        trunk = nn.Sequential(*(_conv_block(a, b) for a, b in pairwise(widths)))
        super().__init__(trunk, width, embedding_size, normalize, pooling, channels)


class _ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut; the first may halve the side."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(channels_out),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out)
            )

    def forward(self, maps: Tensor) -> Tensor:
        return F.relu(self.body(maps) + self.shortcut(maps))


class SmallResNet(Encoder):
    """A residual network for images of 32 to 96 pixels: no early downsampling, one stage per entry of `widths`.

    Args:
        embedding_size, normalize, pooling, channels: as for `Encoder`.
        widths: channels of each stage; each stage after the first halves the side.
        blocks: residual blocks per stage.

    Source: He et al. 2016, Deep Residual Learning, section 4.2 (the CIFAR networks).
    """

    def __init__(
        self,
        embedding_size: int = 128,
        normalize: bool = True,
        pooling: Pooling = "average",
        channels: int = 3,
        widths: list[int] | None = None,
        blocks: int = 2,
    ) -> None:
        stages = widths or [32, 64, 128]
        layers: list[nn.Module] = [
            nn.Conv2d(channels, stages[0], 3, 1, 1, bias=False),
            nn.BatchNorm2d(stages[0]),
            nn.ReLU(inplace=True),
        ]
        for number, (before, width) in enumerate(zip([stages[0], *stages], stages, strict=False)):
            layers.append(_ResidualBlock(before, width, stride=1 if number == 0 else 2))
            layers += [_ResidualBlock(width, width, stride=1) for _ in range(blocks - 1)]
        super().__init__(nn.Sequential(*layers), stages[-1], embedding_size, normalize, pooling, channels)


class Conv2(Encoder):
    """Two 5x5 convolutions, each with ReLU and 2x2 maximum, then a dense layer with ReLU: DeepOBS's 2c2d but its head.

    Weights begin from a normal distribution of standard deviation 0.05, cut off at two of them, and biases at 0.05.

    Args:
        embedding_size: d; 0: the dense layer's own numbers.
        normalize: scale every embedding to length 1.
        channels: of the images.
        image_size: side in pixels, a multiple of 4.
        width: units of the dense layer.

    Source: Schneider, Balles & Hennig 2019, DeepOBS, ICLR (`net_mnist_2c2d`).
    """

    def __init__(
        self,
        embedding_size: int = 0,
        normalize: bool = False,
        channels: int = 1,
        image_size: int = 28,
        width: int = 1024,
    ) -> None:
        if image_size < 4 or image_size % 4:
            raise ValueError(f"Conv2 halves the image twice: image_size must be a multiple of 4, got {image_size}.")
        trunk = nn.Sequential(
            *(nn.Conv2d(channels, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(64 * (image_size // 4) ** 2, width), nn.ReLU(), nn.Unflatten(1, (width, 1, 1))),
        )
        super().__init__(trunk, width, embedding_size, normalize, channels=channels)
        self.apply(truncated_normal)


def truncated_normal(layer: nn.Module) -> None:
    """The beginning of DeepOBS's networks: weights normal with deviation 0.05, cut at two of them; biases 0.05."""
    if isinstance(layer, nn.Linear | nn.Conv2d):
        nn.init.trunc_normal_(layer.weight, std=0.05, a=-0.1, b=0.1)
        if layer.bias is not None:
            nn.init.constant_(layer.bias, 0.05)


class ConvGrid(Encoder):
    """A small network that keeps places apart: no pooling at the end, but a dense layer over the whole grid of maps.

    A 3x3 convolution with stride 2 and a 2x2 maximum; then one convolution for each further width, and a last one of
    the same width. All have batch norm and ReLU; the second and the last end in a 2x2 maximum, so that 80 pixels become
    a grid of 5 x 5. For what asks where something is, and not only what.

    Args:
        embedding_size: d, 1 or more.
        normalize: scale every embedding to length 1.
        channels: of the images.
        image_size: side in pixels, a multiple of 16.
        widths: channels; None: 32, 64, 96.
    """

    def __init__(
        self,
        embedding_size: int = 128,
        normalize: bool = False,
        channels: int = 3,
        image_size: int = 80,
        widths: list[int] | None = None,
    ) -> None:
        sizes = widths or [32, 64, 96]
        if image_size < 16 or image_size % 16:
            raise ValueError(f"ConvGrid halves the image four times: image_size is a multiple of 16, not {image_size}.")
        if len(sizes) < 2 or min(sizes) < 1:
            raise ValueError(f"ConvGrid needs two or more widths of 1 or more, got {sizes}.")
        layers = [_conv_block(channels, sizes[0], stride=2), _conv_block(sizes[0], sizes[1])]
        layers += [_conv_block(before, width, pool=False) for before, width in pairwise(sizes[1:])]
        grid = sizes[-1] * (image_size // 16) ** 2
        layers += [_conv_block(sizes[-1], sizes[-1]), nn.Sequential(nn.Flatten(), nn.Unflatten(1, (grid, 1, 1)))]
        super().__init__(nn.Sequential(*layers), grid, embedding_size, normalize, channels=channels)


class DenseEncoder(Encoder):
    """Fully connected layers for small images: each with batch norm and an activation, then the projection.

    Args:
        embedding_size: d.
        widths: units of each hidden layer; None: 1000, 500, 250.
        image_size: side of the images in pixels.
        channels: of the images.
        activation: after each hidden layer; None: SiLU. Each layer gets a copy of its own.
        batch_norm: normalise each hidden layer over the batch. Without it deep stacks start very slowly.
        normalize: scale every embedding to length 1; an autoencoder's code is left as it is.

    Source: the shape is that of Hinton & Salakhutdinov 2006, Science 313; batch norm and SiLU came later.
    """

    def __init__(
        self,
        embedding_size: int = 30,
        widths: list[int] | None = None,
        image_size: int = 28,
        channels: int = 1,
        activation: nn.Module | None = None,
        batch_norm: bool = True,
        normalize: bool = False,
    ) -> None:
        sizes = [channels * image_size**2, *(widths or [1000, 500, 250])]
        layers = dense_layers(sizes, activation or nn.SiLU(), batch_norm)
        trunk = nn.Sequential(nn.Flatten(), *layers, nn.Unflatten(1, (sizes[-1], 1, 1)))
        super().__init__(trunk, sizes[-1], embedding_size, normalize, channels=channels)


def dense_layers(sizes: Sequence[int], activation: nn.Module, batch_norm: bool) -> list[nn.Module]:
    """Linear layers from each size to the next, each followed by batch norm, if asked for, and a copy of `activation`.

    Raises:
        ValueError: a size below 1.
    """
    if min(sizes) < 1:
        raise ValueError(f"Every layer needs 1 unit or more, got {list(sizes)}.")
    layers: list[nn.Module] = []
    for before, width in pairwise(sizes):
        layers.append(nn.Linear(before, width, bias=not batch_norm))
        layers += [nn.BatchNorm1d(width)] if batch_norm else []
        layers.append(copy.deepcopy(activation))
    return layers


class TorchvisionEncoder(Encoder):
    """Any torchvision classification model by name, its classifier replaced by the embedding.

    Args:
        name: as `torchvision.models.list_models` gives it, for example "resnet18".
        weights: None (random), or a name of the model's weights such as "DEFAULT" (downloaded once by torchvision).
        embedding_size, normalize, pooling: as for `Encoder`; pooling replaces the model's own where it ends in maps.

    Raises:
        ValueError: torchvision has no classification model of that name; the nearest ones are given.
    """

    def __init__(
        self,
        name: str = "resnet18",
        weights: str | None = None,
        embedding_size: int = 128,
        normalize: bool = True,
        pooling: Pooling = "average",
    ) -> None:
        from torchvision import models

        names = models.list_models(module=models)
        if name not in names:
            close = difflib.get_close_matches(name, names, n=3, cutoff=0.3)
            raise ValueError(f"torchvision has no classification model {name!r}. Nearest: {', '.join(close)}.")
        trunk, features = _maps_of(models.get_model(name, weights=weights))
        super().__init__(trunk, features, embedding_size, normalize, pooling, 3, IMAGENET_MEAN, IMAGENET_STD)


def _maps_of(model: nn.Module) -> tuple[nn.Module, int]:
    """The part of a torchvision classifier that ends in maps, and how many channels these have."""
    if hasattr(model, "features"):
        trunk = model.get_submodule("features")
    elif hasattr(model, "layer4"):
        trunk = nn.Sequential(*list(model.children())[:-2])
    else:
        path = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)][-1]
        model.set_submodule(path, nn.Identity())  # the classifier
        trunk = _VectorTrunk(model)
    with torch.no_grad():
        maps = trunk.eval()(torch.zeros(1, 3, 224, 224))
    trunk.train()
    return trunk, maps.shape[1]


class _VectorTrunk(nn.Module):
    """A network that ends in vectors (a vision transformer, for one), as one that ends in maps of one place."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)[:, :, None, None]


class TimmEncoder(Encoder):
    """Any timm model by name (the extra `lossopt[timm]`), standardised as its own data config says.

    Args:
        name: as `timm.list_models` gives it.
        pretrained: load timm's weights (downloaded once by timm).
        embedding_size, normalize, pooling: as for `Encoder`.

    Raises:
        ImportError: timm is not installed; the message is the line that installs it.
    """

    def __init__(
        self,
        name: str,
        pretrained: bool = False,
        embedding_size: int = 128,
        normalize: bool = True,
        pooling: Pooling = "average",
    ) -> None:
        try:
            import timm
        except ImportError as missing:
            raise ImportError('TimmEncoder needs timm. Install it with: pip install "lossopt[timm]"') from missing
        make = partial(timm.create_model, name, pretrained=pretrained, num_classes=0)
        trunk: nn.Module = make(global_pool="")
        data = timm.data.resolve_model_data_config(trunk)
        with torch.no_grad():
            maps = trunk.eval()(torch.zeros(1, *data["input_size"]))
        features = int(getattr(trunk, "num_features"))  # noqa: B009
        if maps.ndim != 4 or maps.shape[1] != features:  # tokens, or channels at the end: the model's own pooling
            trunk = _VectorTrunk(make())
        channels = data["input_size"][0]
        super().__init__(
            trunk.train(), features, embedding_size, normalize, pooling, channels, data["mean"], data["std"]
        )
