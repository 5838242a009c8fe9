import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import fake_study
import tiny_task
from mfh.cli import commands, demo
from mfh.cli.commands import _tell, _unboxed, main
from mfh.reporting.page import Table
from mfh.reporting.summary import arms_table
from mfh.saliency.masks import ChannelMask
from mfh.studies.study_file import read_study
from mfh.studies.summary import summarise
from mfh.tasks.packages import installed_file
from real_views import replace_real_data

TINY = str(Path(tiny_task.__file__))


def run(*args: object) -> None:
    main([str(arg) for arg in args])


def test_help_is_instant_and_names_every_command():
    code = (
        "import sys\nfrom mfh.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as stop:\n    assert stop.code == 0\n"
        "assert not {'torch', 'lightning', 'matplotlib', 'pandas', 'numba'} & set(sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for command in ("demo", "pretrain", "align", "saliency", "distill", "study", "check", "report", "gauss", "prepare"):
        assert command in shown


def test_steps_find_what_earlier_ones_left(tmp_path, capsys):
    common = ("--out", tmp_path / "run", "--quiet")
    run("pretrain", TINY, "--modality", "teacher", *common)
    run("align", TINY, *common)
    run("saliency", TINY, "--permutations", "exact", *common)
    run("saliency", TINY, "--score", "probe", *common)
    run("distill", TINY, "--arm", "general", "--ratio", 0.5, *common)
    run("distill", TINY, "--arm", "soft", *common)
    shown = capsys.readouterr().out
    assert "permutations: exact" in shown
    assert "validation accuracy" in shown
    made = {path.name for path in (tmp_path / "run" / "seed-0").iterdir()}
    assert {"teacher.safetensors", "aligned-teacher.safetensors", "saliency-distance.svg"} <= made
    assert {"distilled-general-distance-0.5-1.safetensors", "distilled-soft-probe-1.safetensors"} <= made
    assert ChannelMask.load(tmp_path / "run/seed-0/mask-soft-probe-1.safetensors").kind == "soft"


def test_every_single_step_ends_with_what_to_run_next(tmp_path, capsys):
    """The commands that are named run as they stand, in the folder that holds what was made."""
    words, seen = ["pretrain", TINY, "--epochs", "1", "--out", str(tmp_path / "my run"), "--seed", "3"], []
    while words[0] != "study":
        seen.append(words[0])
        run(*words, "--quiet")
        lines = capsys.readouterr().out.splitlines()
        assert any(str(tmp_path / "my run" / "seed-3") in line for line in lines[:-1])  # where the output is
        mark, command = lines[-1].split(": ", 1)
        program, *words = shlex.split(command)
        assert (mark, program) == ("next", "mfh")
    assert seen == ["pretrain", "align", "saliency", "distill"]
    assert words == ["study", TINY, "--seed", "3", "--out", str(tmp_path / "my run")]


def test_a_score_of_the_probe_leads_to_the_soft_mask(tmp_path, capsys):
    common = ("--out", tmp_path / "run", "--epochs", 1, "--quiet")
    run("saliency", TINY, "--score", "probe", "--layer", "1", *common)
    assert f"next: mfh distill {TINY} --arm soft --layer 1 --out" in capsys.readouterr().out
    run("saliency", TINY, "--score", "agreement", *common)
    assert f"next: mfh distill {TINY} --arm general --score agreement --out" in capsys.readouterr().out


def test_diagnose_and_check_lead_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run("check", TINY, "--quiet")
    assert capsys.readouterr().out.endswith(f"next: mfh diagnose {TINY}\n")
    run("diagnose", TINY, "--epochs", 1, "--out", "run", "--quiet")
    assert capsys.readouterr().out.endswith(f"next: mfh study {TINY} --out run\n")


def test_check_leads_to_the_study_where_a_diagnosis_would_be_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    inputs = np.random.default_rng(0).normal(size=(100, 3))
    np.savez("pairs.npz", teacher=inputs, student=inputs, target=np.arange(100) % 2)
    run("check", "pairs.npz", "--quiet")
    assert capsys.readouterr().out.endswith("next: mfh study pairs.npz\n")
    with pytest.raises(SystemExit):
        run("diagnose", "pairs.npz", "--quiet")
    assert "val=30 in Task.from_arrays, --set val=30 for a file of arrays" in capsys.readouterr().err
    run("check", "pairs.npz", "--set", "val=30", "--quiet")
    assert capsys.readouterr().out.endswith("next: mfh diagnose pairs.npz --set val=30\n")


def test_the_next_command_and_the_one_that_repeats_a_run_hold_what_was_set(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(
        "import dataclasses, tiny_task\n"
        "def task(size: int = 1, kind: str = 'a', preset: str = 'slow'):\n"
        "    return dataclasses.replace(tiny_task.task(), name=f'{preset}-{size}')\n"
    )
    given = ["mine.py", "--preset", "fast", "--set", "size=3"]
    run("check", *given, "--quiet")
    assert capsys.readouterr().out.endswith("next: mfh diagnose mine.py --preset fast --set size=3\n")
    run("diagnose", *given, "--epochs", 1, "--quiet")
    assert capsys.readouterr().out.endswith("next: mfh study mine.py --preset fast --set size=3\n")
    words = ["study", "mine.py", "--set", "kind=b c", "--num-seeds", 1, "--epochs", 1, "--arms", "no-kd", "regular"]
    words = [*map(str, words), "--processes", "1", "--quiet"]
    monkeypatch.setattr(sys, "argv", ["mfh", *words])
    run(*words)
    held = json.loads(Path("runs/mine/environment.json").read_text())["repeat"]
    assert held.split(" ", 2)[:2] == ["mfh", "study"]
    assert shlex.split(held)[1:] == [*words, "--preset", "fast", "--set", "size=3"]
    assert "--set size=3" in Path("runs/mine/report.html").read_text()
    run(*shlex.split(held)[1:], "--out", "anew")
    assert read_study("anew/study.toml") == read_study("runs/mine/study.toml")
    # What a study file holds already is not said again.
    monkeypatch.setattr(sys, "argv", ["mfh", "study", "anew/study.toml", "--out", "third", "--quiet"])
    run(*sys.argv[1:])
    held = json.loads(Path("third/environment.json").read_text())["repeat"]
    assert held == "mfh study anew/study.toml --out third --quiet"


def test_a_task_may_be_any_function_of_a_file_and_know_presets(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(
        "import dataclasses, tiny_task\n"
        "def quick(preset: str = 'slow'):\n"
        "    return dataclasses.replace(tiny_task.task(), name=f'quick-{preset}')\n"
    )
    run("check", "mine.py:quick", "--preset", "fast", "--quiet")
    assert "next: mfh diagnose mine.py:quick --preset fast" in capsys.readouterr().out
    run("pretrain", "mine.py:quick", "--preset", "fast", "--epochs", 1, "--quiet")
    assert Path("runs/mine.quick/seed-0/teacher.safetensors").is_file()
    assert '"quick-fast"' in Path("runs/mine.quick/config.json").read_text()


def test_a_study_prints_table_finding_and_report(tmp_path, capsys):
    out = tmp_path / "run"
    run("study", TINY, "--num-seeds", 2, "--epochs", 1, "--processes", 1, "--arms", "no-kd", "soft", "--out", out, "-q")
    shown = capsys.readouterr().out
    assert "no-kd" in shown
    assert "Distillation" in shown or "gains" in shown
    assert str(out / "report.html") in shown
    assert (out / "report.html").is_file()
    (out / "report.html").unlink()
    run("report", out)
    assert (out / "report.html").is_file()


def test_the_demo_runs_both_directions_and_exports_a_student(tmp_path, monkeypatch, capsys):
    replace_real_data(monkeypatch)
    monkeypatch.setattr(demo, "TRAINING", {"epochs": 1, "batch_size": 64})
    out = tmp_path / "demo"
    run("demo", "--num-seeds", 2, "--processes", 1, "--out", out, "--quiet")
    shown = capsys.readouterr().out
    for line in (
        "Audio teaches accelerometer: home tasks (htad) with 100 labels",
        "Accelerometer teaches audio: home tasks (htad) with 100 labels",
        "* Audio teaches accelerometer: against training on labels alone, ",
        "* Accelerometer teaches audio: against training on labels alone, ",
        "* The control longer, as many steps without a teacher, gains ",
        f"Report: {out / 'report.html'}",
        f"Student: {out / 'audio-to-accelerometer/student.pt2'}",
    ):
        assert line in shown, line
    page = (out / "report.html").read_text()
    assert "audio-to-accelerometer" in page
    assert "accelerometer-to-audio" in page
    student = torch.export.load(out / "audio-to-accelerometer/student.pt2").module()
    assert student(torch.randn(7, 16)).shape == (7, 7)  # seven tasks, from raw statistics of the movement


def test_the_demo_without_its_data_names_the_extra(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("mfh.tasks.htad.load", lambda: installed_file("htad", "no-such-package", "1", "x.csv", ""))
    with pytest.raises(SystemExit) as stop:
        run("demo", "--out", tmp_path / "demo", "--quiet")
    assert stop.value.code == 2
    assert "install mfh with its extra: pip install 'mfh[data]'" in capsys.readouterr().err


def test_a_wide_table_keeps_numbers_whole(monkeypatch, capsys):
    """All six columns of a study in 80: intervals go below their numbers, and no name or word is broken."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    frame = fake_study.rows(8)
    frame["value"] = frame["value"].where(frame["arm"] != "fitnets", frame["value"] - 0.2)
    commands._print_table(arms_table(summarise(frame)))
    shown = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert all(len(line) <= 80 for line in shown.splitlines())
    assert re.search(r"(?m)^aligned-student ", shown)
    intervals = re.findall(r"\(.*?\)", shown, re.DOTALL)
    assert len(intervals) > 10
    assert not any("\n" in interval for interval in intervals)
    for words in ("accuracy,", "unmasked,", "(corrected)"):
        assert words in shown


def test_tables_and_lines_fit_80_columns(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    columns = ["Arm", "Test accuracy, %", "Against no-kd, points", "p (corrected)", "Teacher accuracy, %"]
    rows = [["aligned-student", "76.9", "+10.7 (+6.1 to +15.2)", "0.009", "72.4"]]
    commands._print_table(Table(columns, rows))
    commands._say("one two three " * 12)
    commands._say("x" * 100)
    shown = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    (row,) = [line for line in shown if line.startswith("aligned-student")]
    assert "+10.7 (+6.1 to +15.2)" in row
    assert shown[-1] == "x" * 100  # a long path stays in one piece
    assert all(len(line) <= 80 for line in shown[:-1])


def test_a_gaussian_run_gets_its_report_again(tmp_path, capsys):
    out = tmp_path / "gauss"
    run("gauss", "vary-gamma", "--num-seeds", 2, "--overlaps", 0, 10, "--out", out, "--quiet")
    shown = capsys.readouterr().out
    assert "gamma" in shown
    assert all(len(line) <= 80 for line in shown.split("* ")[0].splitlines())  # the table
    (out / "report.html").unlink()
    run("report", out)
    assert "How it was made" in (out / "report.html").read_text()


FAILING = """import dataclasses, torch, tiny_task, mfh
def full(*given, **more):
    raise OSError(28, "No space left on device", "cache.bin")
class Items(torch.utils.data.Dataset):
    def __init__(self, data): self.data = data
    def __len__(self): return len(self.data)
    def __getitem__(self, index): return full() if index == 31 else self.data[index]
class Network(torch.nn.Linear):
    def forward(self, x): return full() if self.training else super().forward(x)
def task():
    tiny = tiny_task.task()
    return dataclasses.replace(tiny, %s)
"""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("train=Items(tiny.train)", "train split: item 31 of a Items cannot be read: "),
        ("test=Items(tiny.test)", "test split: item 31 of a Items cannot be read: "),
        ("collate=full", "train split: item 0 or 119 cannot be read: "),
        ("student=lambda: Network(7, 2)", "the student cannot read student_input of the train split"),
        ("problem=mfh.Problem.classification(label_loss=full)", "the label loss failed: "),
        ("problem=mfh.Problem.classification(metric=mfh.Metric('own', full))", "val split: the metric own failed: "),
        ("protocol=mfh.Protocol(loss=full)", "the distillation loss failed: "),
    ],
)
def test_a_full_disk_of_the_users_own_code_promises_nothing(change, said, tmp_path, capsys):
    mine = tmp_path / "mine.py"
    mine.write_text(FAILING % change)
    options = ("--arms", "no-kd", "regular", "--num-seeds", 1, "--processes", 1, "--epochs", 1)
    with pytest.raises(SystemExit) as end:
        run("study", mine, *options, "--out", tmp_path / "run", "--quiet")
    shown = capsys.readouterr().err
    assert end.value.code == 2
    assert shown.count("\n") == 1
    assert said in shown
    assert "OSError: [Errno 28] No space left on device: 'cache.bin'" in shown
    assert "resumes" not in shown


def test_a_file_of_ours_that_cannot_be_written_promises_to_resume(tmp_path, capsys, monkeypatch):
    def full(_file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(SystemExit) as end:
        run("pretrain", TINY, "--out", tmp_path / "run", "--quiet")
    assert end.value.code == 2
    shown = capsys.readouterr().err
    assert "No space left on device: " in shown
    assert str(tmp_path / "run") in shown
    assert shown.endswith("; what was finished is kept, and the same command resumes\n")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("saliency", "nowhere.py"), "nowhere.py"),
        (("saliency", TINY, "--layer", "9"), "no layer '9'"),
        (("saliency", TINY, "--permutations", "many"), "'many'"),
        (("saliency", TINY, "--permutations", "0"), "permutations is 0"),
        (("saliency", TINY, "--epochs", "0"), "epochs is 0"),
        (("distill", TINY, "--arm", "generel", "--ratio", "0.5"), "'general'"),
        (("distill", TINY, "--arm", "general", "--ratio", "1"), "ratio is 1"),
        (("distill", TINY, "--arm", "general", "--saliency", "none.npy"), "none.npy"),
        (("distill", TINY, "--arm", "no-kd"), "pretrain"),
        (("distill", TINY, "--arm", "soft", "--temperature", "0"), "temperature is 0"),
        (("pretrain", TINY, "--preset", "paper"), "preset"),
        (("pretrain", TINY, "--device", "abacus"), "no device 'abacus'"),
        (("study", TINY, "--device", "cuda:7"), "no device 'cuda:7'"),
        (("report", "no-such-run"), "no-such-run"),
        (("report",), "no run folder"),
        (("stduy", TINY), "there is no command 'stduy'; close names: 'study'"),
        (("pretrain", TINY + ":tsak"), "has no function tsak()"),
        (("study", TINY, "--no-such-option"), "unrecognized options: --no-such-option; mfh study --help"),
        (("study", TINY, "--num-seedz", 3), "; did you mean --num-seeds?"),
        (("study", TINY, "--num-seedz", 3, "--epohcs", 1), "; did you mean --epochs or --num-seeds?"),
        (("study", TINY, "--quite"), ": --quite; did you mean --quiet?;"),
        (("study", TINY, "--sweeep"), ": --sweeep; did you mean --sweep?;"),
        (("check", TINY, "--num-worker", 3), "; did you mean --num-workers?;"),
        (("study", TINY, "--num-seeds", "many"), "--num-seeds: expected a whole number, got 'many'"),
        (("study", TINY, "--num-seeds"), "--num-seeds has no value"),
        (("study", TINY, "--labelled-share", "half"), "--labelled-share: expected a number, got 'half'"),
        (("study", TINY, "--epochs", 2.5), "--epochs: expected a whole number, got '2.5'"),
        (("gauss", "vary-alpha", "--teacher-only", 1, 2.5), "--teacher-only: expected whole numbers, got '1', '2.5'"),
        (("gauss", "modify-gamma", "--counts", 5), "--counts: expected pairs of whole numbers, got '5'"),
        (("study", TINY, "--keep", "nothing"), "invalid choice 'nothing' for '--keep'"),
        (
            ("export", "r", "--format", "zip"),
            "'--format'; expected one of onnx, pt2, safetensors; mfh export --help",
        ),
        (("study",), "mfh: missing from mfh study: TASK; mfh study --help"),
        (("export",), "mfh: missing from mfh export: RUN; mfh export --help"),
        (("prepare", "vggsound"), "mfh: missing from mfh prepare vggsound: CLIPS, OUT; mfh prepare vggsound --help"),
        (("prepare", "ravdess", "a", "b", "--processes", "x"), "got 'x'; mfh prepare ravdess --help describes"),
        (("prepare",), "expected one of {ravdess, vggsound}"),
        (("-x",), "unrecognized options: -x; mfh --help"),
    ],
)
def test_what_a_user_gets_wrong_ends_in_one_line_and_code_2(args, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        run(*args)
    assert stop.value.code == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert printed.startswith("mfh: ")
    assert printed.count("\n") == 1


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_a_parser_that_draws_its_boxes_otherwise_is_understood_too(encoding):
    """Without UTF-8, boxes are drawn in other signs. Hints are those of the command itself."""
    done = subprocess.run(
        [sys.executable, "-m", "mfh", "study", TINY, "--num-seedz", "3"],
        env=os.environ | {"PYTHONIOENCODING": encoding},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "mfh: unrecognized options: --num-seedz, 3; did you mean --num-seeds?; mfh study --help describes the options\n"
    )


def test_a_value_longer_than_the_terminal_stays_whole_and_help_as_wide_as_the_terminal(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "60")
    path = "runs/" + "/".join(f"folder-{i}" for i in range(15))
    with pytest.raises(SystemExit):
        run("study", TINY, "--num-seeds", path)
    assert f"got '{path}';" in capsys.readouterr().err
    assert os.environ["COLUMNS"] == "60"
    with pytest.raises(SystemExit):
        run("report", "--help")
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 60
    monkeypatch.delenv("COLUMNS")
    with pytest.raises(SystemExit):
        run("study", TINY, "--num-seeds", path)
    assert "COLUMNS" not in os.environ


@pytest.mark.parametrize(
    ("argument", "name"),
    [
        ("'--epochs'", "--epochs"),
        ("'('--epochs',)'", "--epochs"),
        ("'--num-workers/--workers'", "--num-workers/--workers"),
        ("'('--num-workers', '--workers')'", "--num-workers"),
    ],
)
def test_every_version_of_the_parser_names_an_option_without_value(argument, name):
    box = f"+ Missing argument +\n| Missing value for argument {argument}. Expected 1 values. |\n+----+"
    assert _unboxed(box, "mfh x") == f"{name} has no value; mfh x --help describes the options"


def test_a_folder_that_cannot_be_written_is_named(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SystemExit) as stop:
        run("pretrain", TINY, "--out", tmp_path / "file" / "run", "--quiet")
    assert stop.value.code == 2
    assert "file" in capsys.readouterr().err


ODD = """
import tiny_task, dataclasses, torch, sys
from collections import OrderedDict
from torch import nn

def teacher():
    layers = [("first", nn.Linear(8, 12)), ("[/b]\x1b[31m", nn.ReLU()), ("last", nn.Linear(12, 2))]
    return nn.Sequential(OrderedDict(layers))

def task(seed: int = 0):
    return dataclasses.replace(tiny_task.task(seed), teacher=teacher, layer="[/b]\x1b[31m", name="[red]\x07")

def ends(seed: int = 0):
    class Ends(nn.Module):
        def forward(self, x):
            sys.exit(0)
    return dataclasses.replace(tiny_task.task(seed), teacher=Ends)
"""


def test_names_of_others_are_neither_markup_nor_orders_to_the_terminal(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "[bold]out[/x]"
    (tmp_path / "odd.py").write_text(ODD)
    run("saliency", tmp_path / "odd.py", "--epochs", 1, "--out", folder)
    run("study", tmp_path / "odd.py", "--epochs", 1, "--num-seeds", 1, "--arms", "no-kd", "soft", "--processes", 1,
        "--out", tmp_path / "[bold]study[/x]")  # fmt: skip
    shown = capsys.readouterr()
    assert "[bold]out[/x]" in shown.out
    assert "[bold]study[/x]" in shown.out
    assert "\\x1b[31m" in shown.out
    assert not any(sign in shown.out + shown.err for sign in "\x1b\x07")
    assert all("/" not in path.name and path.is_relative_to(folder) for path in folder.rglob("*"))


def test_code_that_ends_the_program_is_an_error_in_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "ending.py").write_text(ODD.replace("def task", "def other").replace("def ends", "def task"))
    with pytest.raises(SystemExit) as stop:
        run("pretrain", tmp_path / "ending.py", "--out", tmp_path / "run")
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_control_characters_in_arguments_are_refused(capsys):
    for words in (["study", "\x1b]0;title\x07"], ["saliency", TINY, "--score", "\x1b[31m"]):
        with pytest.raises(SystemExit) as stop:
            run(*words)
        assert stop.value.code == 2
        assert "\x1b" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "said", "code"),
    [
        (MemoryError(), "there is not enough memory", 2),
        (SystemExit(0), "the task's code ended the program (SystemExit: 0)", 2),
        (KeyboardInterrupt(), "interrupted; the same command resumes", 130),
        (ZeroDivisionError("x"), "ZeroDivisionError: x", 1),
    ],
)
def test_one_process_and_several_tell_errors_in_the_same_words(capsys, error, said, code):
    assert _tell(error) == code
    assert said in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_does_not_promise_to_resume(tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as end:
        main(["pretrain", TINY, "--role", "student", "--out", str(tmp_path / "file" / "below")])
    assert end.value.code == 2
    printed = capsys.readouterr().err
    assert "choose another --out" in printed
    assert "resumes" not in printed


def test_cache_shows_and_clears_the_outputs_of_a_study(tmp_path, capsys):
    folder = tmp_path / "cache"
    run("study", TINY, "--out", tmp_path / "run", "--num-seeds", 1, "--arms", "kd", "--cache", folder, "--quiet")
    capsys.readouterr()
    run("cache", folder)
    assert re.search(r": [1-9]\d* outputs, \d+\.\d MB$", capsys.readouterr().out.strip())
    run("cache", folder, "--clear")
    assert "removed" in capsys.readouterr().out
    run("cache", folder)
    assert ": 0 outputs, 0.0 MB" in capsys.readouterr().out


@pytest.mark.parametrize("made", [True, False])
def test_cache_refuses_what_is_no_folder(tmp_path, capsys, made):
    if made:
        (tmp_path / "cache").touch()
    with pytest.raises(SystemExit) as stop:
        run("cache", tmp_path / "cache")
    assert stop.value.code == 2
    assert "folder" in capsys.readouterr().err
