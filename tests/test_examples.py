"""The examples run as they are, from a checkout, without a warning."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


def _run(name: str, *arguments: str) -> str:
    command = [sys.executable, "-W", "error", str(ROOT / "examples" / f"{name}.py"), *arguments]
    # Seconds on an idle machine; the limit is for one that is not.
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def _percent(text: str, label: str) -> float:
    match = re.search(rf"^{label}: ([0-9.]+)%$", text, re.MULTILINE)
    assert match, text
    return float(match[1])


def test_every_example_is_tested() -> None:
    names = {path.stem for path in (ROOT / "examples").glob("*.py")}
    assert names == {"training_loop", "bf16_head", "repair_checkpoint", "sharded_head"}


@pytest.mark.process
def test_training_loop() -> None:
    text = _run("training_loop")
    assert _percent(text, "plain") > 50
    assert _percent(text, "LIP in the step") > 50
    assert "'applied': 400, 'skipped': 0" in text


@pytest.mark.process
def test_bf16_head() -> None:
    text = _run("bf16_head")
    assert "the weight is torch.bfloat16, LIP was applied 30 times of 60 steps" in text
    losses = [float(loss) for loss in re.findall(r"loss ([0-9.]+)", text)]
    assert losses[-1] < losses[0]


@pytest.mark.process
def test_repair_checkpoint(tmp_path: Path) -> None:
    text = _run("repair_checkpoint", str(tmp_path))
    assert _percent(text, "repaired") > _percent(text, "as saved") + 3
    old, new = (torch.load(tmp_path / name, weights_only=True) for name in ("model.pt", "model-repaired.pt"))
    changed = [key for key in old if not torch.equal(old[key], new[key])]
    assert changed == ["head.weight", "head.bias"] or changed == ["head.weight"]


@pytest.mark.process
def test_sharded_head() -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    # torchrun itself says things on stderr.
    done = subprocess.run(
        [*launcher, str(ROOT / "examples" / "sharded_head.py")],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "100 of 200 classes are in the first of 2 processes" in done.stdout
    assert "applied 240 times in 320 steps" in done.stdout
    assert _percent(done.stdout, "accuracy") > 70


@pytest.mark.parametrize("name", ["training_loop", "bf16_head", "repair_checkpoint", "sharded_head"])
def test_examples_are_short(name: str) -> None:
    lines = (ROOT / "examples" / f"{name}.py").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 90
