"""What an op says of a kernel: where it lies, which arguments it can take, and which it should take."""

import importlib
from collections.abc import Callable
from typing import Any

__all__ = ["Kernel", "always", "never"]


def always(*arguments: Any) -> bool:
    """Of a kernel that takes every argument its op allows."""
    return True


def never(*arguments: Any) -> bool:
    """Of a kernel that is taken only where its backend is forced."""
    return False


class Kernel:
    """One kernel of an op, imported by its first call.

    Args:
        path: the module within ``lip_fast.backends``, which begins with the name of the backend, and after a
            colon the function where it is not called like the module: "native.svd:warm_svd".
        device: the kind of device it runs on; None for all of them.
        reason: why it is taken, for a report.
        can: whether it can take the arguments of the op, as the kernel gets them.
        pays: whether it is also the better choice; ``can`` where not given.

    Attributes:
        run: the kernel.
    """

    def __init__(
        self,
        path: str,
        device: str | None = None,
        *,
        reason: str = "",
        can: Callable[..., bool] = always,
        pays: Callable[..., bool] | None = None,
    ) -> None:
        module, _, name = path.partition(":")
        self.backend, _, self.file = module.partition(".")
        self.name = name or self.file
        self.device, self.reason = device, reason
        self.can, self.pays = can, can if pays is None else pays
        self.run: Callable[..., Any] = self._load_and_run

    def load(self) -> Callable[..., Any]:
        """Import the kernel, and its libraries with it."""
        module = importlib.import_module(f"lip_fast.backends.{self.backend}.{self.file}")
        self.run = getattr(module, self.name)
        return self.run

    def _load_and_run(self, *arguments: Any) -> Any:
        return self.load()(*arguments)
