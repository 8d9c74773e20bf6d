"""Networks that turn codes back into images: one vector per image goes in, float images in [0, 1] come out.

Letters: b batch, c channels, s side in pixels, d numbers of a code.
"""

from torch import Tensor, nn

from lossopt.encoders import dense_layers


class Decoder(nn.Module):
    """Layers, then an output activation that bounds the pixels. The decoders below only choose the layers.

    Args:
        layers: (b, d) codes to (b, c, s, s).
        output: after the last layer; None: the sigmoid, whose pixels lie in [0, 1]. A loss on logits
            (`nn.BCEWithLogitsLoss`) needs `nn.Identity`.
    """

    def __init__(self, layers: nn.Module, output: nn.Module | None = None) -> None:
        super().__init__()
        self.layers, self.output = layers, nn.Sigmoid() if output is None else output

    def forward(self, codes: Tensor) -> Tensor:
        """codes: (b, d). Returns (b, c, s, s)."""
        images: Tensor = self.output(self.layers(codes))
        return images


class DenseDecoder(Decoder):
    """Fully connected layers, each with batch norm and an activation: `DenseEncoder` the other way round.

    Args:
        embedding_size: d, as in the encoder.
        widths: units of each hidden layer, from the code outwards; None: 250, 500, 1000.
        image_size: side of the images in pixels.
        channels: of the images.
        activation: after each hidden layer; None: SiLU. Each layer gets a copy of its own.
        batch_norm: normalise each hidden layer over the batch.
        output: as for `Decoder`.

    Source: the shape is that of Hinton & Salakhutdinov 2006, Science 313.
    """

    def __init__(
        self,
        embedding_size: int = 30,
        widths: list[int] | None = None,
        image_size: int = 28,
        channels: int = 1,
        activation: nn.Module | None = None,
        batch_norm: bool = True,
        output: nn.Module | None = None,
    ) -> None:
        sizes = [embedding_size, *(widths or [250, 500, 1000])]
        shape = (channels, image_size, image_size)
        last = nn.Linear(sizes[-1], channels * image_size**2)
        layers = dense_layers(sizes, activation or nn.SiLU(), batch_norm)
        super().__init__(nn.Sequential(*layers, last, nn.Unflatten(1, shape)), output)


class ConvDecoder(Decoder):
    """A linear layer to small maps, then two transposed convolutions that double their side: the pair of `Conv4`.

    Args:
        embedding_size: d, as in the encoder.
        image_size: side of the images in pixels, a multiple of 4.
        channels: of the images.
        width: channels of the last maps; the first have twice as many.
        output: as for `Decoder`.

    Raises:
        ValueError: a side that is no multiple of 4.
    """

    def __init__(
        self,
        embedding_size: int = 64,
        image_size: int = 28,
        channels: int = 1,
        width: int = 32,
        output: nn.Module | None = None,
    ) -> None:
        if image_size < 4 or image_size % 4:
            raise ValueError(
                f"ConvDecoder doubles the side twice, so image_size must be 4, 8, 12, ...; got {image_size}."
            )
        side = image_size // 4
        layers = nn.Sequential(
            nn.Linear(embedding_size, 2 * width * side**2),
            nn.Unflatten(1, (2 * width, side, side)),
            nn.BatchNorm2d(2 * width),
            nn.SiLU(),
            nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.SiLU(),
            nn.ConvTranspose2d(width, channels, 4, stride=2, padding=1),
        )
        super().__init__(layers, output)
