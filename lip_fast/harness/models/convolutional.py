"""Networks that take their inputs as images.

Inputs are flat rows as those of every network here, and take their shape in the first layer. BatchNorm makes
these networks differ between training and evaluation: ``train()`` and ``eval()`` say which is meant. In
training it needs two values of a channel, which a batch of one sample does not have where the last images are
one pixel wide (those of a ResNet on 8 x 8 pixels).
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lip_fast.harness.models.network import Network

__all__ = ["CNN", "ResNet", "resnet18", "resnet34"]

ImageShape = tuple[int, int, int]


class _Images(nn.Module):
    """Flat rows (n, c h w) as images (n, c, h, w), whose channels lie side by side in memory.

    Convolution, BatchNorm and pooling keep that order.
    """

    def __init__(self, shape: ImageShape) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.unflatten(1, self.shape).permute(0, 2, 3, 1)
        # A copy, for with a single channel memory is in both orders, and torch would go on in the slower one.
        return pixels.clone(memory_format=torch.contiguous_format).permute(0, 3, 1, 2)

    def extra_repr(self) -> str:
        return f"shape={self.shape}"


class _GlobalAverage(nn.Module):
    """Mean over the pixels: (n, c, h, w) -> (n, c).

    The gradient of torch's adaptive pooling is not deterministic on CUDA.
    """

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))


class CNN(Network):
    """A small convolutional network: three blocks of 32, 64 and 128 channels, q = 128.

    A block is a 3x3 convolution, BatchNorm, ReLU and a pooling that halves the image; after them come the
    mean over the pixels and a fully connected layer with ReLU.

    Args:
        image_shape: (channels, height, width) of the inputs, of any size.
        classes: number of classes l.
    """

    def __init__(self, image_shape: ImageShape, classes: int) -> None:
        widths = (image_shape[0], 32, 64, 128)
        layers: list[nn.Module] = [_Images(image_shape)]
        for width, next_width in itertools.pairwise(widths):
            layers += [
                _convolution(width, next_width),
                nn.BatchNorm2d(next_width),
                # Maximum and ReLU commute, and this way round ReLU has a quarter of the work.
                nn.MaxPool2d(2, ceil_mode=True),  # ceil: an image one pixel wide stays one
                nn.ReLU(inplace=True),
            ]
        layers += [_GlobalAverage(), nn.Linear(widths[-1], widths[-1]), nn.ReLU(inplace=True)]
        super().__init__(nn.Sequential(*layers), nn.Linear(widths[-1], classes))


class ResNet(Network):
    """A residual network of basic blocks for small images, q = 512.

    He et al. 2016 (arXiv:1512.03385): the widths and depths of their table 1, with what they do on CIFAR-10
    (section 4.2) before the first block, a 3x3 convolution of stride 1 and no pooling. Shortcuts that change
    the shape are 1x1 convolutions (their option B). Convolutions start as in He et al. 2015
    (arXiv:1502.01852), which they use.

    Args:
        depths: number of blocks in each of the four stages, of 64, 128, 256 and 512 channels.
        image_shape: (channels, height, width) of the inputs, of any size.
        classes: number of classes l.
    """

    def __init__(self, depths: Sequence[int], image_shape: ImageShape, classes: int) -> None:
        width = 64
        layers = [
            _Images(image_shape),
            _convolution(image_shape[0], width),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        ]
        for stage, depth in enumerate(depths):
            for block in range(depth):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(_BasicBlock(width, 64 * 2**stage, stride))
                width = 64 * 2**stage
        layers.append(_GlobalAverage())
        super().__init__(nn.Sequential(*layers), nn.Linear(width, classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def resnet18(image_shape: ImageShape, classes: int) -> ResNet:
    """:class:`ResNet` with two blocks in each stage."""
    return ResNet((2, 2, 2, 2), image_shape, classes)


def resnet34(image_shape: ImageShape, classes: int) -> ResNet:
    """:class:`ResNet` with 3, 4, 6 and 3 blocks in its stages."""
    return ResNet((3, 4, 6, 3), image_shape, classes)


class _BasicBlock(nn.Module):
    """relu(F(x) + shortcut(x)), F two 3x3 convolutions; with a stride the first halves the image."""

    def __init__(self, width: int, next_width: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            _convolution(width, next_width, stride=stride),
            nn.BatchNorm2d(next_width),
            nn.ReLU(inplace=True),
            _convolution(next_width, next_width),
            nn.BatchNorm2d(next_width),
        )
        self.shortcut: nn.Module = nn.Identity()
        if width != next_width:
            self.shortcut = nn.Sequential(
                _convolution(width, next_width, size=1, stride=stride), nn.BatchNorm2d(next_width)
            )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.residual(x) + self.shortcut(x))


def _convolution(width: int, next_width: int, size: int = 3, stride: int = 1) -> nn.Conv2d:
    """A convolution that keeps the image's size but for its stride; the BatchNorm after it has the bias."""
    return nn.Conv2d(width, next_width, size, stride, padding=size // 2, bias=False)
