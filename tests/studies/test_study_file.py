"""study.toml: a whole study in one file."""

from pathlib import Path

import pytest

import mfh
import tiny_task
from mfh.cli import main
from mfh.errors import InputError
from mfh.studies.settings import Settings
from mfh.studies.study_file import read_study, study_text, told_settings

TINY = str(Path(tiny_task.__file__))
MINE = """
class Mine:
    name = "mine"
    scale = 2.0

    def loss(self, batch):
        return self.scale * (batch.student_logits - batch.teacher_logits).square().mean()
"""


def test_a_run_folder_keeps_a_file_that_repeats_it(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    arms = ["no-kd", "regular", "soft", "mine.py:Mine", "mine+soft"]
    first = mfh.study(TINY, arms=arms[:4], num_seeds=2, first_seed=3, epochs=2, processes=1, out="first")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # paths do not depend on the folder
    again = mfh.study(tmp_path / "first" / "study.toml", out=tmp_path / "again")
    assert again.frame.equals(first.frame)
    assert (tmp_path / "again/study.toml").read_text() == (tmp_path / "first/study.toml").read_text()
    main(["study", str(tmp_path / "first/study.toml"), "--num-seeds", "1", "--out", "fewer", "--quiet"])
    text = Path("fewer/study.toml").read_text()
    assert "num_seeds = 1\n" in text
    assert "first_seed = 3\n" in text
    assert "epochs = 2\n" in text


OTHER = """
task = {task!r}
arms = ["no-kd", "regular"]
scores = ["agreement"]
num_seeds = 2
first_seed = 7
select = true
[settings]
epochs = 1
keep_students = "all"
threads = 2
permutations = 3
ensemble = "off"
balanced_sampling = true
augment = true
set = {{labels = "50", width = "3"}}
"""


@pytest.fixture
def studied(tmp_path, monkeypatch):
    """A study file, and what `find_task`, the design and the settings are in a study of it."""
    seen = {}

    def noted(out, task, design, settings, progress, finish):
        seen.update(task=task, design=design, settings=settings)
        raise InputError("seen")

    monkeypatch.setattr("mfh.studies.running._study_in", noted)
    monkeypatch.chdir(tmp_path)
    Path("other.toml").write_text(OTHER.format(task=TINY))

    def run(*words, **given):
        if words:
            with pytest.raises(SystemExit):
                main(["study", "other.toml", *words, "--quiet"])
        else:
            with pytest.raises(InputError, match="seen"):
                mfh.study("other.toml", **given)
        return seen

    return run


GIVEN_IN_PYTHON = {
    "scores": ["distance"],
    "num_seeds": 5,
    "first_seed": 0,
    "select": False,
    "keep_students": "best",
    "threads": 1,
    "permutations": "auto",
    "ensemble": "auto",
    "balanced_sampling": False,
    "augment": False,
    "set": {"labels": "100"},
}
GIVEN_IN_WORDS = (
    *("--scores", "distance", "--num-seeds", "5", "--seed=0", "--no-select", "--keep-students", "best"),
    *("--threads=1", "--permutations", "auto", "--ensemble", "auto", "--no-balanced-sampling", "--no-augment"),
    *("--set", "labels=100"),
)


@pytest.mark.parametrize("how", ["words", "keywords", "settings"])
def test_what_is_given_beside_a_file_counts_even_where_it_is_the_default(how, studied):
    if how == "words":
        seen = studied(*GIVEN_IN_WORDS)
    elif how == "keywords":
        seen = studied(**GIVEN_IN_PYTHON)
    else:
        names = ("scores", "num_seeds", "first_seed", "select")
        settings = Settings.of(**{name: value for name, value in GIVEN_IN_PYTHON.items() if name not in names})
        seen = studied(**{name: GIVEN_IN_PYTHON[name] for name in names}, settings=settings)
    design, settings = seen["design"], seen["settings"]
    assert design.arms == ("no-kd", "regular")
    assert (design.scores, design.num_seeds, design.first_seed, design.select) == (("distance",), 5, 0, False)
    assert (settings.keeping.keep_students, settings.execution.threads, settings.execution.ensemble) == (
        "best",
        1,
        "auto",
    )
    assert settings.scoring.permutations == "auto"
    assert settings.training.epochs == 1
    assert settings.training.changes()["balanced_sampling"] is False
    assert not settings.task.augment
    assert set(settings.task.set) == {"labels=100", "width=3"}


@pytest.mark.parametrize("words", [(), ("--add-seeds", "1")], ids=["keywords", "words"])
def test_what_is_not_given_beside_a_file_stays(words, studied):
    seen = studied(*words)
    design, settings = seen["design"], seen["settings"]
    assert (design.scores, design.num_seeds, design.first_seed, design.select) == (("agreement",), 2, 7, True)
    assert (settings.keeping.keep_students, settings.execution.threads, settings.execution.ensemble) == (
        "all",
        2,
        "off",
    )
    assert (settings.scoring.permutations, settings.training.epochs) == (3, 1)
    assert settings.training.balanced_sampling
    assert settings.task.augment
    assert set(settings.task.set) == {"labels=50", "width=3"}


def test_an_option_that_is_switched_off_is_off_in_a_task_that_switches_it_on(monkeypatch):
    seen = []
    monkeypatch.setattr("mfh.studies.running.study", lambda **given: seen.append(given["settings"]))
    for words in ([], ["--no-compile"], ["--compile"]):
        main(["study", TINY, "--quiet", *words])
    assert [settings.training.changes() for settings in seen] == [{}, {"compile": False}, {"compile": True}]


def test_without_out_a_file_has_a_run_folder_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "plans" / "mine.toml"
    path.parent.mkdir()
    path.write_text(f"task = {TINY!r}\narms = ['no-kd', 'regular']\nnum_seeds = 1\n[settings]\nepochs = 1\n")
    main(["study", str(path), "--quiet", "--processes", "1"])
    assert Path("runs/mine/results.csv").is_file()


def test_what_is_an_object_of_python_is_named(tmp_path):
    def nearer(batch):
        return (batch.student_logits - batch.teacher_logits).abs().mean()

    mfh.study(tiny_task.task(), arms=["no-kd", nearer], num_seeds=1, epochs=1, processes=1, out=tmp_path / "run")
    text = (tmp_path / "run/study.toml").read_text()
    assert "# Not in this file: the task, an object of Python; add task = ...." in text
    assert "# Not in this file: the arm nearer, an object of Python." in text
    with pytest.raises(InputError, match="names no task"):
        read_study(tmp_path / "run/study.toml")


def test_settings_come_back_as_they_were(tmp_path):
    settings = Settings.of(
        epochs=3, temperature=2.5, set={"labels": "50"}, device="cpu", channels_last=False, threads=2
    )
    path = tmp_path / "a.toml"
    path.write_text(study_text({"task": 'a "b" \\ c', "weights": [(0.5, 1.0)]}, settings))
    held = read_study(path)
    assert held["settings"] == settings
    assert held["task"] == 'a "b" \\ c'
    assert held["weights"] == [(0.5, 1.0)]
    assert told_settings(Settings()) == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "names no task"),
        ("task = 3", "names no task"),
        ("task = 'wrong.toml'", "names the study file 'wrong.toml' as its task; name that file's task instead"),
        ("task = 'other.toml'", "names the study file 'other.toml' as its task"),
        ("task = 'digits'\narm = ['soft']", "has an entry 'arm'; close names: 'arms'"),
        ("task = 'digits'\n[settings]\nepoch = 3", "there is no setting 'epoch'"),
        ("task = 'digits'\nsettings = 3", "a table \\[settings\\] was expected"),
        ("task = ", "cannot be read"),
        ("task = 'digits'\nnum_seeds = 'two'", "num_seeds is 'two'"),
    ],
)
def test_a_file_that_cannot_be_a_study_is_refused_in_one_line(tmp_path, content, message):
    path = tmp_path / "wrong.toml"
    path.write_text(content)
    with pytest.raises(InputError, match=message) as refused:
        mfh.study(path, out=tmp_path / "run")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_a_missing_file_is_told(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["study", str(tmp_path / "none.toml"), "--out", str(tmp_path / "run")])
    assert end.value.code == 2
    assert "there is no study file" in capsys.readouterr().err
