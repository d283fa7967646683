"""The rows of truncated decompositions: a spectrum each, every method at every setting beside ours."""

from dataclasses import dataclass

from lip_fast.bench.rows import Row

__all__ = ["CURVES", "DECOMPOSITION_ROWS", "KIND", "OURS", "SPECTRA", "Curve", "spectrum_of"]

KIND = "decomposition"
# By the names that `benchmarks.spectra` has values for.
SPECTRA = ("gapped", "exponential", "power-law", "slow", "plateaus", "low-rank-noise")


@dataclass(frozen=True)
class Curve:
    """A method, from its cheapest setting to its most exact one.

    Attributes:
        name: of the method.
        option: its own name for what is varied.
        settings: values of the option; None for the method as it comes.
        shown: the setting that stands for it in a table.
        on_device: whether it runs where a GPU holds the weight.
    """

    name: str
    option: str
    settings: tuple[float | None, ...]
    shown: float | None
    on_device: bool = True

    def point(self, setting: float | None) -> str:
        """Name of the method at this setting."""
        return self.name if setting is None else f"{self.name} {self.option}={setting:g}"

    @property
    def points(self) -> tuple[str, ...]:
        """Names of the method at all of its settings."""
        return tuple(self.point(setting) for setting in self.settings)


OURS = "ours warm"
CURVES = (
    # As it comes is `ops.warm_svd`, what an optimizer step calls; with an option, `randomized_svd`.
    Curve(OURS, "n_iter", (None, 1, 2), None),
    Curve("ours cold", "n_iter", (0, 1, 2, 4), 2),
    # As it comes it may take 1000 iterations, and does: float32 does not reach its tolerance.
    Curve("lobpcg", "niter", (2, 5, 10), 10),
    Curve("lobpcg warm", "niter", (2, 5), 5),
    Curve("svd_lowrank", "niter", (0, 1, 2, 4), 2),
    # As it comes it takes seven iterations for a rank this small.
    Curve("scikit-learn", "n_iter", (0, 2, 4, None), None, on_device=False),
    Curve("arpack", "tol", (1e-1, 0), 0, on_device=False),
    Curve("propack", "tol", (1e-1, 0), 0, on_device=False),
    # The last one: it takes longest, and threads of the host libraries that still spin delay it least.
    Curve("linalg.svd", "", (None,), None),
)

DECOMPOSITION_ROWS = tuple(
    Row(
        f"{KIND}-{name}",
        KIND,
        l=1000,
        q=2048,
        k=32,
        tail_rank=0,
        n=0,
        peers=tuple(point for curve in CURVES for point in curve.points if point != OURS),
        gates=("distance", "step", "full SVD"),
    )
    for name in SPECTRA
)


def spectrum_of(row: Row) -> str:
    """Which of the spectra a row is about."""
    return row.key.removeprefix(f"{KIND}-")
