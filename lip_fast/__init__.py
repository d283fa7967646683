"""LIP inside the optimizer step: classifiers that survive wrong labels, at almost no cost."""

import sys
from pathlib import PurePath

from lip_fast import starting

starting.listen()
import_error: RuntimeError | None = None
try:
    from lip_fast import optim, reference
    from lip_fast.decompose import randomized_svd
    from lip_fast.functional import LIPPath, lip, lip_path, select_rank
    from lip_fast.plugin import LIP, LIPError
    from lip_fast.repair import RepairReport, repair
    from lip_fast.sharded import PeerError
    from lip_fast.statistics import LabelStatistics
except RuntimeError as error:
    # A backend that is forced and not there stops everything but ``lip-fast doctor``, which is to say so.
    if [PurePath(word).stem.replace("-", "_") for word in sys.orig_argv[-2:]] != ["lip_fast", "doctor"]:
        raise
    from lip_fast import reference

    import_error = error
except KeyboardInterrupt:
    if not starting.is_program():
        raise
    sys.exit(starting.stopped())

__all__ = [
    "LIP",
    "LIPError",
    "LIPPath",
    "LabelStatistics",
    "PeerError",
    "RepairReport",
    "lip",
    "lip_path",
    "optim",
    "randomized_svd",
    "reference",
    "repair",
    "select_rank",
]
