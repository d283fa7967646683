"""What results and times depend on beside the settings."""

import os
import platform
from typing import Any

import numpy as np
import torch

__all__ = ["environment"]


def environment() -> dict[str, Any]:
    """Versions, threads and the machine, as plain values for ``metrics.json``."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "threads": torch.get_num_threads(),
        "processors": os.cpu_count(),
        "machine": platform.machine(),
        "system": platform.system(),
    }
