import io
import json
import os
import struct
import zipfile
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from harness.damage import damaged
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lip_fast.cli.errors import UserError
from lip_fast.harness.repairs.checkpoints import Layer, read_checkpoint

L, Q = 4, 6


def tensors(generator: torch.Generator) -> dict[str, Tensor]:
    """A model with tensors of many kinds."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "body.weight": normal(Q, 5).bfloat16(),
        "conv.weight": normal(3, 2, 2, 2).half(),
        "head.bias": normal(L),
        "head.weight": normal(L, Q),
        "norm.steps": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "mask": torch.tensor([True, False]),
        "nan": torch.tensor([float("nan"), -0.0], dtype=torch.float64),
    }


def same_bits(a: Tensor, b: Tensor) -> bool:
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and a.contiguous().numpy(force=True).tobytes() == b.contiguous().numpy(force=True).tobytes()
        if a.dtype != torch.bfloat16
        else b.dtype == torch.bfloat16 and torch.equal(a.view(torch.int16), b.view(torch.int16))
    )


def rewritten(path: Path, name: str) -> tuple[Path, Layer]:
    """The checkpoint with its layer negated, and that layer."""
    checkpoint = read_checkpoint(path)
    layer = checkpoint.layer(name)
    layer = replace(layer, weight=-layer.weight, bias=None if layer.bias is None else -layer.bias)
    out = path.with_name(f"new{path.suffix}")
    with out.open("wb") as file:
        checkpoint.write(file, layer)
    return out, layer


def test_safetensors_change_in_the_layer_alone(tmp_path: Path, generator: torch.Generator) -> None:
    path, old = tmp_path / "m.safetensors", tensors(generator)
    save_file(old, path, {"format": "pt", "epoch": "3"})
    out, layer = rewritten(path, "head")
    new = load_file(out)
    assert list(new) == list(load_file(path))
    for key, tensor in (old | layer.tensors()).items():
        assert same_bits(new[key], tensor), key
    assert torch.equal(new["head.weight"], -old["head.weight"])
    with safe_open(out, "pt") as file:
        assert file.metadata() == {"format": "pt", "epoch": "3"}
    differing = sum(a != b for a, b in zip(path.read_bytes(), out.read_bytes(), strict=True))
    assert 0 < differing <= 4 * L * (Q + 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_of_every_dtype(
    tmp_path: Path, generator: torch.Generator, suffix: str, dtype: torch.dtype
) -> None:
    path = tmp_path / f"m{suffix}"
    weight = torch.randn(L, Q, generator=generator).to(dtype)
    save_file({"weight": weight}, path) if suffix == ".safetensors" else torch.save({"weight": weight}, path)
    out, layer = rewritten(path, "")
    assert layer.bias is None
    new = load_file(out) if suffix == ".safetensors" else torch.load(out, weights_only=True)
    assert list(new) == ["weight"]
    assert same_bits(new["weight"], -weight)


@pytest.mark.parametrize("nest", [(), ("state_dict",), ("model",), ("model", "state_dict")])
@pytest.mark.parametrize("legacy", [False, True])
def test_state_dicts_change_in_the_layer_alone(
    tmp_path: Path, generator: torch.Generator, nest: tuple[str, ...], legacy: bool
) -> None:
    path, old = tmp_path / "m.pth", OrderedDict(tensors(generator))
    old._metadata = {"": {"version": 2}}  # type: ignore[attr-defined]
    content: dict = old
    for name in reversed(nest):
        content = {"epoch": 3, "optimizer": {0: [torch.ones(2)]}, name: content}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    out, layer = rewritten(path, "head")
    new = torch.load(out, weights_only=True)
    for name in nest:
        assert list(new) == ["epoch", "optimizer", name]
        assert new["epoch"] == 3
        assert torch.equal(new["optimizer"][0][0], torch.ones(2))
        new = new[name]
    assert type(new) is OrderedDict
    assert new._metadata == {"": {"version": 2}}
    assert list(new) == list(old)
    for key, tensor in (old | layer.tensors()).items():
        assert same_bits(new[key], tensor), key


def test_parameters_stay_parameters_and_shared_memory_is_named(tmp_path: Path) -> None:
    weight = nn.Parameter(torch.arange(24.0).view(L, Q))
    path = tmp_path / "m.pt"
    torch.save({"head.weight": weight, "embedding": weight.detach(), "row": weight.detach()[1:2]}, path)
    out, layer = rewritten(path, "head")
    assert layer.shared == ("embedding", "row")
    new = torch.load(out, weights_only=True)
    assert isinstance(new["head.weight"], nn.Parameter)
    assert new["head.weight"].requires_grad
    assert torch.equal(new["head.weight"], -weight)
    assert torch.equal(new["embedding"], weight)
    assert torch.equal(new["row"], weight[1:2])


def test_parts_of_one_storage_are_not_shared(tmp_path: Path) -> None:
    storage = torch.arange(28.0)
    torch.save({"head.weight": storage[:24].view(L, Q), "head.bias": storage[24:]}, tmp_path / "m.pt")
    assert read_checkpoint(tmp_path / "m.pt").layer("head").shared == ()


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"head.weight": torch.ones(2, 3), "fc.weight": torch.ones(2, 3)}, "'heed'.*head.*nearest is 'head'"),
        ({"heed.bias": torch.ones(2)}, "no layer with a 2-D weight"),
        ({"heed.weight": torch.ones(2)}, r"\(l >= 1, q >= 1\).*found float32 of shape \(2,\)"),
        ({"heed.weight": torch.ones(0, 2)}, r"found float32 of shape \(0, 2\)"),
        ({"heed.weight": torch.ones(2, 3, dtype=torch.int64)}, "found int64"),
        ({"heed.weight": torch.ones(2, 3), "heed.bias": torch.ones(3)}, "the 2 entries.*found 3"),
        (
            {"heed.weight": torch.ones(2, 3), "heed.bias": torch.ones(2, 1)},
            r"found float32 of shape \(2, 1\)",
        ),
        ({"heed.weight": torch.full((2, 3), torch.nan)}, "heed.weight .*to be finite"),
        ({"heed.weight": torch.ones(1, 1), "heed.bias": torch.tensor([torch.inf])}, "heed.bias .*finite"),
    ],
)
def test_layers_that_are_none(tmp_path: Path, suffix: str, content: dict[str, Tensor], message: str) -> None:
    path = tmp_path / f"m{suffix}"
    save_file(content, path) if suffix == ".safetensors" else torch.save(content, path)
    with pytest.raises(UserError, match=message):
        read_checkpoint(path).layer("heed")


class _Evil:
    def __reduce__(self) -> tuple:
        return (os.mkdir, ("evil",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"heed.weight": "text"}, "found str"),
        ({"heed.weight": torch.eye(2).to_sparse()}, "found float32"),
        ({"heed.weight": torch.ones(2, 2), "heed.bias": 3}, "found int"),
        ({"a": 1, 3: 4}, "no layer with a 2-D weight"),
        ([torch.ones(2, 3)], "state dict.*found list"),
        (torch.ones(2, 3), "found float32 of shape"),
        (
            {"heed.weight": torch.ones(2, 2), "model": {"heed.weight": torch.ones(2, 2)}},
            "once.*the top, model",
        ),
        ({"heed.weight": torch.ones(2, 2), "x": _Evil()}, r"holds \w+.mkdir, and only tensors"),
        (nn.Linear(2, 2, device="meta"), "holds torch.nn.modules.linear.Linear"),
    ],
)
def test_state_dicts_that_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: object, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(content, tmp_path / "m.pt")
    with pytest.raises(UserError, match=message):
        read_checkpoint(tmp_path / "m.pt").layer("heed")
    assert not (tmp_path / "evil").exists()


def test_other_formats_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ends in one of \.safetensors, \.pt.*found .*m\.onnx"):
        read_checkpoint(tmp_path / "m.onnx")
    for suffix in (".safetensors", ".pt"):
        with pytest.raises(UserError, match="No such file"):
            read_checkpoint(tmp_path / f"m{suffix}")


def test_a_mapping_that_holds_itself_ends(tmp_path: Path) -> None:
    content: dict = {"head.weight": torch.ones(2, 2)}
    content["model"] = content
    torch.save(content, tmp_path / "m.pt")
    with pytest.raises(UserError, match="once"):
        read_checkpoint(tmp_path / "m.pt").layer("head")


def test_wrong_checksum_is_named(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.save({"head.weight": torch.full((8, 8), 1.5)}, path)
    content = path.read_bytes()
    values = content.index(struct.pack("<f", 1.5) * 64)
    path.write_bytes(content[: values + 9] + b"\x01" + content[values + 10 :])
    with pytest.raises(UserError, match=r"wrong checksum in .*data/0"):
        read_checkpoint(path)


def test_storage_that_claims_more_than_there_is(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"head.weight": torch.zeros(25, 40)}, buffer)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(tmp_path / "m.pt", "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name).replace(b"M\xe8\x03", b"J\x00\x00\x00\x01"))
    with pytest.raises(UserError, match="record size"):
        read_checkpoint(tmp_path / "m.pt")


def test_duplicate_names_are_the_last_and_written_as_such(tmp_path: Path) -> None:
    places = [{"dtype": "F32", "shape": [1, 1], "data_offsets": [4 * i, 4 * i + 4]} for i in range(2)]
    first, second = map(json.dumps, places)
    header = f'{{"a.weight":{first},"b.weight":{second},"a.weight":{second},"b.weight":{first}}}'.encode()
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + struct.pack("<ff", 1.0, 2.0))
    out, _ = rewritten(path, "a")
    assert {name: float(value) for name, value in load_file(out).items()} == {"a.weight": -2, "b.weight": 1}


def test_two_readings_of_a_header_must_agree(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"a.weight": torch.ones(1, 1), "b.weight": torch.zeros(1, 1)}, path)
    checkpoint = read_checkpoint(path)
    header = checkpoint.header  # type: ignore[attr-defined]
    header["a.weight"], header["b.weight"] = header["b.weight"], header["a.weight"]
    with pytest.raises(UserError, match=r"one meaning of a\.weight"):
        checkpoint.layer("a")


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_damaged_checkpoints(tmp_path: Path, generator: torch.Generator, kind: str) -> None:
    path = tmp_path / ("m.safetensors" if kind == "safetensors" else "m.pt")
    if kind == "safetensors":
        save_file(tensors(generator), path)
    else:
        torch.save(tensors(generator), path, _use_new_zipfile_serialization=kind == "zip")
    refused, total = 0, 0
    for content in damaged(path.read_bytes(), seed=1, cuts=60, flips=400):
        path.write_bytes(content)
        total += 1
        try:
            out, layer = rewritten(path, "head")
        except UserError:
            refused += 1
        else:
            again = read_checkpoint(out).layer("head")
            assert same_bits(again.weight, layer.weight)
    assert refused > total / 2
