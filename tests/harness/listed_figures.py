"""Figures that are listed instead of drawn: to draw those of a small run takes longer than the run."""

import hashlib
from typing import Any

import pytest
from matplotlib.collections import Collection
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.text import Text


def list_figures(patch: pytest.MonkeyPatch) -> None:
    """Let the file of a figure say what is on it: it is the same file only where the figure is the same."""

    def listed(figure: Figure, target: Any, **options: Any) -> None:
        lines = [str(figure.get_size_inches())]
        for artist in figure.findobj():
            if isinstance(artist, Line2D):
                content = artist.get_xydata().tobytes()
            elif isinstance(artist, Collection):
                content = b"".join(one.vertices.tobytes() for one in artist.get_paths())
            elif isinstance(artist, AxesImage):
                content = artist.get_array().tobytes()
            elif isinstance(artist, Text):
                content = artist.get_text().encode()
            else:
                continue
            lines.append(f"{type(artist).__name__} {hashlib.sha256(content).hexdigest()}")
        text = "\n".join(lines).encode()
        if hasattr(target, "write"):
            target.write(text)
        else:
            # As libraries write files, and not by a way that tests count.
            with open(target, "wb") as file:
                file.write(text)

    patch.setattr(Figure, "savefig", listed)
