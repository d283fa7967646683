import copy
import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from lip_fast.cli.errors import UserError
from lip_fast.harness.data import Dataset
from lip_fast.harness.models import MLP, MODELS, Network, make_model
from lip_fast.harness.seeding import initialisation

DIGITS, FASHION, CIFAR = (1, 8, 8), (1, 28, 28), (3, 32, 32)
IMAGE_MODELS = ("cnn", "resnet18", "resnet34")


def made(
    name: str, shape: tuple[int, int, int] = DIGITS, hidden: tuple[int, ...] = (16, 8), classes: int = 10
) -> Network:
    with initialisation(0):
        return make_model(name, inputs=math.prod(shape), image_shape=shape, hidden=hidden, classes=classes)


def rows(shape: tuple[int, int, int], count: int, generator: torch.Generator) -> Tensor:
    return torch.randn(count, math.prod(shape), generator=generator)


def state_hash(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for key, value in model.state_dict().items():
        digest.update(key.encode())
        digest.update(value.numpy().astype("<f4").tobytes())
    return digest.hexdigest()


def test_the_perceptron_starts_as_it_always_did() -> None:
    # Names and values of its state, taken when it was the only model: results of then can be had again.
    expected = "dfa1faae73e08a18fda6a347888732bada81f4b7ef37f458644e904ead7214e4"
    assert state_hash(made("mlp")) == expected
    with initialisation(0):
        assert state_hash(MLP(64, [16, 8], 10)) == expected


@pytest.mark.parametrize("shape", [DIGITS, FASHION, CIFAR], ids=str)
@pytest.mark.parametrize(
    ("name", "width"), [("linear", None), ("mlp", 8), ("cnn", 128), ("resnet18", 512), ("resnet34", 512)]
)
def test_features_and_logits_on_memory_and_on_none(
    name: str, width: int | None, shape: tuple[int, int, int], generator: torch.Generator
) -> None:
    expected = math.prod(shape) if width is None else width
    with torch.device("meta"):
        meta = made(name, shape, classes=7)
    assert {value.device.type for value in meta.state_dict().values()} == {"meta"}
    real = made(name, shape, classes=7).eval()
    for model in (meta, real):
        assert isinstance(model.head, nn.Linear)
        assert (model.head.in_features, model.head.out_features) == (expected, 7)
    x = rows(shape, 3, generator)
    with torch.no_grad():
        features, logits = real.features(x), real(x)
        assert meta(x.to("meta")).shape == (3, 7)
    assert features.shape == (3, expected)
    assert torch.equal(logits, real.head(features))
    assert logits.dtype == torch.float32
    assert {k: v.shape for k, v in real.state_dict().items()} == {
        k: v.shape for k, v in meta.state_dict().items()
    }


def test_a_model_without_memory_draws_nothing() -> None:
    before = torch.get_rng_state()
    with torch.device("meta"):
        for name in MODELS:
            make_model(name, inputs=64, image_shape=DIGITS, hidden=(4,), classes=3)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("linear", DIGITS, 65 * 10),
        ("mlp", DIGITS, 65 * 16 + 17 * 8 + 9 * 10),
        # Convolutions, two numbers a channel in BatchNorm, the layer of width 128, the head.
        ("cnn", CIFAR, 9 * (3 * 32 + 32 * 64 + 64 * 128) + 2 * (32 + 64 + 128) + 129 * 128 + 129 * 10),
        # As counted for the implementations in wide use, e.g. github.com/kuangliu/pytorch-cifar.
        ("resnet18", CIFAR, 11_173_962),
        ("resnet34", CIFAR, 21_282_122),
    ],
)
def test_numbers_of_parameters(name: str, shape: tuple[int, int, int], expected: int) -> None:
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in made(name, shape).parameters()) == expected


@pytest.mark.parametrize("name", IMAGE_MODELS)
@pytest.mark.parametrize("shape", [DIGITS, (3, 9, 6)], ids=str)
def test_images_are_read_channel_by_channel_and_row_by_row(
    name: str, shape: tuple[int, int, int], generator: torch.Generator
) -> None:
    seen: list[Tensor] = []
    model = made(name, shape).eval()
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x = rows(shape, 2, generator)
    before = x.clone()
    with torch.no_grad():
        model(x)
    assert torch.equal(seen[0], x.view(2, *shape))
    assert torch.equal(x, before)


@pytest.mark.parametrize("channels", [1, 3])
def test_convolutions_keep_the_channels_side_by_side(channels: int, generator: torch.Generator) -> None:
    outputs: list[Tensor] = []
    model = made("cnn", (channels, 8, 8)).eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
            module.register_forward_hook(lambda _, __, output: outputs.append(output))
    model(rows((channels, 8, 8), 2, generator))
    assert len(outputs) == 6
    assert all(out.is_contiguous(memory_format=torch.channels_last) for out in outputs)


def test_strides_of_a_residual_network(generator: torch.Generator) -> None:
    model, sizes = made("resnet18", CIFAR).eval(), []
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            module.register_forward_hook(lambda _, __, out: sizes.append(tuple(out.shape[1:])))
    with torch.no_grad():
        model(rows(CIFAR, 1, generator))
    stages = [(64, 32, 32)] * 5 + [(128, 16, 16)] * 4 + [(256, 8, 8)] * 4 + [(512, 4, 4)] * 4
    assert sizes == stages


def layers(model: nn.Module, kind: type[nn.Module]) -> Iterator[Any]:
    return iter([module for module in model.modules() if isinstance(module, kind)])


def moved(model: Network, generator: torch.Generator) -> Network:
    """The model with all of its numbers away from 0 and 1, where a forgotten one would not show."""
    with torch.no_grad():
        for norm in layers(model, nn.BatchNorm2d):
            for values in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                values.add_(0.3 * torch.rand(values.shape, generator=generator))
    return model.eval()


@torch.no_grad()
def test_the_small_network_as_its_docstring_has_it(generator: torch.Generator) -> None:
    model = moved(made("cnn", FASHION), generator)
    flat = rows(FASHION, 3, generator)
    norms, (dense, head) = layers(model, nn.BatchNorm2d), layers(model, nn.Linear)
    x = flat.view(-1, *FASHION)
    for convolution in layers(model, nn.Conv2d):
        x = functional.max_pool2d(next(norms)(convolution(x)).relu(), 2, ceil_mode=True)
    features = dense(x.flatten(2).mean(2)).relu()
    torch.testing.assert_close(model.features(flat), features)
    torch.testing.assert_close(model(flat), head(features))
    assert (features == 0).any()
    assert features.any()


@torch.no_grad()
@pytest.mark.parametrize(("name", "depths"), [("resnet18", (2, 2, 2, 2)), ("resnet34", (3, 4, 6, 3))])
def test_residual_networks_as_the_paper_has_them(
    name: str, depths: tuple[int, ...], generator: torch.Generator
) -> None:
    # float64: 34 layers add up what the orders of memory round differently.
    model = moved(made(name), generator).double()
    flat = rows(DIGITS, 2, generator).double()
    convolutions, norms = layers(model, nn.Conv2d), layers(model, nn.BatchNorm2d)

    def convolved(x: Tensor, stride: int, padding: int = 1) -> Tensor:
        weight = next(convolutions).weight
        return next(norms)(functional.conv2d(x, weight, stride=stride, padding=padding))

    x = convolved(flat.view(-1, *DIGITS), 1).relu()
    for stage, depth in enumerate(depths):
        for block in range(depth):
            first = stage > 0 and block == 0
            residual = convolved(convolved(x, 2 if first else 1).relu(), 1)
            x = (residual + (convolved(x, 2, 0) if first else x)).relu()
    torch.testing.assert_close(model.features(flat), x.flatten(2).mean(2))


def test_convolutions_of_a_residual_network_start_as_he_et_al_have_it() -> None:
    for module in made("resnet18", CIFAR).modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * math.prod(module.kernel_size)
            ratio = module.weight.std() / math.sqrt(2 / fan_out)
            # A deviation from N numbers is off by 1 / sqrt(2 N) of itself; five times that.
            assert abs(ratio - 1) < 5 / math.sqrt(2 * module.weight.numel())


@pytest.mark.parametrize("name", list(MODELS))
def test_every_parameter_is_trained(name: str, digits: Dataset) -> None:
    x, y = torch.from_numpy(digits.train_features[:40]), torch.from_numpy(digits.train_labels[:40])
    model = made(name)
    losses = []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(6):
        loss = functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.any() for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_evaluation_sees_each_row_alone_and_training_the_batch(name: str, generator: torch.Generator) -> None:
    x = rows(DIGITS, 6, generator)
    model = made(name)
    with torch.no_grad():
        together, fewer = copy.deepcopy(model).train()(x), copy.deepcopy(model).train()(x[:3])
        assert not torch.allclose(together[:3], fewer)
        model.eval()
        torch.testing.assert_close(model(x)[:3], model(x[:3]))


@pytest.mark.parametrize("name", list(MODELS))
def test_the_state_goes_through_a_file(name: str, tmp_path: Path, generator: torch.Generator) -> None:
    x, model, other = rows(DIGITS, 5, generator), made(name), made(name)
    with torch.no_grad():
        model.train()(x)  # moves what BatchNorm remembers
        for parameter in model.parameters():
            parameter.add_(0.01)
        save_file(model.state_dict(), tmp_path / "a.safetensors")
        other.load_state_dict(load_file(tmp_path / "a.safetensors"))
        assert torch.equal(model.eval()(x), other.eval()(x))


@pytest.mark.parametrize("name", [name for name in MODELS if name != "mlp"])
def test_only_the_perceptron_has_open_widths(name: str) -> None:
    assert state_hash(made(name, hidden=())) == state_hash(made(name, hidden=(5, 5)))


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 1), (1, 13, 5)], ids=str)
@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_images_of_any_size(name: str, shape: tuple[int, int, int], generator: torch.Generator) -> None:
    model = made(name, shape)
    assert model(rows(shape, 2, generator)).isfinite().all()


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_models_of_images_on_what_is_none(name: str) -> None:
    with pytest.raises(UserError, match=f"^expected images for model {name}, got vectors of 38 features$"):
        make_model(name, inputs=38, image_shape=None, hidden=(), classes=3)
    with pytest.raises(ValueError, match=r"image_shape \(1, 8, 8\) is not of 38 features"):
        make_model(name, inputs=38, image_shape=DIGITS, hidden=(), classes=3)


def test_an_unknown_model() -> None:
    with pytest.raises(UserError, match=r"unknown model 'resnet50': known are linear, mlp, cnn, .*resnet"):
        make_model("resnet50", inputs=64, image_shape=DIGITS, hidden=(), classes=3)
