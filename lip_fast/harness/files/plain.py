"""Plain values written as JSON and as YAML."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

__all__ = ["write_json", "write_yaml"]


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write ``value`` as JSON; ValueError for NaN and infinities, which JSON does not have."""
    path.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def write_yaml(path: Path, value: Mapping[str, Any]) -> None:
    """Write ``value`` as YAML, in its own order."""
    path.write_text(yaml.safe_dump(dict(value), sort_keys=False), encoding="utf-8")
