"""What breaks an SVD in a post-step hook does not break LIP, with every optimizer it may be attached to."""

import pytest
from contract.changed_bytes import ChangedBytes
from contract.naive_hook import NaiveHook
from contract.runs import EXACT, TRACKED, LIPWithStatistics
from contract.traps import OPTIMIZERS, TRAPS

pytestmark = pytest.mark.contract


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("trap", TRAPS)
@pytest.mark.parametrize("options", [EXACT, TRACKED], ids=["exact", "tracked"])
def test_lip_passes(trap: str, name: str, options: dict, weights: ChangedBytes) -> None:
    TRAPS[trap].check(lambda head: LIPWithStatistics(head, **options), name, weights)


@pytest.mark.parametrize(("trap", "name"), [(trap, name) for trap in TRAPS for name in TRAPS[trap].springs])
def test_a_naive_hook_does_not(trap: str, name: str) -> None:
    with pytest.raises(AssertionError, match=TRAPS[trap].message):
        TRAPS[trap].check(
            lambda head: NaiveHook(head, 5, own_sums=TRAPS[trap].own_sums), name, ChangedBytes()
        )
