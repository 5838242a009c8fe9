"""How methods are found and named, and what they say of themselves."""

import subprocess
import sys

import pytest
import torch
from torch import nn

import mfh
from mfh import InputError, KDLoss
from mfh.methods import Batch, Context, FunctionMethod, Method, resolve
from mfh.methods.finding import facts_of, name_of, reads_features
from mfh.methods.fitnets import FitNets
from mfh.methods.kd import KD
from networks import randn

FILE = """
from mfh.methods import Method


def squares(batch):
    return (batch.student_logits - batch.teacher_logits).square().mean()


class Mine(Method):
    name = "mine"

    def loss(self, batch):
        return squares(batch)


class Needs(Method):
    def __init__(self, weight):
        self.weight = weight


number = 5
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "their_methods.py"
    path.write_text(FILE, encoding="utf-8")
    yield path
    sys.modules.pop("their_methods", None)


def squares(batch):
    return (batch.student_logits - batch.teacher_logits).square().mean()


def batch(count=4, **more):
    logits = randn(count, 3).requires_grad_()
    known = torch.ones(count, dtype=torch.bool)
    return Batch(logits, randn(count, 3, seed=1), torch.arange(count) % 3, known, torch.arange(count), **more)


def test_a_method_is_found_by_name_file_module_class_and_function(file, tmp_path, monkeypatch):
    assert isinstance(resolve("kd"), KD)
    assert isinstance(resolve("fitnets"), FitNets)
    own = FitNets()
    assert resolve(own) is own
    assert isinstance(resolve(FitNets), FitNets)
    assert name_of(resolve(f"{file}:Mine")) == "mine"
    assert name_of(resolve(f"{file}:squares")) == "squares"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "their_package.py").write_text(FILE, encoding="utf-8")
    assert name_of(resolve("their_package:Mine")) == "mine"
    assert name_of(resolve("their_methods.py:Mine")) == "mine"


def test_a_function_is_a_method():
    method, seen = resolve(squares), batch()
    assert method.loss(seen).item() == squares(seen).item()
    assert not reads_features(method)
    reading = FunctionMethod(squares, "other", teacher_layers=None, student_layers=("0",))
    assert (name_of(reading), reading.student_layers, reads_features(reading)) == ("other", ("0",), True)

    def marked(batch):
        return squares(batch)

    marked.needs_labels = True
    assert resolve(marked).needs_labels


def test_facts_tell_methods_apart(file, tmp_path):
    assert facts_of(FitNets()) == facts_of(FitNets())
    assert facts_of(FitNets()) != facts_of(FitNets(student_layers=("0",)))
    mine = facts_of(resolve(f"{file}:Mine"))
    other = tmp_path / "more" / "their_methods_too.py"
    other.parent.mkdir()
    other.write_text(FILE + "\n# another constant\n", encoding="utf-8")
    changed = facts_of(resolve(f"{other}:Mine"))
    assert mine["method"] == changed["method"] == "Mine"
    assert mine["code"] != changed["code"]

    class Holder(Method):
        def __init__(self):
            self.of = object()

    assert " at 0x" not in str(facts_of(Holder()))


MISTAKES = {
    "a name": (lambda file: "fitnet", "method is 'fitnet'; close names: 'fitnets'"),
    "a file alone": (lambda file: str(file), "name a class or function in the file: .*:MyMethod"),
    "no file": (lambda file: "nowhere/x.py:Mine", "there is no method file nowhere/x.py"),
    "another class": (lambda file: f"{file}:Mein", "has no class or function 'Mein'; close names: 'Mine'"),
    "a number": (lambda file: f"{file}:number", "of type int; a class of mfh.methods.Method or a function"),
    "arguments": (lambda file: f"{file}:Needs", "method Needs cannot be made without arguments; give an instance"),
    "no module": (lambda file: "no_such_package:Mine", "module 'no_such_package' cannot be imported"),
    "a loss": (lambda file: lambda a, b, c: a, "a function of one argument, a Batch, was expected"),
    "a network": (lambda file: nn.Linear(2, 2), "method is Linear.*; a class of mfh.methods.Method"),
    "layers": (lambda file: _method(student_layers="fc"), "student_layers is 'fc'; a tuple of names, or None"),
    "layers of a shipped method": (lambda file: FitNets("fc"), "student_layers is 'fc', of type str; a sequence, each"),
    "its name": (lambda file: FunctionMethod(squares, "a+b"), r"a method's name is 'a\+b'"),
    "no loss": (lambda file: _method(), r"method own has no loss\(batch\); write one that returns the teacher's term"),
    "a weight": (lambda file: _method(teacher_weight=-1), "teacher_weight is -1; a number of at least 0"),
}


def _method(**attributes):
    method = Method()
    method.name = "own"
    for name, value in attributes.items():
        setattr(method, name, value)
    return method


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told_in_one_line(name, file):
    make, said = MISTAKES[name]
    with pytest.raises(InputError, match=said) as error:
        resolve(make(file))
    assert "\n" not in str(error.value)


def test_kd_says_its_weights_and_what_its_loss_covers():
    method, seen = KD(KDLoss(temperature=2.0, label_weight=0.5, teacher_weight=3.0)), batch()
    assert (method.label_weight, method.teacher_weight, method.owns_labels) == (0.5, 3.0, False)
    alone = KDLoss(temperature=2.0, label_weight=0.0)
    assert method.loss(seen).item() == alone(seen.student_logits, seen.teacher_logits, seen.target).item()
    own = KD(lambda student, teacher, target: (student - teacher).square().mean())
    assert own.owns_labels
    assert own.needs_labels
    assert own.loss(seen).item() == squares(seen).item()
    with pytest.raises(InputError, match="loss is of type str; a function of"):
        KD("mse")


def test_hints_are_the_error_of_projected_features():
    method = FitNets()
    context = Context(mfh.Problem.classification(), nn.Identity(), student_shapes={"s": (4, 5)})
    with pytest.raises(InputError, match=r"fitnets compares .* layer has positions \(5,\) and the teacher's \(7,\)"):
        method.begin(Context(context.problem, nn.Identity(), None, {"s": (4, 5)}, {"t": (3, 7)}))
    regressor = method.begin(Context(context.problem, nn.Identity(), None, {"s": (4, 5)}, {"t": (3, 5)}))
    ours, theirs = randn(2, 4, 5).requires_grad_(), randn(2, 3, 5, seed=1)
    weights = torch.tensor([3.0, 0.0, 0.0])
    seen = {"student_features": {"s": ours}, "teacher_features": {"t": theirs}, "modules": regressor}
    total = focused = 0.0
    for n in range(2):
        for position in range(5):
            error = (regressor.weight[..., 0] @ ours[n, :, position] + regressor.bias - theirs[n, :, position]).square()
            total, focused = total + error.mean() / 10, focused + (weights * error).mean() / 10
    assert method.loss(batch(2, **seen)).item() == pytest.approx(total.item(), rel=1e-5)
    weighted = method.loss(batch(2, **seen, channel_weights={"t": weights}))
    assert weighted.item() == pytest.approx(focused.item(), rel=1e-5)
    assert abs(weighted.item() - total.item()) > 1e-3


def test_names_need_no_torch_and_public_names_are_there():
    code = "import sys, mfh.methods, mfh.studies.grid; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert mfh.methods.FitNets is FitNets
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = mfh.methods.nothing


def test_a_method_that_computes_nothing_says_so():
    with pytest.raises(NotImplementedError):
        Method().loss(batch())
