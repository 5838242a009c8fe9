from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import pytest

from mfh.errors import InputError
from mfh.tasks.finding import TaskArguments, find_task
from mfh.tasks.keywords import keywords, settings_of


def function(
    seed: int = 0,
    *,
    count: int = 3,
    share: float = 0.5,
    augment: bool = False,
    view: Literal["audio", "both"] = "audio",
    labels: int | Literal["all"] = 100,
    name: str | None = None,
    folder: Path | None = None,
    sizes: tuple[int, ...] = (),
    names: Sequence[str] = (),
    plain=1.5,
    anything=None,
    made: dict[str, int] | None = None,
):
    return locals()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("count=-4", -4),
        ("share=1e-2", 0.01),
        ("share=2", 2.0),
        ("augment=true", True),
        ("augment=no", False),
        ("view=both", "both"),
        ("labels=all", "all"),
        ("labels=50", 50),
        ("name=none", None),
        ("name=a=b", "a=b"),
        ("name=12", "12"),
        ("folder=data/x", Path("data/x")),
        ("sizes=1,2,3", (1, 2, 3)),
        ("names=a,b", ("a", "b")),
        ("plain=2", 2.0),
        ("anything=2", 2),
        ("anything=two", "two"),
        ("made=none", None),
    ],
)
def test_values_get_the_type_of_their_parameter(text, value):
    found = keywords(function, [text], "mine")[text.split("=")[0]]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("count=four", "--set count is 'four'; expected a whole number"),
        ("count=4.5", "expected a whole number"),
        ("share=nan", "expected a number"),
        ("augment=maybe", "expected true or false"),
        ("view=video", "expected audio or both"),
        ("labels=some", "expected a whole number or all"),
        ("sizes=1,x", "expected values separated by commas, each a whole number"),
        ("made=3", "which only Python can give"),
        ("cuont=4", "has no parameter 'cuont'; close names: 'count'"),
        ("seed=4", "use --seed"),
    ],
)
def test_a_value_or_name_that_does_not_fit_is_refused(text, said):
    with pytest.raises(InputError, match=said) as error:
        keywords(function, [text], "mine")
    assert "\n" not in str(error.value)


def test_bound_arguments_of_a_partial_cannot_be_set():
    def of_file(path: str, seed: int = 0, *, labels: int = 3) -> None: ...

    assert keywords(partial(of_file, "pairs.npz"), ["labels=4"], "pairs.npz") == {"labels": 4}
    with pytest.raises(InputError, match="no parameter 'path'; known names: 'labels'"):
        keywords(partial(of_file, "pairs.npz"), ["path=x"], "pairs.npz")


def test_a_function_of_any_keywords_gets_them_by_their_looks():
    assert keywords(lambda **given: given, ["a=1", "b=x"], "mine") == {"a": 1, "b": "x"}


def test_settings_come_from_mappings_texts_and_groups():
    wanted = ("labels=50", "teacher=audio")
    for given in ({"teacher": "audio", "labels": 50}, ["teacher=audio", "labels=50"], [("teacher=audio",), wanted[:1]]):
        assert settings_of(given) == wanted
    for given, said in (("teacher", "KEY=VALUE was expected"), (["=3"], "KEY=VALUE"), (["a=1", "a=2"], "twice")):
        with pytest.raises(InputError, match=said):
            settings_of(given)


def test_arguments_are_recorded_and_taken_from_earlier_work():
    given = TaskArguments(set={"general": 2})
    assert TaskArguments().or_else(given.facts()) == given
    assert given.facts()["set"] == {"general": "2"}
    assert "set" not in TaskArguments().facts()
    assert find_task("digits", TaskArguments(set={"num_train": 8, "num_val": 4, "num_test": 4})).make(0).train[7]


def test_a_keyword_given_by_two_options_is_refused():
    with pytest.raises(InputError, match="--set gives 'data', and so does --data"):
        find_task("ravdess", TaskArguments(data="folder", set={"data": "other"}))
    with pytest.raises(InputError, match=r"task\(\) of digits has no parameter 'genral'; close names: 'general'"):
        find_task("digits", TaskArguments(set={"genral": 2}))
