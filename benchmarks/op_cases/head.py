"""The weight of a row with what the ops take beside it, and what they give in float64.

Large matrices are compared by their products with a few random columns: an error of a matrix is, relative to
it, as large in them, and nothing of the size of a weight is kept in float64.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.gpu.weights import BLOCK_VALUES, Weight, make_weight
from lip_fast import rules
from lip_fast.bench.rows import Row

__all__ = ["Head", "Updated", "forget", "head_of", "times"]

# Random columns: the estimate of an error is within a few percent.
_PROBES = 8
# Values of a block that a CPU's cache holds in float64 with what is made of them: memory for more costs more.
_CACHED_VALUES = 1 << 16
# An update changes the weight by about a tenth of it, far above what rounding does in bfloat16.
_UPDATE = 0.1


def _blocks(M: Tensor) -> list[slice]:
    rows = max(1, (BLOCK_VALUES if M.is_cuda else _CACHED_VALUES) // M.shape[1])
    return [slice(first, first + rows) for first in range(0, M.shape[0], rows)]


def times(M: Tensor, V: Tensor) -> Tensor:
    """M V in float64."""
    return torch.cat([M[rows].double() @ V.double() for rows in _blocks(M)])


@dataclass(frozen=True)
class Updated:
    """An updated weight M' in float64, by its products, and the updated state likewise.

    Attributes:
        V: M' V.
        X: M' with the probes.
        state: each of the state with the probes, as it is rounded into its format.
    """

    V: Tensor
    X: Tensor
    state: tuple[Tensor, ...]


class Head:
    """A weight in the format of a row, and what ops take beside it; made when first asked for.

    Args:
        l: classes.
        q: features.
        k: directions kept.
        r: directions refitted.
        m: columns of the products.
        dtype: of the weight.
        device: where all of it is.
    """

    def __init__(
        self, l: int, q: int, k: int, r: int, m: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.l, self.q, self.k, self.r, self.m, self.t = l, q, k, r, m, k + r
        self.dtype, self.device = dtype, device
        # Of tall factors, and of what is computed.
        self.skinny = torch.float64 if dtype == torch.float64 else torch.float32
        weight = _weight(l, q, k, r, device)
        self.M = weight.M.to(dtype)
        self.A, self.s, self.B = (each.to(self.skinny) for each in (weight.A, weight.s, weight.basis))
        # Columns contiguous, as the ops keep tall factors; float64 thirds, for float32 not to hold them.
        self.V, self.Y = ((self.random(m, rows).to(self.skinny) / 3).mT for rows in (q, l))
        self.step = torch.zeros((), dtype=torch.int64, device=device)
        self.ok = torch.ones((), dtype=torch.bool, device=device)

    def random(self, *shape: int) -> Tensor:
        """Normal values in float32, the same ones for a shape."""
        generator = torch.Generator(self.device).manual_seed(sum(shape))
        return torch.randn(*shape, generator=generator, device=self.device)

    @functools.cached_property
    def probes(self) -> Tensor:
        """The probes (q, 8), float64."""
        return self.random(self.q, _PROBES).double()

    @functools.cached_property
    def probed(self) -> Tensor:
        """M with the probes."""
        return times(self.M, self.probes)

    @functools.cached_property
    def product(self) -> Tensor:
        """M V in float64."""
        return times(self.M, self.V)

    @functools.cached_property
    def grad(self) -> Tensor:
        """(l, q) of about one."""
        return self.random(self.l, self.q).to(self.dtype)

    @functools.cached_property
    def moments(self) -> tuple[Tensor, Tensor]:
        """exp_avg and exp_avg_sq that move an entry by about the learning rate after ten updates."""
        return self.grad * 0.5, self.grad.abs() * 0.01 + 0.005

    def rate(self) -> Tensor:
        """A learning rate of one's own: a 0-d tensor that a timing may make small."""
        size = torch.linalg.vector_norm(self.probed) / (_PROBES * self.l * self.q) ** 0.5
        return (_UPDATE * size).float()

    def adamw_rule(self) -> rules.AdamW:
        """Of the tenth update."""
        return rules.AdamW(self.rate(), torch.tensor(10.0, device=self.device))

    def sgd_rule(self) -> rules.SGD:
        """With momentum and decay."""
        return rules.SGD(self.rate(), momentum=0.9, weight_decay=1e-4)

    @functools.cached_property
    def adamw(self) -> Updated:
        """The weight after AdamW, by the formula of :class:`lip_fast.rules.AdamW`."""
        rule = self.adamw_rule()
        lr, n = float(rule.lr), float(rule.update_count)

        def update(M: Tensor, g: Tensor, m: Tensor, v: Tensor) -> tuple[Tensor, ...]:
            m = self._stored(rule.beta1 * m + (1 - rule.beta1) * g)
            v = self._stored(rule.beta2 * v + (1 - rule.beta2) * g * g)
            denominator = (v / (1 - rule.beta2**n)).sqrt() + rule.eps
            return M * (1 - lr * rule.weight_decay) - lr / (1 - rule.beta1**n) * m / denominator, m, v

        return self._updated(update, (self.M, self.grad, *self.moments))

    @functools.cached_property
    def sgd(self) -> Updated:
        """The weight after SGD, by the formula of :class:`lip_fast.rules.SGD`."""
        rule = self.sgd_rule()
        lr = float(rule.lr)

        def update(M: Tensor, g: Tensor, b: Tensor) -> tuple[Tensor, ...]:
            b = self._stored(rule.momentum * b + g + rule.weight_decay * M)
            return M - lr * b, b

        return self._updated(update, (self.M, self.grad, self.moments[0]))

    def _stored(self, X: Tensor) -> Tensor:
        return X.to(self.dtype).double()

    def _updated(self, update: Callable[..., tuple[Tensor, ...]], tensors: tuple[Tensor, ...]) -> Updated:
        V, X = self.V.double(), self.probes
        products: list[tuple[Tensor, ...]] = []
        for rows in _blocks(self.M):
            M, *state = update(*(each[rows].double() for each in tensors))
            products.append((M @ V, M @ X, *(each @ X for each in state)))
        MV, MX, *rest = (torch.cat(parts) for parts in zip(*products, strict=True))
        return Updated(MV, MX, tuple(rest))


# One at a time: rows of one weight come one after the other.
@functools.lru_cache(maxsize=1)
def _weight(l: int, q: int, k: int, r: int, device: torch.device) -> Weight:
    return make_weight(l, q, k, r, device)


@functools.lru_cache(maxsize=1)
def _head(l: int, q: int, k: int, r: int, m: int, dtype: torch.dtype, device: torch.device) -> Head:
    return Head(l, q, k, r, m, dtype, device)


def head_of(row: Row, device: torch.device) -> Head:
    """The weight of a row, that of the last row where it is the same."""
    assert row.tail_rank is not None
    return _head(row.l, row.q, row.k, row.tail_rank, row.columns, getattr(torch, row.dtype), device)


def forget() -> None:
    """Free what is kept for the next row."""
    _head.cache_clear()
    _weight.cache_clear()
