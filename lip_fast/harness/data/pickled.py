"""Pickles of plain values and arrays, read without running anything they name.

A pickle is a program for a stack machine, and ``pickle.load`` lets it import and call. Here the program is
read with :mod:`pickletools` and carried out by a machine that knows containers, numbers, strings and three
calls (rebuilding an array, its dtype, its bytes). None of them is looked up: a name that is not among the
three is an error, and arrays are made from checked parts.
"""

import math
import pickletools
import re
from typing import Any

import numpy as np

__all__ = ["unpickle_arrays"]

_MARK = object()
_PUSH = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "MARK": _MARK, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_RECONSTRUCT = {"numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct"}
_NAMES = _RECONSTRUCT | {"numpy ndarray", "numpy dtype", "_codecs encode"}


class _Name(str):
    """A name that the pickle would import."""


class _Dtype:
    """The dtype of numbers, before and after its state is set."""

    def __init__(self, code: Any, *_: Any) -> None:
        if not isinstance(code, str) or not re.fullmatch("b1|[iu][1248]|f[248]", code):
            raise ValueError(f"expected the dtype of numbers, found {code!r}")
        self.value = np.dtype(code)

    def set_state(self, state: Any) -> None:
        if state[1] == ">":
            self.value = self.value.newbyteorder(">")
        elif state[1] not in ("<", "|", "="):
            raise ValueError(f"expected a byte order, found {state[1]!r}")


class _Array:
    """An array, before and after its state is set."""

    value: np.ndarray | None = None

    def set_state(self, state: Any) -> None:
        _, shape, dtype, fortran, content = state
        if isinstance(content, str):  # Python 2 wrote bytes as text in latin-1
            content = content.encode("latin-1")
        if not all(type(size) is int and size >= 0 for size in shape):
            raise ValueError(f"expected the shape of an array, found {shape!r}")
        if len(content) != math.prod(shape) * dtype.value.itemsize:
            raise ValueError(f"expected bytes for shape {shape} of {dtype.value}, found {len(content)}")
        array = np.frombuffer(content, dtype.value).reshape(shape, order="F" if fortran else "C")
        self.value = array.astype(dtype.value.newbyteorder("="))


def unpickle_arrays(content: bytes) -> dict[str, Any]:
    """The dict in a pickle; its arrays are those of its own values, deeper ones are not looked for.

    Args:
        content: the pickle, of any protocol.

    Raises:
        Exception: of many kinds (the caller says which file it was): the pickle is damaged, holds anything
            else than plain values and arrays of numbers, or no dict of them.
    """
    result = _Machine().run(content)
    if not isinstance(result, dict) or not all(isinstance(key, str) for key in result):
        raise ValueError(f"expected a dict with names, found {type(result).__name__}")
    return {key: value.value if isinstance(value, _Array) else value for key, value in result.items()}


class _Machine:
    """Carries out one pickle."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, content: bytes) -> Any:
        for opcode, argument, _ in pickletools.genops(content):
            if opcode.name == "STOP":
                return self.stack.pop()
            self.step(opcode.name, argument)
        raise ValueError("the pickle has no end")

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in _PUSH:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name in ("EMPTY_DICT", "EMPTY_LIST"):
            stack.append({} if name == "EMPTY_DICT" else [])
        elif name in ("DICT", "LIST", "TUPLE"):
            items = self.to_mark()
            stack.append(_pairs(items) if name == "DICT" else tuple(items) if name == "TUPLE" else items)
        elif name in _TUPLES:
            count = _TUPLES[name]
            stack[-count:] = [tuple(stack[-count:])]
        elif name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else self.to_mark()
            _as(list, stack[-1]).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else self.to_mark()
            _as(dict, stack[-1]).update(_pairs(items))
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            named = argument if name == "GLOBAL" else f"{stack.pop(-2)} {stack.pop()}"
            if named not in _NAMES:
                raise ValueError(f"the pickle names {named!r}, which only code could need")
            stack.append(_Name(named))
        elif name == "REDUCE":
            arguments = stack.pop()
            stack.append(_call(_as(_Name, stack.pop()), arguments))
        elif name == "BUILD":
            state = stack.pop()
            if not isinstance(stack[-1], _Array | _Dtype):
                raise ValueError("the pickle sets the state of something else than an array")
            stack[-1].set_state(state)
        elif name not in ("PROTO", "FRAME"):
            raise ValueError(f"the pickle uses {name}, which plain values and arrays do not need")

    def to_mark(self) -> list[Any]:
        """Take what was pushed since the last mark."""
        at = next(i for i in reversed(range(len(self.stack))) if self.stack[i] is _MARK)
        items = self.stack[at + 1 :]
        del self.stack[at:]
        return items


def _call(name: str, arguments: Any) -> Any:
    if name in _RECONSTRUCT:
        return _Array()
    if name == "numpy dtype":
        return _Dtype(*arguments)
    if name == "_codecs encode":
        text, encoding = arguments
        if encoding != "latin1":
            raise ValueError(f"expected bytes as latin1, found {encoding!r}")
        return text.encode("latin-1")
    raise ValueError(f"the pickle calls {name!r}")


def _as(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise ValueError(f"expected a {kind.__name__} in the pickle, found {type(value).__name__}")
    return value


def _pairs(items: list[Any]) -> dict[Any, Any]:
    return dict(zip(items[::2], items[1::2], strict=True))
