"""The student that a study keeps, recommends and exports."""

import csv
import gc
import json
import shlex
import subprocess
import sys
from itertools import permutations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import fake_study
import mfh
import tiny_task
from mfh.cli import main
from mfh.errors import InputError
from mfh.methods import SimKD
from mfh.reporting.page import Command
from mfh.reporting.student import student_lines, student_section
from mfh.studies.folder import Run, SeedFolder
from mfh.studies.grid import Cell
from mfh.studies.recommended import PREFERRED, Students, origins
from mfh.studies.stats import mean_interval
from mfh.tasks.finding import TaskSource

TINY = str(Path(tiny_task.__file__))
ARMS = ["no-kd", "regular", "longer", "aligned-student"]
FEW = {"arms": ARMS, "num_seeds": 3, "processes": 1}


def kept(folder):
    """Variant -> seed and weights of the student that is kept."""
    run = Run(folder)
    found = {}
    for arm in ARMS:
        weights, facts = run.read_student(Cell(arm))
        found[arm] = facts["seed"], {name: value.tolist() for name, value in weights.items()}
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return mfh.study(TINY, out=tmp_path_factory.mktemp("study") / "run", **FEW)


# --- keeping ----------------------------------------------------------------------------------------------------------


def test_the_best_seed_of_each_variant_is_kept_whatever_the_processes(finished, tmp_path):
    values = finished.by_seed("val")
    assert values["regular"].nunique() > 1  # there is a choice
    found = kept(finished.folder)
    assert {arm: seed for arm, (seed, _) in found.items()} == {arm: values[arm].idxmax() for arm in ARMS}
    two = mfh.study(TINY, out=tmp_path / "two", **FEW | {"processes": 2})
    assert kept(two.folder) == found


def test_equal_students_are_kept_by_the_lowest_seed_in_any_order(tmp_path):
    offered = [(0, 0.5), (1, 0.7), (2, 0.7), (3, 0.6)]
    for number, order in enumerate(permutations(offered)):
        run = Run(tmp_path / str(number))
        for seed, value in order:
            facts = {"seed": seed, "validation": value, "made_with": {}}
            run.offer_student(Cell("soft"), None, lambda seed=seed: {"weight": torch.full((1,), seed)}, facts, 1)
        weights, facts = run.read_student(Cell("soft"))
        assert (facts["seed"], int(weights["weight"])) == (1, 1)
    run = Run(tmp_path / "errors")
    for seed, value in offered:  # where less is better
        facts = {"seed": seed, "validation": value, "made_with": {}}
        run.offer_student(Cell("soft"), 0.1, lambda seed=seed: {"weight": torch.full((1,), seed)}, facts, -1)
    assert run.student_facts(Cell("soft"), 0.1)["seed"] == 0
    assert run.student_facts(Cell("soft"), 0.2) is run.student_facts(Cell("soft")) is None


def test_a_study_that_kept_none_trains_them_when_asked_to(finished, tmp_path, capsys):
    none = mfh.study(TINY, out=tmp_path / "run", **FEW, keep_students="none")
    assert none.frame.equals(finished.frame)
    assert not (tmp_path / "run" / "students").exists()
    assert student_lines(Run(none.folder)) == []
    with pytest.raises(SystemExit) as end:
        main(["export", str(none.folder), "--arm", "regular"])
    assert end.value.code == 2
    assert "kept no student; give the command of the run again with --keep-students best" in capsys.readouterr().err
    assert none.best.arm in ARMS  # what is recommended is known without the student
    again = mfh.study(TINY, out=tmp_path / "run", **FEW)
    assert again.frame.equals(finished.frame)
    assert kept(again.folder) == kept(finished.folder)


def test_a_lost_student_is_trained_again(finished, tmp_path):
    result = mfh.study(TINY, out=tmp_path / "run", **FEW)
    run, before = Run(result.folder), kept(result.folder)
    run.student_file(Cell("regular")).unlink()
    other = run.read_student(Cell("longer"))
    run.write_student(Cell("longer"), None, other[0], other[1] | {"seed": 7})  # as if another seed had been best
    mfh.study(TINY, out=tmp_path / "run", **FEW)
    assert kept(result.folder) == before


def test_an_interrupted_study_keeps_the_same_students(finished, tmp_path, monkeypatch):
    write, count = SeedFolder.write_rows, 0

    def interrupted(*arguments):  # after the student was kept, before its measurements are
        nonlocal count
        count += 1
        if count in (2, 6, 9):
            raise KeyboardInterrupt
        write(*arguments)

    monkeypatch.setattr(SeedFolder, "write_rows", interrupted)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            mfh.study(TINY, out=tmp_path / "run", **FEW)
    mfh.study(TINY, out=tmp_path / "run", **FEW)
    assert kept(tmp_path / "run") == kept(finished.folder)


def test_all_students_are_kept_on_request(tmp_path):
    mfh.study(TINY, out=tmp_path / "run", **FEW | {"num_seeds": 2}, keep_students="all")
    for seed in (0, 1):
        assert (tmp_path / "run" / f"seed-{seed}" / "distilled-regular.safetensors").is_file()
    with pytest.raises(InputError, match="keep_students is 'some'"):
        mfh.study(TINY, keep_students="some")


def test_more_seeds_may_have_a_better_student(tmp_path):
    few = FEW | {"num_seeds": 1, "arms": ["no-kd", "regular"]}
    mfh.study(TINY, out=tmp_path / "run", **few)
    more = mfh.study(TINY, out=tmp_path / "run", **few | {"add_seeds": 2})
    best = more.by_seed("val")["regular"].idxmax()
    assert Run(more.folder).student_facts(Cell("regular"))["seed"] == best


def test_each_label_fraction_has_its_own(tmp_path, capsys):
    result = mfh.study(
        TINY, out=tmp_path / "run", arms=["no-kd", "regular"], num_seeds=2, label_fractions=[0.5, 1.0], processes=1
    )
    for fraction in (0.5, 1.0):
        best = result.by_seed("val", fraction)["no-kd"].idxmax()
        assert Run(result.folder).student_facts(Cell("no-kd"), fraction)["seed"] == best
        assert result.best_at(fraction).fraction == fraction
        assert result.best_at(fraction).student(torch.zeros(1, 7)).shape == (1, 2)
    assert result.best.fraction == 1.0
    with pytest.raises(InputError, match=r"label fraction is 0.3; .* has 0.5, 1"):
        result.best_at(0.3)
    main(["export", str(result.folder), "--fraction", "0.5", "--format", "safetensors"])
    assert "with 50 % of the labels" in capsys.readouterr().out


# --- what is recommended ----------------------------------------------------------------------------------------------


def recommended(folder, gains, **changes):
    frame = fake_study.rows(gains=gains, **changes)
    source = TaskSource(lambda seed: tiny_task.task(seed), True)
    return Students(Run(fake_study.write(folder, frame)), source, mfh.Settings()).best()


def test_the_best_arm_is_recommended_where_it_gains_more_than_its_standard_error(tmp_path):
    assert recommended(tmp_path / "gain", {"no-kd": 0.0, "regular": 0.02, "soft": 0.06}).arm == "soft"
    nothing = recommended(tmp_path / "nothing", {"no-kd": 0.0, "regular": -0.05, "soft": -0.03})
    assert nothing.arm == "no-kd"
    assert "No arm is preferred on validation data. soft is the best by validation: \u2212" in nothing.why
    assert "against no-kd, the best control" in nothing.why


def test_a_recommendation_says_that_the_finding_asks_for_more(tmp_path):
    found = recommended(tmp_path / "gain", {"no-kd": 0.0, "regular": 0.06})
    assert found.why.endswith(PREFERRED)
    nothing = recommended(tmp_path / "nothing", {"no-kd": 0.0, "regular": -0.05})
    assert PREFERRED not in nothing.why


def test_no_interval_goes_beyond_100_percent(tmp_path):
    frame = fake_study.rows(gains={"no-kd": 0.0, "soft": 0.05})
    measured = frame["metric"] == "accuracy"
    seeds = frame.loc[measured, "seed"]
    frame.loc[measured, "value"] = (1.0 - 0.02 * (seeds == seeds.max())) - 0.1 * (frame.loc[measured, "arm"] == "no-kd")
    run = Run(fake_study.write(tmp_path / "run", frame))
    best = Students(run, TaskSource(lambda seed: tiny_task.task(seed), True), mfh.Settings()).of_arm("soft")
    values = best._variant.student
    assert mean_interval(values.to_numpy())[2] > 100
    best.__dict__["_facts"] = {"seed": int(values.index[0])}
    assert f"mean {values.mean():.1f} (" in best.report()
    assert " to 100.0) %, with a 95 % interval" in best.report()


def test_a_control_that_gains_as_much_leaves_nothing_to_recommend(tmp_path):
    found = recommended(tmp_path / "run", {"no-kd": 0.0, "soft": 0.05, "longer": 0.09})
    assert found.arm == "no-kd"
    assert "against longer, the best control" in found.why
    assert found.gain is None
    assert recommended(tmp_path / "alone", {"no-kd": 0.0, "longer": 0.1}).arm == "no-kd"


def test_what_select_chose_stays_chosen(tmp_path):
    folder = fake_study.write(tmp_path / "run", fake_study.rows(gains={"no-kd": 0.0, "regular": 0.05, "aligned": 0.06}))
    students = Students(Run(folder), TaskSource(tiny_task.task, True), mfh.Settings())
    assert students.best().arm == "aligned"
    choice = {"arm": "regular", "score": "", "ratio": None, "layer": "", "weights": None, "recommended": "regular"}
    Run(folder).write_selection(choice | {"validation_gain": 0.05, "standard_error": 0.0, "candidates": 2})
    assert students.best().arm == "regular"
    assert students.best().gain.mean_difference > 0


def test_a_result_has_its_student_ready(finished):
    best = finished.best
    assert not best.student.training
    assert repr(best) == f"Recommended(arm={best.arm!r})"
    values = finished.by_seed("test")
    accuracy = mfh.evaluate(best.student, tiny_task.task(best.seed).test, "student")
    assert accuracy == values.loc[best.seed, best.arm]
    assert f"test accuracy {100 * accuracy:.1f} %" in best.report()
    assert "All 3 seeds of the arm" in best.report()


def test_a_result_without_a_folder_has_a_student_as_long_as_it_lives():
    result = mfh.study(TINY, **FEW | {"num_seeds": 1, "arms": ["no-kd", "regular"]})
    folder = result.students.run.folder
    assert result.folder is None
    assert result.best.student(torch.zeros(1, 7)).shape == (1, 2)
    assert folder.is_dir()
    del result
    gc.collect()
    assert not folder.exists()


def test_a_changed_task_is_refused(finished):
    def other(seed=0):
        return tiny_task.task(seed + 100)

    students = Students(finished.students.run, TaskSource(other, True), mfh.Settings())
    with pytest.raises(InputError, match=r"was made with data\.train .*; use the task and data that the study had"):
        _ = students.of_arm("regular").student


def test_a_damaged_student_is_refused(tmp_path):
    result = mfh.study(TINY, out=tmp_path / "run", **FEW | {"num_seeds": 1, "arms": ["no-kd", "regular"]})
    path = Run(result.folder).student_file(Cell("regular"))
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="was changed after it was written"):
        _ = result.students.of_arm("regular").student
    path.write_bytes(Run(result.folder).student_file(Cell("no-kd")).read_bytes())
    with pytest.raises(InputError, match="it seems exchanged"):
        _ = result.students.of_arm("regular").student


# --- choosing afterwards ----------------------------------------------------------------------------------------------


def test_a_study_without_a_choice_can_choose_later(tmp_path):
    first = mfh.study(TINY, out=tmp_path / "run", **FEW)
    before = (tmp_path / "run" / "results.csv").read_bytes()
    mfh.study(TINY, out=tmp_path / "run", **FEW, select=True)
    assert (tmp_path / "run" / "results.csv").read_bytes() == before  # the test split was read for all
    choice = Run(tmp_path / "run").selection
    values = first.by_seed("val")
    assert choice["arm"] == values[["regular", "aligned-student"]].mean().idxmax()
    control = values[["no-kd", "longer"]].mean().idxmax()
    assert choice["control"] == control
    assert choice["validation_gain"] == pytest.approx((values[choice["arm"]] - values[control]).mean())
    note = "The test split was read for all arms before this choice"
    assert note in mfh.report(tmp_path / "run").read_text(encoding="utf-8")
    mfh.study(TINY, out=tmp_path / "run", **FEW | {"num_seeds": 4}, select=True)
    mfh.study(TINY, out=tmp_path / "run", **FEW | {"num_seeds": 4})  # both commands resume
    assert Run(tmp_path / "run").selection == choice
    mfh.study(TINY, out=tmp_path / "chosen", **FEW, select=True)
    assert note not in mfh.report(tmp_path / "chosen").read_text(encoding="utf-8")
    with pytest.raises(InputError, match="select true, now it is false"):
        mfh.study(TINY, out=tmp_path / "chosen", **FEW)


# --- from a stranger's arrays to a file that runs without mfh --------------------------------------------------------

STRANGER = """
import numpy as np
generator = np.random.default_rng(5)
hidden = generator.normal(size=(450, 3))
sound = np.concatenate([hidden, generator.normal(size=(450, 4))], 1) * 5 + 300
movement = np.concatenate([hidden + 0.5 * generator.normal(size=(450, 3)), generator.normal(size=(450, 2))], 1)
movement = movement * [1, 10, 1000, 1, 0.01] + [0, 0, 5000, -7, 0]
names = np.array(["still", "walk", "run"])[np.digitize(hidden.sum(1), [-0.8, 0.8])]
split = np.array((["train"] * 3 + ["val", "test"]) * 90)
np.savez("pairs.npz", teacher=sound, student=movement, target=names, split=split)
"""
WITHOUT_MFH = """
import json, sys
sys.modules["mfh"] = None
import numpy as np, onnxruntime, torch
file = np.load("pairs.npz")
test = file["split"] == "test"
raw, truth = file["student"][test].astype("float32"), file["target"][test]
extra = {"mfh.json": ""}
program = torch.export.load("runs/pairs/student.pt2", extra_files=extra).module()
session = onnxruntime.InferenceSession("runs/pairs/student.onnx")
facts = json.loads(extra["mfh.json"])
assert facts == json.loads(session.get_modelmeta().custom_metadata_map["mfh.json"])
classes = np.array(facts["classes"])
found = {"facts": facts}
for size in (1, 7, 64):
    parts = [raw[start : start + size] for start in range(0, len(raw), size)]
    runs = {
        "pt2": [program(torch.from_numpy(part)).detach().numpy() for part in parts],
        "onnx": [session.run(None, {"input": part})[0] for part in parts],
    }
    for name, logits in runs.items():
        logits = np.concatenate(logits)
        accuracy = float((classes[logits.argmax(1)] == truth).mean())
        found[f"{name}-{size}"] = [max(map(len, parts)), accuracy, logits.tolist()]
try:
    import mfh
except ImportError:
    print(json.dumps(found))
"""


def test_two_commands_lead_from_a_strangers_arrays_to_a_file_that_runs_without_mfh(tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    subprocess.run([sys.executable, "-I", "-c", STRANGER], check=True)
    few = ["--num-seeds", "2", "--epochs", "3", "--processes", "1", "-q"]
    main(["study", "pairs.npz", "--arms", "no-kd", "regular", "longer", *few])
    run = Run(tmp_path / "runs" / "pairs")
    assert "export the recommended one: mfh export runs/pairs" in " ".join(capsys.readouterr().out.split())
    assert "mfh export" in (run.folder / "report.html").read_text(encoding="utf-8")
    for suffix in ("pt2", "onnx"):
        main(["export", "runs/pairs", "--arm", "regular", "--format", suffix])
    out = capsys.readouterr().out
    assert "parameters" in out
    assert "ms for one sample on one core" in out
    assert f"Student: runs/pairs/student.{suffix}" in (run.folder / "report.html").read_text(encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-I", "-c", WITHOUT_MFH], capture_output=True, text=True, check=False, timeout=900
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    facts = found.pop("facts")
    best = Students.of(run).of_arm("regular")
    with (run.folder / "results.csv").open(newline="") as file:
        (value,) = {
            float(row["value"])
            for row in csv.DictReader(file)
            if (row["arm"], row["seed"], row["split"], row["metric"]) == ("regular", str(best.seed), "test", "accuracy")
        }
    with torch.no_grad():
        expected = best.student(mfh.tasks.finding.find_task("pairs.npz").make(0).test.tensors[1])
    assert 0.4 < value < 1  # it has learned something
    assert len(found) == 6
    assert {size for size, _, _ in found.values()} == {1, 7, 64}
    for _, accuracy, logits in found.values():
        assert accuracy == value
        assert torch.allclose(torch.tensor(logits), expected, rtol=0, atol=1e-5)
    assert (run.folder / "student.onnx.md").is_file()
    card = (run.folder / "student.pt2.md").read_text(encoding="utf-8")
    for text in (
        f"seed {best.seed}",
        "'pairs'",
        f"test accuracy {100 * value:.1f} %",
        "95 % interval",
        "0. run",
        "test ",
    ):
        assert text in card
    digest = best.students.run.config["identity"]["data"]["test"]
    assert card.count(digest) == 1
    assert (facts["task"], facts["arm"], facts["seed"]) == ("pairs", "regular", str(best.seed))
    assert facts["classes"] == ["run", "still", "walk"]
    assert facts["mfh_version"] == mfh.__version__
    assert digest in facts["data"]
    assert "95 % interval" in facts["metric"]


def test_a_student_is_exported_from_another_folder_than_that_of_the_study(tmp_path, monkeypatch, capsys):
    """Relative paths of task and method are found again, whether the export starts elsewhere or all has moved."""
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir(), elsewhere.mkdir()
    monkeypatch.chdir(home)
    subprocess.run([sys.executable, "-I", "-c", STRANGER], check=True)
    (home / "scaled.py").write_text(SCALED)
    few = ["--num-seeds", "1", "--epochs", "2", "--processes", "1", "-q"]
    main(["study", "pairs.npz", "--arms", "no-kd", "scaled.py:Scaled", *few])
    monkeypatch.chdir(elsewhere)
    for arm in ("no-kd", "scaled"):
        main(["export", str(home / "runs" / "pairs"), "--arm", arm, "--out", f"{arm}.pt2"])
        assert (elsewhere / f"{arm}.pt2").is_file()
    assert str(home) not in (home / "runs" / "pairs" / "report.html").read_text(encoding="utf-8")
    moved = home.rename(tmp_path / "moved")
    with pytest.raises(SystemExit):
        main(["export", str(moved / "runs" / "pairs"), "--arm", "no-kd"])
    assert "or say with --task where it is" in capsys.readouterr().err
    monkeypatch.chdir(moved)
    main(["export", "runs/pairs", "--arm", "scaled"])
    assert (moved / "runs" / "pairs" / "student.pt2").is_file()


class Parts(nn.Module):
    """Reads a mapping of a vector and a tuple."""

    def __init__(self):
        super().__init__()
        self.vector, self.other = nn.Linear(4, 3), nn.Linear(2, 3)

    def forward(self, x):
        return self.vector(x["vector"]) + self.other(x["parts"][0])


class InParts(torch.utils.data.Dataset):
    """60 items whose student input is nested."""

    def __init__(self, seed):
        generator = torch.Generator().manual_seed(seed)
        self.inputs = torch.randn(60, 6, generator=generator)

    def __len__(self):
        return 60

    def __getitem__(self, index):
        row = self.inputs[index]
        return row, {"vector": row[:4], "parts": (row[4:],)}, (row[0] > 0).long() + (row[4] > 0).long()


def task_of(kind):
    generator = np.random.default_rng(0)
    inputs, noise = generator.normal(size=(100, 6)), generator.normal(size=(100, 2, 20))
    if kind == "nested":
        parts = {"train": InParts(0), "val": InParts(1), "test": InParts(2)}
        return mfh.Task(
            "nested", lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), Parts, "1", **parts
        )
    students = {
        "series, regression": (inputs[:, :2, None] + 0.1 * noise, inputs[:, :2]),
        "images, several labels": (
            np.repeat(inputs, 16, axis=1).reshape(100, 6, 4, 4),
            (inputs[:, :3] > 0).astype(int),
        ),
    }
    student, target = students[kind]
    return mfh.Task.from_arrays(teacher=inputs, student=student, target=target, name=kind)


@pytest.mark.parametrize("kind", ["nested", "series, regression", "images, several labels"])
def test_students_of_every_kind_of_input_and_problem_are_exported(kind, tmp_path):
    task = task_of(kind)
    arms = ["no-kd", "regular"]
    result = mfh.study(task, out=tmp_path / "run", arms=arms, num_seeds=1, epochs=2, processes=1)
    made = result.students.of_arm("regular").export(tmp_path / "student.pt2")
    chosen = result.students.of_arm("regular")
    drawn = task if task.resplit is None else task.resplit(chosen.seed)
    value = mfh.evaluate(_Loaded(made.path), drawn.test, "student", problem=task.problem)
    assert value == result.by_seed("test").loc[chosen.seed, "regular"]
    card = made.card.read_text(encoding="utf-8")
    assert task.problem.metric.scale.words in card
    assert ("`parts.0`: float32, (N, 2)" in card) == (kind == "nested")
    extra = {"mfh.json": ""}
    torch.export.load(made.path, extra_files=extra)
    assert not task.class_names
    assert "classes" not in json.loads(extra["mfh.json"])


class _Loaded(nn.Module):
    def __init__(self, path):
        super().__init__()
        self.program = torch.export.load(path).module()

    def eval(self):  # exported programs have no modes
        return self

    def forward(self, x):
        return self.program(x)


def test_what_was_exported_ends_the_report_until_more_is_measured(tmp_path):
    few = FEW | {"num_seeds": 1, "arms": ["no-kd", "regular"]}
    result = mfh.study(TINY, out=tmp_path / "run", **few)
    assert "mfh export" in student_lines(Run(result.folder))[0]
    made = result.best.export(format="safetensors")
    assert made.path == tmp_path / "run" / "student.safetensors"
    told = [result.best.report(), *made.lines]
    assert student_lines(Run(result.folder)) == told
    section = student_section(Run(result.folder))
    code = told.index("Load it without mfh:") + 1
    assert (section.title, section.blocks[:-1]) == ("Take it home", told[:code])
    assert section.blocks[-1] == Command("\n".join(told[code:]))  # what safetensors need, as code
    mfh.study(TINY, out=tmp_path / "run", **few)
    assert student_lines(Run(result.folder)) == told
    mfh.study(TINY, out=tmp_path / "run", **few | {"num_seeds": 2})
    assert "mfh export" in student_lines(Run(result.folder))[0]


def test_a_card_says_what_the_student_learned_from(tmp_path):
    said = {
        "no-kd": "none; the student learned from labels",
        "aligned-student": "one that was trained jointly with the student",
        "regular": "the pretrained teacher; test accuracy ",
        "teacher-shuffled": "the pretrained teacher, its outputs shuffled over all pairs; test accuracy ",
        "self-training": "the student trained on labels alone",
        "soft": "the pretrained teacher, masked at the layer 1 (soft); test accuracy ",
    }
    result = mfh.study(TINY, out=tmp_path / "run", **FEW | {"num_seeds": 1, "arms": list(said)})
    for arm, words in said.items():
        card = result.students.of_arm(arm).export(tmp_path / f"{arm}.safetensors").card.read_text(encoding="utf-8")
        assert f"* **Teacher:** {words}" in card


def test_the_last_lines_load_the_student_without_mfh(tmp_path):
    result = mfh.study(TINY, out=tmp_path / "run", **FEW | {"num_seeds": 1, "arms": ["no-kd", "regular"]})
    made = result.best.export()
    code = made.lines[made.lines.index("Load it without mfh:") + 1 :]
    inputs = torch.randn(7, 7)
    found = {"x": inputs.double().numpy()}
    exec("\n".join(code), found)  # with the file's own path
    with torch.no_grad():
        assert torch.allclose(found["logits"], result.best.student(inputs), atol=1e-5)
    assert student_section(Run(result.folder)).blocks[-1] == Command("\n".join(code))
    page = mfh.report(result.folder).read_text(encoding="utf-8")
    assert 'aria-label="Code">import json\nimport torch\n' in page
    text = mfh.report(result.folder, format="md").read_text(encoding="utf-8")
    assert "\n    import torch\n    extra = {" in text


def test_a_student_of_an_object_of_python_is_exported_there(tmp_path):
    few = FEW | {"num_seeds": 1, "arms": ["no-kd", SimKD(factor=4)]}
    result = mfh.study(TINY, out=tmp_path / "run", **few)
    assert result.students.of_arm("simkd").export(tmp_path / "student.pt2").path.is_file()
    with pytest.raises(InputError, match=r"other options than simkd has here, .* result\.students\.of_arm"):
        Students.of(result.folder).of_arm("simkd").export(tmp_path / "other.pt2")
    with pytest.raises(InputError, match=r"has no config\.json; give a run in it: .*run$"):
        Students.of(tmp_path)


def test_the_report_of_a_task_made_in_python_says_how_to_export_there(tmp_path, capsys):
    inputs, target = np.random.default_rng(0).normal(size=(60, 4)), np.arange(60) % 2
    task = mfh.Task.from_arrays(teacher=inputs, student=inputs, target=target)
    few = {"num_seeds": 1, "processes": 1, "epochs": 1}
    result = mfh.study(task, arms=["no-kd", "regular"], out=tmp_path / "run", **few)
    run = Run(result.folder)
    words, line = student_section(run).blocks
    assert words.startswith(
        "The task was made in Python, where this writes the recommended student as a file. An arm is"
    )
    assert line == Command('result.best.export("student.pt2")')
    assert "mfh export" not in student_lines(run)[0]
    # A file with the same arrays makes the same task, whatever its name.
    np.savez(tmp_path / "pairs.npz", teacher=inputs, student=inputs, target=target)
    main(["export", str(run.folder), "--arm", "regular", "--task", str(tmp_path / "pairs.npz"), "-q"])
    assert (run.folder / "student.pt2").is_file()
    np.savez(tmp_path / "pairs.npz", teacher=inputs + 1, student=inputs, target=target)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["export", str(run.folder), "--arm", "regular", "--task", str(tmp_path / "pairs.npz"), "-q"])
    assert "was made with data.train" in capsys.readouterr().err


def test_a_run_that_cannot_be_exported_says_why(finished, tmp_path, capsys):
    def refused(*words):
        with pytest.raises(SystemExit) as end:
            main(["export", *map(str, words)])
        assert end.value.code == 2
        return capsys.readouterr().err

    folder = finished.folder
    assert "arm 'regulr' was not run" in refused(folder, "--arm", "regulr")
    assert "close names: 'regular'" in refused(folder, "--arm", "regulr")
    assert "student.pth ends in '.pth'; choose pt2, onnx, safetensors" in refused(
        folder, "--out", tmp_path / "student.pth"
    )
    assert "missing is no folder; make it" in refused(folder, "--out", tmp_path / "missing" / "student.pt2")
    assert "has no others: it used all labels" in refused(folder, "--fraction", "0.5")
    assert "is no folder" in refused(tmp_path / "nothing")
    assert "the task of" in refused(folder, "--task", "digts")
    by_hand = mfh.study(lambda: tiny_task.task(), out=tmp_path / "object", **FEW | {"num_seeds": 1})
    assert "does not say where its task comes from" in refused(by_hand.folder)
    assert not list(tmp_path.glob("*.pt2"))
    main(["export", str(by_hand.folder), "--arm", "no-kd", "--task", TINY, "--format", "safetensors"])
    assert by_hand.best.export(tmp_path / "own.safetensors").path.is_file()
    steps = tmp_path / "steps"
    main(["pretrain", TINY, "--out", str(steps), "-q"])
    capsys.readouterr()
    assert "keeps no student to export; give the folder of a study" in refused(steps)


def test_linear_models_leave_no_network(tmp_path):
    frame = fake_study.rows(gains={"no-kd": 0.0, "linear": 0.1, "soft": 0.05})
    students = Students(
        Run(fake_study.write(tmp_path / "run", frame)), TaskSource(tiny_task.task, True), mfh.Settings()
    )
    with pytest.raises(InputError, match="leaves no network to export"):
        students.of_arm("linear")
    with pytest.raises(InputError, match="kept no student; give the command of the run again"):
        _ = students.best().student


def test_no_arm_without_a_comparison(tmp_path):
    frame = fake_study.rows(gains={"regular": 0.05})
    students = Students(
        Run(fake_study.write(tmp_path / "run", frame)), TaskSource(tiny_task.task, True), mfh.Settings()
    )
    with pytest.raises(InputError, match="has no arm no-kd to compare with") as refused:
        students.best()
    assert "choose an arm: result.students.of_arm('regular') in Python, mfh export RUN --arm regular" in str(
        refused.value
    )
    assert str(tmp_path) not in str(refused.value)
    result = mfh.StudyResult(pd.DataFrame(), True)
    with pytest.raises(InputError, match="belongs to no run"):
        _ = result.best


def test_a_study_without_no_kd_says_at_its_start_and_end_what_follows(tmp_path, caplog):
    few = FEW | {"num_seeds": 1}
    result = mfh.study(TINY, out=tmp_path / "run", **few | {"arms": ["longer", "regular"]})
    (warning,) = [record.message for record in caplog.records if "no-kd" in record.message]
    assert warning == "without the arm no-kd there is nothing to compare with, and the study can recommend no student"
    with pytest.raises(InputError, match="so it recommends none; choose an arm: "):
        _ = result.best
    run = Run(result.folder)
    section = student_section(run)
    assert section.blocks[0] == "This command writes the student of regular as a file."
    assert student_lines(run)[0].endswith(f"export that of regular: {section.blocks[1].text}")
    main(shlex.split(section.blocks[1].text)[1:])
    assert run.exported["arm"] == "regular"
    caplog.clear()
    mfh.study(TINY, **few | {"arms": ["no-kd", "regular"]})
    assert "no-kd" not in caplog.text


def test_where_task_and_methods_come_from_is_noted():
    assert origins("digits", {}) == origins(Path("digits"), {}) == {"source": "digits"}
    methods = {"mine": "mine.py:Mine", "own": lambda batch: batch}
    assert origins(tiny_task.task, methods) == {"source": "tiny_task:task", "methods": {"mine": "mine.py:Mine"}}
    assert origins(lambda: None, {}) == origins(tiny_task.task(), {}) == {}


def test_a_student_of_a_method_in_a_file_is_found_with_what_the_method_deploys(tmp_path):
    (tmp_path / "scaled.py").write_text(SCALED)
    result = mfh.study(
        TINY, arms=["no-kd", f"{tmp_path / 'scaled.py'}:Scaled"], num_seeds=1, out=tmp_path / "run", processes=1
    )
    student = Students.of(tmp_path / "run").of_arm("scaled").student
    assert type(student).__name__ == "Sequential"
    measured = result.by_seed()["scaled"]
    made = tiny_task.task(0)
    assert mfh.evaluate(student, made.test, role="student", problem=made.problem) == measured[0]
    assert result.students.of_arm("scaled").seed == 0


SCALED = """
from torch import nn

import mfh


class Scaled(mfh.methods.Method):
    name = "scaled"

    def begin(self, context):
        return nn.Linear(context.num_classes, context.num_classes)

    def loss(self, batch):
        return (batch.modules(batch.student_logits) - batch.teacher_logits).square().mean()

    def deploy(self, student, modules):
        return nn.Sequential(student, modules)
"""
