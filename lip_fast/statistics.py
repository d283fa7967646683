"""Label statistics: all that the features and labels of any number of rows say about a linear head."""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lip_fast import host, ops
from lip_fast.gaussian import gaussian_head, gaussian_path
from lip_fast.linear_path import LinearPath, LinearWeight, pcr_path, ridge_path
from lip_fast.moments import Centred, Moments, moments, unresolved
from lip_fast.sharded.group import Group
from lip_fast.sharded.label_sums import label_sums
from lip_fast.sharded.layout import Sharding
from lip_fast.sharded.rows import all_rows
from lip_fast.sharded.tensors import local_part
from lip_fast.targets import CSR, Targets, as_targets
from lip_fast.validation import (
    check_batches,
    check_features,
    check_finite,
    check_int,
    check_pair,
    describe,
    full_precision,
    outside_inference_mode,
)

__all__ = ["LabelStatistics"]

# Rows of which a product is taken at a time: bounds the copies of features that are masked or converted.
_ROWS = 1 << 13


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
            float64 features) about the mean of its rows, and then added to them: features keep their digits
            however far from 0 they lie (:mod:`lip_fast.moments`).
        device: where the accumulators live.

    Attributes:
        C: (q + 1, l), the last row for the constant feature: the mass of each class. Made when asked for.
        G: (q + 1, q + 1), its last entry the number of rows. Made when asked for.
        q, l, decay, dtype, device: as given.

    Raises:
        TypeError, ValueError: an argument that does not fit.
    """

    @outside_inference_mode
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
        if decay is not None and not isinstance(decay, int | float):
            raise TypeError(f"expected decay as a number or None, got {describe(decay)}")
        if decay is not None and not 0 < decay < 1:
            raise ValueError(f"expected decay in (0, 1) or None, got {decay}")
        self.q, self.l, self.decay, self.dtype = q, l, decay, dtype
        self._moments = Moments.zeros(q, l, dtype=dtype, device=device)
        self.device = self._moments.C.device
        self._sharding = Sharding(self._moments.C[:-1].mT, None)

    @classmethod
    @outside_inference_mode
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
            advice = ": pass its weight" if hasattr(weight, "weight") else ""
            raise TypeError(f"expected a weight (l, q) as a matrix, got {describe(weight)}{advice}")
        l, q = weight.shape
        statistics = cls(q, l, decay=decay, dtype=dtype, device=weight.device)
        sharding = Sharding.of(weight, data_group)
        statistics.place(sharding)
        sharding.agree(f"q={q}, l={l}, decay={decay}, dtype={dtype}")
        return statistics

    @outside_inference_mode
    def place(self, sharding: Sharding) -> None:
        """Lie as a weight with this ``sharding`` does, from here on; what was collected is forgotten."""
        self._sharding = sharding
        classes = self.l if self._of_classes is None else self._of_classes.length
        self._moments = Moments.zeros(self.q, classes, dtype=self.dtype, device=self.device)

    @property
    def C(self) -> Tensor:  # noqa: N802 - as the matrix is called
        """(q + 1, l), the last row for the constant feature: the mass of each class."""
        return self._about_zero().C.to(self.dtype)

    @property
    def G(self) -> Tensor:  # noqa: N802 - as the matrix is called
        """(q + 1, q + 1), its last entry the number of rows."""
        return self._about_zero().G.to(self.dtype)

    @full_precision
    @torch.no_grad()
    def _about_zero(self) -> Moments:
        """C and G in float64."""
        exact = self._moments.to(self._moments.C.double())
        return exact.about(torch.zeros_like(exact.shift))

    @property
    def _of_classes(self) -> Sharding | None:
        """The layout, where C has the columns of this process's classes alone."""
        return self._sharding if self._sharding.dim == 0 else None

    # Collecting --------------------------------------------------------------------------------------

    @property
    def rows(self) -> float:
        """Number of labelled rows seen, faded by ``decay``; waits for the device."""
        return float(self._moments.rows)

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
            if isinstance(X, Tensor) or hasattr(X, "__array__"):
                raise TypeError(
                    "expected labels with the features, or an iterable of pairs, got features alone"
                )
            for i, batch in enumerate(check_batches(X)):
                self._add(lambda: check_pair(batch, i))  # noqa: B023 - called before the next batch
            return self
        self._add(lambda: (X, Y))
        return self

    def _add(self, rows: Callable[[], tuple[Any, Any]]) -> None:
        """Add features and labels, together with other processes where there are some."""
        batches: list[tuple[Tensor, Targets]] = []
        refused: Exception | None = None
        try:
            batches = [self._checked(*rows())]
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

    def _checked(self, X: object, Y: Tensor) -> tuple[Tensor, Targets]:
        """Rows and their labels, or what is wrong with them."""
        check_features("X", X)
        assert isinstance(X, Tensor)
        if X.shape[1] != self.q:
            raise ValueError(f"expected X with {self.q} columns, got shape {tuple(X.shape)}")
        if X.device != self.device:
            raise ValueError(f"expected X on {self.device}, where the statistics are, got {X.device}")
        return X, as_targets(Y, rows=len(X), classes=self.l, device=X.device)

    @outside_inference_mode
    def _absorb_jointly(
        self, batches: Sequence[tuple[Tensor, Targets]], refused: Exception | None = None
    ) -> Tensor:
        """:meth:`absorb` of the batches of all processes; raises on each where one refused its own."""
        if not self._sharding.communicates:
            return self.absorb(batches)
        ok = torch.ones((), dtype=torch.bool, device=self.device)
        # Rows go in the dtype of the sums: that of the features may be another on each process.
        group = Group(self._sharding, batches, ok, dtype=self.dtype, error=refused, collects=True)

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
        offset = 0 if self._of_classes is None else self._of_classes.offset
        found, fade = self._moments, 1.0 if self.decay is None else self.decay
        for X, Y in batches:
            # To divide sparse rows is to read where they begin.
            whole = isinstance(Y, CSR) and X.device.type not in host.READABLE
            block = max(len(X), 1) if whole else _ROWS
            for i in range(0, len(X), block):
                rows = X[i : i + block], _rows_of(Y, i, min(i + block, len(X)))
                added = moments(*rows, offset=offset, here=found.C.shape[1], classes=self.l)
                found, fade = found.plus(added, fade), 1.0
        # Of the features, and of labels that are no indices.
        finite = torch.isfinite(found.G.diagonal()).all() & torch.isfinite(found.C).all()
        new = copy.copy(self)
        new._moments = found
        return new, finite

    @outside_inference_mode
    @torch.no_grad()
    def replace_where(self, other: "LabelStatistics", ok: Tensor) -> None:
        """Become ``other``, in place, where ``ok``."""
        for have, new in zip(self._writable(), other._moments, strict=True):
            if have.device.type not in host.READABLE:
                torch.where(ok, new, have, out=have)
            elif bool(ok):
                have.copy_(new)

    def _writable(self) -> Moments:
        """The moments, for writing: a copy that was made in inference mode is replaced first."""
        if self._moments.C.is_inference():
            self._moments = Moments(*(part.clone() for part in self._moments))
        return self._moments

    @full_precision
    @torch.no_grad()
    def merge(self, other: "LabelStatistics") -> "LabelStatistics":
        """Add the statistics of ``other`` rows, for instance of another process; returns itself.

        Raises:
            TypeError: not statistics.
            ValueError: of another head.
        """
        if not isinstance(other, LabelStatistics):
            raise TypeError(f"expected LabelStatistics, got {type(other).__name__}")
        other.check_shape(self.q, self.l)
        here, there = self._moments.C.shape[1], other._moments.C.shape[1]
        if here != there:
            raise ValueError(f"expected statistics of the same classes on this process, {here}, got {there}")
        for have, new in zip(self._writable(), self._moments.plus(other._moments), strict=True):
            have.copy_(new)
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
        A, B, m = A.to(self.dtype), B.to(self.dtype), self._moments
        C, G, n, shift = m.C[:-1], m.G[:-1, :-1], m.rows, m.shift.to(self.dtype)
        # Of x_n . b_i, the part of the point that the moments are about, and what all rows add to it.
        point, beside = shift @ B, m.column @ B
        mass = m.mass
        numerator = torch.linalg.vecdot(B, C @ A, dim=0)
        if bias is not None:
            bias = bias.to(A.dtype)
            mass = mass - n * bias
            numerator = numerator - beside * (bias @ A)
        numerator = numerator + point * (mass @ A)
        denominator = torch.linalg.vecdot(B, G @ B, dim=0) + point * (2 * beside + n * point)
        energy = G.diagonal().sum() + shift @ (2 * m.column + n * shift)
        masked = torch.zeros((), dtype=torch.int64, device=C.device)
        return ops.Sums(numerator.double(), denominator.double(), energy.double(), masked)

    def unseen(self) -> Tensor:
        """() denominators of :meth:`sums` are rounding up to this: no row sees such a direction."""
        return unresolved(self._moments.rounded)

    @full_precision
    @torch.no_grad()
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
            ok = torch.ones((), dtype=torch.bool, device=self.device)
            group = Group(self._sharding, [], ok, dtype=self.dtype)
            sums = label_sums(group, A, B, bias, self.sums)
        return torch.where(sums.denominator > 0, sums.numerator / sums.denominator, torch.nan)

    @full_precision
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
        return ridge_path(self.centred(intercept), alphas, self.dtype, self._of_classes)

    @full_precision
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
        return pcr_path(self.centred(intercept), components, self.dtype, self._of_classes)

    @full_precision
    @torch.no_grad()
    def gaussian(self, alpha: float = 0.3, noise_rate: float = 0.0) -> LinearWeight:
        """The Gaussian head: linear discriminant analysis with a penalised scatter within the classes.

        With features x_i of mean mu, n_c rows of class c with mean m_c, and e the mean eigenvalue of the
        scatter G = sum (x_i - mu)(x_i - mu)^T: S = G + alpha e I - sum_c n_c (m_c - mu)(m_c - mu)^T, then
        w_c = n S^-1 (m_c - mu) and b_c = log(n_c / n) - (m_c + mu)^T w_c / 2. Nothing is chosen, one Cholesky
        factorisation. Wrong labels draw the class means together, and widen S by what they lost; directions
        that tell classes apart well gain by more than in ridge regression. Prior art: "Robust Inference via
        Generative Classifiers for Handling Noisy Labels" (arXiv:1901.11300).

        Of soft labels each row counts for each class by its weight, so that n_c is a sum of weights; those
        of a row sum to 1. Divide a candidate set by its size: each candidate is then as likely as another.

        Args:
            alpha: penalty, in mean eigenvalues of G; 0 only where S is not singular without.
            noise_rate: rho in [0, 1), where it is known that a label is replaced by a random one with this
                probability. The class means, which that draws together by 1 - rho, are drawn apart again,
                in S too. 0 also makes a good head of wrong labels.

        Returns:
            M (l, q) and bias (l,) in the dtype of the statistics; of statistics sharded by class DTensors
            sharded likewise. A class without rows has M_c = 0 and half the lowest value of the dtype as its
            bias, so that it is never predicted.

        Raises:
            ValueError: no rows, label weights that do not sum to 1, a singular S, or a ``noise_rate`` with
                which S is not positive definite.
        """
        return gaussian_head(self.centred(), alpha, noise_rate, self.dtype, self._of_classes)

    @full_precision
    @torch.no_grad()
    def gaussian_path(self, alphas: Sequence[float], noise_rates: Sequence[float] = (0.0,)) -> LinearPath:
        """Gaussian heads for every pair of a penalty and a rate of noise, from one eigendecomposition of G.

        Unlike those of :meth:`gaussian`, their canonical correlations of features and labels are freed of
        what chance adds (sqrt((c^2 - d/n) / (1 - d/n)), with d = sum lambda/(lambda + alpha e) degrees of
        freedom), and kept to 0.99 at most, so that any rate gives a head.

        Args:
            alphas: penalties, in mean eigenvalues of G, >= 0; with 0, directions that no feature has get no
                weight.
            noise_rates: each in [0, 1).

        Returns:
            The linear head of each pair (alpha, noise rate), those of the first alpha first.

        Raises:
            ValueError: as :meth:`gaussian`, but for S.
        """
        return gaussian_path(self.centred(), alphas, noise_rates, self.dtype, self._of_classes)

    @full_precision
    @torch.no_grad()
    def truncate(self, d: int) -> Tensor:
        """Orthonormal basis of the ``d`` leading eigenvectors of X^T X: (q, d), largest first.

        ``M @ P @ P.T`` with this P is a head M (l, q) that reads the principal feature directions alone.

        Raises:
            ValueError: no rows, or d out of 0..q.
        """
        check_int("d", d, 0, self.q)
        self.check_rows()
        G = self._about_zero().G[:-1, :-1]
        return torch.linalg.eigh(G).eigenvectors.flip(1)[:, :d].to(self.dtype).contiguous()

    @full_precision
    @torch.no_grad()
    def centred(self, intercept: bool = True) -> Centred:
        """What the rows say about their means, or as they are where there is no ``intercept`` to fit."""
        self.check_rows()
        if intercept:
            return self._moments.centred()
        raw = self._about_zero().as_they_are()
        return replace(raw, rounding=self._moments.rounded)

    def check_shape(self, q: int, l: int) -> None:
        """ValueError where these are no statistics of ``q`` features and ``l`` classes."""
        if (self.q, self.l) != (q, l):
            raise ValueError(
                f"expected statistics of {q} features and {l} classes, got {self.q} and {self.l}"
            )

    def check_rows(self) -> None:
        """ValueError where no row has been added."""
        # What decays for long stops short of 0.
        if not self.rows > torch.finfo(torch.float64).tiny:
            raise ValueError("expected statistics of at least one labelled row, got none")

    # State -------------------------------------------------------------------------------------------

    @outside_inference_mode
    def state_dict(self) -> dict[str, Any]:
        """C and G of the features less a shift, the shift, and how far rounding may have moved G.

        C sharded by class is a DTensor.
        """
        C, G, shift, rounding = (part.clone() for part in self._moments)
        if self._of_classes is not None:
            C = self._of_classes.as_dtensor(C, (self.q + 1, self.l), 1)
        return {"C": C, "G": G, "shift": shift, "rounding": rounding}

    def check_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """ValueError where ``state_dict`` is no state of statistics, or of another head."""
        q, l = self.q, self.l
        shapes = {"C": (q + 1, l), "G": (q + 1, q + 1), "shift": (q,), "rounding": ()}
        # States of before there was a shift have none, and the rounding as a number.
        keys = state_dict.keys() if isinstance(state_dict, Mapping) else set()
        if missing := shapes.keys() - {"shift", *keys}:
            got = f"the keys {', '.join(map(repr, keys))}" if keys else describe(state_dict)
            raise ValueError(
                f"expected the state of LabelStatistics, got {got}, without {', '.join(sorted(missing))}"
            )
        if isinstance(state_dict["rounding"], float):
            shapes.pop("rounding")
        for name in (name for name in shapes if name in state_dict):
            part = state_dict[name]
            if not isinstance(part, Tensor) or tuple(part.shape) != shapes[name]:
                shape = tuple(part.shape) if isinstance(part, Tensor) else describe(part)
                raise ValueError(f"expected {name} of shape {shapes[name]}, got {shape}")
            if not bool(torch.isfinite(local_part(part)).all()):
                raise ValueError(f"expected a finite {name}, got one that is not")

    @outside_inference_mode
    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore ``state_dict`` in place, after :meth:`check_state_dict`."""
        self.check_state_dict(state_dict)
        have = self._writable()
        C, G = local_part(state_dict["C"]), local_part(state_dict["G"])
        if C.shape[1] != have.C.shape[1]:
            C = self._sharding.part(C, 1)
        shift, rounding = state_dict.get("shift"), state_dict["rounding"]
        shift = torch.zeros_like(have.shift) if shift is None else local_part(shift)
        if not isinstance(rounding, Tensor):
            # Relative, before there was a shift.
            rounding = rounding * torch.linalg.vector_norm(G[:-1, :-1], dtype=torch.float64)
        for part, new in zip(have, (C, G, shift, local_part(rounding)), strict=True):
            part.copy_(new)


def _rows_of(Y: Targets, i: int, j: int) -> Targets:
    if not isinstance(Y, CSR):
        return Y[i:j]
    if (i, j) == (0, len(Y.crow) - 1):
        return Y
    entries = slice(int(Y.crow[i]), int(Y.crow[j]))
    return CSR(Y.crow[i : j + 1] - Y.crow[i], Y.col[entries], Y.values[entries])
