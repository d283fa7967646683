"""The optimizers' updates on the one-read kernel, on emulated clusters of blocks.

What the update leaves is held against float64 and, to the bit, against the default kernel that computes M'
again from the old weight and the updated state; the products against float64 sums of factors rounded to TF32.
"""

import subprocess
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import pytest
import torch
from native.solver import COMPILER, ROOT
from torch import Tensor
from update_rules import mu, with_extremes

from lip_fast.backends.default.update import update_rebuild_
from lip_fast.rules import RULES, Rule, Updated

pytestmark = [pytest.mark.process, pytest.mark.skipif(COMPILER is None, reason="needs g++")]

# Fibers are left by longjmp, which the checks of _FORTIFY_SOURCE take for an error; a contracted product
# would not be the one of the device.
FLAGS = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-U_FORTIFY_SOURCE", "-ffp-contract=off"]
EPS = 2.0**-24
# Half a unit in the last place of TF32.
TF32 = 2.0**-11
# Roundings of an entry: of each array at most so many terms of its own size.
ROUNDINGS = 8
LR, BETAS, COUNT = 0.02, (0.9, 0.98), 3.0
# Of the momenta of NAdam up to this step.
PRODUCT = 0.1

# Rows, columns, directions, floats between rows, clusters: one of everything; less than a quad; two tiles and
# many; one block, a second one with a single column, odd numbers of columns, 16 blocks.
SHAPES = [
    (1, 1, 1, 0, 2),
    (5, 7, 3, 8, 1),
    (33, 256, 48, 0, 1),
    (150, 67, 13, 4, 1),
    (97, 257, 7, 0, 2),
    (131, 600, 64, 0, 2),
    (101, 1000, 80, 24, 1),
    (40, 4093, 80, 0, 1),
]
ADAMW: list[dict[str, Any]] = [
    {},
    {"weight_decay": 0.1, "maximize": True, "scale": 3.0},
    {"eps": 0.0, "beta1": 0.0, "count": 1.0},
]
SGD: list[dict[str, Any]] = [
    {},
    {"weight_decay": 0.1, "maximize": True, "scale": 8.0},
    {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1},
    {"momentum": 0.9, "nesterov": True, "maximize": True, "scale": 3.0},
    {"momentum": 0.9, "dampening": 0.3, "first": True},
]
NADAM: list[dict[str, Any]] = [
    {},
    {"weight_decay": 0.1, "maximize": True, "scale": 3.0},
    {"weight_decay": 0.1, "decoupled_weight_decay": True, "momentum_decay": 0.1},
]
CASES = [
    *(("adamw", o) for o in ADAMW),
    *(("sgd", o) for o in SGD),
    *(("nadam", o) for o in NADAM),
]


class Run(NamedTuple):
    """The arrays as the kernel left them, between their rows too; Y (l, m) and Z (q, m); the report."""

    arrays: list[Tensor]
    Y: Tensor
    Z: Tensor
    races: int
    broken: str

    def same(self, other: "Run") -> bool:
        bits = [[X.contiguous().view(torch.int32) for X in (*r.arrays, r.Y, r.Z)] for r in (self, other)]
        return all(torch.equal(a, b) for a, b in zip(*bits, strict=True))


class Update:
    """One step of a rule: operands, and what it should give."""

    def __init__(self, rule: str, shape: tuple[int, int, int, int, int], **options: Any) -> None:
        self.rule, self.o = rule, options
        self.l, self.q, self.m, extra, self.groups = shape
        g = torch.Generator().manual_seed(self.l * 1009 + self.q)
        stride = (self.q + 3) // 4 * 4 + extra
        held = 3 if rule != "sgd" else 2 if options.get("momentum") else 1
        # What lies between the rows is neither to be read nor written.
        self.arrays = [torch.full((self.l, stride), torch.nan) for _ in range(1 + held)]
        for X, scale in zip(self.arrays, (1.0, 0.3, 0.3, 0.3), strict=False):
            X[:, : self.q] = scale * torch.randn(self.l, self.q, generator=g)
        if rule != "sgd":
            self.arrays[3].abs_()
        if options.get("first"):
            self.arrays[2].fill_(torch.nan)
        self.V = torch.randn(self.m, self.q, generator=g).mT
        settings = {name: value for name, value in options.items() if name not in ("scale", "count")}
        scalars = {"lr": LR, "update_count": options.get("count", COUNT), "mu_product": PRODUCT}
        kind = RULES[rule]
        betas = {} if rule == "sgd" else {"beta2": BETAS[1], "weight_decay": 0.0}
        self.how: Rule = kind(
            **{name: torch.tensor(scalars[name]) for name in kind.SCALARS}, **(betas | settings)
        )

    def run(
        self,
        program: Path,
        *,
        write: bool = True,
        order: str = "forward",
        races: bool = False,
        fault: object = "none",
        found_inf: float | None = None,
    ) -> Run:
        o, stride = self.o, self.arrays[0].shape[1]
        found = "none" if found_inf is None else found_inf
        rule = [*(float(x) for x in self.how.scalars()), *self.how.settings()]
        shape = [self.rule, len(self.arrays) - 1, self.l, self.q, stride, self.m, self.groups]
        how = [order, int(races), fault, o.get("scale", "none"), found, int(write)]
        arguments = [program, *shape, *how, *rule]
        data = b"".join(X.numpy().tobytes() for X in (*self.arrays, self.V.mT.contiguous()))
        result = subprocess.run(
            [str(argument) for argument in arguments], input=data, capture_output=True, timeout=600
        )
        assert result.returncode == 0, result.stderr.decode()
        values = torch.from_numpy(np.frombuffer(result.stdout, np.float32).copy())
        counts = [self.l * stride] * len(self.arrays) + [self.m * self.l, self.m * self.q]
        *arrays, Y, Z = values.split(counts)
        report, broken = result.stderr.decode().split("|")
        return Run(
            [X.view(self.l, stride) for X in arrays],
            Y.view(self.m, self.l).mT,
            Z.view(self.m, self.q).mT,
            int(report.split()[0]),
            broken,
        )

    def inner(self, arrays: list[Tensor]) -> list[Tensor]:
        return [X[:, : self.q] for X in arrays]

    def exact(self) -> list[Tensor]:
        """Weight, gradient and state after the step, in float64."""
        o = self.o
        M, grad, *state = (X.double() for X in self.inner(self.arrays))
        grad = grad / o.get("scale", 1.0)
        g, decay = -grad if o.get("maximize") else grad, o.get("weight_decay", 0.0)
        if self.rule == "adamw":
            beta1, beta2, n = o.get("beta1", BETAS[0]), BETAS[1], o.get("count", COUNT)
            mean, square = beta1 * state[0] + (1 - beta1) * g, beta2 * state[1] + (1 - beta2) * g**2
            denominator = (square / (1 - beta2**n)).sqrt() + o.get("eps", 1e-8)
            return [M * (1 - LR * decay) - LR * mean / (1 - beta1**n) / denominator, grad, mean, square]
        # Nothing is added where there is no decay: 0 * inf is NaN.
        d = g + decay * M if decay and not o.get("decoupled_weight_decay") else g
        if self.rule == "nadam":
            (beta1, beta2), n = BETAS, COUNT
            now, then = (mu(k, beta1, o.get("momentum_decay", 4e-3)) for k in (n, n + 1))
            mean, square = beta1 * state[0] + (1 - beta1) * d, beta2 * state[1] + (1 - beta2) * d**2
            step = (1 - now) / (1 - PRODUCT) * d + then / (1 - PRODUCT * then) * mean
            kept = M * (1 - LR * decay) if o.get("decoupled_weight_decay") else M
            return [kept - LR * step / ((square / (1 - beta2**n)).sqrt() + 1e-8), grad, mean, square]
        if not state:
            return [M - LR * d, grad]
        momentum = o["momentum"]
        b = d if o.get("first") else momentum * state[0] + (1 - o.get("dampening", 0.0)) * d
        return [M - LR * (d + momentum * b if o.get("nesterov") else b), grad, b]

    def rebuilt(self, after: Run) -> Tensor:
        """M' of the default kernel, from the old weight and what the kernel left of the rest."""
        M = self.inner(self.arrays)[0].clone()
        _, grad, *state = self.inner(after.arrays)
        nothing = (M.new_zeros(self.l, 0), M.new_zeros(0), M.new_zeros(self.q, 0))
        how = (torch.tensor(False), torch.tensor(0), False, 0)
        # The square root that torch takes from MKL on CPU is not always the nearest number.
        with patch.object(Tensor, "sqrt", lambda X: torch.pow(X.double(), 0.5).to(X.dtype)):
            update_rebuild_(Updated(M, grad, state, self.how), *nothing, *how)
        return M


def _tf32(X: Tensor) -> Tensor:
    """The nearest numbers of TF32, ties away from zero, in float64."""
    bits = (X.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF
    return bits.view(torch.float32).double()


def _assert_products(M: Tensor, V: Tensor, Y: Tensor, Z: Tensor) -> None:
    M, V = _tf32(M), _tf32(V)
    exact, size = M @ V, M.abs() @ V.abs()
    # Of 8 products of a warp, 4 parts and 16 blocks; then half a unit of TF32.
    assert ((Y.double() - exact).abs() <= 28 * EPS * size + 1.001 * TF32 * exact.abs()).all()
    assert torch.equal(_tf32(Y), Y.double())
    exact, size = M.mT @ Y.double(), M.abs().mT @ Y.double().abs()
    assert ((Z.double() - exact).abs() <= (len(M) / 8 + 6) * EPS * size).all()


def _equal_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32))


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = Path(__file__).parent
    target = tmp_path_factory.mktemp("update") / "program"
    command = [COMPILER, *FLAGS, f"-I{ROOT / 'csrc'}", f"-I{here}", str(here / "update_program.cpp")]
    built = subprocess.run([*command, "-o", str(target)], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return target


def _name(value: Any) -> str | None:
    return ",".join(f"{k}={v}" for k, v in value.items()) or "plain" if isinstance(value, dict) else None


@pytest.mark.parametrize(("rule", "options"), CASES, ids=_name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_step_is_that_of_float64(
    program: Path, shape: tuple[int, int, int, int, int], rule: str, options: dict[str, Any]
) -> None:
    update = Update(rule, shape, **options)
    after, unwritten = update.run(program), update.run(program, write=False)
    assert (after.races, after.broken) == (0, "")
    exact = update.exact()
    for X, expected in zip(update.inner(after.arrays), exact, strict=True):
        scale = torch.maximum(expected.abs(), expected.abs().mean())
        assert ((X.double() - expected).abs() <= ROUNDINGS * EPS * scale).all()
    M = update.inner(after.arrays)[0].contiguous()
    assert _equal_bits(M, update.rebuilt(after))
    _assert_products(M, update.V, after.Y, after.Z)
    # Without a scale the gradient is left alone, and so is what lies between the rows.
    for i, (X, before) in enumerate(zip(after.arrays, update.arrays, strict=True)):
        assert _equal_bits(X[:, update.q :], before[:, update.q :])
        assert _equal_bits(X, before) == (i == 1 and "scale" not in options)
    # What is not written is all that differs.
    assert _equal_bits(unwritten.arrays[0], update.arrays[0])
    assert unwritten._replace(arrays=after.arrays[:1] + unwritten.arrays[1:]).same(after)


@pytest.mark.parametrize(("rule", "options"), [CASES[1], CASES[4], CASES[5], CASES[9]], ids=_name)
@pytest.mark.parametrize("shape", [SHAPES[3], SHAPES[5]], ids=str)
def test_the_order_of_threads_does_not_matter(
    program: Path, shape: tuple[int, int, int, int, int], rule: str, options: dict[str, Any]
) -> None:
    update = Update(rule, shape, **options)
    first = update.run(program)
    for order in ("backward", "1", "2"):
        other = update.run(program, order=order)
        assert other.broken == ""
        assert other.same(first)


@pytest.mark.parametrize("kind", [CASES[0], CASES[3], CASES[5], CASES[9]], ids=str)
@pytest.mark.parametrize("shape", [(210, 256, 80, 0, 1), (150, 300, 33, 0, 1)], ids=str)
def test_there_are_no_races(
    program: Path, shape: tuple[int, int, int, int, int], kind: tuple[str, Any]
) -> None:
    for order in ("forward", "backward", "1"):
        after = Update(kind[0], shape, **kind[1]).run(program, order=order, races=True)
        assert (after.races, after.broken) == (0, "")


# Barriers as csrc/core/one_read.h numbers them.
@pytest.mark.parametrize("fault", ["copies", "signals", *range(1, 8)])
def test_a_fault_is_noticed(program: Path, fault: object) -> None:
    update = Update("adamw", (170, 300, 33, 0, 1))
    right = update.run(program)
    seen = False
    for order in ("forward", "backward", "1"):
        wrong = update.run(program, order=order, fault=fault, races=True)
        seen = seen or wrong.races > 0 or wrong.broken != "" or not wrong.same(right)
    assert seen


@pytest.mark.parametrize("kind", [CASES[1], CASES[3], CASES[6], CASES[9]], ids=str)
def test_found_inf_leaves_every_bit(program: Path, kind: tuple[str, Any]) -> None:
    update = Update(kind[0], (37, 301, 9, 0, 1), **kind[1])
    update.arrays[1][5, 6] = torch.inf
    after = update.run(program, found_inf=1.0)
    assert all(_equal_bits(X, before) for X, before in zip(after.arrays, update.arrays, strict=True))
    _assert_products(update.arrays[0][:, : update.q], update.V, after.Y, after.Z)
    update.arrays[1][5, 6] = 1.0
    assert update.run(program, found_inf=0.0).same(update.run(program))


def test_what_is_not_finite_shows_in_both_products(program: Path) -> None:
    update = Update("adamw", (40, 300, 9, 0, 1))
    update.arrays[1][17, 270] = torch.nan
    after = update.run(program)
    assert not torch.isfinite(after.Y[17]).any()
    assert torch.isfinite(after.Y[torch.arange(40) != 17]).all()
    assert not torch.isfinite(after.Z[270]).any()


@pytest.mark.parametrize(("rule", "options"), CASES, ids=_name)
def test_infinite_and_huge_weights(program: Path, rule: str, options: dict[str, Any]) -> None:
    update = Update(rule, (5, 7, 3, 8, 1), **options)
    with_extremes(update.arrays[0])
    after = update.run(program)
    got, expected = update.inner(after.arrays)[0], update.exact()[0]
    usual = expected[torch.isfinite(expected) & (expected.abs() < 1e30)]
    atol = ROUNDINGS * EPS * float(usual.abs().mean())
    torch.testing.assert_close(got.double(), expected, rtol=ROUNDINGS * EPS, atol=atol, equal_nan=True)
    torch.testing.assert_close(got, update.rebuilt(after), rtol=0, atol=0, equal_nan=True)
    if rule == "adamw" or (rule == "sgd" and not options.get("weight_decay")):
        assert (float(got[0, 1]), float(got[1, 4])) == (torch.inf, -torch.inf)


@pytest.mark.parametrize(("columns", "m"), [(4097, 8), (8, 81)])
def test_what_does_not_fit_has_no_plan(program: Path, columns: int, m: int) -> None:
    with pytest.raises(AssertionError, match="no plan"):
        Update("adamw", (1, columns, m, 0, 1)).run(program)
