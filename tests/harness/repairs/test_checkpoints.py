import io
import json
import os
import struct
import zipfile
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from harness.damage import damaged
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lip_fast.cli.errors import UserError
from lip_fast.harness.repairs.checkpoints import find_checkpoint, read_checkpoint
from lip_fast.harness.repairs.layers import Layer

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
            {"ema": {"heed.weight": torch.ones(2, 2)}, "model": {"heed.weight": torch.ones(2, 2)}},
            "once.*found ema.heed, model.heed: --layer takes one of these names",
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
    layer = read_checkpoint(tmp_path / "m.pt").layer("head")
    assert (layer.place, layer.shared) == ((), ("model.head.weight",))


NESTED = [
    ((), "module.head"),
    (("state_dict",), "head"),
    (("model_state_dict",), "module._orig_mod.head"),
    (("net",), "_orig_mod.head"),
    (("checkpoint", "weights"), "_fsdp_wrapped_module.head"),
]


@pytest.mark.parametrize(("place", "name"), NESTED)
@pytest.mark.parametrize("asked", ["as a user names it", "in full"])
def test_layers_are_found_wherever_scripts_save_them(
    tmp_path: Path, place: tuple[str, ...], name: str, asked: str
) -> None:
    path, weight = tmp_path / "m.pt", torch.arange(24.0).view(L, Q) + 1
    content: dict = {f"{name}.weight": weight, f"{name}.bias": torch.ones(L), "steps": torch.tensor(3)}
    for key in reversed(place):
        content = {"optimizer": {"state": {0: {"head": torch.ones(2)}}}, key: content, "epoch": 3}
    torch.save(content, path)
    out, layer = rewritten(path, "head" if asked == "as a user names it" else ".".join((*place, name)))
    assert (layer.name, layer.place) == (name, place)
    old, new = content, torch.load(out, weights_only=True)
    for key in place:
        assert list(new) == list(old)
        assert new["epoch"] == 3
        old, new = old[key], new[key]
    assert list(new) == list(old)
    assert torch.equal(new[f"{name}.weight"], -weight)
    assert torch.equal(new[f"{name}.bias"], -torch.ones(L))
    assert new["steps"] == 3


def test_wrappers_in_safetensors_and_two_layers_that_differ_in_them(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"module.head.weight": torch.ones(2, 3)}, path)
    out, _ = rewritten(path, "head")
    assert torch.equal(load_file(out)["module.head.weight"], -torch.ones(2, 3))
    save_file({f"{wrapper}.head.weight": torch.ones(2, 3) for wrapper in ("module", "_orig_mod")}, path)
    with pytest.raises(UserError, match=r"once .*found _orig_mod\.head, module\.head: --layer takes one"):
        read_checkpoint(path).layer("head")
    assert read_checkpoint(path).layer("module.head").name == "module.head"


@pytest.mark.parametrize("legacy", [False, True])
def test_numbers_of_numpy_stay_beside_the_weights(tmp_path: Path, legacy: bool) -> None:
    path = tmp_path / "m.pt"
    numbers = {
        "accuracy": np.float64(0.5),
        "epoch": np.int64(-3),
        "done": np.bool_(True),
        "lr": np.float16(2),
    }
    content = {"model": {"head.weight": torch.ones(2, 3)}, **numbers}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    out, _ = rewritten(path, "head")
    new = torch.load(out, weights_only=False)
    assert torch.equal(new["model"]["head.weight"], -torch.ones(2, 3))
    for name, number in numbers.items():
        assert type(new[name]) is type(number)
        assert new[name] == number


def test_other_objects_of_numpy_are_refused(tmp_path: Path) -> None:
    for value in (np.datetime64("2020-01-01"), np.array(["a"]), np.str_("a"), np.array([None])):
        torch.save({"head.weight": torch.ones(2, 3), "x": value}, tmp_path / "m.pt")
        with pytest.raises(UserError, match="expected a state dict"):
            read_checkpoint(tmp_path / "m.pt")


def sharded(folder: Path, old: dict[str, Tensor]) -> Path:
    """Tensors in three files of ``folder``, weight and bias of the head in two of them; the index."""
    folder.mkdir()
    parts = {"a.safetensors": ["head.weight"], "b.safetensors": ["head.bias", "mask"]}
    parts["c.safetensors"] = sorted(set(old) - {"head.weight", "head.bias", "mask"})
    for name, keys in parts.items():
        save_file({key: old[key] for key in keys}, folder / name, {"format": "pt"})
    places = {key: name for name, keys in parts.items() for key in keys}
    (folder / "config.json").write_text("{}")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return index


def test_shards_are_read_by_their_index_and_changed_where_the_layer_lies(
    tmp_path: Path, generator: torch.Generator
) -> None:
    old = tensors(generator)
    index = sharded(tmp_path / "m", old)
    assert find_checkpoint(tmp_path / "m") == find_checkpoint(index) == index
    checkpoint = read_checkpoint(index)
    layer = checkpoint.layer("head")
    assert torch.equal(layer.weight, old["head.weight"])
    assert layer.bias is not None
    assert torch.equal(layer.bias, old["head.bias"])
    files = checkpoint.files(replace(layer, weight=-layer.weight, bias=-layer.bias))
    assert [path.name for path in files] == ["a.safetensors", "b.safetensors"]
    new = load_file(tmp_path / "m" / "c.safetensors")
    for path, write in files.items():
        out = tmp_path / path.name
        with out.open("wb") as file:
            write(file)
        assert out.stat().st_size == path.stat().st_size
        new |= load_file(out)
    expected = old | {"head.weight": -old["head.weight"], "head.bias": -old["head.bias"]}
    assert sorted(new) == sorted(expected)
    for key, tensor in expected.items():
        assert same_bits(new[key], tensor), key
    with pytest.raises(UserError, match="unknown layer 'haed': known are head, body"):
        checkpoint.layer("haed")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "expected the index of safetensors files"),
        ("[]", "expected the index of safetensors files"),
        ('{"metadata": {}}', "weight_map"),
        ('{"weight_map": {"head.weight": "../a.safetensors"}}', "names of files in the weight_map"),
        ('{"weight_map": {"head.weight": 3}}', "names of files in the weight_map"),
        ('{"weight_map": {"head.weight": "z.safetensors"}}', "found no z.safetensors"),
        ('{"weight_map": {"heed.weight": "a.safetensors"}}', "expected heed.weight in a.safetensors"),
    ],
)
def test_an_index_that_is_none(
    tmp_path: Path, generator: torch.Generator, content: str, message: str
) -> None:
    index = sharded(tmp_path / "m", tensors(generator))
    index.write_text(content)
    with pytest.raises(UserError, match=message):
        read_checkpoint(index)


def test_the_checkpoint_of_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"found no file at .*none"):
        find_checkpoint(tmp_path / "none")
    with pytest.raises(
        UserError, match=r"expected a checkpoint \(\*\.safetensors\.index\.json.* found no file"
    ):
        find_checkpoint(tmp_path)
    for name in ("config.json", "b.pt"):
        (tmp_path / name).touch()
    assert find_checkpoint(tmp_path) == tmp_path / "b.pt"
    (tmp_path / "a.pth").touch()
    with pytest.raises(UserError, match=r"one checkpoint in .*, found a\.pth, b\.pt: name one"):
        find_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").touch()
    assert find_checkpoint(tmp_path) == tmp_path / "model.safetensors"


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
