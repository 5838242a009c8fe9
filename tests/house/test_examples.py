"""The examples and the quick start of "Your own networks" run as they stand."""

import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mfh.cli import commands

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
ALONE = [path for path in EXAMPLES if "torchrun" not in path.name]


def test_there_is_one_of_each():
    assert [path.name[:2] for path in EXAMPLES] == [f"{number:02d}" for number in range(1, 9)]
    for path in EXAMPLES:
        text = path.read_text(encoding="utf-8")
        assert re.search(rf"^    (python|torchrun .*) ?examples/{path.name}$", text, re.MULTILINE), path.name


@pytest.mark.parametrize("path", ALONE, ids=lambda path: path.name)
def test_the_examples_run(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out.strip()
    assert not {name for name in set(sys.modules) - before if name.startswith("examples")}


def test_the_example_of_several_processes_gives_the_scores_of_one():
    path = ROOT / "examples/07_torchrun.py"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    said = []
    for command in ([sys.executable], [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]):
        done = subprocess.run([*command, str(path)], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    assert "400 pairs in 1 process(es)" in said[0]
    assert "400 pairs in 2 process(es)" in said[1]


def test_the_quick_start_of_the_guide_runs_word_for_word(tmp_path, monkeypatch, capsys):
    guide = (ROOT / "docs/own-task.md").read_text(encoding="utf-8")
    _, after = guide.split("<!-- file: my_task.py -->\n```python\n")
    code, after = after.split("```\n", 1)
    command = re.search(r"^```bash\n(mfh .*)\n```$", after, re.MULTILINE)[1]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_task.py").write_text(code, encoding="utf-8")
    commands.main(shlex.split(command)[1:])
    said = capsys.readouterr().out
    assert "Report: runs/my_task/report.html" in said
    assert "against no-kd" in said.lower()
    assert (tmp_path / "runs/my_task/report.html").is_file()
