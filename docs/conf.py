"""Sphinx configuration; ``make docs`` builds with warnings as errors."""

import sys
from pathlib import Path
from typing import Any

# The package of this checkout, whatever is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

project = "lip_fast"
author = "the lip_fast authors"
project_copyright = author

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax", "myst_parser"]
myst_enable_extensions = ["dollarmath"]
html_theme = "furo"
html_title = "lip_fast"

# The adapters are documented without the libraries they are for.
autodoc_mock_imports = ["accelerate", "lightning", "transformers"]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": False}
# In "Args" and beside: attributes are then documented once.
napoleon_use_ivar = True
napoleon_numpy_docstring = False


def _skip_fields(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Leave out what a named tuple says of its fields ("Alias for field number 0")."""
    if (getattr(obj, "__doc__", None) or "").startswith("Alias for field number"):
        return True
    return None


def setup(app: Any) -> None:
    """Connect."""
    app.connect("autodoc-skip-member", _skip_fields)
