"""LIP in the Trainer of transformers: the bits of the plain loop, and its checkpoints."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from integrations.hugging_face import LIPCallback, transformers
from integrations.plain import (
    OPTIMIZERS,
    OPTIONS,
    ROWS,
    Net,
    Rows,
    batches,
    same,
    same_state,
    train,
    trained,
)
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim import lr_scheduler

from lip_fast import LIP

pytestmark = [pytest.mark.contract, pytest.mark.filterwarnings("ignore:.*pin_memory")]


class Named(torch.utils.data.Dataset):
    """The rows by the names of the Trainer."""

    def __init__(self, n: int) -> None:
        self.rows = Rows(n)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        x, y = self.rows[i]
        return {"x": x, "labels": y}


class InOrder(transformers.Trainer):
    """A Trainer that does not shuffle."""

    def _get_train_sampler(self, *args: object) -> torch.utils.data.Sampler:
        return torch.utils.data.SequentialSampler(self.train_dataset)


def trainer(
    lip: LIPCallback,
    folder: Path,
    *,
    net: Net | None = None,
    name: str | None = None,
    n: int = 8,
    accumulate: int = 1,
    clip: float = 0.0,
    callbacks: list | None = None,
    optimizer_cls_and_kwargs: tuple | None = None,
    **arguments: Any,
) -> transformers.Trainer:
    """A Trainer of the network; with the optimizer of that name, or its own."""
    net = Net() if net is None else net

    def loss(
        outputs: tuple[Tensor, Tensor], labels: Tensor, num_items_in_batch: Tensor | None = None
    ) -> Tensor:
        logits, _ = outputs
        lip.observe(labels)
        return cross_entropy(logits, labels) / accumulate

    arguments = {"lr_scheduler_type": "constant", "save_strategy": "no", "num_train_epochs": 1} | arguments
    return InOrder(
        net,
        transformers.TrainingArguments(
            output_dir=str(folder),
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            per_device_train_batch_size=ROWS,
            gradient_accumulation_steps=accumulate,
            max_grad_norm=clip,
            dataloader_pin_memory=False,
            remove_unused_columns=False,
            label_names=["labels"],
            **arguments,
        ),
        train_dataset=Named(n),
        eval_dataset=Named(1),
        callbacks=[lip] if callbacks is None else callbacks,
        compute_loss_func=loss,
        optimizers=(None if name is None else OPTIMIZERS[name](net.parameters()), None),
        optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
    )


def callback(**options: Any) -> LIPCallback:
    return LIPCallback("head", **{**OPTIONS, **options})


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_is_the_plain_loop(name: str, tmp_path: Path) -> None:
    lip = callback()
    run = trainer(lip, tmp_path, name=name)
    run.train()
    plain, other = trained(name, batches(8))
    assert same(run.model, plain)
    assert lip.lip.stats() == other.stats()
    assert other.stats()["applied"] == 8


def test_its_own_optimizer(tmp_path: Path) -> None:
    lip = callback()
    run = trainer(lip, tmp_path, learning_rate=0.01, optim="adamw_torch_fused", weight_decay=0.1)
    run.train()
    plain = Net()
    groups = [
        {"params": [p for p in plain.parameters() if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in plain.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.01, fused=True)
    other = LIP(plain.head, **OPTIONS)
    other.attach(optimizer)
    train(plain, optimizer, other.observe, batches(8))
    assert same(run.model, plain)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("name", ["sgd", "adamw fused"])
def test_gradients_are_accumulated_and_clipped(name: str, accumulate: int, tmp_path: Path) -> None:
    lip = callback()
    run = trainer(lip, tmp_path, name=name, accumulate=accumulate, clip=0.1)
    run.train()
    assert same(run.model, trained(name, batches(8), accumulate=accumulate, clip=0.1)[0])
    assert lip.lip.stats()["applied"] == lip.lip.stats()["steps"] == 8 // accumulate


@pytest.mark.parametrize("name", ["sgd", "adamw fused"])
def test_mixed_precision(name: str, tmp_path: Path) -> None:
    lip = callback()
    run = trainer(lip, tmp_path, name=name, bf16=True, clip=0.1)
    run.train()
    assert same(run.model, trained(name, batches(8), autocast=torch.bfloat16, upcast=True, clip=0.1)[0])
    assert lip.lip.stats()["applied"] == 8


def test_warm_up_and_decay(tmp_path: Path) -> None:
    lip = callback()
    run = trainer(lip, tmp_path, name="sgd", lr_scheduler_type="linear", warmup_steps=2)
    run.train()

    def schedule(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
        return transformers.get_linear_schedule_with_warmup(optimizer, 2, 8)

    assert same(run.model, trained("sgd", batches(8), schedule=schedule)[0])
    # The first step has a learning rate of 0.
    assert lip.lip.stats()["applied"] == 7


def test_evaluation_is_not_observed(tmp_path: Path) -> None:
    lip = callback()
    run = trainer(lip, tmp_path, name="sgd", eval_strategy="steps", eval_steps=2)
    run.evaluate()  # before anything was trained, for comparison
    run.train()
    run.evaluate()
    assert same(run.model, trained("sgd", batches(8))[0])
    assert lip.lip.state_dict()["pending"] == ()


@pytest.mark.parametrize("callbacks", [True, False], ids=["callback", ""])
@pytest.mark.parametrize("name", ["sgd", "adamw fused"])
def test_the_factory(name: str, callbacks: bool, tmp_path: Path) -> None:
    lip = callback()
    template = OPTIMIZERS[name](Net().parameters())
    kwargs = {k: v for k, v in template.defaults.items() if k != "decoupled_weight_decay"}
    run = trainer(
        lip,
        tmp_path,
        callbacks=[lip] if callbacks else [],
        optimizer_cls_and_kwargs=(lip.factory, {"optimizer": type(template), **kwargs}),
    )
    run.train()
    assert same(run.model, trained(name, batches(8))[0])
    assert lip.lip.stats()["applied"] == 8


# Checkpoints -------------------------------------------------------------------------------------------


def _factory(lip: LIPCallback) -> dict[str, Any]:
    return {
        "optimizer_cls_and_kwargs": (lip.factory, {"optimizer": torch.optim.SGD, "lr": 0.1, "momentum": 0.9})
    }


OPTIMIZER_OF: dict[str, Callable[[LIPCallback], dict[str, Any]]] = {
    "own": lambda lip: {"learning_rate": 0.01},
    "given": lambda lip: {"name": "adamw fused"},
    "factory": _factory,
    "factory alone": lambda lip: _factory(lip) | {"callbacks": []},
}


@pytest.mark.reliability
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("optimizer", OPTIMIZER_OF)
def test_it_goes_on_from_a_checkpoint(optimizer: str, accumulate: int, tmp_path: Path) -> None:
    def run(folder: str, **arguments: Any) -> tuple[transformers.Trainer, LIPCallback]:
        lip = callback()
        arguments |= OPTIMIZER_OF[optimizer](lip) | {"accumulate": accumulate, "num_train_epochs": 2}
        return trainer(lip, tmp_path / folder, n=4 * accumulate, **arguments), lip

    whole, whole_lip = run("whole", save_strategy="steps", save_steps=3)
    whole.train()
    resumed, lip = run("elsewhere")
    checkpoint = tmp_path / "whole" / "checkpoint-3"
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert resumed.state.global_step == lip.lip.stats()["steps"] == 8
    assert same(resumed.model, whole.model)
    assert same_state(lip.lip.state_dict(), whole_lip.lip.state_dict())
    saved = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    assert saved["param_groups"][0]["lip head"]["steps"] == 3
    # Nothing of it stays in the optimizer.
    assert not any("lip head" in group for group in resumed.optimizer.param_groups)


def test_a_checkpoint_of_training_without_lip_is_said(tmp_path: Path) -> None:
    plain = trainer(callback(), tmp_path, name="sgd", callbacks=[], save_strategy="steps", save_steps=4)
    plain.compute_loss_func = lambda outputs, labels, num_items_in_batch: cross_entropy(outputs[0], labels)
    plain.train()
    lip = callback()
    run = trainer(lip, tmp_path / "b", name="sgd")
    with pytest.warns(UserWarning, match="no state of LIP on 'head' was saved: it starts anew"):
        run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert lip.lip.stats()["steps"] == 4


# Attaching ---------------------------------------------------------------------------------------------


def test_a_callback_that_the_trainer_does_not_have_is_said(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="expected this callback among the Trainer's"):
        trainer(callback(), tmp_path, name="sgd", callbacks=[]).train()


def test_it_is_detached_at_the_end_and_goes_on_in_a_second_training(tmp_path: Path) -> None:
    lip = callback()
    run = trainer(lip, tmp_path, name="sgd")
    run.train()
    inner = run.optimizer.optimizer
    assert not inner._optimizer_step_post_hooks
    assert "lip head" not in inner.state_dict()["param_groups"][0]
    run.train()
    assert lip.lip.stats()["steps"] == 16


def test_a_head_that_the_optimizer_does_not_hold_is_said(tmp_path: Path) -> None:
    net, lip = Net(), callback()
    run = trainer(lip, tmp_path, net=net)
    run.optimizer = torch.optim.SGD(net.backbone.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="optimizer that holds the head's weight"):
        run.train()


def test_after_a_training_that_failed_it_attaches_to_the_next_optimizer(tmp_path: Path) -> None:
    lip = callback()
    failing = trainer(lip, tmp_path, name="sgd")
    whole_loss = failing.compute_loss_func

    def loss(*args: Any, **kwargs: Any) -> Tensor:
        whole_loss(*args, **kwargs)
        raise ZeroDivisionError

    failing.compute_loss_func = loss
    with pytest.raises(ZeroDivisionError):
        failing.train()
    run = trainer(lip, tmp_path, name="sgd")
    run.train()
    assert not failing.optimizer.optimizer._optimizer_step_post_hooks
    assert same(run.model, trained("sgd", batches(8))[0])
