"""The smoke run of benchmarks/gpu.py on the CPU, and what becomes of a section that fails."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.delitem(sys.modules, "gpu", raising=False)
    return importlib.import_module("gpu")


def test_the_smoke_run_passes_every_section_and_writes_its_report(gpu, tmp_path, monkeypatch):
    # What a compiler makes is torch's business and takes long; that a small network is compiled is not.
    monkeypatch.setattr(torch.nn.Module, "compile", lambda *_, **__: None)
    report = tmp_path / "report.md"
    code = gpu.main(["--smoke", "--report", str(report)])
    text = report.read_text(encoding="utf-8")
    assert code == 0, text
    assert text.count("\n## ") == len(gpu.SECTIONS)
    assert "Failed" not in text
    assert "student, video | bf16 | channels last" in text
    assert "the same weights, bit for bit" in text


def test_a_section_that_fails_says_why_in_a_line_and_the_next_runs(gpu, capsys):
    def broken(bench, say):
        """Broken."""
        raise RuntimeError("out of luck\nand of memory")

    def whole(bench, say):
        """Whole."""
        say("went on")

    assert gpu.run(gpu.Bench(smoke=True), print, (broken, whole)) == ["broken"]
    shown = capsys.readouterr().out
    assert "Failed: RuntimeError: out of luck and of memory" in shown
    assert "went on" in shown


def test_without_a_gpu_the_command_names_the_smoke_run(gpu, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stop:
        gpu.main([])
    assert stop.value.code == 2
    assert "choose --smoke" in capsys.readouterr().err
