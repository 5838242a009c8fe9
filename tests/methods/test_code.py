"""Digests of code: what tells functions, classes, options and networks apart, and what does not."""

import functools
import os
import subprocess
import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from mfh.errors import InputError
from mfh.files import load_code
from mfh.methods import Method, resolve
from mfh.methods.code import behind, described, digest_of, name_of_code
from mfh.methods.finding import facts_of
from networks import seeded


def weighted(weight, offset=0.0):
    def loss(batch):
        return weight * batch.student_logits.sum() + offset

    return loss


def with_default(weight):
    def loss(batch, weight=weight):
        return weight * batch.student_logits.sum()

    return loss


def with_keyword(weight):
    def loss(batch, *, weight=weight):
        return weight * batch.student_logits.sum()

    return loss


class Callable:
    def __init__(self, weight):
        self.weight = weight

    def __call__(self, batch):
        return self.weight * batch.student_logits.sum()


def holding(value):
    class Holding(Method):
        def __init__(self):
            self.value = value

    return Holding()


def network(seed):
    return seeded(lambda: nn.Linear(2, 2), seed)


def added(batch, weight):
    return batch.student_logits.sum() + weight


class Slim:
    __slots__ = ("weight",)

    def __init__(self, weight):
        self.weight = weight


class Doubling(nn.Module):
    def _get_name(self):
        return "Own"

    def forward(self, x):
        return x * 2


class Halving(Doubling):
    def forward(self, x):
        return x / 2


#: Values that differ, made from 1 and from 2.
MADE = {
    "a closure": weighted,
    "a network in a closure": lambda number: weighted(network(number)),
    "a default": with_default,
    "a default of a keyword": with_keyword,
    "a partial function": lambda number: functools.partial(added, weight=number),
    "a lambda within a function": lambda number: (lambda: 1.0) if number == 1 else (lambda: 2.0),
    "a callable object": Callable,
    "a method of an object": lambda number: Callable(number).__call__,
    "a network": network,
    "a network within a network": lambda number: nn.Sequential(nn.ReLU(), network(number)),
    "an option of a network": lambda number: nn.Sequential(nn.CrossEntropyLoss(label_smoothing=number / 10)),
    "code of a network": lambda number: nn.Sequential(Doubling() if number == 1 else Halving()),
    "a tensor": lambda number: torch.full((2000,), float(number)),
    "an array": lambda number: torch.full((2000,), float(number)).numpy(),
    "a set": lambda number: {"a", "b", number},
    "a mapping": lambda number: {"f": weighted(number)},
    "a list of functions": lambda number: [weighted(number), weighted(5)],
    "an object with slots": Slim,
    "a sparse tensor": lambda number: (number * torch.eye(3)).to_sparse(),
    "an object in an object": lambda number: Callable(Callable(number)),
}


@pytest.mark.parametrize("name", MADE)
def test_what_differs_is_told_apart_and_what_is_alike_is_not(name):
    one, again, other = (MADE[name](number) for number in (1, 1, 2))
    assert described(one) == described(again)
    assert described(one) != described(other)
    assert facts_of(holding(one)) == facts_of(holding(again))
    assert facts_of(holding(one))["options"]["value"] != facts_of(holding(other))["options"]["value"]


@pytest.mark.parametrize("name", ["a closure", "a partial function", "a callable object", "a default"])
def test_functions_as_methods_are_told_apart_and_named_by_the_function_behind(name):
    one, again, other = (resolve(MADE[name](number)) for number in (1, 1, 2))
    assert facts_of(one) == facts_of(again)
    assert facts_of(one)["code"] != facts_of(other)["code"] or facts_of(one)["options"] != facts_of(other)["options"]
    expected = {"a partial function": "added", "a callable object": "Callable"}.get(name, "loss")
    assert one.name == expected


def test_what_a_partial_function_reads_is_what_the_function_behind_it_reads():
    def marked(batch, weight):
        return added(batch, weight)

    marked.needs_labels, marked.teacher_layers = True, ("0",)
    method = resolve(functools.partial(functools.partial(marked, weight=2)))
    assert (method.name, method.needs_labels, method.teacher_layers) == ("marked", True, ("0",))
    assert behind(functools.partial(Callable(1))) is Callable
    assert name_of_code(Callable(1)) == "Callable"


CELL = """
from mfh.methods import Method

SCALE = 2.0
CALLS = []
counted = 0


def half(x):
    return x / 2


class Mine(Method):
    kind = "mean"

    def loss(self, batch):
        CALLS.append(batch)
        parts = [half(part) for part in batch.student_logits]
        return SCALE * sum(part.mean() for part in parts)
"""


def typed(text):
    """A class as a notebook has it: it belongs to the main module, and to no file."""
    cell = ModuleType("__main__")
    exec(text, vars(cell))
    return cell.Mine


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("SCALE * sum", "SCALE + sum"),
        ("part.mean()", "part.sum()"),
        ("SCALE = 2.0", "SCALE = 3.0"),
        ("x / 2", "x / 4"),
        ('"mean"', '"sum"'),
        ("def loss(self, batch):", "def loss(self, batch, scale=None):"),
    ],
)
def test_a_class_of_a_notebook_that_is_edited_is_another_one(before, after):
    assert before in CELL
    mine = typed(CELL)
    assert digest_of(mine) == digest_of(typed(CELL)) == digest_of(typed(f"# a comment\n\n{CELL}"))
    assert digest_of(mine) != digest_of(typed(CELL.replace(before, after)))
    assert facts_of(mine())["code"] != facts_of(typed(CELL.replace(before, after))())["code"]


def test_what_a_run_changes_is_no_part_of_a_class():
    mine = typed(CELL)
    before = digest_of(mine)
    mine.loss.__globals__["CALLS"].append(1)
    mine.loss.__globals__["counted"] = 7  # not used
    for _ in range(20):  # Python rewrites code that runs often
        mine.loss.__globals__["half"](1.0)
    assert digest_of(mine) == before


def test_code_of_installed_packages_counts_by_its_name():
    assert digest_of(nn.Linear) != digest_of(nn.Conv1d)
    assert described(torch.relu).endswith(digest_of(torch.relu))
    assert described(torch.optim.SGD) == described(torch.optim.SGD)


def test_what_cannot_be_read_is_told_in_one_line():
    class Hostile:
        def __getattr__(self, name):
            raise RuntimeError("no\nway")

    with pytest.raises(InputError, match="what a method holds cannot be read: RuntimeError: no way") as error:
        described(Hostile())
    assert "\n" not in str(error.value)


def test_networks_without_weights_are_described():
    assert described(nn.Linear(2, 2, device="meta")) != described(nn.Linear(2, 3, device="meta"))
    assert described(nn.LazyLinear(3)) == described(nn.LazyLinear(3))
    assert described(float("nan")) == described(float("nan"))


def test_an_object_that_holds_itself_ends():
    one, other = Callable(1), Callable(1)
    one.own, other.own = one, other
    assert digest_of(one) == digest_of(other)

    def again(x):
        return again(x) if x else again

    assert digest_of(again) == digest_of(again)


FILE = """
from helper_of_mine import scaled


def mine(batch):
    return scaled(batch.student_logits.sum())
"""


@pytest.mark.parametrize("how", ["from helper_of_mine import scaled", "import helper_of_mine"])
def test_a_module_beside_the_file_counts(tmp_path, monkeypatch, how):
    monkeypatch.setattr(sys, "path", [*sys.path])
    text = FILE if how.startswith("from") else FILE.replace("from helper_of_mine import scaled", how)
    text = text.replace("return scaled", "return helper_of_mine.scaled") if how.startswith("import") else text
    found = []
    for number in (1, 1, 2):
        folder = tmp_path / str(len(found))
        folder.mkdir()
        (folder / "helper_of_mine.py").write_text(f"def scaled(x):\n    return {number} * x\n", encoding="utf-8")
        (folder / "uses_a_helper.py").write_text(text, encoding="utf-8")
        method = resolve(f"{folder / 'uses_a_helper.py'}:mine")
        found.append(facts_of(method)["code"])
        for name in [name for name in sys.modules if "uses_a_helper" in name or name == "helper_of_mine"]:
            del sys.modules[name]
    assert found[0] == found[1] != found[2]


def test_a_file_counts_as_it_was_executed(tmp_path):
    path = tmp_path / "edited_later.py"
    path.write_text("def mine(batch):\n    return batch.student_logits.sum()\n", encoding="utf-8")
    try:
        before = facts_of(resolve(f"{path}:mine"))
        path.write_text("def mine(batch):\n    return batch.student_logits.mean()\n", encoding="utf-8")
        assert facts_of(resolve(f"{path}:mine")) == before
    finally:
        sys.modules.pop("edited_later", None)


def test_every_process_finds_the_same(tmp_path):
    """Sets have another order in every process."""
    path = tmp_path / "same_everywhere.py"
    path.write_text(
        "NAMES = frozenset('abcdefgh')\n\n\ndef mine(batch, names=NAMES):\n"
        "    return batch if batch in {'a', 'b', 'c', 'd', 'e'} else names\n",
        encoding="utf-8",
    )
    code = f"from mfh.methods.code import digest_of; from mfh.files import load_code; from pathlib import Path; \
print(digest_of(load_code(Path({str(path)!r}), 'file', '').mine))"
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert len(found) == 1
    assert len(found.pop()) == 16
    assert len(digest_of(load_code(path, "file", "").mine)) == 16
    sys.modules.pop("same_everywhere", None)
