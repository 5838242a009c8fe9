"""Methods as arms: names, focus, worker processes, what is refused, and what they cost."""

import logging
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import mfh
import tiny_task
from mfh.cli.commands import main
from mfh.errors import InputError
from mfh.methods import KD, Attainable, FitNets, FunctionMethod, Method
from mfh.networks.modes import fingerprint
from mfh.problems.losses import KDLoss
from mfh.reporting.costs import costs_section
from mfh.studies.arms import find_arms
from mfh.studies.folder import Run, SeedFolder
from mfh.studies.grid import ARMS, CONTROLS, METHODS, SPELLINGS, Cell, cells, place_of_arm
from mfh.studies.seed import Seed
from mfh.studies.settings import Settings

TINY = str(Path(tiny_task.__file__))
SHORT = {"num_seeds": 1, "processes": 1, "epochs": 1}

FILE = """
from torch import nn

from mfh.methods import Method


def squares(batch):
    return (batch.student_logits - batch.teacher_logits).square().mean()


class Tagged(Method):
    name = "tagged"
    student_layers = teacher_layers = None

    def begin(self, context):
        return nn.Linear(context.student_shape[0], context.teacher_shape[0])

    def loss(self, batch):
        return (batch.modules(batch.student_feature) - batch.teacher_feature).square().mean()


class Alone(Method):
    name = "alone"
    takes_focus = False

    def loss(self, batch):
        return squares(batch)


def flat(batch):
    return batch.student_logits


class Named(Alone):
    name = "soft"
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "arms_of_mine.py"
    path.write_text(FILE, encoding="utf-8")
    yield path
    for name in [name for name in sys.modules if "arms_of_mine" in name]:
        del sys.modules[name]


def squares(batch):
    return (batch.student_logits - batch.teacher_logits).square().mean()


def rows(result, arm):
    frame = result.frame[result.frame["arm"] == arm]
    return frame.drop(columns=["arm"]).reset_index(drop=True)


# --- names ------------------------------------------------------------------------------------------------------------


def test_other_spellings_are_the_papers_arms(file):
    found = find_arms(["no-kd", *SPELLINGS, "fitnets", "fitnets+soft", f"{file}:squares+general", f"{file}:Tagged"])
    names = ("no-kd", "regular", "aligned", "random", "specific", "general", "soft")
    assert found.names == (*names, "fitnets", "fitnets+soft", "squares+general", "tagged")
    assert found.methods == {"squares": f"{file}:squares", "tagged": f"{file}:Tagged"}
    own = FunctionMethod(squares, "own")
    assert find_arms([own, "own", "own+soft", own]) == (("own", "own+soft"), {"own": own})


def test_what_an_arm_starts_from_and_is_judged_against():
    expected = {
        "regular": ("kd", "", "pretrained", None),
        "aligned": ("kd", "aligned", "aligned", None),
        "general": ("kd", "general", "aligned", "aligned"),
        "soft": ("kd", "soft", "pretrained", "regular"),
        "tempered": ("kd", "tempered", "pretrained", "regular"),
        "no-kd": (None, "", None, None),
        "self-training": ("kd", "", "student", None),
        "fitnets": ("fitnets", "", "pretrained", None),
        "fitnets+aligned": ("fitnets", "aligned", "aligned", None),
        "fitnets+soft": ("fitnets", "soft", "pretrained", "fitnets"),
        "fitnets+general": ("fitnets", "general", "aligned", "fitnets+aligned"),
        "fd-cmkd+random": ("fd-cmkd", "random", "aligned", "fd-cmkd+aligned"),
    }
    for arm, (method, focus, teacher, unmasked) in expected.items():
        cell = Cell(arm, weights=(1.0, 2.0))
        assert (cell.method, cell.focus, cell.teacher) == (method, focus, teacher), arm
        assert cell.unmasked == (unmasked and Cell(unmasked, weights=(1.0, 2.0))), arm
        assert cell.masked == (unmasked is not None), arm


def test_arms_are_in_one_order_and_a_method_of_features_has_no_layer(file):
    arms = ["longer", "mine", "fitnets+soft", "fitnets", "regular", "no-kd", "fitnets+general", "mine+soft"]
    grid = cells(arms, [0.25, 0.5], ["distance"], ["1", "2"], methods={"mine": f"{file}:squares"})
    assert [(cell.arm, cell.score, cell.ratio, cell.layer) for cell in grid] == [
        ("no-kd", "", None, ""),
        ("regular", "", None, ""),
        ("fitnets", "", None, ""),
        ("fitnets+general", "distance", 0.25, ""),
        ("fitnets+general", "distance", 0.5, ""),
        ("fitnets+soft", "probe", None, ""),
        ("mine", "", None, ""),
        ("mine+soft", "probe", None, "1"),
        ("mine+soft", "probe", None, "2"),
        ("longer", "", None, ""),
    ]
    every = [*ARMS, *METHODS, "zzz", "zzz+soft", *CONTROLS]
    assert sorted(every, key=place_of_arm)[0] == "no-kd"
    assert sorted(every, key=place_of_arm)[-1] == CONTROLS[-1]


MISTAKES = {
    "a method": (["fitnet"], "arm is 'fitnet'; close names: 'fitnets'"),
    "a focus": (["fitnets+softer"], "arm is 'fitnets.softer'; close names: 'fitnets'"),
    "an arm with a focus": (["regular+soft"], "arm is 'regular.soft'; close names"),
    "a file": (["{file}:Tagg"], "has no class or function 'Tagg'; close names: 'Tagged'"),
    "no file": (["nowhere.py:Tagged"], "there is no method file nowhere.py"),
    "a focus on a method that takes none": (
        ["{file}:Alone+soft"],
        "arm 'alone.soft': method alone takes no focus; choose the arm 'alone'",
    ),
    "a name that is taken": (["{file}:Named"], "a method is called 'soft', as another arm is; give yours another name"),
    "two of one name": ([squares, "{file}:squares"], "two arms are called 'squares': <function squares.*; give yours"),
    "two of a shipped name": (["fitnets", FitNets(("0",))], "two arms are called 'fitnets', a method as it is shipped"),
    "kd with a loss of its own": ([KD(KDLoss(temperature=2.0))], "a method is called 'kd', as another arm is"),
    "no scalar": (["{file}:flat"], r"the loss of the method flat returned a tensor of shape \(16, 2\)"),
    "a layer": (
        [FitNets(teacher_layers=("10",))],
        "the teacher's layer: Sequential has no layer '10'; close names: '1'",
    ),
    "a number": ([5], "method is 5; a class of mfh.methods.Method or a function"),
    "no ratio": (["fitnets+general"], "arm 'fitnets.general' needs a score; none is given"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told_in_one_line_before_anything_is_trained(name, file, tmp_path):
    arms, said = MISTAKES[name]
    arms = [arm.format(file=file) if isinstance(arm, str) else arm for arm in arms]
    scores = [] if name == "no ratio" else ["distance"]
    with pytest.raises(InputError, match=said) as error:
        mfh.study(TINY, arms=["no-kd", *arms], scores=scores, out=tmp_path / "run", **SHORT)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


# --- in a study -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("methods")
    path = folder / "arms_of_theirs.py"
    path.write_text(FILE, encoding="utf-8")
    arms = ["no-kd", "kd", "kd+soft", "fitnets", "fitnets+soft", "fitnets+general", "fitnets+aligned"]
    arms += [f"{path}:squares", f"{path}:squares+soft", f"{path}:Tagged"]
    result = mfh.study(TINY, arms=arms, num_seeds=2, processes=1, out=folder / "run")
    yield result, arms, path
    for name in [name for name in sys.modules if "arms_of_theirs" in name]:
        del sys.modules[name]


def test_methods_are_arms_beside_the_papers(compared):
    result, *_ = compared
    names = ["no-kd", "regular", "soft-probe-1", "fitnets", "fitnets+aligned", "fitnets+general-distance-0.5"]
    names += ["fitnets+soft-probe", "squares", "squares+soft-probe-1", "tagged"]
    assert [*result.by_seed().columns] == names
    alone = mfh.study(TINY, arms=["no-kd", "regular", "soft"], num_seeds=2, processes=1)
    for arm in ("no-kd", "regular", "soft"):  # whatever else is compared
        assert rows(alone, arm).equals(rows(result, arm))
    # A method of one's own that is a shipped one has its results.
    assert rows(result, "tagged").drop(columns="metric").equals(rows(result, "fitnets").drop(columns="metric"))


def test_workers_measure_the_same(compared):
    result, arms, _ = compared
    again = mfh.study(TINY, arms=arms, num_seeds=2, processes=2)
    assert again.frame.equals(result.frame)


def test_a_method_that_cannot_travel_runs_in_this_process():
    def local(batch):
        return squares(batch)

    here = mfh.study(TINY, arms=["no-kd", local], num_seeds=1, processes=2, epochs=1)
    there = mfh.study(TINY, arms=["no-kd", FunctionMethod(squares, "local")], num_seeds=1, processes=1, epochs=1)
    assert here.frame.equals(there.frame)


def test_a_changed_method_is_not_mixed_with_old_cells(compared):
    result, arms, path = compared
    assert Run(result.folder).config["methods"]["tagged"]["method"] == "Tagged"
    changed = path.parent / "changed" / "arms_of_theirs_too.py"
    changed.parent.mkdir()
    changed.write_text(FILE.replace("square().mean()", "abs().mean()"), encoding="utf-8")
    with pytest.raises(InputError, match=r"was made with methods\.squares\.code .*; choose another --out"):
        mfh.study(
            TINY,
            arms=[arm.replace(str(path), str(changed)) for arm in arms],
            num_seeds=2,
            processes=1,
            out=result.folder,
        )


def test_gains_are_judged_against_the_method_without_its_focus(compared):
    result, *_ = compared
    run = Run(result.folder)
    variants = {variant.cell.arm: variant for variant in run.summary.variants}
    values = result.by_seed()
    for arm, column, base in (
        ("fitnets+soft", "fitnets+soft-probe", "fitnets"),
        ("fitnets+general", "fitnets+general-distance-0.5", "fitnets+aligned"),
        ("squares+soft", "squares+soft-probe-1", "squares"),
    ):
        difference = 100 * (values[column] - values[base]).mean()
        assert variants[arm].masking.mean_difference == pytest.approx(difference)
    assert variants["fitnets"].masking is None


def test_the_report_names_every_arm_and_what_it_costs(compared):
    result, *_ = compared
    run = Run(result.folder)
    page = mfh.report(run).read_text(encoding="utf-8")
    assert "fitnets+general" in page
    assert "METHOD+soft is judged against METHOD" in page
    (table,) = costs_section(run.seeds, run.summary).blocks
    rows_by_arm = {row[0]: row for row in table.rows}
    assert list(rows_by_arm) == ["no-kd", "regular", "soft", "fitnets", *table_rest(rows_by_arm)]
    assert rows_by_arm["fitnets"][2:4] == ["1", f"{10 * 12 + 12:,}"]
    assert rows_by_arm["regular"][2:] == ["4", "", ""]  # with soft, at both seeds
    assert rows_by_arm["fitnets"][4] == "6.14 KiB"  # 132 parameters, and 120 rows of 12 features
    assert float(rows_by_arm["fitnets"][1]) > 0
    assert run.seed(0).read_cost(Cell("fitnets"))["extra_parameters"] == 132


def table_rest(found):
    return [arm for arm in found if arm not in ("no-kd", "regular", "soft", "fitnets")]


def test_weights_that_are_compared_apply_to_methods():
    pairs = [(1.0, 1.0), (0.5, 2.0)]
    result = mfh.study(TINY, arms=["no-kd", "fitnets"], weights=pairs, **SHORT)
    assert set(result.frame["label_weight"].dropna()) == {1.0, 0.5}
    own = {"own": FunctionMethod(squares, "own")}
    made = Seed(tiny_task.task(0), 0, Settings.of(epochs=1), methods=own)
    task, taught = made.task, made.networks.pretrained("teacher").network
    for pair in (None, *pairs):
        label, teacher = pair or (None, None)
        fit = mfh.distill(
            taught,
            made.networks.new("student"),
            task.train,
            task.val,
            method=squares,
            label_weight=label,
            teacher_weight=teacher,
            recipe=made.recipe,
            device="cpu",
        )
        assert made.student(Cell("own", weights=pair)).frozen.fingerprint == fingerprint(fit.student)


def test_weights_of_the_settings_are_of_kd_alone():
    plain, weighted = (
        Seed(tiny_task.task(0), 0, Settings.of(epochs=1, **loss))
        for loss in ({}, {"label_weight": 0.5, "teacher_weight": 2.0})
    )
    for arm, same in (("sp", True), ("fitnets", True), ("regular", False)):
        ours, theirs = (made.student(Cell(arm)).frozen.fingerprint for made in (plain, weighted))
        assert (ours == theirs) is same, arm
        facts, changed = (made.networks.protocol_facts(Cell(arm))["loss"] for made in (plain, weighted))
        assert (facts == changed) is same, arm
    assert facts["teacher_weight"] == 1
    assert changed["teacher_weight"] == 2


def test_the_weights_of_methods_are_in_the_configuration(tmp_path):
    mfh.study(TINY, arms=["no-kd", "sp"], out=tmp_path / "shipped", **SHORT)
    assert Run(tmp_path / "shipped").config["methods"]["sp"] == {
        "method": "mfh.methods.sp.SP",
        "label_weight": 1.0,
        "teacher_weight": 3000.0,
        "options": {"student_layers": None, "teacher_layers": None},
    }

    def own(weight):
        method = FunctionMethod(squares, "own")
        method.teacher_weight = weight
        return method

    mfh.study(TINY, arms=["no-kd", own(2.0)], out=tmp_path / "own", **SHORT)
    with pytest.raises(InputError, match=r"was made with methods\.own\.teacher_weight 2\.0, now it is 3\.0"):
        mfh.study(TINY, arms=["no-kd", own(3.0)], out=tmp_path / "own", **SHORT)


def said(caplog, word):
    return [record.getMessage() for record in caplog.records if word in record.getMessage()]


def test_settings_of_kd_that_no_arm_has_are_said_once(caplog, tmp_path):
    settings = {"temperature": 2.0, "label_weight": 0.5}
    with caplog.at_level("WARNING", "mfh"):
        mfh.study(TINY, arms=["no-kd", "sp", "simkd"], num_seeds=2, processes=1, epochs=1, **settings)
    assert len(said(caplog, "no effect")) == 1
    assert "temperature, label_weight: no effect, because no arm is distilled by kd" in said(caplog, "no effect")[0]
    caplog.clear()
    with caplog.at_level("WARNING", "mfh"):
        mfh.study(TINY, arms=["no-kd", "sp", "regular"], **SHORT, **settings)
        assert not said(caplog, "no effect")
        words = ["distill", TINY, "--arm", "sp", "--teacher-weight", "2", "--epochs", "1", "-q"]
        main([*words, "--out", str(tmp_path / "steps")])
    assert said(caplog, "teacher_weight: no effect, because no arm is distilled by kd")


def test_a_method_without_label_loss_says_that_its_weight_has_no_effect(caplog):
    with caplog.at_level("WARNING", "mfh"):
        mfh.study(TINY, arms=["no-kd", "simkd", "fitnets"], weights=[(1.0, 1.0), (0.5, 1.0)], **SHORT)
    assert len(said(caplog, "label_weight")) == 1
    assert "method simkd, which has no label loss beside its own loss" in said(caplog, "label_weight")[0]


@pytest.mark.parametrize("ensemble", ["off", "auto"])
def test_a_study_says_once_what_a_method_needs(caplog, ensemble):
    arms, more = ["no-kd", "dkd", "dkd+soft", "attainable"], {"label_fractions": (0.5, 1.0), "ensemble": ensemble}
    for _ in range(2):  # and the next study again
        caplog.clear()
        with caplog.at_level("WARNING", "mfh"):
            mfh.study(TINY, arms=arms, num_seeds=2, processes=1, epochs=2, **more)
        assert said(caplog, "needs labels") == ["method dkd needs labels: it learns nothing from the pairs without one"]
        assert len(said(caplog, "dkd: with two classes")) == 1
        assert said(caplog, "attainable") == [
            "attainable: the targets are fitted after 5 epochs of warm-up, and epochs is 2, so this is kd; choose at "
            "least 6 epochs, or a shorter warm_up"
        ]


def test_worker_processes_do_not_say_it_again(capfd):
    mfh.study(TINY, arms=["no-kd", "dkd"], num_seeds=2, processes=2, epochs=1, label_fractions=(0.5,), ensemble="off")
    assert "needs labels" not in capfd.readouterr().err  # what this process says goes to pytest


# --- what may be an arm -----------------------------------------------------------------------------------------------


def scaled(batch, scale):
    return scale * squares(batch)


class Scaled:
    def __init__(self, scale):
        self.scale = scale

    def __call__(self, batch):
        return scaled(batch, self.scale)


def test_a_partial_function_and_a_callable_object_are_arms(tmp_path):
    arms = [partial(scaled, scale=3.0), Scaled(3.0), FunctionMethod(lambda batch: scaled(batch, 3.0), "plain")]
    result = mfh.study(TINY, arms=["no-kd", *arms], out=tmp_path / "run", **SHORT)
    for arm in ("scaled", "Scaled"):
        assert rows(result, arm).equals(rows(result, "plain")), arm
    for place, changed in enumerate((partial(scaled, scale=2.0), Scaled(2.0))):
        others = [*arms[:place], changed, *arms[place + 1 :]]
        name = ("scaled", "Scaled")[place]
        with pytest.raises(InputError, match=rf"was made with methods\.{name}\..*; choose another --out"):
            mfh.study(TINY, arms=["no-kd", *others], out=tmp_path / "run", **SHORT)
    again = mfh.study(TINY, arms=["no-kd", *arms], out=tmp_path / "run", **SHORT)
    assert again.frame.equals(result.frame)


class Holding(Method):
    name = "holding"

    def __init__(self, term):
        self.term = term

    def loss(self, batch):
        return self.term(batch)


def test_a_changed_function_that_a_method_holds_is_not_mixed_with_old_cells(tmp_path):
    def by(scale):
        return lambda batch: scale * squares(batch)

    for _ in range(2):  # the same one goes on
        mfh.study(TINY, arms=["no-kd", Holding(by(1.0))], out=tmp_path / "run", **SHORT)
    with pytest.raises(InputError, match=r"was made with methods\.holding\.options\.term .*; choose another --out"):
        mfh.study(TINY, arms=["no-kd", Holding(by(2.0))], out=tmp_path / "run", **SHORT)


def test_a_file_that_is_edited_is_refused_and_not_mixed(file, tmp_path):
    arms = ["no-kd", f"{file}:squares"]
    mfh.study(TINY, arms=arms, out=tmp_path / "run", **SHORT)
    file.write_text(FILE.replace("square().mean()", "abs().mean()"), encoding="utf-8")
    with pytest.raises(InputError, match=r"arms_of_mine.py was edited after this process ran it"):
        mfh.study(TINY, arms=arms, out=tmp_path / "run", **SHORT)


def with_few_labels(count):
    """The tiny task with labels of its first pairs only, one of each class or a single one."""
    task = tiny_task.task(0)
    target = task.train.tensors[2]
    first = [int((target == one).nonzero()[0]) for one in range(2)][:count]
    return task.with_labels(sorted(first))


@pytest.mark.parametrize("count", [1, 2])
def test_a_method_that_remembers_pairs_can_do_with_few_labels_and_many_pairs(count, caplog):
    arms = ["no-kd", Attainable(warm_up=1), "crd", "fitnets+soft", "dkd"]
    with caplog.at_level(logging.WARNING, "mfh"):
        result = mfh.study(with_few_labels(count), arms=arms, **SHORT)
    assert set(result.frame["arm"]) == {"no-kd", "attainable", "crd", "fitnets+soft", "dkd"}
    told = [record.message for record in caplog.records if "needs labels" in record.message]
    assert told == ["method dkd needs labels: it learns nothing from the pairs without one"]


@pytest.mark.parametrize("folds", [20, 60])
def test_a_method_that_needs_many_pairs_is_tried_on_as_many(folds):
    few = {"num_seeds": 1, "processes": 1, "epochs": 2}
    result = mfh.study(tiny_task.task(0), arms=["no-kd", Attainable(warm_up=1, folds=folds)], **few)
    assert set(result.frame["arm"]) == {"no-kd", "attainable"}
    with pytest.raises(InputError, match=r"attainable remembers training pairs .* needs at least 122, got 120"):
        mfh.study(tiny_task.task(0), arms=["no-kd", Attainable(folds=61)], **few)


def test_methods_of_known_outputs_are_tried_on_the_outputs_of_their_own_pairs():
    """The first pairs without a label stand behind all those with one."""
    task, seen = tiny_task.task(0), []
    train = task.train.tensors
    labelled, more = TensorDataset(*(part[:20] for part in train)), TensorDataset(*(part[20:] for part in train[:2]))
    known = torch.arange(120.0)[:, None].expand(120, 2).contiguous()

    def noting(batch):
        seen.append(batch)
        return squares(batch)

    given = replace(task, train=labelled, unlabelled=more, teacher=None, teacher_logits=known)
    mfh.study(given, arms=["no-kd", noting], **SHORT)
    assert seen[0].teacher_logits[:, 0].tolist() == [*range(16), *range(20, 36)]
    assert seen[0].labelled.tolist() == [True] * 16 + [False] * 16


def test_only_outputs_known():
    task = tiny_task.task(0)
    with torch.no_grad():
        known = torch.nn.Linear(8, 2)(task.train.tensors[0])
    given = replace(task, teacher=None, teacher_logits=known)
    with pytest.raises(InputError, match=r"has only its teacher's outputs; .* or methods of logits, not fitnets"):
        mfh.study(given, arms=["no-kd", "fitnets"], **SHORT)
    result = mfh.study(given, arms=["no-kd", squares], **SHORT)
    assert len(rows(result, "squares"))


# --- focus ------------------------------------------------------------------------------------------------------------


class Watching(FitNets):
    """Hints that note the weights of channels."""

    name = "watching"

    def __init__(self, layers=None):
        super().__init__(teacher_layers=layers)
        for name in ("weights", "logits"):
            object.__setattr__(self, name, [])

    def loss(self, batch):
        self.weights.append(batch.channel_weight)
        self.logits.append(batch.teacher_logits)
        return super().loss(batch)


@pytest.mark.parametrize("layers", [None, ("1",)])
def test_a_focus_only_weights_the_channels_of_features(layers):
    method = Watching(layers)
    made = Seed(tiny_task.task(0), 0, Settings.of(epochs=1), methods={"watching": method})
    made.student(Cell("watching", ""))
    plain = method.logits[0]
    assert method.weights[0] is None
    soft = made.saliency("probe", "1").mask("soft").weights
    assert 0 <= soft.min() < soft.max() <= 1
    method.weights.clear()
    method.logits.clear()
    made.student(Cell("watching+soft", "probe"))
    np.testing.assert_allclose(method.weights[0].numpy(), soft / soft.mean(), rtol=1e-5)
    torch.testing.assert_close(method.logits[0], plain)  # the teacher is not masked
    method.weights.clear()
    made.student(Cell("watching+general", "distance", 0.75))
    hard = made.saliency("distance", "1").mask("general", 0.75).weights
    np.testing.assert_allclose(method.weights[0].numpy(), hard / hard.mean(), rtol=1e-5)
    assert set(method.weights[0].tolist()) == {0.0, 4.0}


def test_a_focus_masks_the_teacher_of_a_method_of_logits():
    method = FunctionMethod(squares, "mine")
    made = Seed(tiny_task.task(0), 0, Settings.of(epochs=1), methods={"mine": method})
    student = made.student(Cell("mine+soft", "probe", layer="1"))
    focused = mfh.mask_channels(made.networks.pretrained("teacher").network, made.saliency("probe").mask("soft"))
    task = made.task
    fit = mfh.distill(
        focused,
        made.networks.new("student"),
        task.train,
        task.val,
        method=squares,
        recipe=made.recipe,
        seed=0,
        device="cpu",
    )
    torch.testing.assert_close(
        torch.cat([p.flatten() for p in student.network.parameters()]),
        torch.cat([p.flatten() for p in fit.student.parameters()]),
        rtol=1e-5,
        atol=1e-6,
    )


def test_features_that_no_layer_returns_have_no_scores():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.out = nn.Linear(8, 12), nn.Linear(12, 2)

        def forward(self, x):
            return self.out(torch.relu(self.first(x)))

    task = replace(tiny_task.task(0), teacher=Functional, layer="first")
    with pytest.raises(InputError, match=r"the input of out is no layer's output in Functional, .*teacher_layers"):
        mfh.study(task, arms=["no-kd", "fitnets+soft"], **SHORT)


# --- what is deployed and kept ----------------------------------------------------------------------------------------


class Reused(nn.Module):
    def __init__(self, trunk, modules):
        super().__init__()
        self.trunk, self.project, self.head = trunk, modules["project"], modules["head"]

    def forward(self, x):
        return self.head(self.project(self.trunk(x)))


class Reusing(Method):
    name = "reusing"
    student_layers = teacher_layers = None

    def begin(self, context):
        (layer,) = context.teacher_shapes
        project = nn.Linear(context.student_shape[0], context.teacher_shape[0])
        return nn.ModuleDict({"project": project, "head": context.teacher_tails[layer]})

    def loss(self, batch):
        return (batch.modules["project"](batch.student_feature) - batch.teacher_feature).square().mean()

    def deploy(self, student, modules):
        return Reused(student[:-1], modules)


def test_what_is_deployed_is_kept_and_found_again(tmp_path):
    def made():
        settings, folder = Settings.of(epochs=2), SeedFolder(tmp_path, 0)
        return Seed(tiny_task.task(0), 0, settings, folder, keep_students=True, methods={"reusing": Reusing()})

    cell = Cell("reusing")
    first = made().student(cell)
    assert isinstance(first.network, Reused)
    (measured,) = made().measure([cell])
    again = made()
    found = again.student(cell)
    assert isinstance(found.network, Reused)
    assert fingerprint(found.network) == first.frozen.fingerprint
    test = next(row["value"] for row in measured if (row["split"], row["metric"]) == ("test", "accuracy"))
    assert test == again.evaluate(found.network, "test", "student")


# --- from the command line --------------------------------------------------------------------------------------------


def test_a_file_is_an_arm_on_the_command_line(file, tmp_path, capsys):
    common = ["--epochs", "1", "-q"]
    words = ["study", TINY, "--arms", "no-kd", "regular", "fitnets", f"{file}:squares", "--num-seeds", "2"]
    main([*words, "--processes", "1", "--out", str(tmp_path / "run"), *common])
    assert "squares" in capsys.readouterr().out
    main(["distill", TINY, "--arm", f"{file}:Tagged+soft", "--out", str(tmp_path / "steps"), *common])
    assert "distilled-tagged+soft-probe: validation accuracy" in capsys.readouterr().out
    assert (tmp_path / "steps/seed-0/distilled-tagged+soft-probe.safetensors").is_file()
