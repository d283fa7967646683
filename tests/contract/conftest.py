"""What the tests of the contract report for the table of reliability."""

from collections.abc import Callable, Iterator

import pytest
from contract.changed_bytes import ChangedBytes


@pytest.fixture
def weights(record_property: Callable[[str, object], None]) -> Iterator[ChangedBytes]:
    """Compares weights; how many bytes were wrong is a property of the report of the test's teardown."""
    changed = ChangedBytes()
    yield changed
    record_property("bytes_changed_wrongly", changed.count)
