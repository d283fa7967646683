"""What the head saw since the last step, and the buffers from which replays of a captured step read it."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lip_fast import host
from lip_fast.backends.native.library import quickly_in_range
from lip_fast.head_input import HeadInput
from lip_fast.sharded.tensors import full_tensor, local_part
from lip_fast.targets import CSR, Targets, as_targets, indices_in_range
from lip_fast.validation import FLOATS, describe

__all__ = ["Observation", "Observations"]

# After so many observations without a step it is asked whether others took steps in between, and then again
# after each half as many: to ask waits for the device.
_MAX_WITHOUT_STEP = 64


class Observation(NamedTuple):
    """Rows (n, q) and their checked labels."""

    features: Tensor
    targets: Targets

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Features, then the one or three tensors of the labels."""
        return (self.features, *(self.targets if isinstance(self.targets, CSR) else (self.targets,)))

    def copied(self, device: torch.device | str) -> "Observation":
        """A copy on a device that shares no memory with what was observed."""
        return Observation.of([t.to(device, copy=True) for t in self.tensors])

    @staticmethod
    def checked(features: Any, targets: Any, weight: Tensor, *, capturing: bool) -> "Observation":
        """What a head with this weight (l, q) saw, as rows, detached.

        Args:
            features: (..., q) input of the head.
            targets: their labels, as :meth:`lip_fast.LIP.observe` takes them.
            weight: of the head.
            capturing: whether a CUDA graph is being captured.

        Raises:
            TypeError, ValueError: features or targets do not fit the weight or each other.
        """
        l, q = weight.shape
        if isinstance(features, Tensor) and isinstance(targets, Tensor):
            features, targets = full_tensor(features), full_tensor(targets)
        if not isinstance(features, Tensor) or features.dtype not in FLOATS:
            raise TypeError(
                "expected floating-point features (float32, float64, bfloat16, float16), got "
                f"{describe(features)}"
            )
        if features.layout != torch.strided:
            raise TypeError(f"expected dense features, got {features.layout}")
        if features.dim() < 2 or features.shape[-1] != q:
            raise ValueError(f"expected features of shape (..., {q}), got {tuple(features.shape)}")
        if features.device != weight.device:
            raise ValueError(
                f"expected features on {weight.device}, where the head is, got {features.device}"
            )
        if features.dim() > 2 and isinstance(targets, Tensor):
            if targets.layout != torch.strided or targets.shape != features.shape[:-1]:
                raise ValueError(
                    f"expected class indices of shape {tuple(features.shape[:-1])}, "
                    f"got {tuple(targets.shape)}"
                )
            targets = targets.reshape(-1)
        rows = features.detach().reshape(-1, q)
        if capturing and isinstance(targets, Tensor) and targets.layout == torch.sparse_coo:
            raise ValueError(
                "expected sparse labels as CSR inside of a capture, got COO: sorting waits for the device"
            )
        labels = as_targets(targets, rows=len(rows), classes=l, device=rows.device)
        if isinstance(labels, CSR):
            return Observation(rows, CSR(*(t.detach() for t in labels)))
        return Observation(rows, labels.detach())

    @staticmethod
    def form(features: Any, targets: Any, weight: Tensor) -> tuple[Any, ...] | None:
        """All that :meth:`checked` asks of rows and class indices on a host but what these are; else None."""
        # A subclass may have its parts on several processes, or no memory of its own.
        if type(features) is not Tensor or type(targets) is not Tensor:
            return None
        device = features.device
        if features.dim() != 2 or targets.dim() != 1 or device.type not in host.READABLE:
            return None
        of_features = (features.shape, features.dtype, features.layout)
        of_targets = (targets.shape, targets.dtype, targets.layout)
        return of_features, of_targets, device, targets.device, weight.device, weight.shape

    @staticmethod
    def of(tensors: list[Tensor]) -> "Observation":
        """The inverse of :attr:`tensors`."""
        features, *targets = tensors
        return Observation(features, CSR(*targets) if len(targets) == 3 else targets[0])


class Observations:
    """Observations in the order they came, until a step takes them.

    On the host they are kept as they are. Elsewhere they are copied: features may be the output of a graph,
    written again by its next replay, and a step that is captured makes the copies its buffers. From then on
    each observation is copied into these buffers in turn; the host cannot see when a replay has taken them.

    Attributes:
        input: what the head was called with since the last observation.
        in_step: whether the optimizer is in a step, which may evaluate the model any number of times.
        untaken: whether steps were taken that took no observations.
    """

    def __init__(self) -> None:
        self._pending: list[Observation] = []
        # Observed inside of a capture: the graph itself writes these tensors at each replay.
        self._captured: list[Observation] = []
        self._buffers: list[Observation] = []
        # Which buffer comes next, and whether one was written since the last step that the host saw.
        self._next, self._fresh = 0, False
        self.input = HeadInput()
        self.in_step = self.untaken = False
        # How many were kept since the last step, and the norm of the weight after half of those allowed.
        self._calls, self._norm = 0, 0.0
        # The form of what was checked last.
        self._form: tuple[Any, ...] | None = None

    def checked(self, features: Any, targets: Any, weight: Tensor, *, capturing: bool) -> Observation:
        """:meth:`Observation.checked`; of the same form as the last one, no more than its indices."""
        form = Observation.form(features, targets, weight)
        if form is not None and form == self._form and quickly_in_range(targets, len(weight)):
            return Observation(features.detach(), targets.detach())
        observation = Observation.checked(features, targets, weight, capturing=capturing)
        self._form = form
        return observation

    def __len__(self) -> int:
        return len(self._current()) + len(self._captured)

    def __bool__(self) -> bool:
        return bool(self._pending or self._captured or self._fresh)

    @property
    def buffered(self) -> bool:
        """Whether a captured step reads buffers of ours."""
        return bool(self._buffers)

    def check_taken(self, weight: Tensor, *, attached: bool) -> None:
        """RuntimeError where steps are taken that take no observations, by an optimizer not attached.

        Then the weight (l, q), or the part of it that is here, has changed, or it takes no part in training.
        Any number of micro-batches before a step is none of these.
        """
        half = _MAX_WITHOUT_STEP // 2
        # What replays take, the host does not see.
        if self.in_step or self._buffers or not self._calls or (self._calls % half and not self.untaken):
            return
        norm = float(torch.linalg.vector_norm(local_part(weight), dtype=torch.float64))
        if self._calls == half:
            self._norm = norm
            return
        changed = norm != self._norm and norm == norm
        unused = attached and weight.grad is None and not self.input.used
        self.untaken = changed or unused
        if self.untaken:
            happened = "the weight changed" if changed else "the head took no part in training"
            raise RuntimeError(
                f"observe() was called {self._calls} times without a step of an attached optimizer, and "
                f"{happened}. Call attach(optimizer), again where it was detached. A copy of an optimizer "
                "loses its hooks: make a LIP for the copied head and call attach(copy). Of an optimizer that "
                "works through another (SAM), attach to that one, whose step() is called in the end. Where "
                "something else wrote the weight (a loaded state, averages), call discard()"
            )

    def add(self, observation: Observation, *, capturing: bool) -> None:
        """Keep, or copy into the next buffer.

        Raises:
            ValueError: it does not fit the buffer.
        """
        if capturing:
            self._captured.append(observation)
        elif self._buffers:
            self._check_fit(observation, self._next)
            self._write(observation)
        elif observation.features.device.type in host.READABLE:
            self._pending.append(observation)
        else:
            self._pending.append(observation.copied(observation.features.device))
        self._calls += 1

    def take(self, *, capturing: bool) -> list[Observation]:
        """All of them, which are then gone; under capture, as tensors that later ones are copied into."""
        observed = self._current() + self._captured
        if capturing and self._pending:
            self._buffers = self._pending
        self.clear()
        return observed

    def clear(self) -> None:
        """Forget what was observed, and what the head was called with; the buffers stay."""
        self._pending, self._captured = [], []
        self._next, self._fresh = 0, False
        self._calls, self.untaken = 0, False
        # Not by a call: a step goes through few files.
        self.input.seen = self.input.logits = None
        self.input.passed = self.input.several = self.input.used = False

    def release(self) -> None:
        """Forget the buffers too."""
        self.clear()
        self._buffers = []

    def _current(self) -> list[Observation]:
        """What was observed outside of a capture and has not been seen to be taken."""
        if self._fresh:
            return self._buffers[: self._next or len(self._buffers)]
        return self._pending

    def _write(self, observation: Observation) -> None:
        for buffer, tensor in zip(self._buffers[self._next].tensors, observation.tensors, strict=True):
            buffer.copy_(tensor)
        self._next, self._fresh = (self._next + 1) % len(self._buffers), True

    def _check_fit(self, observation: Observation, i: int) -> None:
        expected, got = self._buffers[i], observation
        if _form(expected) != _form(got):
            raise ValueError(
                f"expected observation {i + 1} of {len(self._buffers)} of the captured step as "
                f"{_describe(expected)}, got {_describe(got)}; to go back to steps that are not replayed, "
                "call release_buffers()"
            )

    # State -------------------------------------------------------------------------------------------

    def state_dict(self) -> tuple[dict[str, Any], ...]:
        """Copies on the host: the features may be a few rows of a large tensor that lives on.

        Of the buffers, those of a step that is not complete: a complete one has been replayed. A tuple, which
        distributed checkpoints take as one value: how many there are is not known where it is loaded.
        """
        waiting = self._buffers[: self._next] if self._buffers else self._pending
        return tuple(
            {"features": features, "targets": tuple(labels) if isinstance(labels, CSR) else labels}
            for features, labels in (observation.copied("cpu") for observation in waiting)
        )

    def check_state_dict(self, state: Sequence[dict[str, Any]], *, shape: tuple[int, int]) -> None:
        """ValueError where these are no observations of a weight of this shape, or do not fit the buffers."""
        for saved in state:
            _check_saved(saved, *shape)
        if self._buffers:
            if len(state) > len(self._buffers):
                raise ValueError(
                    f"expected at most {len(self._buffers)} pending observations, got {len(state)}"
                )
            for i, saved in enumerate(state):
                self._check_fit(_restored(saved), i)

    def load_state_dict(self, state: Sequence[dict[str, Any]], device: torch.device) -> None:
        """Restore what :meth:`state_dict` returned, as copies of it."""
        self.clear()
        for saved in state:
            observation = _restored(saved)
            if self._buffers:
                self._write(observation)
            else:
                self._pending.append(observation.copied(device))


def _check_saved(saved: object, l: int, q: int) -> None:
    if not isinstance(saved, Mapping) or saved.keys() != {"features", "targets"}:
        raise ValueError(f"expected a pending observation with features and targets, got {describe(saved)}")
    features, targets = saved["features"], saved["targets"]
    if not isinstance(features, Tensor) or features.dim() != 2 or features.shape[1] != q:
        raise ValueError(f"expected pending features of {q} columns, got {describe(features)}")
    if features.dtype not in FLOATS:
        raise ValueError(f"expected pending features in one of {FLOATS}, got {describe(features)}")
    if not _are_targets(targets, len(features), l):
        raise ValueError(
            f"expected pending targets of {len(features)} rows and {l} classes, got {describe(targets)}"
        )


def _are_targets(saved: object, rows: int, classes: int) -> bool:
    if isinstance(saved, Tensor):
        if saved.dim() == 2:
            return tuple(saved.shape) == (rows, classes) and not saved.is_complex()
        return saved.dtype == torch.int64 and tuple(saved.shape) == (rows,)
    if not isinstance(saved, list | tuple) or len(saved) != 3:
        return False
    if not all(isinstance(part, Tensor) and part.dim() == 1 for part in saved):
        return False
    crow, col, values = saved
    if len(crow) != rows + 1 or len(col) != len(values) or {crow.dtype, col.dtype} != {torch.int64}:
        return False
    offsets = crow.tolist()  # copies on the host
    rising = all(a <= b for a, b in pairwise(offsets))
    return rising and (offsets[0], offsets[-1]) == (0, len(col)) and indices_in_range(col, classes)


def _restored(saved: dict[str, Any]) -> Observation:
    targets = saved["targets"]
    return Observation.of([saved["features"], *(targets if isinstance(targets, list | tuple) else [targets])])


def _form(observation: Observation) -> list[tuple[torch.Size, torch.dtype]]:
    return [(t.shape, t.dtype) for t in observation.tensors]


def _describe(observation: Observation) -> str:
    features, targets = observation
    name = f"{tuple(features.shape)} {features.dtype}"
    if isinstance(targets, CSR):
        return f"features {name} with {len(targets.col)} sparse labels {targets.values.dtype}"
    return f"features {name} with labels {tuple(targets.shape)} {targets.dtype}"
