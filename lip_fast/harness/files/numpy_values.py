"""What NumPy's pickles name, made anew: nothing that a file asks of NumPy is called as it asks."""

import re
from typing import Any

import numpy as np

__all__ = ["Dtype", "scalar"]


class Dtype:
    """The dtype of numbers, which a pickle makes from a code and then gives a byte order.

    Attributes:
        value: NumPy's own.
    """

    def __init__(self, code: Any, *_: Any) -> None:
        if not isinstance(code, str) or not re.fullmatch("b1|[iu][1248]|f[248]", code):
            raise ValueError(f"expected the dtype of numbers, found {code!r}")
        self.value = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        if state[1] == ">":
            self.value = self.value.newbyteorder(">")
        elif state[1] not in ("<", "|", "="):
            raise ValueError(f"expected a byte order, found {state[1]!r}")


def scalar(dtype: Any, content: Any) -> np.generic:
    """A number of NumPy from its dtype and its bytes.

    Raises:
        ValueError: they are of anything else.
    """
    if not isinstance(dtype, Dtype) or not isinstance(content, bytes):
        raise ValueError(
            f"expected a dtype and bytes, found {type(dtype).__name__}, {type(content).__name__}"
        )
    if len(content) != dtype.value.itemsize:
        raise ValueError(f"expected the bytes of one {dtype.value}, found {len(content)}")
    number: np.generic = np.frombuffer(content, dtype.value)[0]
    return number
