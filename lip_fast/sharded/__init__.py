"""Weights that several processes hold, and batches that differ between them.

``layout`` says where the parts of a weight lie, ``group`` lets processes vote and add up, and ``rows``,
``decompose`` and ``label_sums`` are the parts of a step that need more than one process. What is exported
here needs no step.
"""

from lip_fast.sharded.collectives import PeerError
from lip_fast.sharded.layout import DataGroup, Sharding
from lip_fast.sharded.tensors import full_tensor, is_sharded, is_split, local_part

__all__ = ["DataGroup", "PeerError", "Sharding", "full_tensor", "is_sharded", "is_split", "local_part"]
