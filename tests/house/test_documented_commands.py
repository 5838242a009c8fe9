"""Commands of the documentation do run: those of the README and the guides, and that no line of any page is left out.

Every page is run by one of three files, so that they can run side by side; `documented.py` says how.
"""

import argparse
import re
import runpy
import shlex
import shutil
from pathlib import Path

import pytest
import tyro
from torch.distributed.run import get_args_parser

from documented import (
    DATA_PAGES,
    PAGES,
    REFERENCE_PAGES,
    ROOT,
    commands,
    is_pattern,
    lines,
    name_of,
    pages_with_commands,
    run_page,
    shrink_tasks,
    write_files,
)
from mfh.cli.options import Command
from processes import torchrun

GUIDES = [ROOT / "README.md"] + [
    ROOT / f"docs/{name}.md"
    for name in (
        *("arrays", "choosing", "cluster", "deploy", "digits", "gpu", "install", "intuition", "own-task"),
        *("large-teachers", "own-method", "real-data", "tracking", "unlabelled"),
    )
]
OTHERS = [line.words for page in PAGES for line in lines(page) if line.words[0] != "mfh" and not is_pattern(line.words)]
TORCHRUN = sorted({words[words.index("torchrun") :] for words in OTHERS if "torchrun" in words and len(words) > 1})

#: First words of lines that no test runs, and why.
NOT_RUN = {
    "make": "sets up an environment; test_docs checks the targets, each of which runs before a change is merged",
    "python -m pip install": "installs from the network; scripts/clean_install.sh does it",
    "pip install s3fs": "installs from the network",
    "pip download": "fetches from the network; test_packages runs it on a file",
    "python -m mfh": "the other name of the program; the torchrun lines run it",
    "export": "a variable for the next line of a batch script",
    "first=$(scontrol": "asks a SLURM cluster for its machines",
    "ray start": "starts a Ray cluster; test_away does it",
    "ray stop": "ends all Ray clusters of a machine",
    "srun --nodes": "starts Ray on the machines of a SLURM cluster",
    "until ray health-check": "waits for a Ray cluster",
    "python main.py": "the paper's code, not ours",
    "python main_modify_gamma.py": "the paper's code, not ours",
    "python main_overlap_tag.py": "the paper's code, not ours",
    "python utils/helper.py": "the paper's code, not ours",
}


@pytest.mark.parametrize("page", GUIDES, ids=name_of)
def test_the_commands_run(page, tmp_path, monkeypatch):
    ran = run_page(page, tmp_path, monkeypatch)
    assert set(commands(page)) <= set(ran)


# --- nothing is left out ----------------------------------------------------------------------------------------------


def test_every_page_with_commands_is_run_by_one_file():
    run = [*GUIDES, *REFERENCE_PAGES, *DATA_PAGES]
    assert len(run) == len(set(run))
    assert set(pages_with_commands()) <= set(run)
    assert sum(len(commands(page)) for page in run) > 60
    assert {words[0] for page in run for words in commands(page)} == {
        *(
            "demo",
            "pretrain",
            "align",
            "saliency",
            "distill",
            "study",
            "diagnose",
            "check",
            "cache",
            "export",
            "report",
            "prepare",
            "gauss",
        )
    }


def test_every_other_line_is_run_or_there_is_a_reason():
    scripts = {words for words in OTHERS if words[0] == "python" and (ROOT / words[1]).is_file()}
    assert scripts == set(SCRIPTS)
    rest = [words for words in OTHERS if words not in scripts and "torchrun" not in words]
    for words in rest:
        assert any(shlex.join(words).replace("'", "").startswith(start) for start in NOT_RUN), words
    for start in NOT_RUN:
        assert any(shlex.join(words).replace("'", "").startswith(start) for words in rest), start


# --- torchrun ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", TORCHRUN, ids=" ".join)
def test_torchrun_lines_parse(words):
    given = get_args_parser().parse_args([word.replace("$SLURM_NNODES", "4") for word in words[1:]])
    assert given.module or Path(given.training_script).suffix == ".py"
    if given.module:
        assert given.training_script == "mfh"
        tyro.cli(Command, prog="mfh", args=given.training_script_args)


def two_processes(words, folder):
    """A line as it stands, but two processes, one epoch."""
    place = words.index("--nproc-per-node")
    code, said = torchrun(*words[1:place], *words[place + 2 :], *(("--epochs", "1") * ("mfh" in words)), folder=folder)
    assert code == 0, said
    return said


def test_torchrun_lines_run(tmp_path):
    """The last step, which makes what the steps before it would have made; the script of the guide."""
    write_files(tmp_path)
    (step,) = [words for words in TORCHRUN if "distill" in words]
    assert "distilled-general-distance-0.5-1: validation accuracy" in two_processes(step, tmp_path)
    (script,) = [words for words in TORCHRUN if words[-1] == "distributed.py"]
    assert two_processes(script, tmp_path).startswith("1000 [")


# --- scripts ----------------------------------------------------------------------------------------------------------


class ParsedInstead(Exception):  # noqa: N818
    """Raised in place of the work of a script whose arguments were understood."""


def run_script(words, monkeypatch, **names):
    monkeypatch.setattr("sys.argv", list(words[1:]))
    monkeypatch.syspath_prepend(Path(words[1]).parent.resolve())  # its neighbours can be imported
    runpy.run_path(words[1], names, run_name="__main__")


def copied(folder, script):
    """The folder of a copy of the repository's documentation scripts, which write beside themselves."""
    shutil.copytree(ROOT / Path(script).parent, folder / Path(script).parent)
    (folder / "docs/figures").mkdir()
    return folder


def only_parse(words, folder, monkeypatch):
    understood = argparse.ArgumentParser.parse_args

    def parse(*arguments):
        understood(*arguments)
        raise ParsedInstead

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    monkeypatch.chdir(ROOT)
    with pytest.raises(ParsedInstead):
        run_script(words, monkeypatch)


def run_defects(words, folder, monkeypatch):
    monkeypatch.chdir(ROOT)
    run_script([*words[:3], "2"], monkeypatch)


def run_reproduction(words, folder, monkeypatch):
    import mfh.gaussian.run as gaussian_run

    whole = gaussian_run.run
    monkeypatch.setattr(gaussian_run, "run", lambda out, num_seeds: whole(out=out, num_seeds=3))
    monkeypatch.chdir(copied(folder, words[1]))
    run_script(words, monkeypatch)
    assert len(list(Path("docs/figures").glob("gaussian-*.svg"))) == 3


def run_figure(words, folder, monkeypatch):
    monkeypatch.chdir(copied(folder, words[1]))
    run_script(words, monkeypatch)
    assert Path("docs/figures/digits.png").is_file()


def run_border(words, folder, monkeypatch):
    shrink_tasks(monkeypatch)
    monkeypatch.chdir(ROOT)
    run_script(words, monkeypatch, range=lambda count: range(min(count, 2)))  # seeds and epochs


SCRIPTS = {
    ("python", "benchmarks/campaigns/generated.py", "--count", "2000"): only_parse,
    ("python", "benchmarks/campaigns/kills.py", "--kills", "200"): only_parse,  # their short forms are tests
    ("python", "benchmarks/campaigns/damage.py", "--damages", "500"): only_parse,
    ("python", "benchmarks/campaigns/writers.py", "--pairs", "60"): only_parse,
    ("python", "docs/scripts/gaussian_defects.py", "--num-seeds", "200"): run_defects,
    ("python", "docs/scripts/gaussian_reproduction.py", "runs/gaussian"): run_reproduction,
    ("python", "docs/scripts/digits_border.py"): run_border,
    ("python", "docs/scripts/digits_figure.py"): run_figure,
}


@pytest.mark.parametrize(("words", "how"), SCRIPTS.items(), ids=[words[1] for words in SCRIPTS])
def test_scripts_run(words, how, tmp_path, monkeypatch, capsys):
    how(words, tmp_path, monkeypatch)


def benchmark_lines():
    """Lines that the benchmarks and their reports name."""
    found = set()
    for path in (ROOT / "benchmarks").rglob("*.*"):
        if path.suffix in (".py", ".md"):
            text = path.read_text(encoding="utf-8")
            found |= set(re.findall(r"(?:^ *|`)(python benchmarks/[\w/]+\.py[\w ./-]*)", text, re.MULTILINE))
    return sorted(found)


@pytest.mark.parametrize("line", benchmark_lines())
def test_benchmarks_understand_their_lines(line, monkeypatch):
    only_parse(shlex.split(line), None, monkeypatch)
