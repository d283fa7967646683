"""What each process of a group runs: ``program.py module:function out.json``, with variables of torchrun.

The function is called in every process and returns what the first one writes to the file as JSON.
"""

import gc
import importlib
import json
import os
import sys
import warnings
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist


def main(target: str, out: str, *arguments: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    # Of torch's own: a barrier without a device, checkpoints of processes that share a file system.
    warnings.filterwarnings("ignore", category=UserWarning, module="torch.*")
    warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state")
    # Of tests whose subject is another, as in pyproject.toml.
    warnings.filterwarnings("ignore", "rank=.auto. keeps", UserWarning)
    warnings.filterwarnings("ignore", "LIP with rank=", UserWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="torch.*")
    module, function = target.split(":")
    # Its functions have the group for a default: imported later, as optimizers do, it would keep the group.
    importlib.import_module("torch.distributed.nn")
    dist.init_process_group("gloo", timeout=timedelta(seconds=120))
    try:
        result = getattr(importlib.import_module(module), function)(*arguments)
        if dist.get_rank() == 0:
            Path(out).write_text(json.dumps(result))
    finally:
        dist.destroy_process_group()
    # Groups that cycles of objects still hold have threads, which may abort the end of an interpreter.
    gc.collect()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
