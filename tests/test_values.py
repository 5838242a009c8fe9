import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mfh.errors import InputError
from mfh.values import Bounds, check_fields, checked, whole

Few = Annotated[int, Bounds(1, 32)]


@pytest.mark.parametrize(
    ("value", "kind", "said"),
    [
        (0, Few, "n is 0; choose 1 to 32"),
        (10**20, Few, "n is 100000000000000000000; choose 1 to 32"),
        (1e20, Few, r"n is 1e\+20, of type float; a whole number from 1 to 32 was expected"),
        (True, Few, "n is True, of type bool; a whole number"),
        (True, float, "n is True, of type bool; a finite number was expected"),
        (float("nan"), float, "n is nan, of type float; a finite number"),
        (float("inf"), float, "n is inf, of type float; a finite number"),
        (10**400, float, "n is 1000"),
        (1.0, Annotated[float, Bounds(0, 1, below=True)], "n is 1.0; choose 0 to below 1"),
        ("3", Annotated[int | None, Bounds(1, 9)], "n is '3', of type str; a whole number from 1 to 9 or None was"),
        (None, str, "n is None, of type NoneType; text was expected"),
        ("c", Literal["a", "b"], "n is 'c'; choose 'a' or 'b'"),
        (1, Literal["1"], "n is 1; choose '1'"),
        (1, bool, "n is 1; choose True or False"),
        (3, Callable[[int], int], "n is 3, of type int; a function was expected"),
        (["a", 3], tuple[str, ...], "a sequence, each item text, was expected"),
        ((1, 2, 3), tuple[int, float], r"a sequence of 2 .a whole number, a finite number. was expected"),
        ((1, 0), tuple[Few, ...], "choose 1 to 32"),
        (["a", 3], str | Sequence[str] | None, "n is .'a', 3., of type list"),
        ([1], Mapping[str, int], "a Mapping was expected"),
        ([True], NDArray[np.bool_], "a ndarray was expected"),
        (3, str | Path, "text or a path was expected"),
        ("\x1b[31m", int, r"n is '\\x1b\[31m', of type str"),
    ],
)
def test_what_is_refused(value, kind, said):
    with pytest.raises(InputError, match=said) as error:
        checked("n", value, kind)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (np.int64(3), Few, 3),
        (np.float32(0.5), float, 0.5),
        (np.float64(0.5), float, 0.5),
        (np.bool_(True), bool, True),
        (2, float, 2),
        (None, int | None, None),
        ([1, np.int32(2)], tuple[int, ...], (1, 2)),
        ("x", Path, "x"),
        (len, Callable[..., Any], len),
        (object, Any, object),
    ],
)
def test_what_is_accepted(value, kind, expected):
    found = checked("n", value, kind)
    assert found == expected
    assert type(found) is type(expected)


def test_values_that_cannot_be_shown():
    class Unspeakable:
        def __repr__(self):
            sys.exit(0)

    with pytest.raises(InputError, match="n is something without a text, of type Unspeakable"):
        checked("n", Unspeakable(), int)
    with pytest.raises(InputError, match=r"\.\.\., of type Tensor") as error:
        checked("n", torch.zeros(1000), int)
    assert len(str(error.value)) < 200


def test_fields_are_checked_and_numbers_become_pythons():
    @dataclass(frozen=True)
    class Options:
        count: Few = 1
        rate: float = 0.1

        def __post_init__(self):
            check_fields(self, of=" of it")

    assert type(Options(np.int64(4)).count) is int
    with pytest.raises(InputError, match="rate of it is '1', of type str"):
        Options(rate="1")


@pytest.mark.parametrize("text", ["", "-1", "+1", " 1", "1.0", "\u00b2", "\u0663", "9" * 19, "1" * 5000, "101"])
def test_text_that_is_no_whole_number(text):
    assert whole(text, 100) is None
    assert whole("100", 100) == 100
