"""benchmarks.same_bits: what it takes for a difference, and that its cases run."""

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import bit_cases, checkout, same_bits
from benchmarks.bit_cases.program import plain
from benchmarks.same_bits import differences, verdict


def flipped(tensor: torch.Tensor, entry: int = 0) -> torch.Tensor:
    """A copy with the last bit of one entry turned."""
    copy = tensor.clone()
    copy.view(torch.uint8)[entry * tensor.element_size()] ^= 1
    return copy


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_a_single_bit_is_seen(dtype: torch.dtype) -> None:
    state = {"lip": [{"basis": torch.arange(1, 7).to(dtype)}], "steps": 3}
    assert differences(state, {"lip": [{"basis": state["lip"][0]["basis"].clone()}], "steps": 3}) == []
    other = {"lip": [{"basis": flipped(state["lip"][0]["basis"], 4)}], "steps": 3}
    (found,) = differences(state, other)
    assert found.startswith("lip[0].basis: 1 of 6 values differ, by up to ")


def test_other_forms_are_seen() -> None:
    a = torch.ones(2, 3)
    assert differences({"a": a, "b": 1}, {"a": a}) == [": lacks 'b' at head"]
    assert differences({"a": {}}, {"a": {"b": 1}}) == ["a: has 'b' at head alone"]
    assert differences(a, a.double(), "a") == ["a: torch.float32 (2, 3) became torch.float64 (2, 3)"]
    assert differences(a, a.mT, "a") == ["a: torch.float32 (2, 3) became torch.float32 (3, 2)"]
    assert differences([1, 2], [1], "a") == ["a: 2 entries became 1"]
    assert differences((1,), [1], "a") == ["a: tuple (1,) became list [1]"]
    assert differences(None, 0, "a") == ["a: NoneType None became int 0"]
    assert differences(True, 1, "a") == ["a: bool True became int 1"]
    assert differences("keep", "drop", "a") == ["a: 'keep' became 'drop'"]
    assert differences(0.1 + 0.2, 0.3, "a") == [f"a: {0.1 + 0.2!r} became 0.3"]
    assert differences(0.0, -0.0, "a") == ["a: 0.0 became -0.0"]


def test_a_nan_is_a_nan_and_a_zero_has_a_sign() -> None:
    nan, inf = torch.nan, torch.inf
    a = torch.tensor([nan, inf, 0.0, 1.0])
    assert differences({"a": a, "b": nan}, {"a": -a.neg(), "b": nan}) == []
    # Of other bits.
    assert differences(a, torch.where(a.isnan(), flipped(a), a)) == []
    for other in ([1.0, inf, 0.0, 1.0], [nan, -inf, 0.0, 1.0], [nan, inf, -0.0, 1.0], [nan, nan, 0.0, 1.0]):
        assert len(differences(a, torch.tensor(other))) == 1


@pytest.mark.parametrize("layout", ["to_sparse_csr", "to_sparse_coo"])
@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_sparse_tensors(layout: str) -> None:
    a, b = torch.eye(3), torch.eye(3)
    b[0, 1] = 2.0
    one, other = getattr(a, layout)(), getattr(b, layout)()
    assert differences(one, getattr(a, layout)()) == []
    assert len(differences(one, other)) == 1
    assert len(differences(one, a)) == 1
    assert len(differences(one, getattr(a * 2, layout)())) == 1


def test_no_number_but_the_same_length() -> None:
    empty = torch.empty(0, 3)
    assert differences(empty, torch.empty(0, 3)) == []
    assert differences(torch.tensor(1.0), torch.tensor(1.0)) == []
    assert len(differences(torch.tensor(1.0), torch.tensor(1.5))) == 1


@pytest.mark.parametrize(
    ("base", "head", "said"),
    [
        ({"result": 1}, {"result": 1}, "same"),
        ({"result": {"a": 1}}, {"result": {"a": 2}}, "differs in a: 1 became 2"),
        ({"result": [0] * 5}, {"result": [1] * 5}, "(and 2 more)"),
        ({"result": 1}, {"error": "ValueError: no"}, "fails in head: ValueError: no"),
        ({"error": "ValueError: no"}, {"result": 1}, "fails in base: ValueError: no"),
        ({"error": "a"}, {"error": "a"}, "fails in both: a"),
        ({"result": 1}, None, "fails in head: left no result"),
    ],
)
def test_what_is_said_of_a_case(base: Any, head: Any, said: str) -> None:
    assert verdict(base, head).endswith(said)


def test_the_names_of_cases() -> None:
    for world in bit_cases.ENVIRONMENTS:
        names = list(bit_cases.cases(world))
        assert names
        assert all(name.startswith(f"{world}/") for name in names)
    saved = {name.removeprefix("auto/saved/") for name in bit_cases.cases("auto") if "/saved/" in name}
    assert saved == {name.removeprefix("loaded/") for name in bit_cases.cases("loaded")}


def test_a_case_has_the_same_bits_twice_and_others_by_another_setting() -> None:
    cases = bit_cases.cases("auto")
    first, again = (plain(cases["auto/LIPAdamW/keep"]()) for _ in range(2))
    (stats,) = first["stats"].values()
    assert stats["applied"] == 20
    # The smallest change of the limit is to be seen.
    assert stats["clipped"] > 0
    assert differences(first, again) == []
    other = plain(cases["auto/LIPAdamW/exact"]())
    assert any(text.startswith("model.head0.weight") for text in differences(first, other))


def test_a_saved_state_goes_on(tmp_path: Path) -> None:
    name = "SGD-nesterov/csr-pending"
    state = plain(bit_cases.cases("auto")[f"auto/saved/{name}"]())
    assert state["lip"][0]["pending"]
    path = tmp_path / "auto" / "saved" / f"{name}.pt"
    path.parent.mkdir(parents=True)
    torch.save({"result": state}, path)
    found = bit_cases.cases("loaded", tmp_path)[f"loaded/{name}"]()
    assert found["stats"][0]["steps"] == found["stats"][0]["applied"] == 20


def test_refusals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert same_bits.main(["HEAD", "--cases", "nothing/*"]) == 2
    assert "no case is called 'nothing/*': their names begin with auto, " in capsys.readouterr().err
    assert same_bits.main(["nonsense", "--cases", "command/*"]) == 2
    said = capsys.readouterr().err
    assert said == "benchmarks.same_bits: there is no commit 'nonsense' in this checkout\n"
    monkeypatch.setattr(checkout, "ROOT", tmp_path)
    assert same_bits.main(["HEAD", "--cases", "command/*"]) == 2
    assert f"{tmp_path} is not a git checkout" in capsys.readouterr().err
