"""What the host may do while a step runs: read a value at once, or leave all of it to the device.

The one place that decides it: callers ask through the module (``device.type in host.READABLE``).
"""

import torch

__all__ = ["READABLE", "capturing", "untraced"]

READABLE = frozenset({"cpu"})
"""Types of devices whose values are there to be read; elsewhere reading waits for all that is queued."""

untraced = torch._disable_dynamo
"""Not traced by torch.compile, as little as torch's own bookkeeping of optimizers: it would compile again and
again what changes from step to step, and the small algebra would not be the one that is tested."""


def capturing(device: torch.device) -> bool:
    """Whether what is queued on ``device`` now is recorded into a CUDA graph and not run.

    Then Python runs once and the device often: nothing may be read, and what is carried from step to step
    must be updated in place.
    """
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()
