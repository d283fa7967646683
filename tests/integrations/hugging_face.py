"""transformers and its callback; without it the files that import this are skipped."""

import warnings

import pytest

with warnings.catch_warnings():
    # Of what it imports in turn.
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip(
        "transformers", reason="needs transformers, of the extra 'integrations'"
    )
    pytest.importorskip("accelerate", reason="needs accelerate, of the extra 'integrations'")
    from lip_fast.integrations.transformers import LIPCallback

__all__ = ["LIPCallback", "transformers"]
