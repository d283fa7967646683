"""One weight under an optimizer, in float64 and by torch, for the tests of the fused updates."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lip_fast import ops

EPS = 2.0**-24
STEPS = 5
# Roundings of an entry in a step: the weight, the state, and the quotient of AdamW in a term of at most lr.
ROUNDINGS = 8

RULES = ("adamw", "sgd")
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
CASES = [("adamw", o) for o in ADAMW_OPTIONS] + [("sgd", o) for o in SGD_OPTIONS]


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
    """The three ops of a rule on one weight, called alike."""

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
        self.name, self.M, self.steps = rule, M, 0
        self.lr = torch.tensor(lr, device=M.device)
        like = torch.empty_like(M, dtype=state_dtype)
        if rule == "adamw":
            amsgrad = options.pop("amsgrad", False)
            self.count = torch.zeros((), device=M.device)
            self.state = ops.AdamWState(
                torch.zeros_like(like), torch.zeros_like(like), torch.zeros_like(like) if amsgrad else None
            )
            self.rule = ops.AdamWRule(self.lr, self.count, **options)
        else:
            self.rule = ops.SGDRule(self.lr, **options)
            # Not written yet, and not to be read.
            self.buffer = torch.full_like(like, torch.nan) if self.rule.momentum else None

    def tensors(self) -> dict[str, Tensor]:
        """The weight and the state, by name."""
        named = {"M": self.M}
        if self.name == "adamw":
            named |= {k: v for k, v in self.state._asdict().items() if v is not None}
        elif self.buffer is not None:
            named["momentum_buffer"] = self.buffer
        return named

    def copies(self) -> dict[str, Tensor]:
        return {name: X.clone() for name, X in self.tensors().items()}

    def sketch(self, grad: Tensor, V: Tensor, *, write: bool, scaling: ops.Scaling | None = None) -> Tensor:
        scaling = scaling or ops.Scaling()
        self.steps += 1
        if self.name == "adamw":
            self.count += 1
            return ops.adamw_sketch_(self.M, grad, self.state, V, self.rule, write=write, scaling=scaling)
        return ops.sgd_sketch_(
            self.M,
            grad,
            self.buffer,
            V,
            self.rule,
            first=self.steps == 1,
            write=write,
            scaling=scaling,
        )

    def project(self, grad: Tensor, Y: Tensor, *, found_inf: Tensor | None = None) -> Tensor:
        if self.name == "adamw":
            return ops.adamw_project(self.M, self.state, Y, self.rule, found_inf=found_inf)
        return ops.sgd_project(self.M, grad, self.buffer, Y, self.rule, found_inf=found_inf)

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
            "found_inf": found_inf,
        }
        if self.name == "adamw":
            return ops.adamw_rebuild_(self.M, self.state, *factors, self.rule, **flags)
        return ops.sgd_rebuild_(self.M, grad, self.buffer, *factors, self.rule, **flags)


class Exact:
    """The textbook updates in float64, from float64 scalars, on copies."""

    def __init__(self, rule: str, options: dict[str, Any], M: Tensor, *, lr: float = 0.01) -> None:
        defaults: dict[str, Any] = (
            {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.01, "amsgrad": False}
            if rule == "adamw"
            else {"momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0, "nesterov": False}
        )
        self.name, self.o, self.lr, self.steps = rule, {"maximize": False} | defaults | options, lr, 0
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
    if rule == "adamw":
        options["betas"] = (options.pop("beta1", 0.9), options.pop("beta2", 0.999))
        return parameter, torch.optim.AdamW([parameter], lr=lr, **options, **kind)
    return parameter, torch.optim.SGD([parameter], lr=lr, **options, **kind)


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
