import numpy as np
import pytest
import torch
from torch import Tensor

from lip_fast.harness.data.augmentation import AUGMENTATIONS, crop_and_flip


def images_like(*shape: int) -> Tensor:
    """No two pixels alike and none zero, so that an output tells where each of its pixels came from."""
    return torch.arange(1.0, 1 + np.prod(shape)).view(shape)


def possible(image: np.ndarray, padding: int) -> dict[bytes, tuple[int, int, bool]]:
    """Every crop of an image (c, h, w), by its bytes: from which row and column, and if mirrored."""
    _, height, width = image.shape
    padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)))
    crops = {}
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            crop = padded[:, top : top + height, left : left + width]
            crops[crop.tobytes()] = (top, left, False)
            crops[crop[:, :, ::-1].tobytes()] = (top, left, True)
    return crops


def drawn(outputs: Tensor, images: Tensor, padding: int) -> list[tuple[int, int, bool]]:
    return [
        possible(image.numpy(), padding)[output.numpy().tobytes()]
        for image, output in zip(images, outputs, strict=True)
    ]


@pytest.mark.parametrize("shape", [(2, 5, 3), (1, 4, 6), (3, 8, 8)], ids=str)
@pytest.mark.parametrize("padding", [0, 1, 3])
def test_every_output_is_a_crop_of_its_own_image(
    shape: tuple[int, int, int], padding: int, generator: torch.Generator
) -> None:
    images = images_like(40, *shape)
    outputs = crop_and_flip(images, generator, padding)
    assert outputs.shape == images.shape
    drawn(outputs, images, padding)  # a KeyError where an output is none of the crops


def test_every_crop_is_as_likely_and_half_are_mirrored(generator: torch.Generator) -> None:
    padding, count = 1, 9000
    images = images_like(1, 1, 4, 4).expand(count, -1, -1, -1)
    places = drawn(crop_and_flip(images, generator, padding), images, padding)
    counts = np.zeros((3, 3, 2))
    for top, left, mirrored in places:
        counts[top, left, int(mirrored)] += 1
    # 18 outcomes of 500 each: standard deviation 21.7, and 5 of them are 109.
    assert abs(counts - 500).max() < 109
    # Of 9000 draws 4500 are mirrored, standard deviation 47.
    assert abs(counts[:, :, 1].sum() - 4500) < 237


def test_four_pixels_are_the_paper_s_padding(generator: torch.Generator) -> None:
    images = images_like(400, 1, 10, 10)
    tops, lefts, _ = zip(*drawn(crop_and_flip(images, generator), images, 4), strict=True)
    # 400 draws miss one of nine values with a chance of 18 (8/9)^400 < 1e-19.
    assert set(tops) == set(lefts) == set(range(9))


def test_the_generator_decides_and_nothing_else() -> None:
    images = images_like(20, 3, 8, 8)
    before = images.clone()
    first, again, other = (crop_and_flip(images, torch.Generator().manual_seed(s)) for s in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(images, before)
    generator = torch.Generator().manual_seed(5)
    crop_and_flip(images, generator)
    assert not torch.equal(crop_and_flip(images, generator), first)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_and_values_are_kept(dtype: torch.dtype) -> None:
    images = images_like(3, 2, 5, 5)
    outputs = crop_and_flip(images.to(dtype), torch.Generator().manual_seed(0))
    assert outputs.dtype == dtype
    assert torch.equal(outputs, crop_and_flip(images, torch.Generator().manual_seed(0)).to(dtype))


def test_the_device_is_kept_and_the_draws_are_the_cpu_s(generator: torch.Generator) -> None:
    twin = torch.Generator().manual_seed(0)
    outputs = crop_and_flip(torch.empty(4, 3, 8, 8, device="meta"), generator)
    assert outputs.device.type == "meta"
    crop_and_flip(images_like(4, 3, 8, 8), twin)
    assert torch.equal(generator.get_state(), twin.get_state())


def test_images_in_any_order_of_memory() -> None:
    images = images_like(6, 3, 8, 8)
    turned = images.contiguous(memory_format=torch.channels_last)
    first, second = (crop_and_flip(x, torch.Generator().manual_seed(0)) for x in (images, turned))
    assert torch.equal(first, second)


def test_no_images(generator: torch.Generator) -> None:
    assert crop_and_flip(torch.empty(0, 3, 8, 8), generator).shape == (0, 3, 8, 8)


def test_names() -> None:
    assert AUGMENTATIONS == {"none": None, "crop-flip": crop_and_flip}
