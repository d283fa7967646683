"""One weight under an optimizer, in float64 and by torch, for the tests of the fused updates."""

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lip_fast import ops
from lip_fast.rules import RULES as KINDS

EPS = 2.0**-24
STEPS = 5
# Roundings of an entry in a step: the weight, the state, and the quotients of AdamW and NAdam in terms of at
# most lr.
ROUNDINGS = 8

RULES = ("adamw", "nadam", "sgd")
# Rows, columns, and columns of the sketch: one, odd, prime, tall, wide, beyond one tile.
SHAPES = [(1, 1, 1), (3, 5, 1), (7, 129, 9), (130, 33, 9), (257, 64, 48)]

# Pairs of every two options, and what is special about the first step.
ADAMW_OPTIONS = [
    {"weight_decay": 0.0},
    {"weight_decay": 0.1, "amsgrad": True},
    {"weight_decay": 0.1, "maximize": True},
    {"weight_decay": 0.0, "amsgrad": True, "maximize": True},
    {"weight_decay": 0.01, "beta1": 0.0, "beta2": 0.95, "eps": 1e-3},
]
SGD_OPTIONS = [
    {},
    {"weight_decay": 0.1, "maximize": True},
    {"momentum": 0.9},
    {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1},
    {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    {"momentum": 0.9, "nesterov": True, "maximize": True},
    {"momentum": 0.9, "dampening": 0.3, "maximize": True, "weight_decay": 0.1},
]
NADAM_OPTIONS = [
    {},
    {"weight_decay": 0.1, "maximize": True},
    {"weight_decay": 0.1, "decoupled_weight_decay": True, "momentum_decay": 0.1},
    {"decoupled_weight_decay": True, "maximize": True, "beta1": 0.0, "beta2": 0.95, "eps": 1e-3},
]
CASES = [
    *(("adamw", o) for o in ADAMW_OPTIONS),
    *(("sgd", o) for o in SGD_OPTIONS),
    *(("nadam", o) for o in NADAM_OPTIONS),
]


def case_name(value: Any) -> str | None:
    if isinstance(value, dict):
        return ",".join(f"{k}={v}" for k, v in value.items()) or "plain"
    return None


class Head(NamedTuple):
    """M and grad (l, q), V (q, m), factors A (l, t), s (t,), B (q, t)."""

    M: Tensor
    grad: Tensor
    V: Tensor
    A: Tensor
    s: Tensor
    B: Tensor


def head(
    l: int,
    q: int,
    m: int,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Head:
    """A weight and gradient in ``dtype``; the rest in float32, as the step has them."""
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g)  # noqa: E731
    V = draw(m, q).sign().mT
    M, grad, A, s, B = draw(l, q), 0.1 * draw(l, q), draw(l, m), draw(m), draw(q, m)
    moved = [X.to(device) for X in (V, A, s, B)]
    return Head(M.to(device, dtype), grad.to(device, dtype), *moved)


class Fused:
    """The ops of a rule on one weight, with what its optimizer would count."""

    def __init__(
        self,
        rule: str,
        options: dict[str, Any],
        M: Tensor,
        *,
        lr: float = 0.01,
        state_dtype: torch.dtype | None = None,
    ) -> None:
        options = dict(options)
        amsgrad = options.pop("amsgrad", False)
        self.name, self.M, self.steps = rule, M, 0
        kind = KINDS[rule]
        starts = {"lr": lr, "update_count": 0.0, "mu_product": 1.0}
        scalars = {
            name: torch.tensor(
                starts[name], device=M.device, dtype=torch.promote_types(M.dtype, torch.float32)
            )
            for name in kind.SCALARS
        }
        self.rule = kind(**scalars, **options)
        used = {"adamw": 2 + amsgrad, "nadam": 2, "sgd": int(bool(options.get("momentum")))}[rule]
        # The buffer of SGD is not written yet, and not to be read.
        start = torch.nan if rule == "sgd" else 0.0
        self.state = {name: torch.full_like(M, start, dtype=state_dtype) for name in kind.STATE[:used]}

    def tensors(self) -> dict[str, Tensor]:
        """The weight and the state, by name."""
        return {"M": self.M, **self.state}

    def copies(self) -> dict[str, Tensor]:
        return {name: X.clone() for name, X in self.tensors().items()}

    def count(self) -> None:
        """What the optimizer counts before the update of a step."""
        self.steps += 1
        rule = self.rule
        if self.name == "sgd":
            self.rule = replace(rule, first=self.steps == 1)
            return
        rule.update_count.add_(1)
        if self.name == "nadam":
            rule.mu_product.mul_(mu(self.steps, rule.beta1, rule.momentum_decay))

    def updated(self, grad: Tensor, scaling: ops.Scaling | None = None) -> ops.Updated:
        return ops.Updated(self.M, grad, [*self.state.values()], self.rule, scaling or ops.Scaling())

    def sketch(self, grad: Tensor, V: Tensor, *, write: bool, scaling: ops.Scaling | None = None) -> Tensor:
        self.count()
        return ops.update_sketch_(self.updated(grad, scaling), V, write=write)

    def one_read(
        self, grad: Tensor, V: Tensor, *, write: bool, scaling: ops.Scaling | None = None
    ) -> tuple[Tensor, Tensor]:
        self.count()
        return ops.update_one_read_(self.updated(grad, scaling), V, write=write)

    def project(self, grad: Tensor, Y: Tensor, *, found_inf: Tensor | None = None) -> Tensor:
        return ops.update_project(self.updated(grad, ops.Scaling(None, found_inf)), Y)

    def rebuild(
        self,
        grad: Tensor,
        factors: tuple[Tensor, Tensor, Tensor],
        *,
        ok: bool = True,
        accumulate: bool = False,
        step: int = 3,
        seed: int = 5,
        found_inf: Tensor | None = None,
    ) -> Tensor:
        flags: dict[str, Any] = {
            "ok": torch.tensor(ok, device=self.M.device),
            "step": torch.tensor(step, device=self.M.device),
            "accumulate": accumulate,
            "seed": seed,
        }
        return ops.update_rebuild_(self.updated(grad, ops.Scaling(None, found_inf)), *factors, **flags)


def mu(n: int, beta1: float, momentum_decay: float) -> float:
    """The momentum of NAdam in its n-th step."""
    return beta1 * (1 - 0.5 * 0.96 ** (n * momentum_decay))


class Exact:
    """The textbook updates in float64, from float64 scalars, on copies."""

    def __init__(self, rule: str, options: dict[str, Any], M: Tensor, *, lr: float = 0.01) -> None:
        defaults: dict[str, dict[str, Any]] = {
            "adamw": {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.01, "amsgrad": False},
            "nadam": {
                **{"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0},
                **{"momentum_decay": 4e-3, "decoupled_weight_decay": False},
            },
            "sgd": {"momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0, "nesterov": False},
        }
        self.product = 1.0
        self.name, self.o, self.lr, self.steps = rule, {"maximize": False} | defaults[rule] | options, lr, 0
        self.M = M.double()
        self.state = {
            name: torch.zeros_like(self.M)
            for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")
        }

    def update(self, grad: Tensor) -> None:
        o, S = self.o, self.state
        self.steps += 1
        g = -grad.double() if o["maximize"] else grad.double()
        if self.name == "adamw":
            n = self.steps
            S["exp_avg"] = o["beta1"] * S["exp_avg"] + (1 - o["beta1"]) * g
            S["exp_avg_sq"] = o["beta2"] * S["exp_avg_sq"] + (1 - o["beta2"]) * g**2
            S["max_exp_avg_sq"] = torch.maximum(S["max_exp_avg_sq"], S["exp_avg_sq"])
            mean = S["exp_avg"] / (1 - o["beta1"] ** n)
            square = S["max_exp_avg_sq" if o["amsgrad"] else "exp_avg_sq"] / (1 - o["beta2"] ** n)
            decayed = self.M * (1 - self.lr * o["weight_decay"])
            self.M = decayed - self.lr * mean / (square.sqrt() + o["eps"])
            return
        if self.name == "nadam":
            n, decoupled = self.steps, o["decoupled_weight_decay"]
            if not decoupled:
                g = g + o["weight_decay"] * self.M
            S["exp_avg"] = o["beta1"] * S["exp_avg"] + (1 - o["beta1"]) * g
            S["exp_avg_sq"] = o["beta2"] * S["exp_avg_sq"] + (1 - o["beta2"]) * g**2
            now, then = (mu(k, o["beta1"], o["momentum_decay"]) for k in (n, n + 1))
            self.product *= now
            step = (1 - now) / (1 - self.product) * g + then / (1 - self.product * then) * S["exp_avg"]
            decayed = self.M * (1 - self.lr * o["weight_decay"]) if decoupled else self.M
            self.M = decayed - self.lr * step / ((S["exp_avg_sq"] / (1 - o["beta2"] ** n)).sqrt() + o["eps"])
            return
        d = g + o["weight_decay"] * self.M
        if o["momentum"]:
            b = o["momentum"] * S["momentum_buffer"] + (1 - o["dampening"]) * d
            S["momentum_buffer"] = d if self.steps == 1 else b
            d = d + o["momentum"] * S["momentum_buffer"] if o["nesterov"] else S["momentum_buffer"]
        self.M = self.M - self.lr * d

    def tensors(self) -> dict[str, Tensor]:
        return {"M": self.M, **self.state}


def of_torch(rule: str, options: dict[str, Any], M: Tensor, *, lr: float = 0.01, **kind: bool):
    """(parameter, optimizer) of torch that does the same."""
    options = dict(options)
    parameter = torch.nn.Parameter(M.clone())
    if rule != "sgd":
        options["betas"] = (options.pop("beta1", 0.9), options.pop("beta2", 0.999))
    optimizer = {"adamw": torch.optim.AdamW, "nadam": torch.optim.NAdam, "sgd": torch.optim.SGD}[rule]
    return parameter, optimizer([parameter], lr=lr, **options, **kind)


def gradients(M: Tensor, n: int = STEPS) -> list[Tensor]:
    """n gradients of a weight."""
    g = torch.Generator().manual_seed(11)
    return [0.1 * torch.randn(M.shape, generator=g, dtype=torch.float64).to(M) for _ in range(n)]


def with_extremes(M: Tensor) -> Tensor:
    """M (at least 3 x 5) with both infinities in it, and an entry of the size of the largest number."""
    M[0, 1], M[1, 4], M[2, 2] = torch.inf, -torch.inf, 0.9 * torch.finfo(M.dtype).max
    return M


def like_torch(got: Tensor, theirs: Tensor) -> None:
    """To roundings of both, entry by entry; infinite and NaN where theirs are."""
    roundings = 2 * STEPS * ROUNDINGS * EPS
    torch.testing.assert_close(got, theirs, rtol=roundings, atol=roundings, equal_nan=True)


def close(got: Tensor, exact: Tensor, roundings: int = STEPS * ROUNDINGS, eps: float = EPS) -> None:
    """To so many roundings of the largest entry."""
    assert got.shape == exact.shape
    assert torch.isfinite(got).all()
    if got.numel():
        error = float((got.double() - exact.double()).abs().max())
        assert error <= roundings * eps * max(float(exact.abs().max()), 1e-3)


def sketched(Y: Tensor, M: Tensor, V: Tensor, eps: float = EPS) -> None:
    """Y is M V of the exact M, to the roundings of M and of a sum of q products."""
    bound = (STEPS * ROUNDINGS + V.shape[0]) * eps * (M.abs().max() * V.double().abs().sum(0))
    assert ((Y.double() - M @ V.double()).abs() <= bound).all()
    assert Y.mT.is_contiguous()
