"""What a step has to be that is captured in a CUDA graph: replays repeat it, and Python does not run."""

from lip_fast.directions import Directions
from lip_fast.settings import Settings
from lip_fast.sharded.layout import Sharding

__all__ = ["check_capture", "not_loaded"]


def check_capture(
    settings: Settings, sharding: Sharding, directions: Directions | None, step: int | None
) -> None:
    """Refuse a capture of what no replay can repeat.

    Args:
        settings: of the LIP.
        sharding: where the parts of its weight lie.
        directions: from which the step starts; None before the first one.
        step: its number; None in a call of ``apply``.

    Raises:
        RuntimeError: which says what a capture needs.
    """
    if step is not None and (settings.every != 1 or step < settings.start):
        raise RuntimeError(
            "expected every=1 and start reached in a step that is captured, since replays repeat it, "
            f"got every={settings.every} and start={settings.start} at step {step}"
        )
    if sharding.batches_differ and (sharding.gathered or settings.decay is not None):
        raise RuntimeError(
            "expected a step that is captured to have the same batch on all processes, or a whole weight "
            "on each, and no decay: rows of other processes are exchanged through the host"
        )
    if settings.strict:
        raise RuntimeError("expected strict=False in a step that is captured: a replay cannot raise")
    if directions is None or not directions.can_be_captured:
        raise RuntimeError(
            "expected a step that LIP acts on before one is captured, to start from, got none: "
            "take two steps first"
        )


def not_loaded() -> RuntimeError:
    """The error of a capture whose kernels no step has loaded, which a capture must not do."""
    return RuntimeError(
        "expected steps that LIP acts on before one is captured, which load what it runs, got none like it: "
        "take two steps first, and one after a state was loaded"
    )
