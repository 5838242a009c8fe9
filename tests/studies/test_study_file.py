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
