"""LIP as a callback of Lightning's trainer: the bits of the plain loop, and its checkpoints."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from integrations.plain import (
    OPTIMIZERS,
    OPTIONS,
    ROWS,
    Batch,
    Net,
    Rows,
    batches,
    overflowing,
    same,
    same_state,
    train,
    trained,
)
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lip_fast import LIP

with warnings.catch_warnings():
    # Of what it imports in turn.
    warnings.simplefilter("ignore")
    lightning = pytest.importorskip(
        "lightning.pytorch", reason="needs lightning, of the extra 'integrations'"
    )
    from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
    from lightning.pytorch.plugins.precision import MixedPrecision
    from lightning.pytorch.tuner import Tuner

    from lip_fast.integrations.lightning import LIPCallback

pytestmark = [
    pytest.mark.contract,
    # About its own use of torch, and loaders without workers.
    pytest.mark.filterwarnings("ignore"),
]


class Module(lightning.LightningModule):
    """The network, trained with what ``lip`` observes."""

    def __init__(
        self,
        lip: Any,
        name: str = "adamw fused",
        *,
        loss_of: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
        manual: bool = False,
    ) -> None:
        super().__init__()
        self.net, self.lip, self.name, self.loss_of = Net(), lip, name, loss_of
        self.automatic_optimization = not manual
        self.lr = 0.1

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        x, y = batch
        logits, _ = self.net(x)
        self.lip.observe(y)
        loss = self.loss_of(logits, y)
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            self.manual_backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return OPTIMIZERS[self.name](self.parameters())


class Validated(Module):
    """The same, with a step of validation that observes as the step of training does."""

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        x, y = batch
        logits, _ = self.net(x)
        self.lip.observe(y)
        return self.loss_of(logits, y)


class Resumable(torch.utils.data.DataLoader):
    """A loader that goes on in the middle of an epoch."""

    def __init__(self, n: int) -> None:
        super().__init__(Rows(n), batch_size=ROWS)
        self.taken = 0

    def __iter__(self) -> Iterator[Batch]:
        data = batches(len(self))
        for i in range(self.taken, len(data)):
            self.taken = (i + 1) % len(data)
            yield data[i]

    def state_dict(self) -> dict[str, int]:
        return {"taken": self.taken}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.taken = state["taken"]


def callback(**options: Any) -> LIPCallback:
    return LIPCallback("net.head", **{**OPTIONS, **options})


def fit(
    module: Module, lip: LIPCallback, *, n: int = 8, ckpt_path: Path | None = None, **options: Any
) -> Any:
    """A trainer after ``n`` batches an epoch."""
    options = {"max_epochs": 1, "callbacks": [lip], "enable_checkpointing": False} | options
    trainer = lightning.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, Resumable(n), ckpt_path=ckpt_path, weights_only=True)
    return trainer


@pytest.mark.parametrize("manual", [False, True], ids=["", "manual optimization"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_is_the_plain_loop(name: str, manual: bool) -> None:
    lip = callback()
    module = Module(lip, name, manual=manual)
    fit(module, lip)
    plain, other = trained(name, batches(8))
    assert same(module.net, plain)
    assert lip.lip.stats() == other.stats()
    assert other.stats()["applied"] == 8


def test_validation_is_not_observed() -> None:
    lip = callback()
    module = Validated(lip)
    trainer = lightning.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        max_epochs=1,
        val_check_interval=2,
        callbacks=[lip],
    )
    trainer.fit(module, Resumable(8), torch.utils.data.DataLoader(Rows(70), batch_size=ROWS))
    assert trainer.callback_metrics is not None
    assert same(module.net, trained("adamw fused", batches(8))[0])
    assert lip.lip.stats()["applied"] == 8


@pytest.mark.parametrize("clip", [None, 0.1], ids=["", "clipped"])
@pytest.mark.parametrize("name", ["sgd", "adamw fused"])
def test_gradients_are_accumulated_and_clipped(name: str, clip: float | None) -> None:
    lip = callback()
    module = Module(lip, name)
    fit(module, lip, accumulate_grad_batches=2, gradient_clip_val=clip)
    assert same(module.net, trained(name, batches(8), accumulate=2, clip=clip)[0])
    assert lip.lip.stats()["applied"] == lip.lip.stats()["steps"] == 4


@pytest.mark.parametrize("name", ["sgd", "adamw fused"])
def test_mixed_precision(name: str) -> None:
    lip = callback()
    module = Module(lip, name)
    # Lightning clips no gradients of a fused optimizer in mixed precision.
    clip = None if "fused" in name else 0.1
    fit(module, lip, precision="bf16-mixed", gradient_clip_val=clip)
    assert same(module.net, trained(name, batches(8), autocast=torch.bfloat16, clip=clip)[0])
    assert lip.lip.stats()["applied"] == 8


@pytest.mark.parametrize("name", ["sgd", "adamw fused"])
def test_a_scaler_that_skips(name: str) -> None:
    lip = callback()
    module = Module(lip, name, loss_of=overflowing({0, 3}))
    precision = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**10))
    fit(module, lip, plugins=[precision])
    plain, other = trained(
        name,
        batches(8),
        autocast=torch.float16,
        scaler=torch.amp.GradScaler("cpu", init_scale=2.0**10),
        loss_of=overflowing({0, 3}),
    )
    assert same(module.net, plain)
    assert lip.lip.stats() == other.stats()
    assert other.stats()["applied"] == 6


def test_averages_are_of_the_weights_after_lip() -> None:
    lip = callback()
    averaging = WeightAveraging(multi_avg_fn=get_ema_multi_avg_fn(0.9))
    module = Module(lip, "sgd")
    fit(module, lip, callbacks=[averaging, lip])
    plain = Net()
    optimizer = OPTIMIZERS["sgd"](plain.parameters())
    other = LIP(plain.head, **OPTIONS)
    other.attach(optimizer)
    averaged = AveragedModel(plain, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    train(plain, optimizer, other.observe, batches(8), after_step=lambda: averaged.update_parameters(plain))
    # At the end the module has the average.
    assert same(module.net, averaged.module)


# Checkpoints -------------------------------------------------------------------------------------------


@pytest.mark.reliability
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("steps", [2, 4], ids=["mid-epoch", "end of an epoch"])
@pytest.mark.parametrize("name", ["sgd", "adamw fused"])
def test_it_goes_on_from_a_checkpoint(name: str, steps: int, accumulate: int, tmp_path: Path) -> None:
    loop = {"max_epochs": 2, "accumulate_grad_batches": accumulate, "n": 4 * accumulate}
    whole_lip = callback()
    whole = Module(whole_lip, name)
    keeps = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=steps, save_top_k=-1)
    fit(whole, whole_lip, callbacks=[whole_lip, keeps], enable_checkpointing=True, **loop)
    lip = callback()
    resumed = Module(lip, name)
    trainer = fit(resumed, lip, ckpt_path=tmp_path / f"step={steps}.ckpt", **loop)
    assert trainer.global_step == lip.lip.stats()["steps"] == 8
    assert same(resumed.net, whole.net)
    assert same_state(lip.state_dict(), whole_lip.state_dict())
    # Both saved it, as what weights_only reads.
    saved = torch.load(tmp_path / f"step={steps}.ckpt", weights_only=True)["callbacks"]
    assert saved[lip.state_key]["steps"] == steps


def test_a_callback_that_did_not_train_passes_its_state_on(tmp_path: Path) -> None:
    lip = callback()
    module = Module(lip)
    fit(module, lip).save_checkpoint(tmp_path / "a.ckpt")
    state = torch.load(tmp_path / "a.ckpt", weights_only=True)["callbacks"][lip.state_key]
    assert state["steps"] == 8
    other = callback()
    assert other.state_dict() == {}
    other.load_state_dict(state)
    assert same_state(other.state_dict(), lip.state_dict())


def test_two_heads_have_states_of_their_own() -> None:
    assert LIPCallback("a", 1).state_key != LIPCallback("b", 1).state_key


# Attaching ---------------------------------------------------------------------------------------------


class TwoOptimizers(Module):
    def configure_optimizers(self) -> Any:
        backbone = torch.optim.SGD(self.net.backbone.parameters(), lr=0.1)
        return backbone, torch.optim.SGD(self.net.head.parameters(), lr=0.1)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        x, y = batch
        logits, _ = self.net(x)
        self.lip.observe(y)
        self.manual_backward(self.loss_of(logits, y))
        for optimizer in self.optimizers():
            optimizer.step()
            optimizer.zero_grad()


def test_of_several_optimizers_it_takes_the_one_of_the_head() -> None:
    lip = callback()
    fit(TwoOptimizers(lip, manual=True), lip)
    assert lip.lip.stats()["applied"] == 8


class NoHead(Module):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.net.backbone.parameters(), lr=0.1)


def test_no_optimizer_of_the_head_is_said() -> None:
    lip = callback()
    with pytest.raises(
        ValueError, match=r"expected one of the trainer's optimizers to hold the weight of 'net.h"
    ):
        fit(NoHead(lip), lip)


def test_a_callback_that_the_trainer_does_not_have_is_said() -> None:
    lip = callback()
    with pytest.raises(RuntimeError, match="expected this callback among the trainer's"):
        fit(Module(lip), lip, callbacks=[])


def test_it_is_detached_when_fitting_ends_or_fails() -> None:
    lip = callback()
    module = Module(lip)
    trainer = fit(module, lip)
    assert not trainer.optimizers[0]._optimizer_step_post_hooks

    def failing(logits: Tensor, y: Tensor) -> Tensor:
        raise ZeroDivisionError

    module = Module(lip, loss_of=failing)
    with pytest.raises(ZeroDivisionError):
        fit(module, lip)
    # And can be attached again, to the same module too.
    module.loss_of = cross_entropy
    fit(module, lip)
    assert lip.lip.stats()["applied"] == 8
    fit(Module(lip), lip)
    assert lip.lip.stats()["applied"] == 8


def test_a_training_that_failed_calls_it_no_more() -> None:
    lip = callback()
    optimizers: list[torch.optim.Optimizer] = []

    class Failing(Module):
        def on_before_zero_grad(self, optimizer: torch.optim.Optimizer) -> None:
            optimizers.append(getattr(optimizer, "optimizer", optimizer))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fit(Failing(lip), lip)
    assert not optimizers[0]._optimizer_step_post_hooks


def test_a_second_fit_goes_on() -> None:
    lip = callback()
    module = Module(lip, "sgd")
    fit(module, lip)
    fit(module, lip)
    assert lip.lip.stats()["steps"] == 16


def test_a_tuner_runs_before_it_is_attached() -> None:
    lip = callback()
    module = Module(lip, "sgd")
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        callbacks=[lip],
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    before = [p.clone() for p in module.parameters()]
    Tuner(trainer).lr_find(module, Resumable(8), num_training=6)
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
    trainer.fit(module, Resumable(8))
    assert lip.lip.stats()["applied"] == 8
    assert isinstance(module.net.head, nn.Linear)


# Hyperparameters ---------------------------------------------------------------------------------------


class Remembering(Module):
    """A module that saves the arguments it was made with, as the documentation of Lightning has it."""

    def __init__(self, lip: Any, ignore: list[str], other: LIP | None = None) -> None:
        super().__init__(lip)
        self.save_hyperparameters(ignore=ignore)


def test_a_callback_among_the_hyperparameters_is_refused_by_the_checkpoint(tmp_path: Path) -> None:
    lip = callback()
    run = fit(Remembering(lip, []), lip)
    with pytest.raises(TypeError, match=r"expected a LIPCallback not.*save_hyperparameters\(ignore="):
        run.save_checkpoint(tmp_path / "a.ckpt")


def test_a_lip_among_the_hyperparameters_is_in_no_checkpoint(tmp_path: Path) -> None:
    """Lightning leaves out, with a warning, what cannot be pickled."""
    lip = callback()
    run = fit(Remembering(lip, ["lip"], LIP(Net().head, **OPTIONS)), lip)
    run.save_checkpoint(tmp_path / "a.ckpt")
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert saved["hyper_parameters"] == {"ignore": ["lip"]}


def test_what_is_ignored_is_in_no_checkpoint(tmp_path: Path) -> None:
    lip = callback()
    run = fit(Remembering(lip, ["lip"]), lip)
    run.save_checkpoint(tmp_path / "a.ckpt")
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert saved["hyper_parameters"] == {"ignore": ["lip"], "other": None}
