"""The command line ``lip-fast``: the dispatcher, ``lip-fast doctor``, and what every subcommand shares.

The standard library is all that this package needs, but for the report of :mod:`lip_fast.cli.doctor`.
"""

from lip_fast.cli.main import main

__all__ = ["main"]
