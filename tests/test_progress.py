import re
import sys

from mfh import progress


class Terminal:
    """A stream that says it is a terminal."""

    def __init__(self):
        self.written = ""

    def write(self, text):
        self.written += text

    def flush(self):
        pass

    def isatty(self):
        return True


def test_a_tracked_loop_gives_the_same_items(capsys):
    assert list(progress.track(range(3), "counting", enabled=False)) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")
    assert list(progress.track(iter("abc"), "reading")) == ["a", "b", "c"]
    assert not capsys.readouterr().out


def test_named_bars_on_a_terminal(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with progress.bars() as show:
        show("clips", 1, 4)
        show("shards", 2, 2)
        show("clips", 4, 4)
    assert "4/4" in terminal.written
    assert {"clips", "shards"} <= set(re.findall(r"\w+", terminal.written))


def test_lines_now_and_then_where_there_is_no_terminal(capsys, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    with progress.bars(lines=True) as show:
        show("clips", 1, 4)
        show("clips", 2, 4)
        show("clips", 4, 4)
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("4 of 4 clips")
    assert re.fullmatch(r"2 of 4 clips, [\d.e+]+ per second, about \d+ s left", lines[1])
    for options in ({"enabled": False, "lines": True}, {}):
        with progress.bars(**options) as show:
            show("clips", 1, 1)
    assert capsys.readouterr() == ("", "")
