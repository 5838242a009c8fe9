import csv
import json
import shutil

import pytest

from mfh.errors import InputError
from mfh.figures.style import save_figure
from mfh.gaussian import ModifyGamma, VaryGamma, modify_gamma, vary_gamma
from mfh.gaussian.run import EXPERIMENTS, resolve, run
from mfh.reporting import report
from mfh.reporting.gaussian import (
    gaussian_sections,
    modification_figure,
    sweep_figure,
)

SMALL = {
    "num_train": 30,
    "num_test": 40,
    "steps": 10,
    "overlaps": (0, 3, 10),
    "teacher_only": (0, 10),
    "counts": ((3, 2), (1, 4)),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "gauss"
    run(out=out, num_seeds=2, options=SMALL)
    report(out)
    return out


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_folder_holds_everything(folder):
    with (folder / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["experiment", "alpha", "beta", "gamma", "seed", "role", "arm", "accuracy"]
    assert {row["experiment"] for row in rows} == set(EXPERIMENTS)
    config = json.loads((folder / "config.json").read_text())
    assert config["num_seeds"] == 2
    assert config["experiments"]["modify-gamma"]["first_seed"] == 42
    assert config["experiments"]["vary-gamma"]["learning_rate"] == 0.1
    assert {"python", "torch", "numpy", "mfh", "cpu"} <= set(json.loads((folder / "environment.json").read_text()))
    page = (folder / "report.html").read_text()
    for word in ("Vary gamma", "Vary alpha", "Modify gamma", "Algorithm 1", "<svg"):
        assert word in page
    for suffix in ("txt", "csv", "md", "tex"):
        assert (folder / f"table-2.{suffix}").stat().st_size
    names = {path.name for path in (folder / "figures").iterdir()}
    assert {"vary-gamma.svg", "vary-alpha.svg", "modify-gamma.svg", "modify-gamma.png"} <= names


def test_a_finished_run_is_read_not_redone(folder):
    before = contents(folder)
    seen = []
    frames = run(out=folder, num_seeds=2, options=SMALL, progress=lambda *told: seen.append(told))
    assert seen == []
    assert contents(folder) == before
    assert list(frames) == list(EXPERIMENTS)
    assert len(frames["modify-gamma"].attrs["general_found"]) == 4
    gaussian_sections(frames)


def test_a_lost_report_is_written_again(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "report.html").unlink()
    before = (copy / "results.csv").stat().st_mtime_ns
    assert report(copy) == copy / "report.html"
    assert (copy / "report.html").is_file()
    assert (copy / "results.csv").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"num_seeds": 3}, "made with num_seeds 2, now it is 3"),
        ({"options": {**SMALL, "steps": 11}}, r"made with experiments\.vary-gamma\.steps 10, now it is 11"),
        (
            {"experiments": ["vary-alpha"], "options": {"steps": 10}},
            r'made with experiments \["vary-gamma", .*, now it is \["vary-alpha"\]',
        ),
        ({"first_seed": 1}, r"made with experiments\.vary-gamma\.first_seed 0, now it is 1"),
    ],
)
def test_a_folder_of_another_configuration_is_left_alone(folder, change, match):
    before = contents(folder)
    with pytest.raises(InputError, match=match):
        run(**{"out": folder, "num_seeds": 2, "options": SMALL, **change})
    assert contents(folder) == before


def test_an_interrupted_run_starts_again(tmp_path):
    arguments = {"experiments": ["vary-alpha"], "out": tmp_path / "a", "num_seeds": 1, "options": {"steps": 3}}

    def interrupt(*told):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(**arguments, progress=interrupt)
    assert (tmp_path / "a" / "config.json").exists()
    assert not (tmp_path / "a" / "results.csv").exists()
    assert len(run(**arguments)["vary-alpha"])
    assert (tmp_path / "a" / "results.csv").exists()


def test_results_of_unknown_origin_are_not_overwritten(tmp_path):
    (tmp_path / "results.csv").write_text("mine")
    with pytest.raises(InputError, match="without a config"):
        run(["vary-gamma"], out=tmp_path)
    assert (tmp_path / "results.csv").read_text() == "mine"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"num_seeds": 0}, "num_seeds is 0"),
        ({"first_seed": -1}, "first_seed is -1"),
        ({"experiments": []}, "a list of"),
        ({"experiments": ["vary-beta"]}, "no experiment 'vary-beta'"),
        ({"options": {"step": 3}}, "step is no option.*'steps'"),
        ({"experiments": ["vary-gamma"], "options": {"permutations": 3}}, "permutations is no option of vary-gamma"),
        ({"options": {"overlaps": (12,)}}, "overlaps has 12"),
        ({"options": {"student_dim": 3}}, "student_dim is 3"),
    ],
)
def test_bad_options(tmp_path, change, match):
    with pytest.raises(InputError, match=match):
        run(**{"out": tmp_path / "a", **change})
    assert not (tmp_path / "a").exists()


def test_unwritable_folders(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="which is a file"):
        run(out=tmp_path / "file")
    with pytest.raises(InputError, match=r"cannot be (read|used as a folder)"):
        run(out=tmp_path / "file" / "below")


def test_options_reach_the_experiments_that_have_them():
    config = resolve(EXPERIMENTS, num_seeds=1, options={"permutations": 7, "student_dim": 60, "steps": None})
    assert config["experiments"]["modify-gamma"]["permutations"] == 7
    assert [settings["student_dim"] for settings in config["experiments"].values()] == [60, 60, 60]
    assert config["experiments"]["vary-alpha"]["steps"] == 1000


def test_figures_of_one_seed_and_of_other_experiments(tmp_path):
    sweep = vary_gamma(1, settings=VaryGamma(overlaps=(0, 10), steps=3))
    table = modify_gamma(1, settings=ModifyGamma(counts=((3, 2),), steps=3))
    figure = save_figure(sweep_figure(sweep), tmp_path / "x.svg").read_text(encoding="utf-8")
    assert figure.count(">teacher</text>") == 2  # the first diagram and the legend
    save_figure(modification_figure(table), tmp_path / "y.svg")
    with pytest.raises(InputError, match="vary-gamma or vary-alpha were expected"):
        sweep_figure(table)
    with pytest.raises(InputError, match="'modify-gamma' were expected"):
        modification_figure(sweep)
