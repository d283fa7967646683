"""What torch's own suite asks of every optimizer, of ours: over torch's inputs, beside torch's optimizers.

``torch.testing._internal`` has the inputs and the decorator, and none of the checks.
"""

import copy
import functools
import io
import itertools
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any
from unittest import mock

import pytest
import torch
from capture_runs import same
from optim.twins import BASES, LIPS, STEPS, L, N, Q, Side, assert_equal, implementations_of, random, settings
from problems import linear
from torch import Tensor, nn
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

# What torch.testing._internal itself needs.
pytest.importorskip("expecttest")
_BEFORE = torch.backends.__allow_nonbracketed_mutation_flag
from torch.testing._internal.common_device_type import instantiate_device_type_tests  # noqa: E402
from torch.testing._internal.common_optimizers import (  # noqa: E402
    OptimizerErrorEnum,
    OptimizerInfo,
    OptimizerInput,
    _get_optim_inputs_including_global_cliquey_kwargs,
    optim_db,
    optims,
)
from torch.testing._internal.common_utils import TestCase  # noqa: E402

# The import forbids every other test of this process to set a flag of a backend.
torch.backends.__allow_nonbracketed_mutation_flag = _BEFORE

pytestmark = [pytest.mark.contract, pytest.mark.upstream]

DTYPES = [torch.float32, torch.float64, torch.bfloat16]


def _info(optimizer: type) -> OptimizerInfo:
    """What torch says of its own optimizer, said of ours."""
    (info,) = (info for info in optim_db if info.optim_cls is BASES[optimizer])
    info = copy.copy(info)
    info.optim_cls, info.decorators = optimizer, ()
    return info


INFOS = [_info(optimizer) for optimizer in BASES]


def _inputs(info: OptimizerInfo, device: str, dtype: torch.dtype = torch.float32) -> list[OptimizerInput]:
    """Every input with every implementation, and a rate that is a tensor for those that take it."""
    inputs = _get_optim_inputs_including_global_cliquey_kwargs(device, dtype, info, skip=("differentiable",))
    for implementation in implementations_of(info.optim_cls):
        if implementation != {"foreach": True}:
            options = {"lr": torch.tensor(0.01, device=device), **implementation}
            inputs.append(OptimizerInput(None, options, "tensor lr"))
    return inputs


def _options(given: OptimizerInput) -> dict[str, Any]:
    return copy.deepcopy(given.kwargs)


class TestOptimizers(TestCase):
    def setUp(self) -> None:
        # torch's setUp seeds the global generator, which is to be left alone.
        self._random_state = torch.get_rng_state()
        super().setUp()

    def tearDown(self) -> None:
        super().tearDown()
        torch.set_rng_state(self._random_state)

    def _pairs(
        self, info: OptimizerInfo, device: str, dtype: torch.dtype = torch.float32, **options: Any
    ) -> Iterator[tuple[Side, Side]]:
        """Ours beside torch's, for every input: without a LIP group, then with each kind of LIP."""
        for given, lip in itertools.product(_inputs(info, device, dtype), (None, *LIPS.values())):
            if dtype == torch.bfloat16 and given.kwargs.get("fused") and given.kwargs.get("momentum"):
                # torch's kernel rounds these buffers by where in memory they lie: it differs from itself.
                continue
            yield tuple(
                Side(optimizer, _options(given) | options, lip, dtype=dtype, device=device)
                for optimizer in (info.optim_cls, BASES[info.optim_cls])
            )

    # Construction ----------------------------------------------------------------------------------------

    @optims(INFOS)
    def test_errors(self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo) -> None:
        errors = optim_info.optim_error_inputs_func(device=device, dtype=dtype)
        assert errors or device != "cpu"
        for error in errors:
            given = error.optimizer_error_input
            params = [nn.Parameter(random((2, 3), 0))] if given.params is None else given.params
            raised, told = error.error_type, error.error_regex
            for lip in ({}, {"lip_rank": 1}):
                with self.subTest(given.desc, lip=lip):
                    if issubclass(raised, Warning) and lip:
                        # Of a weight that is given twice torch warns only; LIP would act twice.
                        with warnings.catch_warnings():
                            warnings.simplefilter("ignore")
                            with pytest.raises(ValueError, match="each weight once"):
                                optim_info.optim_cls(params, **given.kwargs, **lip)
                    elif issubclass(raised, Warning):
                        with pytest.warns(raised, match=told):
                            optim_info.optim_cls(params, **given.kwargs)
                    elif error.error_on is OptimizerErrorEnum.CONSTRUCTION_ERROR:
                        with pytest.raises(raised, match=told):
                            optim_info.optim_cls(params, **given.kwargs, **lip)
                    else:
                        optimizer = optim_info.optim_cls(params, **given.kwargs, **lip)
                        with pytest.raises(raised, match=told):
                            optimizer.step()

    @optims([info for info in INFOS if "fused" in info.supported_impls])
    def test_what_does_not_go_together(self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo):
        for options in ({"foreach": True}, {"differentiable": True}):
            with pytest.raises(RuntimeError, match="`fused`"):
                optim_info.optim_cls([random((2, 3), 0)], fused=True, **options)

    @optims([info for info in INFOS if "fused" in info.supported_impls])
    def test_fused_refuses_parameters_without_numbers(
        self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo
    ) -> None:
        p = nn.Parameter(torch.empty(2, 3, device="meta"))
        optimizer = optim_info.optim_cls([p], fused=True)
        p.grad = torch.empty_like(p)
        with pytest.raises(RuntimeError, match="`fused=True` requires"):
            optimizer.step()

    @optims(INFOS)
    def test_it_prints_its_groups(self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo) -> None:
        side = Side(optim_info.optim_cls, {"lr": 0.125}, LIPS["exact"], device=device)
        text = repr(side.optimizer)
        for part in (optim_info.name, "Parameter Group 1", "lr: 0.125", "lip_rank: 3", "lip_rank: None"):
            assert part in text

    # The same steps --------------------------------------------------------------------------------------

    @optims(INFOS, dtypes=DTYPES)
    def test_every_step_is_torchs_and_then_lip(
        self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo
    ) -> None:
        for ours, base in self._pairs(optim_info, device, dtype):
            before = ours.values
            for i in range(STEPS):
                ours.step(i)
                base.step(i)
                assert_equal(ours, base)
            # In bfloat16 a number may be too large for the rate.
            changed = [not torch.equal(a, b) for a, b in zip(before, ours.values, strict=True)]
            assert all(changed) or (dtype == torch.bfloat16 and any(changed))
            if ours.shown:
                # In the steps 3 and 4 the weight has no gradient.
                assert ours.optimizer.lip.stats()["0"]["applied"] == STEPS - 2

    @optims(INFOS)
    def test_lip_changes_the_head_alone(
        self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo
    ) -> None:
        for given, lip in itertools.product(_inputs(optim_info, device), LIPS.values()):
            with self.subTest(given.desc, options=given.kwargs, lip=lip):
                ours = Side(optim_info.optim_cls, _options(given), lip, device=device).steps(0, STEPS)
                plain = Side(BASES[optim_info.optim_cls], _options(given), device=device).steps(0, STEPS)
                assert not torch.equal(ours.head.weight, plain.head.weight)
                assert same(ours.values[1:], plain.values[1:])

    @optims(INFOS, dtypes=[torch.float64])
    def test_implementations_agree(self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo) -> None:
        for given, lip in itertools.product(optim_info.optim_inputs_func(device), (None, *LIPS.values())):
            with self.subTest(given.desc, lip=lip):
                a, *others = (
                    Side(optim_info.optim_cls, _options(given) | options, lip, dtype=dtype, device=device)
                    for options in implementations_of(optim_info.optim_cls)
                    if not (isinstance(given.kwargs.get("lr"), Tensor) and "foreach" in options)
                    or options == {"foreach": False}
                )
                for i in range(STEPS):
                    for side in (a, *others):
                        side.step(i)
                        # The last of them is not there for the fused ones.
                        for p, q in zip(side.values, a.values, strict=False):
                            # Rounding of 7 steps, times the gap of the singular values between which LIP
                            # tells: seen up to 2e-14.
                            torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-11)

    @optims(INFOS, dtypes=[torch.complex64])
    def test_complex_parameters(self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo) -> None:
        others = lambda: [random((3, 2, 2), 2), random((5, 2), 3)]  # noqa: E731
        for given in _inputs(optim_info, device):
            if given.kwargs.get("fused"):
                continue  # torch has no fused kernel of complex numbers
            with self.subTest(given.desc, options=given.kwargs):
                ours, base = (
                    Side(
                        cls,
                        _options(given),
                        LIPS["exact"],
                        device=device,
                        others=lambda: [torch.view_as_complex(p) for p in others()],
                    )
                    for cls in (optim_info.optim_cls, BASES[optim_info.optim_cls])
                )
                for i in range(STEPS):
                    for side in (ours, base):
                        side.gradients(i)
                        for j, p in enumerate(side.others):
                            p.grad = torch.view_as_complex(random((*p.shape, 2), 77 * i + j)).to(device)
                        side.show(i)
                        side.optimizer.step()
                    assert_equal(ours, base)

    @optims([info for info in INFOS if info.supports_sparse])
    def test_sparse_gradients(self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo) -> None:
        options, _ = optim_info.metadata_for_sparse
        for foreach, head_too in itertools.product((False, True), (False, True)):
            ours, base = (
                Side(cls, options | {"foreach": foreach}, LIPS["exact"], device=device)
                for cls in (optim_info.optim_cls, BASES[optim_info.optim_cls])
            )
            for i in (0, 1, 5, 6):
                for side in (ours, base):
                    side.gradients(i)
                    sparse = [side.others[1], *([side.head.weight] if head_too else [])]
                    for p in sparse:
                        p.grad[::2] = 0
                        p.grad = p.grad.to_sparse()
                    side.show(i)
                    side.optimizer.step()
                assert_equal(ours, base)

    @optims(INFOS)
    def test_sparse_gradients_are_refused_where_torch_refuses(
        self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo
    ) -> None:
        if optim_info.supports_sparse:
            return
        sides = [Side(cls, {}, device=device) for cls in (optim_info.optim_cls, BASES[optim_info.optim_cls])]
        for side in sides:
            side.gradients(0)
            side.others[1].grad = side.others[1].grad.to_sparse()
            with pytest.raises(RuntimeError, match="sparse"):
                side.optimizer.step()
        assert same(sides[0].values, sides[1].values)

    @optims(INFOS)
    def test_parameters_of_several_dtypes(
        self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo
    ) -> None:
        for given, lip in itertools.product(_inputs(optim_info, device), (None, LIPS["exact"])):
            with self.subTest(given.desc, options=given.kwargs, lip=lip):
                ours, base = (
                    Side(
                        cls,
                        _options(given),
                        lip,
                        device=device,
                        others=lambda: [random((3, 5), i, d) for i, d in enumerate(DTYPES)],
                    )
                    for cls in (optim_info.optim_cls, BASES[optim_info.optim_cls])
                )
                assert_equal(ours.steps(0, 3), base.steps(0, 3))

    @optims(INFOS)
    def test_another_default_dtype(self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo) -> None:
        expected = [ours.steps(0, STEPS).values for ours, _ in self._pairs(optim_info, device)]
        try:
            torch.set_default_dtype(torch.float64)
            pairs = self._pairs(optim_info, device)
            for (ours, base), values in zip(pairs, expected, strict=True):
                assert_equal(ours.steps(0, STEPS), base.steps(0, STEPS))
                if ours.shown:
                    assert same(ours.values[0].dtype, torch.float32)
                    assert all(map(_about, ours.values, values))
        finally:
            torch.set_default_dtype(torch.float32)

    @optims(INFOS)
    def test_rates_and_decays_of_groups(
        self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo
    ) -> None:
        for ours, base in self._pairs(optim_info, device):
            for side in (ours, base):
                side.optimizer.param_groups[1]["lr"] = 0.0
                side.optimizer.param_groups[0] |= {"lr": 0.25, "weight_decay": 0.5}
            before = ours.values
            assert_equal(ours.steps(0, 3), base.steps(0, 3))
            assert same(before[1:], ours.values[1:])
            assert not torch.equal(before[0], ours.values[0])

    @optims(INFOS)
    def test_schedules(self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo) -> None:
        for makers in optim_info.scheduler_inputs:
            for lip in (None, *LIPS.values()):
                sides = [
                    Side(cls, {"lr": 0.125}, lip, device=device)
                    for cls in (optim_info.optim_cls, BASES[optim_info.optim_cls])
                ]
                schedulers = [[make(side.optimizer) for make in makers] for side in sides]
                rates = set()
                for i in range(12):
                    rates.add(sides[0].optimizer.param_groups[0]["lr"])
                    for side, own in zip(sides, schedulers, strict=True):
                        side.step(i)
                        for scheduler in own:
                            plateau = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
                            scheduler.step(1.0) if plateau else scheduler.step()
                    assert_equal(*sides)
                assert len(rates) > 1

    @optims(INFOS)
    def test_differentiable(self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo) -> None:
        results = []
        for cls in (optim_info.optim_cls, BASES[optim_info.optim_cls]):
            leaf = random((3, 4), 0, torch.float64).requires_grad_()
            gradient = random((3, 4), 1, torch.float64).requires_grad_()
            p = leaf.clone()
            optimizer = cls([p], lr=0.1, weight_decay=0.1, differentiable=True)
            p.grad = gradient
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the gradient of a tensor that is no leaf
                optimizer.step()
            results.append([p.detach(), *torch.autograd.grad((p**2).sum(), (leaf, gradient))])
        assert same(*results)
        assert all(bool(t.ne(0).all()) for t in results[0])

    # What it trains --------------------------------------------------------------------------------------

    def _train(self, info: OptimizerInfo, options: dict[str, Any], device: str, **form: Any) -> list[float]:
        """Losses of a classifier with a repaired head."""
        contiguous, makers = form.get("contiguous", True), form.get("makers", ())
        model = nn.Sequential(linear(5, Q, bias=True, seed=1), linear(Q, L, bias=True)).to(device)
        if not contiguous:
            for layer in model:
                # Dense: torch's fused kernels on CPU take the memory of others for a row of numbers.
                layer.weight = nn.Parameter(layer.weight.detach().mT.contiguous().mT)
                assert not layer.weight.is_contiguous()
        head = model[1]
        rest = [*model[0].parameters(), head.bias]
        group = {"params": [head.weight], "lip_rank": 5, **form.get("group", {})}
        optimizer = info.optim_cls([{"params": rest}, group], **options)
        schedulers = [make(optimizer) for make in makers]
        x = random((60, 5), 0).to(device)
        y = (x[:, :4].argmax(1)).to(device)
        losses, moved = [], 0
        for _ in range(20):
            moved += float(optimizer.param_groups[1]["lr"]) != 0
            optimizer.zero_grad()
            features = torch.tanh(model[0](x))
            loss = nn.functional.cross_entropy(head(features), y)
            loss.backward()
            optimizer.observe(head, features, y)
            optimizer.step()
            for scheduler in schedulers:
                plateau = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
                scheduler.step(loss.item()) if plateau else scheduler.step()
            losses.append(loss.item())
        assert optimizer.lip.stats()[str(len(rest))]["applied"] == moved
        return losses

    @optims(INFOS)
    def test_the_loss_goes_in_its_direction(
        self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo
    ) -> None:
        for given in _inputs(optim_info, device):
            for contiguous in (True, False):
                with self.subTest(given.desc, options=given.kwargs, contiguous=contiguous):
                    losses = self._train(optim_info, _options(given), device, contiguous=contiguous)
                    up = given.kwargs.get("maximize", False)
                    # The first step of LIP moves the head by itself: from the loss after it.
                    assert (losses[-1] > losses[1]) == up, losses

    @optims(INFOS)
    def test_the_loss_goes_down_with_schedules_and_other_groups(
        self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo
    ) -> None:
        for makers in (*optim_info.scheduler_inputs, ()):
            for group in ({}, {"lr": 0.03}, {"weight_decay": 0.1}):
                with self.subTest(group=group):
                    losses = self._train(optim_info, {"lr": 0.01}, device, makers=makers, group=group)
                    assert losses[-1] < losses[1]

    # Steps that are none ---------------------------------------------------------------------------------

    @optims(INFOS)
    def test_without_gradients_nothing_happens(
        self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo
    ) -> None:
        for ours, _ in self._pairs(optim_info, device):
            before = ours.values
            if ours.shown:
                ours.show(0)
            ours.optimizer.step()
            assert same(before, ours.values)
            assert len(ours.optimizer.state_dict()["state"]) == 0

    @optims(INFOS)
    def test_zero_gradients_do_what_they_do_to_torchs(
        self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo
    ) -> None:
        for ours, base in self._pairs(optim_info, device, weight_decay=0.0):
            before = ours.values
            for side in (ours, base):
                for p in side.parameters:
                    p.grad = torch.zeros_like(p)
                side.optimizer.step()  # nothing was observed
            assert_equal(ours, base)
            assert same(before, ours.values)

    @optims(INFOS)
    def test_an_overflow_that_is_found_is_no_step(
        self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo
    ) -> None:
        for given in _inputs(optim_info, device):
            if not given.kwargs.get("fused"):
                continue
            with self.subTest(given.desc):
                ours = Side(optim_info.optim_cls, _options(given), LIPS["exact"], device=device).steps(0, 2)
                before, state = ours.values, copy.deepcopy(ours.optimizer.state_dict()["state"])
                assert ours.optimizer._step_supports_amp_scaling
                ours.optimizer.grad_scale = torch.tensor(4.0, device=device)
                ours.optimizer.found_inf = torch.tensor(1.0, device=device)
                ours.step(5)
                assert same(before, ours.values)
                assert same(state, ours.optimizer.state_dict()["state"])
                stats = ours.optimizer.lip.stats()["0"]
                assert (stats["applied"], stats["skipped"], stats["not_finite"]) == (2, 1, 0)
                ours.optimizer.found_inf.zero_()
                ours.step(6)
                assert not any(map(torch.equal, before, ours.values))

    @optims(INFOS)
    def test_gradients_that_are_scaled_are_scaled_back(
        self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo
    ) -> None:
        for given, lip in itertools.product(_inputs(optim_info, device), (None, LIPS["tracked"])):
            if not given.kwargs.get("fused"):
                continue
            ours, base = (
                Side(cls, _options(given), lip, device=device)
                for cls in (optim_info.optim_cls, BASES[optim_info.optim_cls])
            )
            ours.optimizer.grad_scale = base.optimizer.grad_scale = torch.tensor(4.0, device=device)
            ours.optimizer.found_inf = base.optimizer.found_inf = torch.tensor(0.0, device=device)
            assert_equal(ours.steps(0, STEPS), base.steps(0, STEPS))

    @optims(INFOS)
    def test_a_step_writes_what_is_its_own(
        self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo
    ) -> None:
        for given, lip in itertools.product(_inputs(optim_info, device), LIPS.values()):
            with self.subTest(given.desc, options=given.kwargs):
                side = Side(optim_info.optim_cls, _options(given), lip, device=device)
                side.gradients(0)
                frozen = nn.Parameter(random((L, Q), 9).to(device))
                side.optimizer.add_param_group({"params": [frozen], "lip_rank": 2})
                shown = [random((N, Q), 5).to(device), torch.arange(N, device=device) % L]
                side.optimizer.observe(side.head, *shown)
                kept = [p.grad for p in side.parameters] + shown + [frozen.detach()]
                lr = side.optimizer.param_groups[0]["lr"]
                kept += [lr] if isinstance(lr, Tensor) else []
                before = copy.deepcopy(kept)
                groups = copy.deepcopy([_scalars(group) for group in side.optimizer.param_groups])
                version = side.head.weight._version
                side.optimizer.step()
                assert same(kept, before)
                assert same([_scalars(group) for group in side.optimizer.param_groups], groups)
                assert frozen.grad is None
                # Also after torch's fused kernels, which do not tell autograd what they wrote.
                assert side.head.weight._version > version

    # Closures and hooks ----------------------------------------------------------------------------------

    @optims(INFOS)
    def test_a_closure_is_called_once_with_gradients_on(
        self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo
    ) -> None:
        calls: list[bool] = []

        def loss(side: Side, i: int) -> Tensor:
            calls.append(torch.is_grad_enabled())
            side.gradients(i)
            if side.shown:
                side.show(i)
            return torch.tensor(float(i))

        for ours, base in self._pairs(optim_info, device):
            calls.clear()
            for i, side in itertools.product(range(3), (ours, base)):
                with torch.no_grad():
                    assert float(side.optimizer.step(functools.partial(loss, side, i))) == float(i)
            assert calls == [True] * 6
            assert_equal(ours, base)

    def _hooks_of_a_step(self, optimizer: torch.optim.Optimizer, step: Callable[[], Any]) -> list[str]:
        order: list[str] = []

        def hook(name: str) -> Callable[..., None]:
            def note(got: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
                order.append(name)
                assert got is optimizer

            return note

        handles = [
            optimizer.register_step_pre_hook(hook("first before")),
            optimizer.register_step_pre_hook(hook("second before")),
            optimizer.register_step_post_hook(hook("first after")),
            optimizer.register_step_post_hook(hook("second after")),
            register_optimizer_step_pre_hook(hook("before any")),
            register_optimizer_step_post_hook(hook("after any")),
        ]
        try:
            step()
        finally:
            for handle in handles:
                handle.remove()
        return order

    @optims(INFOS)
    def test_hooks_are_called_once_and_in_order(
        self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo
    ) -> None:
        base = BASES[optim_info.optim_cls]
        expected = ["before any", "first before", "second before"]
        expected += ["first after", "second after", "after any"]
        bare = base.step.__wrapped__ if getattr(base.step, "hooked", False) else base.step
        for skip in (False, True):
            # Before torch's class has had an instance, and from then on, when its step calls hooks too.
            with mock.patch.object(base, "step", bare):
                assert not getattr(base.step, "hooked", False)
                side = Side(optim_info.optim_cls, {"skip_nonfinite": skip}, LIPS["exact"], device=device)
                assert self._hooks_of_a_step(side.optimizer, lambda s=side: s.step(0)) == expected
                base([nn.Parameter(random((2, 3), 0))])
                assert base.step.hooked
                assert self._hooks_of_a_step(side.optimizer, lambda s=side: s.step(1)) == expected
                plain = Side(base, {}, device=device)
                assert self._hooks_of_a_step(plain.optimizer, lambda s=plain: s.step(1)) == expected

    @optims(INFOS)
    def test_hooks_after_the_step_see_the_repaired_weight(
        self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo
    ) -> None:
        side = Side(optim_info.optim_cls, {}, LIPS["exact"], device=device)
        seen: list[Tensor] = []
        side.optimizer.register_step_post_hook(lambda *_: seen.append(side.head.weight.detach().clone()))
        side.steps(0, 2)
        assert len(seen) == 2
        assert torch.equal(seen[-1], side.head.weight)

    @optims(INFOS)
    def test_hooks_of_the_state(self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo) -> None:
        order: list[str] = []
        optimizer = Side(optim_info.optim_cls, {}, LIPS["exact"], device=device).steps(0, 2).optimizer
        optimizer.register_state_dict_pre_hook(lambda o: order.append("before state_dict"))
        optimizer.register_state_dict_post_hook(lambda o, s: order.append("after state_dict"))
        optimizer.register_load_state_dict_pre_hook(lambda o, s: order.append("before load"))
        optimizer.register_load_state_dict_post_hook(lambda o: order.append("after load"))
        optimizer.load_state_dict(optimizer.state_dict())
        assert order == ["before state_dict", "after state_dict", "before load", "after load"]

    # State -----------------------------------------------------------------------------------------------

    @optims(INFOS)
    def test_the_state_is_saved_and_loaded(
        self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo
    ) -> None:
        for ours, _ in self._pairs(optim_info, device):
            ours.steps(0, 5)
            if ours.shown:
                ours.show(5)  # waits for the next step
            assert same(ours.optimizer.state_dict(), ours.optimizer.state_dict())
            buffer = io.BytesIO()
            optimizer = ours.optimizer
            saved = {"optimizer": optimizer.state_dict(), "lip": optimizer.lip.state_dict()}
            torch.save(saved | {"values": ours.values}, buffer)
            buffer.seek(0)
            loaded = torch.load(buffer, weights_only=True)
            implementation = {"fused": True} if optimizer.defaults.get("fused") else {}
            fresh = Side(optim_info.optim_cls, implementation, _lip_of(ours), device=device)
            with torch.no_grad():
                for p, value in zip(fresh.parameters, loaded["values"], strict=True):
                    p.copy_(value)
            fresh.optimizer.load_state_dict(loaded["optimizer"])
            fresh.optimizer.lip.load_state_dict(loaded["lip"])
            assert same(fresh.optimizer.state_dict(), ours.optimizer.state_dict())
            for side in (ours, fresh):
                side.gradients(5)
                side.optimizer.step()
                side.steps(6, 8)
            assert_equal(fresh, ours)

    @optims(INFOS)
    def test_states_of_torchs_optimizer_and_ours_are_each_others(
        self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo
    ) -> None:
        for ours, base in self._pairs(optim_info, device):
            ours.steps(0, 3)
            base.steps(0, 3)
            from_ours, from_base = ours.optimizer.state_dict(), base.optimizer.state_dict()
            base.optimizer.load_state_dict(from_ours)
            ours.optimizer.load_state_dict(from_base)
            for side in (ours, base):
                side.steps(3, STEPS)
            assert same(ours.values, base.values)
            assert ours.optimizer.param_groups[0]["lip_rank"] == (
                (ours.shown and _lip_of(ours)["rank"]) or None
            )

    @optims(INFOS)
    def test_states_with_names_and_without(
        self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo
    ) -> None:
        for saved, loaded in itertools.product((False, True), (False, True)):
            ours = Side(optim_info.optim_cls, {}, LIPS["tracked"], device=device, names=saved).steps(0, 3)
            other = Side(optim_info.optim_cls, {}, LIPS["tracked"], device=device, names=loaded)
            other.optimizer.load_state_dict(copy.deepcopy(ours.optimizer.state_dict()))
            assert same(other.optimizer.state_dict()["state"], ours.optimizer.state_dict()["state"])
            names = other.optimizer.param_groups[0].get("param_names")
            assert names == (["head.weight"] if saved or loaded else None)
            assert list(other.optimizer.lip.stats()) == (names or ["0"])
            # LIP begins anew, which an optimizer says whose own state tells that it does not.
            goes_on = bool(other.optimizer.state_dict()["state"])
            with pytest.warns(UserWarning, match="LIP begins anew") if goes_on else nullcontext():
                other.steps(3, STEPS)

    @optims(INFOS)
    def test_states_of_the_past(self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo) -> None:
        for ours, base in self._pairs(optim_info, device):
            for side in (ours, base):
                side.steps(0, 3)
                old = copy.deepcopy(side.optimizer.state_dict())
                for state in old["state"].values():
                    if "step" in state:
                        state["step"] = float(state["step"])
                for group, flag in itertools.product(old["param_groups"], optim_info.not_og_supported_flags):
                    if flag != "maximize":  # which changes what the steps are
                        group.pop(flag, None)
                    for name in [name for name in group if name.startswith("lip_")]:
                        del group[name]
                side.optimizer.load_state_dict(old)
                side.steps(3, STEPS)
            assert_equal(ours, base)

    @optims(INFOS)
    def test_the_state_is_not_empty(self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo):
        options = {"momentum": 0.9} if optim_info.name == "LIPSGD" else {}
        side = Side(optim_info.optim_cls, options, LIPS["exact"], device=device).steps(0, 1)
        assert len(side.optimizer.state) == len(side.parameters)
        assert {p.shape for p in side.optimizer.state} == {p.shape for p in side.parameters}

    @optims(INFOS)
    def test_copies_have_the_same_attributes(
        self, device: str, dtype: torch.dtype, optim_info: OptimizerInfo
    ) -> None:
        for ours, _ in self._pairs(optim_info, device):
            ours.steps(0, 2)
            copied = copy.deepcopy(ours.optimizer)
            assert _attributes(copied) == _attributes(ours.optimizer)
            assert same(copied.state_dict(), ours.optimizer.state_dict())
            assert same(copied.lip.state_dict(), ours.optimizer.lip.state_dict())


def _about(a: Tensor, b: Tensor) -> bool:
    # Scalars of the default dtype enter the updates.
    return torch.allclose(a, b, rtol=1e-4, atol=1e-5)


def _scalars(group: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "params"}


def _attributes(optimizer: torch.optim.Optimizer) -> set[str]:
    return {name for name in vars(optimizer) if not name.startswith("_")}


def _lip_of(side: Side) -> dict[str, Any] | None:
    group = side.optimizer.param_groups[0]
    return next((lip for lip in LIPS.values() if settings(lip).items() <= group.items()), None)


instantiate_device_type_tests(TestOptimizers, globals(), only_for=("cpu", "cuda"))
