"""LIP in loops that accelerate prepares: the bits of the plain loop, and its checkpoints."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from integrations.plain import (
    OPTIMIZERS,
    OPTIONS,
    ROWS,
    Net,
    Rows,
    batches,
    overflowing,
    same,
    same_state,
    trained,
)
from torch.nn.functional import cross_entropy
from torch.optim import lr_scheduler

from lip_fast import LIP

accelerate = pytest.importorskip("accelerate", reason="needs accelerate, of the extra 'integrations'")
from lip_fast.integrations.accelerate import attach, inner_optimizer  # noqa: E402

pytestmark = pytest.mark.contract


class Run:
    """A network, an optimizer and batches, prepared, with LIP attached."""

    def __init__(
        self,
        name: str = "adamw fused",
        *,
        n: int = 8,
        attach_first: bool = False,
        scaler: torch.amp.GradScaler | None = None,
        schedule: Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler] | None = None,
        **options: object,
    ) -> None:
        self.accelerator = accelerate.Accelerator(cpu=True, **options)
        # Accelerate makes a scaler for GPUs only.
        self.accelerator.scaler = scaler
        self.net = Net()
        optimizer = OPTIMIZERS[name](self.net.parameters())
        self.lip = LIP(self.net.head, **OPTIONS)
        if attach_first:
            attach(self.lip, optimizer, self.accelerator)
        self.scheduler = None
        if schedule is not None:
            self.scheduler = self.accelerator.prepare(schedule(optimizer))
        loader = torch.utils.data.DataLoader(Rows(n), batch_size=ROWS)
        self.model, self.optimizer, self.loader = self.accelerator.prepare(self.net, optimizer, loader)
        if not attach_first:
            attach(self.lip, self.optimizer, self.accelerator)
        self.skipped = 0

    def train(
        self,
        start: int = 0,
        stop: int | None = None,
        *,
        clip: float | None = None,
        loss_of: Callable = cross_entropy,
    ) -> "Run":
        """Batches from ``start`` to ``stop``."""
        loader = accelerate.skip_first_batches(self.loader, start)
        for i, (x, y) in enumerate(loader, start):
            if i == stop:
                break
            with self.accelerator.accumulate(self.model):
                logits, _ = self.model(x)
                self.accelerator.backward(loss_of(logits, y))
                self.lip.observe(y)
                if clip is not None and self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.model.parameters(), clip)
                self.optimizer.step()
                self.skipped += self.accelerator.optimizer_step_was_skipped
                if self.scheduler is not None:
                    self.scheduler.step()
                self.optimizer.zero_grad()
        return self


@pytest.mark.parametrize("attach_first", [True, False], ids=["attached, prepared", "prepared, attached"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_is_the_plain_loop(name: str, attach_first: bool) -> None:
    run = Run(name, attach_first=attach_first).train()
    plain, lip = trained(name, batches(8))
    assert same(run.net, plain)
    assert run.lip.stats() == lip.stats()
    assert lip.stats()["applied"] == 8


@pytest.mark.parametrize("clip", [None, 0.1], ids=["", "clipped"])
@pytest.mark.parametrize("name", ["sgd", "adamw fused"])
def test_gradients_are_accumulated_and_clipped(name: str, clip: float | None) -> None:
    run = Run(name, gradient_accumulation_steps=2).train(clip=clip)
    assert same(run.net, trained(name, batches(8), accumulate=2, clip=clip)[0])
    assert run.lip.stats()["applied"] == run.lip.stats()["steps"] == 4


@pytest.mark.parametrize("name", ["sgd", "adamw fused"])
def test_mixed_precision(name: str) -> None:
    run = Run(name, mixed_precision="bf16").train(clip=0.1)
    plain, _ = trained(name, batches(8), autocast=torch.bfloat16, upcast=True, clip=0.1)
    assert same(run.net, plain)
    assert run.lip.stats()["applied"] == 8


@pytest.mark.parametrize("name", ["sgd", "adamw fused"])
def test_a_scaler_that_skips(name: str) -> None:
    run = Run(name, scaler=torch.amp.GradScaler("cpu")).train(loss_of=overflowing({0, 3}))
    scaler = torch.amp.GradScaler("cpu")
    plain, lip = trained(name, batches(8), scaler=scaler, loss_of=overflowing({0, 3}))
    assert same(run.net, plain)
    assert run.lip.stats() == lip.stats()
    assert lip.stats()["applied"] == 6
    # It cannot see what a fused step skips.
    assert run.skipped == (0 if "fused" in name else 2)


def test_a_schedule() -> None:
    def schedule(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
        return lr_scheduler.ExponentialLR(optimizer, 0.9)

    run = Run("sgd", schedule=schedule).train()
    assert same(run.net, trained("sgd", batches(8), schedule=schedule)[0])


@pytest.mark.reliability
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("name", ["sgd", "adamw fused"])
def test_it_goes_on_from_a_checkpoint(name: str, accumulate: int, tmp_path: Path) -> None:
    whole = Run(name, gradient_accumulation_steps=accumulate).train()
    half = Run(name, gradient_accumulation_steps=accumulate).train(0, 4)
    half.accelerator.save_state(str(tmp_path))
    assert same_state(torch.load(tmp_path / "custom_checkpoint_0.pkl"), half.lip.state_dict())
    resumed = Run(name, gradient_accumulation_steps=accumulate)
    resumed.accelerator.load_state(str(tmp_path))
    resumed.train(4)
    assert same(resumed.net, whole.net)
    assert same_state(resumed.lip.state_dict(), whole.lip.state_dict())


def test_saving_changes_nothing(tmp_path: Path) -> None:
    whole, saving = Run("sgd").train(), Run("sgd")
    for i in range(8):
        saving.accelerator.save_state(str(tmp_path / str(i)))
        saving.train(i, i + 1)
    assert same(whole.net, saving.net)


def test_the_handle_detaches_and_the_wrapper_is_seen_through() -> None:
    run = Run("sgd")
    inner = inner_optimizer(run.optimizer)
    assert type(inner) is torch.optim.SGD
    assert inner_optimizer(inner) is inner
    with pytest.raises(RuntimeError, match="not attached"):
        attach(run.lip, run.optimizer, run.accelerator)
    other = torch.optim.SGD(Net().parameters(), lr=0.1)
    with pytest.raises(ValueError, match="holds the head's weight"):
        attach(LIP(run.net.head, 3), other, run.accelerator)
