"""Random changes of training images that leave their class as it is."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["AUGMENTATIONS", "crop_and_flip"]


def crop_and_flip(images: Tensor, generator: torch.Generator, padding: int = 4) -> Tensor:
    """Shift each image by up to ``padding`` pixels each way, and mirror half of them left to right.

    The augmentation of He et al. 2016 (arXiv:1512.03385, section 4.2): a crop of the image's own size, drawn
    from the image with ``padding`` zeros on each side. Zero is the mean of standardised pixels.

    Args:
        images: (b, c, h, w) of any dtype, on any device.
        generator: on the CPU, so that the draws are the same for every device; three of b numbers each.
        padding: 4 as in the paper, there for 32 x 32 pixels.

    Returns:
        a new tensor (b, c, h, w) of the dtype and device of ``images``.
    """
    count, _, height, width = images.shape
    tops, lefts = torch.randint(2 * padding + 1, (2, count, 1), generator=generator)
    mirrored = torch.randint(2, (count, 1), generator=generator) == 1
    rows, columns = torch.arange(height), torch.arange(width)
    rows = tops + rows
    columns = lefts + torch.where(mirrored, columns.flip(0), columns)
    padded = functional.pad(images, (padding,) * 4)
    # Pixels of a padded image are counted row by row.
    places = (rows[:, :, None] * padded.shape[3] + columns[:, None, :]).flatten(1)
    places = places.to(images.device)[:, None].expand(-1, images.shape[1], -1)
    return padded.flatten(2).gather(2, places).unflatten(2, (height, width))


# None: the images stay as they are, and the inputs need not be images.
AUGMENTATIONS: dict[str, Callable[[Tensor, torch.Generator], Tensor] | None] = {
    "none": None,
    "crop-flip": crop_and_flip,
}
