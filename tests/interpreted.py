"""Triton's interpreter, without what it repeats: it looks for what to patch at every call of a function."""

from functools import cache
from inspect import getmembers
from typing import Any

from triton.runtime import interpreter

# Of which modules the language has been patched since the launch. Nothing is restored before its end.
_patched: set[int] = set()
_launch = interpreter.GridExecutor.__call__


def _launched(self: Any, *args: Any, **kwargs: Any) -> Any:
    _patched.clear()
    return _launch(self, *args, **kwargs)


def _called(self: Any, *args: Any, **kwargs: Any) -> Any:
    """As ``InterpretedFunction.__call__``, once for each module whose functions a kernel calls."""
    if id(self.fn.__globals__) not in _patched:
        _patched.add(id(self.fn.__globals__))
        interpreter._patch_lang(self.fn)
    function = self.rewrite()
    try:
        return function(*args, **kwargs)
    except Exception as error:
        raise interpreter.InterpreterError(repr(error)) from error


@cache
def _builtins(owner: Any) -> list[tuple[str, Any]]:
    """Of a module or class, as it is before it is patched for the first time."""
    return [(name, member) for name, member in getmembers(owner) if interpreter.tl.core.is_builtin(member)]


def _patch_builtin(owner: Any, builder: Any, scope: Any) -> None:
    for name, member in _builtins(owner):
        interpreter._patch_attr(owner, name, member, builder, scope)


def install() -> None:
    """In this process, for good."""
    interpreter.GridExecutor.__call__ = _launched
    interpreter.InterpretedFunction.__call__ = _called
    interpreter._patch_builtin = _patch_builtin
