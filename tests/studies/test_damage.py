"""Run folders that were damaged, or whose command was interrupted at the worst moment."""

import json
import shutil
from pathlib import Path

import pytest

import mfh
import tiny_task
from mfh.cli import main
from mfh.errors import InputError
from mfh.studies.folder import Run

TINY = str(Path(tiny_task.__file__))
FEW = {"arms": ["no-kd", "regular"], "num_seeds": 2, "processes": 1, "epochs": 1}
WORDS = ["study", TINY, "--arms", "no-kd", "regular", "--processes", "1", "--epochs", "1", "--quiet"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damage") / "run"
    mfh.study(TINY, out=folder, **FEW)
    return folder


@pytest.fixture
def run(finished, tmp_path):
    return Run(shutil.copytree(finished, tmp_path / "run"))


def test_truncated_results_are_not_reported_and_the_study_writes_them_anew(run):
    path = run.folder / "results.csv"
    whole = path.read_text()
    lines = whole.splitlines(keepends=True)
    path.write_text("".join(lines[: 1 + len(lines) // 2]))  # the rows of one seed
    with pytest.raises(InputError, match=r"results\.csv was changed after it was written"):
        mfh.report(run.folder)
    mfh.study(TINY, out=run.folder, **FEW)
    assert path.read_text() == whole
    assert mfh.report(run.folder).is_file()


def test_exchanged_counts_and_histories_are_refused(run):
    for name in ("counts/no-kd-test.csv", "histories/student.csv"):
        path, other = (run.folder / f"seed-{seed}" / name for seed in (0, 1))
        whole = path.read_text()
        path.write_text(other.read_text())
        with pytest.raises(InputError, match="its checksum differs"):
            mfh.report(run.folder)
        path.write_text(whole)


@pytest.mark.parametrize("checksum", [True, False])
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("config.json", {"num_seeds": "two"}),
        ("config.json", {"metric": 5}),
        ("config.json", {"facts": {"majority_accuracy": "half"}}),
        ("config.json", {"scores": [None]}),
        ("environment.json", {"seconds": "long"}),
        ("environment.json", {"repeat": []}),
    ],
)
def test_a_wrong_value_is_one_line(run, capsys, checksum, name, change):
    path = run.folder / name
    content = json.loads(path.read_text()) | change
    if not checksum:
        del content["checksum"]
    path.write_text(json.dumps(content))
    with pytest.raises(SystemExit) as stop:
        main(["report", str(run.folder)])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("mfh: ")
    assert said.count("\n") == 1
    assert name in said


def test_measurements_without_a_configuration_are_not_continued(run):
    (run.folder / "config.json").unlink()
    for call in (mfh.study, mfh.diagnose):
        options = FEW if call is mfh.study else {"epochs": 1}
        with pytest.raises(InputError, match=r"holds measurements but no config\.json"):
            call(TINY, out=run.folder, **options)


def test_an_addition_interrupted_while_the_report_is_written_is_not_repeated(run, monkeypatch):
    words = [*WORDS, "--add-seeds", "2", "--out", str(run.folder)]
    with monkeypatch.context() as patch:
        patch.setattr("mfh.reporting.page.write_page", interrupted)
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 130
    main(words)
    assert set(Run(run.folder).results["seed"]) == {0, 1, 2, 3}
    main([*words[:-3], "1", *words[-2:]])  # a new addition
    assert set(Run(run.folder).results["seed"]) == {0, 1, 2, 3, 4}


def interrupted(*_):
    raise KeyboardInterrupt


def test_what_a_killed_write_left_is_removed_when_the_folder_is_next_held(run):
    left = [
        run.folder / ".results.csv.ab12_x9z.part",
        run.folder / "seed-0" / ".teacher.safetensors.abcdefgh.part",
        run.folder / "seed-0" / "cells" / ".no-kd-val-test.csv.abcdefgh.part",
        run.folder / "figures" / ".gains.svg.abcdefgh.part",
    ]
    foreign = run.folder / "seed-0" / "film.part"
    for path in (*left, foreign):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    with run.locked():
        assert not any(path.exists() for path in left)
        assert foreign.exists()


def test_a_step_beside_a_study_leaves_its_configuration_alone(run, capsys):
    before = (run.folder / "config.json").read_bytes()
    with run.locked(), pytest.raises(SystemExit):
        main(["pretrain", TINY, "--epochs", "1", "--out", str(run.folder), "--quiet"])
    assert "in use by another process" in capsys.readouterr().err
    main(["pretrain", TINY, "--epochs", "1", "--out", str(run.folder), "--quiet"])
    assert (run.folder / "config.json").read_bytes() == before
    mfh.study(TINY, out=run.folder, **FEW)


def test_a_report_is_not_written_into_a_folder_in_use(run, tmp_path):
    with run.locked():
        with pytest.raises(InputError, match="in use"):
            mfh.report(run.folder)
        assert mfh.report(run.folder, out=tmp_path / "page").is_file()
        assert mfh.report(run).is_file()  # whoever holds it may


def test_the_same_folder_with_another_task_names_one_difference(run, capsys):
    other = run.folder.parent / "other.py"
    other.write_text(Path(TINY).read_text().replace('name="tiny"', 'name="other"'))
    with pytest.raises(SystemExit):
        main([WORDS[0], str(other), *WORDS[2:], "--num-seeds", "2", "--out", str(run.folder)])
    said = capsys.readouterr().err
    assert 'was made with task "tiny", now it is "other"' in said
    assert said.count("\n") == 1
    assert "{" not in said
