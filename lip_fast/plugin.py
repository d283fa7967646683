"""LIP as a plug-in: attached to the optimizer one has, it repairs a head after every step."""

import copy
import weakref
from collections.abc import Mapping
from types import EllipsisType
from typing import Any, overload

from torch import Tensor, nn
from torch.optim import Optimizer

from lip_fast.claims import Caller
from lip_fast.classifier import Head
from lip_fast.cost import Cost
from lip_fast.head import HeadStep, LIPError, group_of
from lip_fast.settings import Settings
from lip_fast.sharded.layout import DataGroup
from lip_fast.validation import check_int

__all__ = ["LIP", "Attachment", "LIPError"]


class Attachment:
    """An optimizer that calls a LIP in its steps, until :meth:`remove`; a context manager that ends with it.

    Args:
        optimizer: whose step hooks are used.
        step: what they call.
    """

    def __init__(self, optimizer: Optimizer, step: HeadStep) -> None:
        self._optimizer, self._input = weakref.ref(optimizer), step.input
        self._removed = False
        self._before = optimizer.register_step_pre_hook(step.before_step)
        self._after = optimizer.register_step_post_hook(step.after_step)

    @property
    def calls(self) -> bool:
        """Whether the optimizer is still there and calls the LIP."""
        return self._after.id in (self._after.hooks_dict_ref() or {})

    @property
    def is_orphaned(self) -> bool:
        """Whether the optimizer is gone, and nobody called :meth:`remove`."""
        return not self._removed and self._optimizer() is None

    def yields_to(self, other: Caller) -> bool:
        """Whether ``other`` is an attachment to the same optimizer."""
        return isinstance(other, Attachment) and self._optimizer() is other._optimizer()

    def stop(self) -> None:
        """As :meth:`remove`."""
        self.remove()

    def remove(self) -> None:
        """Stop; no error where it has stopped."""
        self._removed = True
        self._before.remove()
        self._after.remove()
        self._input.unwatch()

    def __enter__(self) -> "Attachment":
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()


class LIP:
    """LIP (arXiv:2505.16159) inside the optimizer step, for one linear head.

    After each step of the attached optimizer the head's weight M (l, q) is decomposed, the top ``rank``
    singular directions are kept, and the singular values below are refitted to the observed batch::

        lip = lip_fast.LIP(model.head, rank="auto", start=500)  # once it has learned
        lip.attach(optimizer)
        for x, y in loader:
            loss = criterion(model(x), y)
            loss.backward()
            lip.observe(y)
            optimizer.step()
            optimizer.zero_grad()

    LIP acts on a step that has observations, a gradient on the head's weight, a learning rate other than 0,
    and no overflow found by a gradient scaler. Whatever it does not act on is exactly the base optimizer's.
    It never writes a value that is not finite: where features, labels, weight or a decomposition are unsound
    the step's LIP is skipped and counted. It never touches the global random state.

    **Order.** LIP comes right after the weight was updated, inside of ``optimizer.step()``; what comes before
    or after the step stays before or after LIP.

    - Accumulation and clipping of gradients: before the step, as ever. Observe each micro-batch.
    - Observe anywhere between the forward pass and the step, outside of functions that activation
      checkpointing runs twice (``torch.utils.checkpoint``, reentrant or not).
    - ``torch.optim.LBFGS``, whose step evaluates the model many times: all that was observed in it counts.
    - ``torch.amp.GradScaler``: ``scale``, ``unscale_``, clip, ``step``, ``update``, as ever. Of a step that
      it skips the weight is left alone. A fused optimizer is called all the same, and what was observed is
      discarded; another is not: call :meth:`discard` there, or what was observed counts with the batch of
      the next step, as it does where the learning rate of every group is 0.
    - Averages of weights (``torch.optim.swa_utils.AveragedModel``): updated after the step, they average
      repaired weights. Of hooks on the same optimizer, those registered after :meth:`attach` come after LIP.
    - Schedulers of the learning rate: after the step, made before or after :meth:`attach`.
    - ``torch.compile`` of the model, of ``optimizer.step`` or of a function of the whole training step: LIP
      runs as it does uncompiled, between the compiled parts.

    **CUDA graphs.** On CUDA a step can be captured in a graph and replayed, alone or with the forward and
    backward pass, where the ops of the step wait for nothing (``lip-fast doctor`` says which kernels serve
    them). Take two steps on which LIP acts first, which load what it runs, and one where a state was loaded.
    A replay repeats the step that was captured, so ``every`` must be 1 and ``start`` reached, and ``strict``
    cannot be told.

    - Called inside of the capture, :meth:`observe` is a part of the graph.
    - Called before a capture of the optimizer's step alone, it shows LIP the form of the batches: what was
      observed becomes the buffers that replays read. Each later call outside of a capture copies its batch
      into them, in turn where a step has several micro-batches, all of the forms of the first ones; call it
      before each replay, on the stream of the replay. It cannot see replays: that a step has had all of its
      micro-batches is known by their number.
    - A step that is not replayed takes what was last observed. To return to batches of any form, call
      :meth:`release_buffers`.
    - :meth:`load_state_dict` writes in place, so that graphs go on from the loaded state. Save after a
      replay: observations that no replay has taken are saved only of an incomplete step.
    - Graphs hold no reference to what they read: keep the LIP as long as them.

    **Several processes.** The weight may be a ``DTensor``, sharded by class (``Shard(0)``), by feature
    (``Shard(1)``) or replicated, and its batches may differ between processes (``data_group``): see
    docs/sharding.md. Every process makes the LIP with the same arguments, and takes the same steps; class
    indices are always among all classes. A step then acts where some process has observed something. Where
    one fails, each of them raises: :class:`lip_fast.PeerError` where it was another, before LIP has written
    anything. With a ``data_group`` an observation that is refused is raised by the next step, so that no
    process is left waiting.

    Args:
        head: module with a 2-D ``weight`` (l, q) and an optional ``bias`` (l,), usually ``nn.Linear``. The
            weight is looked up at each step, so that it may be replaced, by one of its shape, or sharded in
            place.
        rank: directions kept. An int; a float in (0, 1] as a fraction of d = min(l, q), rounded up, but to d
            for 1.0 alone; or "auto", 95% of ||M||_F^2 at the first step it acts on (see ``start``: a fresh
            head is flat), and at most d - max(2, d / 10). The principal subspace of l classes has about l
            directions: a small rank ruins a classifier of many classes. With rank d LIP changes nothing.
        tail_rank: directions below them that ``tail`` governs, limited to those that remain; None for all of
            these: where min(l, q) > 128 the first 104 of them are governed, and deeper ones set to 0; "all"
            governs every one by an exact decomposition in each step, which takes up to several times as
            long. Of a number of them, too, the first 104 are governed where rank + tail_rank + 8 > 128.
        tail: "refit" their singular values to the labels, or set them to "zero".
        rest: "keep" deeper directions as they are, or "drop" them.
        every: act on each ``every``-th step.
        start: act from this step on, counted from 0.
        decay: None to refit to the observed batch alone; a factor in (0, 1) to refit to an average over
            past batches that fades by it (holds (q + 1)(q + 1 + l) numbers).
        clip: limit refitted values to [-s_rank, s_rank].
        data_group: the processes whose batches differ, as a ``torch.distributed`` process group or device
            mesh: those of ``DistributedDataParallel``, the mesh given to ``fully_shard``. All of their
            rows count as one batch. None where every process that holds a part of the weight sees the same
            batch, as under tensor parallelism.
        seed: of the random columns and of stochastic rounding.
        strict: raise :class:`LIPError`, which names the reasons, where a step's LIP is skipped as unsound
            (waits for the device).

    Raises:
        TypeError, ValueError: an argument that does not fit, or that differs between processes; the message
            names what was expected.
    """

    def __init__(
        self,
        head: nn.Module,
        rank: int | float | str,
        *,
        tail_rank: int | str | None = None,
        tail: str = "refit",
        rest: str = "keep",
        every: int = 1,
        start: int = 0,
        decay: float | None = None,
        clip: bool = True,
        data_group: object = None,
        seed: int = 0,
        strict: bool = False,
    ) -> None:
        settings = Settings(
            rank=rank,
            tail_rank=tail_rank,
            tail=tail,
            rest=rest,
            every=every,
            start=start,
            decay=decay,
            clip=clip,
            seed=seed,
            strict=strict,
        )
        self._head = head
        self._step = HeadStep(Head(head), settings, DataGroup(data_group))
        self._step.input.watch(head)
        self._attachment: Attachment | None = None

    def __getstate__(self) -> dict[str, Any]:
        # A copy is attached to nothing: the hook is the original's.
        return self.__dict__ | {"_attachment": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> "LIP":
        made = memo[id(self)] = type(self).__new__(type(self))
        made.__dict__.update(copy.deepcopy(self.__getstate__(), memo))
        return made

    def __reduce__(self) -> Any:
        raise TypeError(
            "expected a LIP not to be pickled, nor copied by copy.copy, since its head would not be the one "
            "that is trained: save state_dict(), or copy.deepcopy it together with the model; in a "
            "LightningModule that is given a LIP call save_hyperparameters(ignore=[...]) with the name of "
            "that argument"
        )

    def attach(self, optimizer: Optimizer) -> Attachment:
        """Act after every step of ``optimizer``, until :meth:`detach`, or ``remove()`` of what is returned.

        That is also a context manager. Of another LIP on this weight that is attached to the same optimizer,
        such as one that a cell of a notebook made when it ran before, this one takes the place. A copy of an
        optimizer (``copy.deepcopy``, pickle) is a plain optimizer of copied parameters: copy it together with
        the model, and attach a LIP of the copied head. Of a wrapper around an optimizer, attach to the inner
        one. Attached again after it was detached, a LIP goes on from its state, without what it observed: the
        steps in between were not seen. A copy of a LIP, made together with the model, is one that was never
        attached.

        Raises:
            TypeError: not an optimizer that takes step hooks.
            ValueError: the optimizer does not hold the head's weight, or another LIP acts on that weight in
                another optimizer.
            RuntimeError: already attached.
        """
        if not isinstance(optimizer, Optimizer) or not hasattr(optimizer, "_optimizer_step_post_hooks"):
            raise TypeError(
                "expected a torch.optim.Optimizer that takes step hooks (of a wrapper, the inner "
                f"optimizer), got {type(optimizer).__name__}"
            )
        if self._step.claim.in_use:
            raise RuntimeError("expected a LIP that is not attached, got one that is: call detach() first")
        if group_of(optimizer, self._step.weight()) is None:
            raise ValueError(
                f"expected an optimizer that holds the head's weight, got {type(optimizer).__name__} without "
                "it: make the optimizer of the parameters that the model has now, or the LIP of the head "
                "that this optimizer trains"
            )
        attachment = Attachment(optimizer, self._step)
        try:
            self._step.begin_with(attachment)
        except Exception:
            attachment.remove()
            raise
        if self._attachment is not None or self._step.left_alone:
            # Of steps that were not seen: they say nothing of the next one.
            self._step.discard()
        self._attachment = attachment
        self._step.input.watch(self._head)
        return attachment

    def detach(self) -> None:
        """Act no more, and leave no hook on the head or the optimizer; no error where it is not attached."""
        if self._attachment is not None:
            self._attachment.remove()
        self._step.input.unwatch()

    @overload
    def observe(self, targets: Tensor, /) -> None: ...

    @overload
    def observe(self, features: Tensor, targets: Tensor) -> None: ...

    def observe(self, features: Tensor | EllipsisType = ..., targets: Tensor | EllipsisType = ...) -> None:
        """Show LIP the labels of a batch: ``observe(targets)``, between the forward pass and the step.

        The features are what the head was called with since the last observation, in training mode and with
        gradients: once, or an error says to pass them, ``observe(features, targets)``. They are detached
        and, on CPU, kept until the step, not copied; on other devices they are copied, since graphs write
        their outputs anew at each replay. Under gradient accumulation call it for each micro-batch, before
        the next one's forward pass; they count as one batch.

        Args:
            features: (..., q) input of the head, floating point, on the device of the weight; seen by a hook
                of the head where only targets are given.
            targets: labels of those rows: (...,) int64 class indices (-100: no label), or an (n, l) label
                matrix, dense or sparse, for features (n, q).

        Raises:
            TypeError, ValueError: features or targets do not fit the head or each other, or the buffers of a
                captured step; on CPU also a class index out of range (on other devices it is masked and
                counted; raised with ``strict``). What the head was called with is not one batch.
            RuntimeError: 64 calls without a step of an attached optimizer in which the weight changed (each
                32nd such call waits for the device to see it), 64 steps without a gradient on a weight that
                requires one, or the optimizer that it was attached to is gone.
        """
        if targets is ...:
            features, targets = ..., features
        self._step.observe(features, targets)

    def discard(self) -> None:
        """Forget what was observed since the last step: for a step that was left out.

        A gradient scaler leaves a step out after an overflow, without a word to an optimizer that is not
        fused; what was observed would else count with the batch of the next step.
        """
        self._step.discard()

    def release_buffers(self) -> None:
        """Forget the buffers of captured steps, and what is in them: batches may have any form again.

        Graphs that read them must not be replayed any more.
        """
        self._step.release_buffers()

    def apply(self) -> None:
        """Apply LIP to the head now, with the pending observations, whatever ``every`` and ``start`` say.

        Of a weight of several processes each of them has to call it.

        Raises:
            RuntimeError: nothing was observed.
            PeerError: another process failed in LIP, or is gone.
        """
        self._step.apply()

    def stats(self) -> dict[str, Any]:
        """Counts since the start; waits for the device.

        ``steps`` of the attached optimizer; steps on which LIP was ``applied``, and ``skipped`` (something
        unsound, or an overflow found by a gradient scaler); refitted values ``clipped``; class indices out
        of range ``masked``; and the ``rank`` in use, None before the first step of rank="auto". With a rank
        that keeps every direction steps are ``empty``, not applied.

        Of the last step that split the weight by products (see ``tail_rank``), ``gamma``, which predicts the
        error of the kept part relative to what the step changes where the weight has as many directions as
        are kept; of that or a truncated one without a ``tail_rank``, the share of ||M||_F^2 that was
        ``removed`` below the tail, estimated where the update was a part of the step; None where no step did.

        Of the skipped steps, those skipped as ``not_finite`` (weight, features, labels or their sums),
        ``rank_deficient``, ``not_converged`` (the solver), ``not_orthogonal`` (the basis) or ``out_of_step``
        (another process failed, or saw another batch; raised on CPU): several of them where several were
        found, none for an overflow found by a gradient scaler.
        """
        return self._step.stats()

    def cost(self, batch_rows: int) -> Cost:
        """What a step costs with a batch of so many rows, and what the head's own work does.

        Known before anyone trains. LIP costs about k / n of the head's forward and backward pass on n rows
        with k kept directions, and about as much again where k is near min(l, q): next to nothing of the
        step of an image network, much of it for the head of a language model on few tokens.

        Args:
            batch_rows: rows of features and labels that a step sees, at least 1.

        Raises:
            TypeError, ValueError: not a number of rows.
        """
        check_int("batch_rows", batch_rows, 1)
        return self._step.cost(batch_rows)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a bit-exact continuation needs, as tensors and plain values.

        Beside the state of model and optimizer it goes through ``torch.save`` and
        ``torch.load(weights_only=True)``, and through ``torch.distributed.checkpoint``, to which a LIP is a
        ``Stateful``. Its keys depend on nothing but ``decay``, so that a checkpoint can be loaded into a LIP
        that has not taken a step. With statistics of a weight sharded by class C is a ``DTensor``: save by
        ``torch.distributed.checkpoint``, of any number of processes for any other.

        With a ``data_group`` pending observations are left out, since they are those of one process: save
        between two steps, not within an accumulation.
        """
        return self._step.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore ``state_dict``, which :meth:`state_dict` returned of a LIP made with the same arguments.

        Before or after :meth:`attach`; nothing is written to the weight. Arguments that no state depends on
        (tail, rest, every, start, clip, data_group, seed, strict) are not part of it: with others, training
        goes on by them. With a ``data_group`` saved observations, of one process, are passed over.

        Raises:
            ValueError: not the state of a LIP, that of another head, rank, tail_rank or decay, one that is
                not finite, or one that a captured step cannot go on from; nothing has been changed then.
        """
        self._step.load_state_dict(state_dict)
        if not self._step.claim.in_use:
            # What was loaded is of the next step, whatever was not seen since it was detached.
            self._attachment = None
