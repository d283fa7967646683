"""Label statistics: all that the features and labels of any number of rows say about a linear head."""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lip_fast import host, ops
from lip_fast.rounding import compute_dtype
from lip_fast.sharded.group import Group
from lip_fast.sharded.label_sums import label_sums
from lip_fast.sharded.layout import Sharding
from lip_fast.sharded.rows import all_rows
from lip_fast.sharded.tensors import local_part
from lip_fast.targets import CSR, IGNORE_INDEX, Targets, as_targets
from lip_fast.validation import check_finite, check_float_matrix, check_int, describe, full_precision

__all__ = ["LabelStatistics", "LinearPath", "LinearWeight"]

# Rows of which a product is taken at a time: bounds the copies of features that are masked or converted.
_ROWS = 1 << 13


class LinearWeight(NamedTuple):
    """A linear classifier in the layout of ``nn.Linear``: M (l, q) and bias (l,)."""

    M: Tensor
    bias: Tensor


@dataclass(frozen=True, eq=False)
class LinearPath:
    """A family of linear classifiers that share one eigendecomposition; made by :class:`LabelStatistics`.

    Every member is M = (V diag(w) V^T C)^T with the eigenvectors V of the centred G, its own weights w of the
    directions, and the intercept that fits the means.

    Attributes:
        parameters: what tells the members apart (alphas, numbers of components).
    """

    parameters: tuple[float, ...]
    _V: Tensor
    _VC: Tensor
    _w: Tensor
    _mean_x: Tensor
    _mean_y: Tensor
    _sharding: Sharding | None

    def __len__(self) -> int:
        return len(self.parameters)

    def logits(self, X: Tensor) -> Iterator[Tensor]:
        """Predictions X M^T + bias (n, l) of each member in turn, for features X (n, q)."""
        P = (X.to(self._V.dtype) - self._mean_x) @ self._V
        for w in self._w:
            yield self._placed((P * w) @ self._VC + self._mean_y, 1)

    def __getitem__(self, i: int) -> LinearWeight:
        """The member of ``parameters[i]``: M (l, q), bias (l,), in the dtype of the statistics.

        Of statistics sharded by class they are DTensors, sharded likewise.
        """
        W = self._V @ (self._w[i, :, None] * self._VC)
        bias = self._mean_y - self._mean_x @ W
        return LinearWeight(self._placed(W.mT.contiguous(), 0), self._placed(bias, 0))

    def _placed(self, part: Tensor, dim: int) -> Tensor:
        """A part with the classes of this process along ``dim``, as a DTensor where it is one."""
        if self._sharding is None:
            return part
        shape = list(part.shape)
        shape[dim] = self._sharding.shape[0]
        return self._sharding.as_dtensor(part, tuple(shape), dim)


class LabelStatistics:
    """C = [X, 1]^T Y and G = [X, 1]^T [X, 1], summed over batches.

    The rows enter LIP, ridge regression and their kin through these two matrices alone, so memory does not
    depend on the number of rows, and statistics of different batches or machines simply add::

        statistics = LabelStatistics(512, 100)
        statistics.update(loader)                       # or .update(X, y), as often as you like
        W = lip_fast.lip(head.weight.T, statistics, k=80, bias=head.bias)
        heads = statistics.ridge_path([1e-2, 1, 1e2])

    Args:
        q: number of features.
        l: number of classes.
        decay: None to weigh all rows alike, or the factor in (0, 1) by which older rows fade at each update.
        dtype: of the accumulators, float32 or float64. Products of a batch are taken in float32 (float64 for
            float64 features) and then added to them.
        device: where the accumulators live.

    Attributes:
        C: (q + 1, l), the last row for the constant feature: the mass of each class.
        G: (q + 1, q + 1), its last entry the number of rows.
        rounding: relative rounding error of the products that made them.

    Raises:
        TypeError, ValueError: an argument that does not fit.
    """

    def __init__(
        self,
        q: int,
        l: int,
        *,
        decay: float | None = None,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> None:
        check_int("q", q, 1)
        check_int("l", l, 1)
        if dtype not in (torch.float32, torch.float64):
            raise TypeError(f"expected dtype float32 or float64, got {dtype}")
        if decay is not None and not 0 < decay < 1:
            raise ValueError(f"expected decay in (0, 1) or None, got {decay}")
        self.q, self.l, self.decay = q, l, decay
        # Relative rounding of the products so far: that of the narrowest dtype they were taken in.
        self.rounding = torch.finfo(torch.float64).eps
        self.C = torch.zeros(q + 1, l, dtype=dtype, device=device)
        self.G = torch.zeros(q + 1, q + 1, dtype=dtype, device=device)
        self._sharding = Sharding(self.C[:-1].mT, None)

    @classmethod
    def for_head(
        cls,
        weight: Tensor,
        *,
        decay: float | None = None,
        dtype: torch.dtype = torch.float64,
        data_group: object = None,
    ) -> "LabelStatistics":
        """Statistics for the weight of a head, where the weight lies.

        Of a DTensor sharded by class each process keeps the columns of C of its classes; labels stay indices
        among all classes. :meth:`update` is then a collective, and so is :meth:`refit`.

        Args:
            weight: (l, q), a tensor or a DTensor.
            decay: as of the class.
            dtype: as of the class.
            data_group: the processes whose batches differ, as of :class:`lip_fast.LIP`: each update adds the
                rows of all of them. None where all see the same batches.

        Raises:
            TypeError, ValueError: no matrix, or a layout or group that does not fit.
        """
        if not isinstance(weight, Tensor) or weight.dim() != 2:
            raise TypeError(f"expected a weight (l, q) as a matrix, got {describe(weight)}")
        l, q = weight.shape
        statistics = cls(q, l, decay=decay, dtype=dtype, device=weight.device)
        sharding = Sharding.of(weight, data_group)
        statistics.place(sharding)
        sharding.agree(f"q={q}, l={l}, decay={decay}, dtype={dtype}")
        return statistics

    def place(self, sharding: Sharding) -> None:
        """Lie as a weight with this ``sharding`` does, from here on; what was collected is forgotten."""
        self._sharding = sharding
        classes = self.l if self._of_classes is None else self._of_classes.length
        self.C = torch.zeros(self.q + 1, classes, dtype=self.C.dtype, device=self.C.device)
        self.G.zero_()

    @property
    def _of_classes(self) -> Sharding | None:
        """The layout, where C has the columns of this process's classes alone."""
        return self._sharding if self._sharding.dim == 0 else None

    # Collecting --------------------------------------------------------------------------------------

    @property
    def rows(self) -> float:
        """Number of labelled rows seen, faded by ``decay``; waits for the device."""
        return float(self.G[-1, -1])

    def update(
        self, X: Tensor | Iterable[tuple[Tensor, Tensor]], Y: Tensor | None = None
    ) -> "LabelStatistics":
        """Add rows.

        Args:
            X: (n, q) features, floating point; or, without ``Y``, an iterable of pairs (X, Y), such as a
                ``DataLoader``. With ``decay`` what is there fades at each pair.
            Y: labels of the rows: (n,) int64 class indices (-100: no label), or (n, l) dense or sparse.

        Returns:
            itself.

        Raises:
            TypeError, ValueError: features or labels do not fit, or are not finite. Of an iterable, the pairs
                before the broken one have been added.
            PeerError: of statistics of several processes, another one refused its rows, or is gone.
        """
        if Y is None:
            if isinstance(X, Tensor):
                raise TypeError(
                    "expected labels with the features, or an iterable of pairs, got features alone"
                )
            for features, labels in X:
                self.update(features, labels)
            return self
        batches: list[tuple[Tensor, Targets]] = []
        refused: Exception | None = None
        try:
            batches = [self._checked(X, Y)]
        except (TypeError, ValueError) as error:
            if not self._sharding.communicates:
                raise
            # The others wait for this process: it tells them.
            refused = error
        if not bool(self._absorb_jointly(batches, refused)):
            features, targets = batches[0]
            check_finite("X", features)
            check_finite("Y", targets.values if isinstance(targets, CSR) else targets)
            raise ValueError(
                "expected features whose squares can be summed in float32, got an overflow"
                + ("" if self._sharding.alone else ", or rows of another process that are not finite")
            )
        self.rounding = max(self.rounding, torch.finfo(compute_dtype(batches[0][0])).eps)
        return self

    def _checked(self, X: object, Y: Tensor) -> tuple[Tensor, Targets]:
        """Rows and their labels, or what is wrong with them."""
        if not isinstance(X, Tensor):
            raise TypeError(f"expected X as a torch.Tensor beside labels, got {describe(X)}")
        check_float_matrix("X", X)
        if X.shape[1] != self.q:
            raise ValueError(f"expected X with {self.q} columns, got shape {tuple(X.shape)}")
        if X.device != self.C.device:
            raise ValueError(f"expected X on {self.C.device}, where the statistics are, got {X.device}")
        return X, as_targets(Y, rows=len(X), classes=self.l, device=X.device)

    def _absorb_jointly(
        self, batches: Sequence[tuple[Tensor, Targets]], refused: Exception | None = None
    ) -> Tensor:
        """:meth:`absorb` of the batches of all processes; raises on each where one refused its own."""
        if not self._sharding.communicates:
            return self.absorb(batches)
        ok = torch.ones((), dtype=torch.bool, device=self.C.device)
        # Rows go in the dtype of the sums: that of the features may be another on each process.
        group = Group(self._sharding, batches, ok, dtype=self.C.dtype, error=refused, collects=True)

        def collect() -> None:
            collected = self.with_rows_of_all(group)
            group.agree()
            if collected is not None:
                self.replace_where(collected, group.ok)

        group.run_with_peers(collect)
        return group.ok

    @full_precision
    @torch.no_grad()
    def absorb(self, batches: Sequence[tuple[Tensor, Targets]], ok: Tensor | None = None) -> Tensor:
        """Fade what is there by ``decay``, then add the rows of ``batches``, all or none, without waiting.

        In place: a step that was captured in a CUDA graph finds the statistics where they were.

        Args:
            batches: pairs of features (n, q) and checked labels (:func:`lip_fast.targets.as_targets`).
            ok: () bool on the device, whether to do so at all.

        Returns:
            () bool on the device: False where not ``ok`` or something was not finite; the statistics are then
            unchanged.
        """
        new, finite = self.with_rows(batches)
        ok = finite if ok is None else ok & finite
        self.replace_where(new, ok)
        return ok

    def _products(self, batches: Sequence[tuple[Tensor, Targets]]) -> tuple[Tensor, Tensor]:
        """C and G of these rows alone."""
        C, G = torch.zeros_like(self.C), torch.zeros_like(self.G)
        offset = 0 if self._of_classes is None else self._of_classes.offset
        for X, Y in batches:
            # To divide sparse rows is to read where they begin; kernels that make no copies need no blocks.
            sparse = isinstance(Y, CSR) and X.device.type not in host.READABLE
            whole = sparse or (_are_indices(Y) and ops.sums_in_place(X))
            block = max(len(X), 1) if whole else _ROWS
            for i in range(0, len(X), block):
                rows = X[i : i + block], _rows_of(Y, i, min(i + block, len(X)))
                _add_block(C, G, *rows, offset, self.l)
        # The last row of G was gathered alone.
        G[:-1, -1] = G[-1, :-1]
        return C, G

    def with_rows_of_all(self, group: Group) -> "LabelStatistics | None":
        """A copy with the rows of all processes, for :meth:`replace_where` once all know them to be finite.

        Args:
            group: the processes; this one votes against the step where its rows are not finite.

        Returns:
            The copy; None where this process failed.
        """
        rows = all_rows(group)
        made = group.attempt(lambda: self.with_rows(rows))
        if made is None:
            return None
        group.mark_unsound(made[1])
        return made[0]

    @full_precision
    @torch.no_grad()
    def with_rows(self, batches: Sequence[tuple[Tensor, Targets]]) -> tuple["LabelStatistics", Tensor]:
        """Faded, a copy with the rows of ``batches``, and whether they are finite; else as :meth:`absorb`."""
        C, G = self._products(batches)
        # Of the features, and of labels that are no indices.
        finite = torch.isfinite(G.diagonal()).all() & torch.isfinite(C).all()
        new, fade = copy.copy(self), 1.0 if self.decay is None else self.decay
        new.C, new.G = C.add_(self.C * fade), G.add_(self.G * fade)
        return new, finite

    @torch.no_grad()
    def replace_where(self, other: "LabelStatistics", ok: Tensor) -> None:
        """Become ``other``, in place, where ``ok``."""
        for have, new in ((self.C, other.C), (self.G, other.G)):
            if have.device.type not in host.READABLE:
                torch.where(ok, new, have, out=have)
            elif bool(ok):
                have.copy_(new)

    def merge(self, other: "LabelStatistics") -> "LabelStatistics":
        """Add the statistics of ``other`` rows, for instance of another process; returns itself.

        Raises:
            TypeError: not statistics.
            ValueError: of another head.
        """
        if not isinstance(other, LabelStatistics):
            raise TypeError(f"expected LabelStatistics, got {type(other).__name__}")
        other.check_shape(self.q, self.l)
        if other.C.shape != self.C.shape:
            raise ValueError(
                f"expected statistics of the same classes on this process, {self.C.shape[1]}, got "
                f"{other.C.shape[1]}"
            )
        self.C += other.C.to(self.C)
        self.G += other.G.to(self.G)
        self.rounding = max(self.rounding, other.rounding)
        return self

    # Using -------------------------------------------------------------------------------------------

    @full_precision
    @torch.no_grad()
    def sums(self, A: Tensor, B: Tensor, bias: Tensor | None = None) -> ops.Sums:
        """The sums of :func:`lip_fast.ops.label_sums` over every row seen, from C and G.

        Args:
            A: (l, r) class-side directions.
            B: (q, r) feature-side directions.
            bias: (l,) bias of the classifier, or None.

        Returns:
            numerator (r,), denominator (r,) and energy () in float64, masked () 0: only valid rows are added.
        """
        A, B = A.to(self.C.dtype), B.to(self.C.dtype)
        C, G = self.C[:-1], self.G[:-1, :-1]
        numerator = torch.linalg.vecdot(B, C @ A, dim=0)
        if bias is not None:
            # sum_n (x_n . b_i) is b_i^T X^T 1.
            numerator = numerator - (self.G[-1, :-1] @ B) * (bias.to(A.dtype) @ A)
        denominator = torch.linalg.vecdot(B, G @ B, dim=0)
        masked = torch.zeros((), dtype=torch.int64, device=C.device)
        return ops.Sums(numerator.double(), denominator.double(), G.diagonal().sum().double(), masked)

    def refit(self, A: Tensor, B: Tensor, bias: Tensor | None = None) -> Tensor:
        """The least-squares singular values s_i* = b_i^T X^T (Y - 1 bias^T) a_i / ||X b_i||^2.

        Args:
            A: (l, r) class-side directions; of statistics sharded by class a DTensor sharded likewise, or the
                rows of this process.
            B: (q, r) feature-side directions.
            bias: (l,) bias of the classifier, or None.

        Returns:
            (r,) in float64; NaN along a direction that no row sees.
        """
        A, B = local_part(A), local_part(B)
        if not self._sharding.communicates:
            sums = self.sums(A, B, None if bias is None else local_part(bias))
        else:
            ok = torch.ones((), dtype=torch.bool, device=self.C.device)
            group = Group(self._sharding, [], ok, dtype=self.C.dtype)
            sums = label_sums(group, A, B, bias, self.sums)
        return torch.where(sums.denominator > 0, sums.numerator / sums.denominator, torch.nan)

    @torch.no_grad()
    def ridge_path(self, alphas: Sequence[float], *, intercept: bool = True) -> LinearPath:
        """Ridge regression on the labels for every alpha, from one eigendecomposition of G.

        ``min ||Y - X W - 1 b^T||^2 + alpha ||W||^2``; the intercept is not penalised. With a small clean set
        this is the head of "Noisy Labels Can Induce Good Representations" (arXiv:2012.12896).

        Args:
            alphas: penalties, >= 0; with 0, directions that no feature has get no weight.
            intercept: fit the intercept b, or leave it at 0.

        Returns:
            The linear head of each alpha, without forming any of them.

        Raises:
            ValueError: no rows, no alphas, or a negative or non-finite one.
        """
        if not len(alphas):
            raise ValueError("expected at least one alpha, got none")
        for alpha in alphas:
            if not 0 <= alpha < float("inf"):
                raise ValueError(f"expected alphas >= 0 and finite, got {alpha}")

        def weigh(eigenvalues: Tensor) -> Tensor:
            penalties = torch.tensor(alphas, dtype=eigenvalues.dtype, device=eigenvalues.device)
            penalised = eigenvalues + penalties[:, None]
            return torch.where(penalised > self._floor(eigenvalues), penalised.reciprocal(), 0)

        return self._path(alphas, weigh, intercept)

    @torch.no_grad()
    def pcr_path(self, components: Sequence[int], *, intercept: bool = True) -> LinearPath:
        """Least squares on the leading principal components of the features, for every number of them.

        Args:
            components: numbers of components, 0..q.
            intercept: centre the features and fit the intercept, or neither.

        Returns:
            The linear head of each number, without forming any of them.

        Raises:
            ValueError: no rows, or a number out of range.
        """
        for d in components:
            check_int("components", d, 0, self.q)

        def weigh(eigenvalues: Tensor) -> Tensor:
            inverse = torch.where(eigenvalues > self._floor(eigenvalues), eigenvalues.reciprocal(), 0)
            index = torch.arange(self.q, device=eigenvalues.device)
            numbers = torch.tensor(components, device=eigenvalues.device)[:, None]
            return torch.where(index < numbers, inverse, 0)

        return self._path(components, weigh, intercept)

    @torch.no_grad()
    def truncate(self, d: int) -> Tensor:
        """Orthonormal basis of the ``d`` leading eigenvectors of X^T X: (q, d), largest first.

        ``M @ P @ P.T`` with this P is a head M (l, q) that reads the principal feature directions alone.

        Raises:
            ValueError: no rows, or d out of 0..q.
        """
        check_int("d", d, 0, self.q)
        self.check_rows()
        return torch.linalg.eigh(self.G[:-1, :-1]).eigenvectors.flip(1)[:, :d].contiguous()

    def _path(
        self, parameters: Sequence[float], weigh: Callable[[Tensor], Tensor], intercept: bool
    ) -> LinearPath:
        """The heads that ``weigh`` makes of the eigenvalues of G (descending), centred with an intercept."""
        self.check_rows()
        n = self.G[-1, -1]
        mean_x, mean_y = self.G[-1, :-1] / n, self.C[-1] / n
        if not intercept:
            mean_x, mean_y = torch.zeros_like(mean_x), torch.zeros_like(mean_y)
        eigenvalues, V = torch.linalg.eigh(self.G[:-1, :-1] - n * torch.outer(mean_x, mean_x))
        eigenvalues, V = eigenvalues.flip(0).clamp(min=0), V.flip(1)
        VC = V.mT @ (self.C[:-1] - n * torch.outer(mean_x, mean_y))
        return LinearPath(tuple(parameters), V, VC, weigh(eigenvalues), mean_x, mean_y, self._of_classes)

    def _floor(self, eigenvalues: Tensor) -> Tensor:
        """Eigenvalues up to this are rounding: their inverse would be noise."""
        return self.rounding * self.q**0.5 * eigenvalues[:1]

    def check_shape(self, q: int, l: int) -> None:
        """ValueError where these are no statistics of ``q`` features and ``l`` classes."""
        if (self.q, self.l) != (q, l):
            raise ValueError(
                f"expected statistics of {q} features and {l} classes, got {self.q} and {self.l}"
            )

    def check_rows(self) -> None:
        """ValueError where no row has been added."""
        if not self.rows > 0:
            raise ValueError("expected statistics of at least one labelled row, got none")

    # State -------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """C, G and the rounding of their products; C sharded by class is a DTensor."""
        C = self.C.clone()
        if self._of_classes is not None:
            C = self._of_classes.as_dtensor(C, (self.q + 1, self.l), 1)
        return {"C": C, "G": self.G.clone(), "rounding": self.rounding}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore C and G of ``state_dict`` in place; ValueError where they are of another head."""
        C, G = state_dict["C"], state_dict["G"]
        for name, got, shape in (("C", C, (self.q + 1, self.l)), ("G", G, tuple(self.G.shape))):
            if tuple(got.shape) != shape:
                raise ValueError(f"expected {name} of shape {shape}, got {tuple(got.shape)}")
        C = local_part(C)
        if C.shape[1] != self.C.shape[1]:
            C = self._sharding.part(C, 1)
        self.C.copy_(C)
        self.G.copy_(local_part(G))
        self.rounding = state_dict["rounding"]


def _rows_of(Y: Targets, i: int, j: int) -> Targets:
    if not isinstance(Y, CSR):
        return Y[i:j]
    if (i, j) == (0, len(Y.crow) - 1):
        return Y
    entries = slice(int(Y.crow[i]), int(Y.crow[j]))
    return CSR(Y.crow[i : j + 1] - Y.crow[i], Y.col[entries], Y.values[entries])


# Entries of a sparse label matrix expanded at a time: bounds the copy of their feature rows.
_ENTRIES = 1 << 16


def _add_block(C: Tensor, G: Tensor, X: Tensor, Y: Targets, offset: int, classes: int) -> None:
    """Add a block of rows to C and to G, of whose last column only the last entry is written.

    C has the columns of the classes ``offset`` and on, of ``classes`` in all.
    """
    if not (_are_indices(Y) and ops.sums_in_place(X)):
        X = X.to(compute_dtype(X))
    q, l = X.shape[1], C.shape[1]
    rows: Tensor | int = len(X)
    counted = None
    if isinstance(Y, CSR):
        row = torch.repeat_interleave(Y.crow.diff(), output_size=len(Y.col))
        col = Y.col if l == classes else _among(Y.col, offset, l)
        for i in range(0, len(row) if l else 0, _ENTRIES):
            entries = slice(i, i + _ENTRIES)
            values = Y.values[entries, None].to(X.dtype)
            C[:q] += ops.class_sums(X[row[entries]] * values, col[entries], l).sums.mT
            C[q:] += ops.class_sums(values, col[entries], l).sums.mT
        column = X.sum(0)
    elif Y.dim() == 2:
        labels = (Y if l == classes else Y.narrow(1, offset, l)).to(X.dtype)
        C[:q] += X.mT @ labels
        C[q] += labels.sum(0)
        column = X.sum(0)
    elif l == classes:
        sums, counts = ops.class_sums(X, Y, l)
        C[:q] += sums.mT
        C[q] += counts
        column = sums.sum(0)  # every row is in one class
        rows = counts.sum()
        if X.device.type not in host.READABLE or int(rows) < len(X):
            counted = (Y >= 0) & (Y < l)
    else:
        if l:
            sums, counts = ops.class_sums(X, _among(Y, offset, l), l)
            C[:q] += sums.mT
            C[q] += counts
        counted = (Y >= 0) & (Y < classes)
        column = X.masked_fill(~counted[:, None], 0).sum(0, dtype=compute_dtype(X))
        rows = counted.sum()
    G[:q, :q] += ops.gram(X, counted)
    G[q, :q] += column
    G[q, q] += rows


def _among(y: Tensor, offset: int, classes: int) -> Tensor:
    """Class indices among the ``classes`` from ``offset`` on; the others are marked as of no class."""
    return torch.where((y >= offset) & (y < offset + classes), y - offset, IGNORE_INDEX)


def _are_indices(Y: Targets) -> bool:
    return not isinstance(Y, CSR) and Y.dim() == 1
