"""How much of this package one step goes through."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from problems import linear

import lip_fast

PACKAGE = f"{Path(lip_fast.__file__).parent}/"
MOST_FILES, MOST_CALLS = 14, 110


def _calls(work: Callable[[], Any]) -> list[tuple[str, str]]:
    """The file and name of each Python function of this package that ``work`` calls, in order."""
    calls = []

    def note(frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(PACKAGE):
            calls.append((code.co_filename.removeprefix(PACKAGE), code.co_name))

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(before)
    return calls


def test_a_warm_step_is_read_in_a_few_files(generator: torch.Generator) -> None:
    """A warm truncated step of the plug-in on CPU calls few functions of this package, in few files.

    On a small head the calls themselves are much of what LIP costs: each takes a tenth of a microsecond, and
    most of them look up, check or pack something at several times that. And whoever follows a step through
    the code opens each of these files. A step needs one for each of its parts: the head and its schedule, the
    observations, the directions, the world, each op and its kernel. More is indirection.
    """
    l, q, rows = 100, 512, 64
    head = linear(q, l, bias=True)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1, momentum=0.9)
    lip = lip_fast.LIP(head, 16, tail_rank=16)
    lip.attach(optimizer)
    features = torch.randn(rows, q, generator=generator)
    targets = torch.randint(0, l, (rows,), generator=generator)

    def prepare() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(head(features), targets).backward()
        lip.observe(features, targets)

    for _ in range(5):
        prepare()
        optimizer.step()
    prepare()
    calls = _calls(optimizer.step)
    assert lip.stats()["applied"] == 6
    files = {file for file, _ in calls}
    assert len(calls) <= MOST_CALLS, calls
    assert len(files) <= MOST_FILES, sorted(files)
