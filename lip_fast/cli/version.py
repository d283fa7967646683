"""Which version of a distribution is installed."""

import importlib.metadata

__all__ = ["installed"]


def installed(distribution: str = "lip-fast") -> str | None:
    """The installed version; None without one, as where lip_fast is run from a source folder."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
