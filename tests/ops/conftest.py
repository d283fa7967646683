"""What the tests of steps in one call share."""

from collections.abc import Iterator

import pytest

from lip_fast.backends.native import at_once, library
from lip_fast.ops import at_once as declared


@pytest.fixture(params=[64, 32, 16])
def vector_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Vectors of so many bytes, where the processor has them."""
    if library.MODULES["cpu"].vector_bytes(request.param) != request.param:
        pytest.skip(f"no vectors of {request.param} bytes here")
    monkeypatch.setattr(at_once, "VECTOR_BYTES", request.param)
    return request.param


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> None:
    """The step in one call, whichever backend is asked for."""
    monkeypatch.setattr(declared, "_serves", lambda op, file: True)
    monkeypatch.setattr(declared, "wide_vectors", lambda: True)
    monkeypatch.setattr(library, "wide_vectors", lambda: True)
