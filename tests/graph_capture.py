"""A CUDA graph without a GPU: what is recorded in a capture runs at each replay, and Python does not.

The package has one predicate for "a value can be read here and now" and one for "a graph is being captured"
(:mod:`lip_fast.host`). With the first patched, tensors on CPU take the ways of other devices; with a
:class:`Graph`, a region is recorded operation by operation and replayed on the same storages, so that
whatever Python did there, or read there, is found out:

- An operation that would wait for a GPU raises, as it does in a capture.
- Nothing is computed by the capture itself: what it wrote is put back, what it made is filled with garbage.
- A replay writes where the recorded operations wrote. A tensor that Python replaced since is not found there.

Operations of this package count as one each, whatever their kernels for CPU read.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

from lip_fast import host

aten = torch.ops.aten


class CaptureError(RuntimeError):
    """What a GPU would answer: operation not permitted when stream is capturing."""


# They look at values, on a GPU by a copy to the host, to tell a size, a branch or an error.
_WAITING = {
    aten._local_scalar_dense,
    aten.item,
    aten.is_nonzero,
    aten.equal,
    aten.allclose,
    aten.nonzero,
    aten.masked_select,
    aten.bincount,
    aten.unique_consecutive,
    aten._unique,
    aten._unique2,
    aten.unique_dim,
    aten.repeat_interleave,
    aten._coalesce,
    aten._linalg_eigh,
    aten._linalg_svd,
    aten.linalg_qr,
    # torch.tensor(...) is made on the host and copied.
    aten.lift_fresh,
}
_METHODS = ("tolist", "numpy", "cpu", "item", "__array__")
_PROFILER = "profiler"


@contextmanager
def waiting_refused() -> Iterator[None]:
    """Run what is inside, as under ``torch.cuda.set_sync_debug_mode("error")``."""
    with _Recorder([]).guarding():
        yield


class Graph:
    """What ``torch.cuda.CUDAGraph`` is, for tensors on CPU."""

    def __init__(self) -> None:
        self._calls: list[_Call] = []

    @contextmanager
    def capture(self) -> Iterator[None]:
        """Record what happens inside."""
        recorder = _Recorder(self._calls)
        with pytest.MonkeyPatch.context() as patch, recorder.guarding():
            patch.setattr(host, "capturing", lambda device: True)
            yield
        recorder.forget()

    @torch.no_grad()
    def replay(self) -> None:
        """Run what was recorded, on the same memory."""
        assert self._calls, "nothing was captured"
        for call in self._calls:
            call.run()


class _Call:
    """An operation with its operands, whose memory stays where it is."""

    def __init__(self, func: Callable[..., Any], args: Any, kwargs: Any, out: Any) -> None:
        # Detached: the memory is wanted, not what autograd hangs on the tensor.
        self.func = func
        self.args, self.kwargs, self.out = tree_map_only(Tensor, lambda t: t.detach(), (args, kwargs, out))

    def run(self) -> None:
        new = self.func(*self.args, **self.kwargs)
        for old, value in zip(_tensors(self.out), _tensors(new), strict=True):
            # A view, or written in place: the memory is the old one already.
            if _address(old) != _address(value):
                assert (old.shape, old.dtype) == (value.shape, value.dtype)
                old.copy_(value)


class _Recorder(TorchDispatchMode):
    def __init__(self, calls: list[_Call]) -> None:
        super().__init__()
        self._calls = calls
        self._in_operation = False
        # By address: what the region made, and what was there before it wrote to it.
        self._made: dict[int, Tensor] = {}
        self._before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.namespace == _PROFILER:
            return func(*args, **kwargs)
        _refuse_waiting(func, args, kwargs)
        for t in _written(func, args, kwargs):
            self._remember(t)
        self._in_operation = True
        try:
            out = func(*args, **kwargs)
        finally:
            self._in_operation = False
        known = {_address(t) for t in _tensors((args, kwargs))}
        for t in _tensors(out):
            if _address(t) not in known:
                self._made[_address(t)] = t.detach()
        with torch.utils._python_dispatch._disable_current_modes():
            self._calls.append(_Call(func, args, kwargs, out))
        return out

    @contextmanager
    def guarding(self) -> Iterator[None]:
        """Be the mode, and refuse the methods that read without an operation."""
        with pytest.MonkeyPatch.context() as patch, self:
            for name in _METHODS:
                patch.setattr(Tensor, name, self._guarded(name))
            yield

    def _guarded(self, name: str) -> Callable[..., Any]:
        """The method ``name`` of tensors, which kernels may use and the region may not."""
        method = getattr(Tensor, name)

        def guard(*args: Any, **kwargs: Any) -> Any:
            if not self._in_operation:
                raise CaptureError(f"Tensor.{name}: operation not permitted when stream is capturing")
            return method(*args, **kwargs)

        return guard

    def forget(self) -> None:
        """Make it so that nothing was computed."""
        for t, before in self._before.values():
            _bytes(t).copy_(before)
        for t in self._made.values():
            _bytes(t).fill_(0xFF)  # NaN, -1, and no bool

    def _remember(self, t: Tensor) -> None:
        address = _address(t)
        if address not in self._made and address not in self._before:
            with torch.utils._python_dispatch._disable_current_modes():
                self._before[address] = (t.detach(), _bytes(t).clone())


def _refuse_waiting(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    packet = func.overloadpacket
    waits = packet in _WAITING
    if packet is aten.repeat_interleave:
        waits = kwargs.get("output_size") is None and "Tensor" in func._overloadname
    if packet in (aten.index, aten.index_put, aten.index_put_):
        waits = any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
    if packet is aten.segment_reduce:
        waits = not kwargs.get("unsafe", False)
    if waits:
        raise CaptureError(f"{func}: operation not permitted when stream is capturing")


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The operands that the schema says are written."""
    found = []
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[i] if i < len(args) else kwargs.get(argument.name)
            found += _tensors(value)
    return found


def _tensors(tree: Any) -> list[Tensor]:
    """Those with memory of their own: of a sparse one, its parts."""
    found = []
    for t in tree_flatten(tree)[0]:
        if isinstance(t, Tensor) and t.layout == torch.sparse_csr:
            found += [t.crow_indices(), t.col_indices(), t.values()]
        elif isinstance(t, Tensor):
            found.append(t)
    return found


def _address(t: Tensor) -> int:
    return t.untyped_storage()._cdata


def _bytes(t: Tensor) -> Tensor:
    """The whole memory behind a tensor."""
    return torch.empty(0, dtype=torch.uint8).set_(t.untyped_storage())
