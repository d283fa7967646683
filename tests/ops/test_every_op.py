"""What holds of the ops together."""

import ast
from pathlib import Path

import torch

import lip_fast  # noqa: F401  (defines the ops)

FOLDER = Path(__file__).parent


def _defined() -> set[str]:
    names = torch._C._dispatch_get_all_op_names()
    return {name.removeprefix("lip_fast::") for name in names if name.startswith("lip_fast::")}


def _checked() -> set[str]:
    """The ops that the tests beside this one hand to ``torch.library.opcheck``."""
    found = set()
    for path in FOLDER.glob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.library.opcheck":
                op = ast.unparse(node.args[0])
                assert op.startswith("torch.ops.lip_fast."), op
                found.add(op.removeprefix("torch.ops.lip_fast.").removesuffix(".default"))
    return found


def test_every_op_is_handed_to_opcheck() -> None:
    assert len(_defined()) >= 10
    assert _checked() == _defined()
