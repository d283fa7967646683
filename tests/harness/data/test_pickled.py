import collections
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from lip_fast.harness.data.pickled import unpickle_arrays


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("dtype", ["u1", "<i8", ">i4", "f4", "?"])
def test_arrays_and_plain_values_come_back(protocol: int, dtype: str) -> None:
    array = np.arange(6).reshape(2, 3).astype(dtype)
    values = {"a": array, "t": array.T, "n": [1, -2, 3.5, None, True, (), (1,)], "d": {"x": 2**70}, "s": "ä"}
    read = unpickle_arrays(pickle.dumps(values, protocol))
    for key in ("a", "t"):
        np.testing.assert_array_equal(read[key], values[key])
        assert read[key].dtype == values[key].dtype.newbyteorder("=")
    assert {key: read[key] for key in "nds"} == {key: values[key] for key in "nds"}


class Harm:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_in_a_pickle_is_run(tmp_path: Path, protocol: int) -> None:
    content = pickle.dumps({"a": Harm(tmp_path / "harm")}, protocol)
    with pytest.raises(ValueError, match=r"names 'posix mkdir'|names 'nt mkdir'"):
        unpickle_arrays(content)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "value",
    [
        [1, 2],
        {1: 2},
        {"a": np.array([{}], dtype=object)},
        {"a": np.array(["text"])},
        {"a": collections.OrderedDict()},
        {"a": print},
    ],
    ids=str,
)
def test_other_things_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"expected|names"):
        unpickle_arrays(pickle.dumps(value, 2))


def test_a_memo_place_far_out_takes_no_memory() -> None:
    content = b"\x80\x02}r\xff\xff\xff\xff."  # the C unpickler would make room for 2**32 places
    assert unpickle_arrays(content) == {}


@pytest.mark.parametrize(
    "content",
    [
        b"(iposix\nmkdir\n.",  # INST
        b"\x80\x02(cnumpy\ndtype\no.",  # OBJ
        b"\x80\x02cnumpy\ndtype\n)\x81.",  # NEWOBJ
        b"\x80\x02\x82\x01.",  # EXT1
        b"Pname\n.",  # PERSID
        b"\x80\x05\x96\x00\x00\x00\x00\x00\x01\x00\x00.",  # BYTEARRAY8 of 2**40 bytes
        b"\x80\x05\x97.",  # NEXT_BUFFER
    ],
)
def test_what_arrays_do_not_need_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"uses|expected"):
        unpickle_arrays(content)


def test_what_takes_the_place_of_a_name_cannot_be_changed() -> None:
    array = np.arange(3.0)
    for name in ("numpy\ndtype", "numpy\nndarray", "_codecs\nencode"):
        for state in (b"}U\x05valueK\x01s", b"N}U\x05valueK\x01s\x86"):
            with pytest.raises((AttributeError, TypeError)):
                unpickle_arrays(b"\x80\x02c" + name.encode() + b"\n" + state + b"b.")
    np.testing.assert_array_equal(unpickle_arrays(pickle.dumps({"a": array}, 2))["a"], array)
