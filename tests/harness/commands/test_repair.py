import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from harness.command_line import environment, interpreter
from harness.damage import damaged
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lip_fast
from lip_fast.cli import main
from lip_fast.cli.errors import UserError
from lip_fast.harness.repairs import features
from lip_fast.harness.repairs.features import read_features, split_off
from lip_fast.repair import Candidate

REPOSITORY = Path(__file__).parents[3]
L, Q, N, HELD = 4, 6, 150, 50


class Files:
    """A folder with a model and features, and what is in them."""

    def __init__(self, folder: Path) -> None:
        generator = torch.Generator().manual_seed(5)
        self.folder = folder
        truth = torch.randn(L, Q, generator=generator)
        X = torch.randn(N + HELD, Q, generator=generator)
        y = (X @ truth.T).argmax(1)
        noisy = torch.rand(N + HELD, generator=generator) < 0.3
        y[noisy] = torch.randint(0, L, (N + HELD,), generator=generator)[noisy]
        self.rows, self.holdout = (X[:N], y[:N]), (X[N:], y[N:])
        self.state = {
            "body.weight": torch.randn(Q, 5, generator=generator).bfloat16(),
            "head.bias": 0.1 * torch.randn(L, generator=generator),
            "head.weight": truth + torch.randn(L, Q, generator=generator),
            "steps": torch.tensor(7),
        }
        self.model = folder / "m.safetensors"
        self.features = self.save_features()
        save_file(self.state, self.model, {"format": "pt"})

    def save_features(self, name: str = "f.npz", *, drop: tuple[str, ...] = (), **changed: object) -> Path:
        (X, y), (X_held, y_held) = self.rows, self.holdout
        arrays = {"features": X, "labels": y, "holdout_features": X_held, "holdout_labels": y_held} | changed
        arrays = {key: value for key, value in arrays.items() if key not in drop}
        path = self.folder / name
        if path.suffix == ".npz":
            np.savez(path, **{key: np.asarray(value) for key, value in arrays.items()})
        else:
            save_file({key: torch.as_tensor(value) for key, value in arrays.items()}, path)
        return path

    def head(self, dtype: torch.dtype = torch.float32) -> nn.Linear:
        head = nn.Linear(Q, L, device="meta")
        head.weight = nn.Parameter(self.state["head.weight"].to(dtype))
        head.bias = nn.Parameter(self.state["head.bias"].to(dtype))
        return head

    def repaired(self, method: str = "auto", **options: object) -> nn.Linear:
        """What the library makes of them."""
        statistics = lip_fast.LabelStatistics(Q, L).update(*self.rows)
        return lip_fast.repair(self.head(), statistics, method, self.holdout, **options).head

    def arguments(self, *more: object) -> list[str]:
        return [
            "repair",
            str(self.model),
            "--layer",
            "head",
            "--features",
            str(self.features),
            *map(str, more),
        ]

    def snapshot(self) -> dict[str, bytes]:
        return {
            str(p.relative_to(self.folder)): p.read_bytes() for p in self.folder.rglob("*") if p.is_file()
        }


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def check_repaired(new: dict[str, Tensor], files: Files, head: nn.Linear) -> None:
    assert sorted(new) == sorted(files.state)
    for key, value in (files.state | {f"head.{k}": v for k, v in head.state_dict().items()}).items():
        assert new[key].dtype == value.dtype
        assert torch.equal(new[key], value), key


def run(files: Files, *more: object) -> subprocess.CompletedProcess[str]:
    words = ("-m", "lip_fast", *files.arguments(*more))
    return interpreter().run(*words, env=environment() | {"PYTHONWARNINGS": "error"}, timeout=120)


@pytest.mark.process
def test_whole_run_with_everything(files: Files) -> None:
    before = files.snapshot()
    figure, report = files.folder / "f.png", files.folder / "r.json"
    command = [sys.executable, "-m", "lip_fast", *files.arguments("--figure", figure, "--report", report)]
    variables = environment() | {"PYTHONWARNINGS": "error"}
    process = subprocess.run(command, capture_output=True, text=True, env=variables, timeout=120)
    assert (process.returncode, process.stderr) == (0, "")
    out = files.folder / "m-repaired.safetensors"
    lines = process.stdout.splitlines()
    assert lines[-1] == f"checkpoint: {out}"
    assert lines[0] == f"layer head: {L} classes, {Q} features; {N} rows for the statistics, {HELD} held out"
    table = process.stdout.partition("held-out labels")[2].partition("\n\n")[0]
    names = list(dict.fromkeys(line.split()[0] for line in table.splitlines()[1:]))
    assert names == ["trained", "gaussian", "ridge", "pcr", "lip", "gaussian-path"]
    assert process.stdout.count("<- chosen") == 1
    check_repaired(load_file(out), files, files.repaired())
    with safe_open(out, "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert figure.read_bytes().startswith(b"\x89PNG")
    found = json.loads(report.read_text())
    candidates = [Candidate(**candidate) for candidate in found["candidates"]]
    statistics = lip_fast.LabelStatistics(Q, L).update(*files.rows)
    expected = lip_fast.repair(files.head(), statistics, "auto", files.holdout)
    assert tuple(candidates) == expected.candidates
    assert Candidate(**found["chosen"]) == expected.chosen
    assert (found["rows"], found["holdout_rows"], found["layer"]) == (N, HELD, "head")
    after = files.snapshot()
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"f.png", "r.json", "m-repaired.safetensors"}


@pytest.mark.process
@pytest.mark.parametrize("nest", [None, "state_dict"])
def test_whole_run_with_a_state_dict(files: Files, nest: str | None) -> None:
    files.model = files.folder / "m.pth"
    torch.save(files.state if nest is None else {"epoch": 3, nest: files.state}, files.model)
    process = run(files)
    assert (process.returncode, process.stderr) == (0, "")
    new = torch.load(files.folder / "m-repaired.pth", weights_only=True)
    if nest is not None:
        assert new.pop("epoch") == 3
        new = new[nest]
    check_repaired(new, files, files.repaired())


@pytest.mark.process
def test_whole_run_with_an_error_is_one_line(files: Files) -> None:
    before = files.snapshot()
    files.features.write_bytes(files.features.read_bytes()[:-30])
    process = run(files)
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr.count("\n") == 1
    assert process.stderr.startswith("lip-fast repair: expected a NumPy .npz archive, ")
    assert set(files.snapshot()) == set(before)


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("lip", [2]),
        ("lip", [1, 3]),
        ("ridge", [0.5, 10.0]),
        ("pcr", [2, 5]),
        ("truncate", [3]),
        ("lip", None),
    ],
)
def test_methods_and_parameters(files: Files, method: str, parameters: list | None) -> None:
    given = [] if parameters is None else ["--parameters", *parameters]
    assert main(files.arguments("--method", method, *given, "--figure", files.folder / "f.png")) == 0
    new = load_file(files.folder / "m-repaired.safetensors")
    check_repaired(new, files, files.repaired(method, parameters=parameters))


def test_features_in_safetensors_and_blocks(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "BLOCK", 7)
    files.features = files.save_features("f.safetensors")
    assert main(files.arguments("--method", "ridge", "--parameters", "1")) == 0
    new, head = load_file(files.folder / "m-repaired.safetensors"), files.repaired("ridge", parameters=[1.0])
    # Sums of other blocks round otherwise.
    torch.testing.assert_close(new["head.weight"], head.weight.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(new["head.bias"], head.bias.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "kind", ["int32", "big-endian", "uint8", "dense", "bool", "uint16 dense", "unlabelled"]
)
def test_forms_of_labels(files: Files, kind: str) -> None:
    X, y = files.rows
    labels, dense = y.numpy(), nn.functional.one_hot(y, L).numpy()
    forms = {
        "int32": labels.astype(np.int32),
        "big-endian": labels.astype(">i8"),
        "uint8": labels.astype(np.uint8),
        "dense": dense.astype(np.float64),
        "bool": dense.astype(bool),
        "uint16 dense": dense.astype(np.uint16),
        "unlabelled": labels,
    }
    changed: dict[str, object] = {"labels": forms[kind]}
    if kind == "unlabelled":
        changed = {
            "labels": np.concatenate([labels, np.full(9, -100)]),
            "features": np.concatenate([X.numpy(), np.ones((9, Q), np.float32)]),
        }
    files.features = files.save_features(**changed)
    assert main(files.arguments("--method", "ridge", "--parameters", "1")) == 0
    new, head = load_file(files.folder / "m-repaired.safetensors"), files.repaired("ridge", parameters=[1.0])
    torch.testing.assert_close(new["head.weight"], head.weight.detach(), rtol=1e-5, atol=1e-6)


def test_candidate_sets_count_by_their_sizes_for_gaussian_heads(files: Files) -> None:
    X, y = files.rows
    sets = nn.functional.one_hot(y, L) | nn.functional.one_hot((y + 1) % L, L)
    sets[::2] = nn.functional.one_hot(y[::2], L)
    files.features = files.save_features(labels=sets.bool().numpy())
    assert main(files.arguments("--method", "gaussian")) == 0
    statistics = lip_fast.LabelStatistics(Q, L).update(X, sets / sets.sum(1, keepdim=True))
    expected = lip_fast.repair(files.head(), statistics).head
    check_repaired(load_file(files.folder / "m-repaired.safetensors"), files, expected)


def test_a_layer_without_a_bias_gets_no_gaussian_head(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    del files.state["head.bias"]
    save_file(files.state, files.model)
    told = "expected a layer with a bias for --method auto, found head without: .* --method ridge, pcr, lip"
    refused(files, capsys, [], told)
    assert main(files.arguments("--method", "ridge")) == 0


def test_split_is_by_seed_and_of_labelled_rows(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    labels = files.rows[1].clone()
    labels[::3] = -100
    files.features = files.save_features(labels=labels, drop=("holdout_features", "holdout_labels"))
    rows = read_features(files.features, q=Q, l=L).rows
    splits = [split_off(rows, 0.2, seed) for seed in (0, 0, 1)]
    for used, held in splits:
        assert len(held) == 20
        assert sorted([*used.tolist(), *held.tolist()]) == (labels >= 0).nonzero()[:, 0].tolist()
    assert torch.equal(splits[0][1], splits[1][1])
    assert not torch.equal(splits[0][1], splits[2][1])
    assert main(files.arguments("--holdout-fraction", "0.2")) == 0
    assert "80 rows for the statistics, 20 held out" in capsys.readouterr().out
    used, held = splits[0]
    statistics = lip_fast.LabelStatistics(Q, L).update(rows.X[used], rows.Y[used])
    report = lip_fast.repair(files.head(), statistics, "auto", (rows.X[held], rows.Y[held]))
    check_repaired(load_file(files.folder / "m-repaired.safetensors"), files, report.head)
    assert main(files.arguments("--method", "lip", "--holdout-fraction", "0", "--overwrite")) == 0
    assert "100 rows for the statistics, 0 held out" in capsys.readouterr().out


def test_nothing_is_overwritten_unless_asked(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    out, report = files.folder / "m-repaired.safetensors", files.folder / "r.json"
    for path, more in ((out, []), (report, ["--report", report]), (files.model, ["--out", files.model])):
        if path != files.model:
            path.write_text("mine")
        before = files.snapshot()
        assert main(files.arguments(*more)) == 2
        assert str(path) in capsys.readouterr().err
        assert files.snapshot() == before
        if path != files.model:
            path.unlink()
    before = files.snapshot()
    assert main(files.arguments("--out", files.model, "--overwrite")) == 2
    assert "--in-place" in capsys.readouterr().err
    assert files.snapshot() == before
    out.write_text("mine")
    assert main(files.arguments("--overwrite")) == 0
    check_repaired(load_file(out), files, files.repaired())


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_in_place(files: Files, suffix: str) -> None:
    files.model = files.folder / f"x{suffix}"
    save_file(files.state, files.model) if suffix == ".safetensors" else torch.save(files.state, files.model)
    names = set(files.snapshot())
    assert main(files.arguments("--in-place")) == 0
    assert set(files.snapshot()) == names
    new = load_file(files.model) if suffix == ".safetensors" else torch.load(files.model, weights_only=True)
    check_repaired(new, files, files.repaired())


def test_dtypes_of_weight_and_bias_stay(files: Files) -> None:
    files.state["head.weight"] = files.state["head.weight"].bfloat16()
    save_file(files.state, files.model)
    assert main(files.arguments("--method", "ridge", "--parameters", "1")) == 0
    new, head = load_file(files.folder / "m-repaired.safetensors"), files.repaired("ridge", parameters=[1.0])
    assert new["head.weight"].dtype == torch.bfloat16
    assert torch.equal(new["head.weight"], head.weight.detach().bfloat16())
    assert torch.equal(new["head.bias"], head.bias.detach())


def test_a_head_that_nothing_beats_is_kept(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    X, _ = files.holdout
    right = (X @ files.state["head.weight"].T + files.state["head.bias"]).argmax(1)
    files.features = files.save_features(holdout_labels=right)
    assert main(files.arguments("--figure", files.folder / "$f_{$.png")) == 0
    assert "the layer is as it was" in capsys.readouterr().out
    assert (files.folder / "m-repaired.safetensors").read_bytes() == files.model.read_bytes()


def test_shared_memory_is_told(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    files.model = files.folder / "m.pt"
    torch.save(files.state | {"embedding": files.state["head.weight"]}, files.model)
    assert main(files.arguments()) == 0
    assert "not repaired, though they were the same memory: embedding" in capsys.readouterr().out


X_BAD = np.zeros((N, Q), np.float32)
X_BAD[3, 1] = np.nan
FEATURES = [
    ({"labels": np.full(N, L)}, r"in 0..3 \(or -100 for no label\) in labels of .*, found 4 in row 0"),
    ({"labels": np.full(N, -1)}, "found -1 in row 0"),
    ({"labels": np.full(N, 2**64 - 100, np.uint64)}, f"found {2**64 - 100} in row 0"),
    ({"labels": np.zeros(N)}, "class indices in labels .* as integers, found float64"),
    ({"labels": np.zeros(N - 1, np.int64)}, f"expected {N} class indices .* found {N - 1}"),
    ({"labels": np.zeros((N, L + 1))}, rf"shape \({N},\) or \({N}, {L}\), found float64 of shape \({N}, 5\)"),
    ({"labels": np.full((N, L), np.inf)}, "labels of .* to be finite"),
    ({"labels": np.full((N, L), 1e308)}, "labels whose weights sum to 1 in each row, got 0 on average"),
    ({"labels": -np.ones((N, L))}, "labels whose weights sum to 1 in each row, got 0 on average"),
    ({"labels": np.full(N, -100)}, "at least one row with a label"),
    ({"labels": np.full(N, "a")}, "array of real numbers .* found <U1 .* return_inverse=True"),
    ({"features": np.zeros((N, 1, 2, 3), np.float32)}, "what comes into the layer, neither images nor"),
    ({"labels": np.full(N, None)}, "labels of .* to be an array of numbers, found Python objects"),
    ({"features": np.zeros((N, Q + 1), np.float32)}, rf"shape \(n >= 1, {Q}\), found float32 of shape"),
    ({"features": np.zeros((0, Q), np.float32), "labels": np.zeros(0, np.int64)}, "n >= 1"),
    ({"features": np.zeros(N, np.float32)}, rf"found float32 of shape \({N},\)"),
    ({"features": np.zeros((N, Q), np.int64)}, "floating-point .* found int64"),
    ({"features": np.zeros((N, Q), np.complex64)}, "real numbers .* found complex64"),
    ({"features": np.zeros((N, Q), np.longdouble)}, "at most 64 bits"),
    ({"features": X_BAD}, "features of .* finite, found NaN or infinity in row 3"),
    ({"features": np.full((N, Q), 1e30, np.float32)}, "squares can be summed"),
    ({"holdout_features": X_BAD[:HELD]}, "holdout_features of .* row 3"),
    ({"holdout_labels": np.full(HELD, -100)}, "labels of the hold-out in .* at least one label"),
    ({"holdout_labels": np.full((HELD, L), 1e308)}, "label weights whose mean is finite"),
]


@pytest.mark.parametrize(("changed", "message"), FEATURES)
def test_features_that_do_not_fit(
    files: Files, capsys: pytest.CaptureFixture[str], changed: dict[str, np.ndarray], message: str
) -> None:
    files.features = files.save_features(**changed)
    refused(files, capsys, [], message)


def refused(files: Files, capsys: pytest.CaptureFixture[str], more: list, message: str) -> None:
    before = files.snapshot()
    assert main(files.arguments("--report", files.folder / "r.json", *more)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("lip-fast repair: ")
    assert re.search(message, error), error
    assert files.snapshot() == before


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("missing", ["labels", "features", "holdout_labels", "holdout_features"])
def test_missing_keys(files: Files, capsys: pytest.CaptureFixture[str], suffix: str, missing: str) -> None:
    files.features = files.save_features(f"g{suffix}", drop=(missing,))
    refused(files, capsys, [], f"expected features, labels, .* found no {missing} among ")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--layer", "haed"], "unknown layer 'haed': known are body, head; the nearest is 'head'"),
        (["--features", "none.npz"], "expected a file of features, found no file at none.npz"),
        (
            ["--features", REPOSITORY / "README.md"],
            r"ends in .npz or .safetensors, found .*README.md: np.savez\(",
        ),
        (["--method", "best"], "invalid choice: 'best'"),
        (["--methods", "lip"], "unknown option '--methods': .* the nearest is '--method'"),
        (["more"], "expected no further argument, got 'more'"),
        (["--seed", "-1"], "--seed >= 0, got -1"),
        (["--seed", "x"], "invalid int value: 'x'"),
        (["--holdout-fraction", "1"], r"in \[0, 1\), got 1.0"),
        (["--holdout-fraction", "nan"], r"in \[0, 1\), got nan"),
        (
            ["--holdout-fraction", "0.5"],
            "one hold-out, got --holdout-fraction 0.5, holdout_features .*f.npz",
        ),
        (["--holdout", "none.npz"], "expected a file of features, found no file at none.npz"),
        (["--parameters", "1"], "no --parameters with --method auto"),
        (["--noise-rate", "1"], r"--noise-rate in \[0, 1\), got 1.0"),
        (["--noise-rate", "0.9"], "expected noise_rate below 0"),
        (["--method", "ridge", "--noise-rate", "0.1"], "--noise-rate with --method gaussian, .*, got ridge"),
        (["--method", "lip", "--parameters", "1.5"], "of lip as whole numbers, got 1.5"),
        (["--method", "lip", "--parameters", "5"], "parameters of lip in 0..4, got 5"),
        (["--method", "pcr", "--parameters", "7"], "parameters of pcr in 0..6, got 7"),
        (["--method", "ridge", "--parameters", "-1"], "alphas >= 0 and finite, got -1"),
        (["--method", "ridge", "--parameters", "nan"], "alphas >= 0 and finite, got nan"),
        (["--method", "ridge", "--parameters", "a"], "of ridge as numbers, got a"),
        (["--out", "x.pt"], "in the format of the checkpoint, ending in .safetensors, got x.pt"),
        (["--out", "x.safetensors", "--in-place"], "--in-place or --out, got both"),
        (["--out", "none/x.safetensors"], "--out in a folder that is there, found none at .*none"),
        (["--out", "/proc/x.safetensors"], "expected .*/proc"),
        (["--out", "a" * 240 + ".safetensors"], "File name too long"),
        (["--figure", "x.jpg"], "--figure to end in .png, got x.jpg"),
        (["--report", "x.txt"], "--report to end in .json, got x.txt"),
        (["--figure", "none/x.png"], "--figure in a folder that is there"),
    ],
)
def test_arguments_that_cannot_be(
    files: Files,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    more: list,
    message: str,
) -> None:
    monkeypatch.chdir(files.folder)
    refused(files, capsys, more, message)


NEW = r"add features and labels of samples that the network was not trained on \(--holdout FILE,"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["--method", "gaussian-path", "--parameters", "1"],
            f"hold-out for gaussian-path, or --noise-rate and one of --parameters, got none: {NEW}",
        ),
        (
            ["--method", "gaussian", "--parameters", "1", "2"],
            f"--parameters of gaussian, got none and 2: {NEW}",
        ),
        (["--method", "ridge"], f"among --parameters of ridge, got none and a grid of them: {NEW}"),
        (["--method", "pcr", "--parameters", "1", "2"], f"--parameters of pcr, got none and 2: {NEW}"),
        (["--method", "lip", "--parameters", "1", "2"], f"--parameters of lip, got none and 2: {NEW}"),
        (["--method", "lip", "--figure", "x.png"], f"hold-out for --figure, got none: {NEW}"),
        (["--holdout-fraction", "0.999"], f"statistics and the hold-out, found {N} in all"),
    ],
)
def test_nothing_is_chosen_by_rows_of_which_none_is_said_to_be_new(
    files: Files, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    files.features = files.save_features(drop=("holdout_features", "holdout_labels"))
    refused(files, capsys, more, message)


@pytest.mark.parametrize(
    ("method", "parameters", "rate"),
    [
        ("auto", None, None),
        ("auto", None, 0.1),
        ("gaussian", None, None),
        ("gaussian", [0.5], 0.1),
        ("gaussian+trained", [0.5], None),
        ("gaussian-path", [0.5], 0.4),
        ("lip", None, None),
        ("lip", [2], None),
        ("ridge", [3.0], None),
        ("pcr", [4], None),
        ("truncate", [5], None),
    ],
)
def test_a_method_that_has_nothing_to_choose_needs_no_hold_out(
    files: Files,
    capsys: pytest.CaptureFixture[str],
    method: str,
    parameters: list | None,
    rate: float | None,
) -> None:
    files.features = files.save_features(drop=("holdout_features", "holdout_labels"))
    given = [] if parameters is None else ["--parameters", *parameters]
    given += [] if rate is None else ["--noise-rate", rate]
    assert main(files.arguments("--method", method, *given)) == 0
    assert f"{N} rows for the statistics, 0 held out" in capsys.readouterr().out
    statistics = lip_fast.LabelStatistics(Q, L).update(*files.rows)
    report = lip_fast.repair(files.head(), statistics, method, parameters=parameters, noise_rate=rate)
    check_repaired(load_file(files.folder / "m-repaired.safetensors"), files, report.head)


def test_a_hold_out_in_a_file_of_its_own(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    X, y = files.holdout
    new = files.save_features("new.npz", features=X, labels=y, drop=("holdout_features", "holdout_labels"))
    refused(files, capsys, ["--holdout", new], "expected one hold-out, got --holdout .*, holdout_features ")
    files.features = files.save_features(drop=("holdout_features", "holdout_labels"))
    refused(
        files, capsys, ["--holdout", files.features], "other samples in --holdout than in --features, found"
    )
    assert main(files.arguments("--holdout", new, "--report", files.folder / "r.json")) == 0
    assert f"{N} rows for the statistics, {HELD} held out" in capsys.readouterr().out
    check_repaired(load_file(files.folder / "m-repaired.safetensors"), files, files.repaired())
    assert json.loads((files.folder / "r.json").read_text())["holdout"] == str(new)
    refused(files, capsys, ["--holdout", new, "--out", new], "ending in .safetensors")


def test_classes_without_a_labelled_row_are_named(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(files.arguments()) == 0
    counts = files.rows[1].bincount()
    assert f"\n{counts.min()} to {counts.max()} rows a class\n" in capsys.readouterr().out
    files.features = files.save_features(labels=files.rows[1].clamp(min=2))
    assert main(files.arguments("--overwrite")) == 0
    expected = "no labelled row of 2 of 4 classes: 0, 1; classes are numbered from 0\n"
    assert capsys.readouterr().err == f"lip-fast repair: {expected}"


def as_shards(files: Files) -> Path:
    """The model of ``files`` in two files of a folder, weight and bias of the head apart; the folder."""
    folder = files.folder / "model"
    folder.mkdir()
    parts = {"1.safetensors": ["body.weight", "head.bias"], "2.safetensors": ["head.weight", "steps"]}
    for name, keys in parts.items():
        save_file({key: files.state[key] for key in keys}, folder / name)
    places = {key: name for name, keys in parts.items() for key in keys}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (folder / "config.json").write_text("{}")
    return folder


@pytest.mark.parametrize("named", ["folder", "index"])
@pytest.mark.parametrize("in_place", [False, True])
def test_a_model_in_several_files(files: Files, named: str, in_place: bool) -> None:
    folder = as_shards(files)
    before = files.snapshot()
    files.model = folder if named == "folder" else folder / "model.safetensors.index.json"
    assert main(files.arguments(*(["--in-place"] if in_place else []))) == 0
    out = folder if in_place else files.folder / "model-repaired"
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in folder.iterdir())
    for name in ("model.safetensors.index.json", "config.json"):
        assert (out / name).read_bytes() == before[f"model/{name}"]
    new = load_file(out / "1.safetensors") | load_file(out / "2.safetensors")
    check_repaired(new, files, files.repaired())
    if not in_place:
        after = files.snapshot()
        assert {name: after[name] for name in before} == before


def test_several_files_are_written_to_a_new_folder_alone(
    files: Files, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    files.model = as_shards(files)
    refused(files, capsys, ["--out", files.model], "--out to be a new folder, .* found .*model")
    refused(files, capsys, ["--out", files.folder / "a" / "b"], "--out in a folder that is there")
    (files.model / "2.safetensors").unlink()
    refused(files, capsys, [], r"expected the files that .*index.json names, found no 2.safetensors")


def test_a_layer_of_a_wrapped_model_among_other_things(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    files.model = files.folder / "m.pt"
    wrapped = {f"module.{key}": value for key, value in files.state.items()}
    torch.save({"model_state_dict": wrapped, "best": np.float64(0.5)}, files.model)
    assert main(files.arguments()) == 0
    assert "layer model_state_dict.module.head: 4 classes" in capsys.readouterr().out
    new = torch.load(files.folder / "m-repaired.pt", weights_only=False)
    assert list(new) == ["model_state_dict", "best"]
    assert list(new["model_state_dict"]) == list(wrapped)
    unwrapped = {key.removeprefix("module."): value for key, value in new["model_state_dict"].items()}
    check_repaired(unwrapped, files, files.repaired())


def test_missing_checkpoint_and_arguments(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    files.model = files.folder / "none.pt"
    refused(files, capsys, [], "expected a checkpoint, found no file at .*none.pt")
    assert main(["repair"]) == 2
    assert "required: CHECKPOINT, --layer, --features" in capsys.readouterr().err


def test_overflow_of_the_layers_dtype(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    files.state["head.weight"], files.state["head.bias"] = (
        files.state[key].half() for key in ("head.weight", "head.bias")
    )
    save_file(files.state, files.model)
    files.features = files.save_features(features=files.rows[0] * 1e-6)
    refused(
        files,
        capsys,
        ["--method", "ridge", "--parameters", "0"],
        "finite repaired weight in torch.float16",
    )


def test_help_and_a_missing_extra(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["repair", "--help"])
    assert stop.value.code == 0
    assert "--holdout-fraction" in capsys.readouterr().out
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "safetensors" else find_spec(name)
    )
    assert main(["repair"]) == 2
    assert "pip install 'lip-fast[harness]' (missing: safetensors)" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["f.npz", "f.safetensors"])
def test_damaged_features(files: Files, name: str) -> None:
    path = files.save_features(name)
    count, refusals = 0, 0
    for content in damaged(path.read_bytes(), seed=2, cuts=60, flips=300):
        path.write_bytes(content)
        count += 1
        try:
            data = read_features(path, q=Q, l=L)
        except UserError:
            refusals += 1
        else:
            for rows in filter(None, data):
                assert rows.X.shape[1] == Q
                assert len(rows.X) == len(rows.Y) >= 1
                assert torch.isfinite(rows.X).all()
                assert rows.Y.dim() == 2 or set(rows.Y.tolist()) <= {-100, *range(L)}
    assert count > refusals > count / 3


@pytest.mark.parametrize("damage", ["features", "safetensors", "pt"])
def test_damaged_files_end_in_one_line_or_a_valid_checkpoint(
    files: Files, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    if damage == "pt":
        files.model = files.folder / "m.pt"
        torch.save(files.state, files.model, _use_new_zipfile_serialization=False)
    files.features = files.save_features("f.safetensors")  # no checksums: damage gets far
    path = files.features if damage == "features" else files.model
    out = files.folder / f"m-repaired{files.model.suffix}"
    names, codes = set(files.snapshot()), []
    for content in damaged(path.read_bytes(), seed=3, cuts=15, flips=100):
        path.write_bytes(content)
        codes.append(main(files.arguments("--method", "ridge")))
        error = capsys.readouterr().err
        if codes[-1] == 0:
            assert error == ""
            new = load_file(out) if damage != "pt" else torch.load(out, weights_only=True)
            assert torch.isfinite(new["head.weight"]).all()
            out.unlink()
        else:
            assert codes[-1] == 2
            assert error.count("\n") == 1
        assert set(files.snapshot()) == names
    assert set(codes) == {0, 2}
