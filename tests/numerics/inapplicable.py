"""Cases of other projects' tests that cannot apply, each by its name and with its reason."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pytest


class Inapplicable(NamedTuple):
    """A test, or those of its cases that have one of these values as a parameter."""

    test: str
    reason: str
    parameters: Mapping[str, Sequence[Any]] = {}

    def fits(self, test: str, values: Mapping[str, Any]) -> bool:
        """Whether the case of ``test`` with these parameters is meant."""
        return test == self.test and all(
            any(_same(values[name], value) for value in meant) for name, meant in self.parameters.items()
        )


def _same(a: Any, b: Any) -> bool:
    return a is b or bool(a == b)


def skip_inapplicable(request: pytest.FixtureRequest, cases: Sequence[Inapplicable]) -> None:
    """Skip the running test where it is one of ``cases``."""
    values = getattr(request.node, "callspec", None)
    for case in cases:
        if case.fits(request.node.originalname, {} if values is None else values.params):
            pytest.skip(case.reason)
