"""What campaigns share: small commands on a tiny task, one trial in a process of its own, and a table of totals."""

import argparse
import contextlib
import datetime
import json
import math
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TASK = str(ROOT / "tests" / "helpers" / "tiny_task.py")
REPORTS = ROOT / "benchmarks" / "reports"
#: Longest time that a command on a tiny task may take, in seconds.
LONGEST = 300.0

_STUDY = ["study", TASK, "--num-seeds", "2", "--arms", "no-kd", "regular", "general", "soft", "--processes", "1"]
_GAUSS = ["--num-seeds", "2", "--steps", "5", "--num-train", "30", "--num-test", "40"]
_GAUSS += ["--overlaps", "0", "5", "--teacher-only", "0", "5"]

#: Run folders by name, each with the command that makes it; the command is continued by "--out FOLDER".
FOLDERS = {
    "study": _STUDY,
    "selection": [*_STUDY, "--select"],
    "diagnosis": ["diagnose", TASK],
    "gauss": ["gauss", "all", *_GAUSS],
}


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Args:
        code: Exit code; None if it had to be stopped after `LONGEST` seconds.
        said: What it wrote to standard output.
        complained: What it wrote to standard error.
    """

    code: int | None
    said: str
    complained: str

    @property
    def verdict(self) -> str:
        """ "finished", "refused" (exit code 2 and one line), or one of `Totals.BAD`."""
        if self.code is None:
            return "hang"
        if self.code == 0:
            return "finished"
        lines = self.complained.strip().splitlines()
        one_line = len([line for line in lines if line.startswith("mfh: ")]) == 1 and lines[-1].startswith("mfh: ")
        return "refused" if self.code == 2 and one_line and "Traceback" not in self.complained else "traceback"


class Child:
    """One mfh command through the real `main`, in a forked process, so that no trial can disturb the next one.

    Args:
        words: The command, without "mfh".
        folder: Where it runs.
    """

    def __init__(self, words: Sequence[str], folder: Path) -> None:
        from mfh.cli import main

        self._place = tempfile.TemporaryDirectory()
        self._said = [Path(self._place.name) / name for name in ("out", "err")]
        said, complained = self._said
        self.process = child = os.fork()
        if child == 0:
            code = 1
            try:
                os.setpgid(0, 0)
                os.chdir(folder)
                for path, number in ((said, 1), (complained, 2)):
                    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
                sys.stdout, sys.stderr = (os.fdopen(number, "w") for number in (1, 2))
                sys.argv = ["mfh", *words]
                try:
                    main(list(words))
                    code = 0
                except SystemExit as stop:
                    code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
                except BaseException:
                    import traceback

                    traceback.print_exc()
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(code)
        with contextlib.suppress(OSError):  # the group must exist before it can be killed, whoever is first
            os.setpgid(child, child)

    def outcome(self, longest: float = LONGEST) -> Outcome:
        """How it ends. After `longest` seconds the whole process group gets SIGKILL; nothing can clean up."""
        code, end = None, time.monotonic() + longest
        while code is None and time.monotonic() < end:
            done, status = os.waitpid(self.process, os.WNOHANG)
            code = os.waitstatus_to_exitcode(status) if done else None
            time.sleep(0.005)
        if code is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process, signal.SIGKILL)
            os.waitpid(self.process, 0)
        texts = [path.read_text(errors="replace") if path.exists() else "" for path in self._said]
        self._place.cleanup()
        return Outcome(code, *texts)


def in_child(words: Sequence[str], folder: Path) -> Outcome:
    """Run one command to its end."""
    return Child(words, folder).outcome()


@dataclass
class Totals:
    """Counts of verdicts by command, and one example of everything that went wrong."""

    BAD = ("traceback", "hang", "silent wrong result", "left behind")
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def add(self, command: str, verdict: str, example: str = "") -> None:
        """Count one trial."""
        self.counts[command, verdict] += 1
        if verdict in self.BAD:
            self.examples.append(f"{verdict}: {example}")

    def merge(self, others: Iterable["Totals"]) -> "Totals":
        """These totals and others as one."""
        for other in others:
            self.counts.update(other.counts)
            self.examples.extend(other.examples)
        return self

    @property
    def num_bad(self) -> int:
        """Trials that went wrong."""
        return sum(count for (_, verdict), count in self.counts.items() if verdict in self.BAD)

    def table(self) -> str:
        """The totals as a Markdown table: a row for each command, a column for each verdict."""
        from mfh.files import markdown_table

        commands = sorted({command for command, _ in self.counts})
        good = sorted({verdict for _, verdict in self.counts} - set(self.BAD))
        verdicts = [*good, *self.BAD]
        rows = [[name, *(str(self.counts[name, verdict]) for verdict in verdicts)] for name in commands]
        sums = [sum(self.counts[name, verdict] for name in commands) for verdict in verdicts]
        rows.append(["all", *map(str, sums)])
        return markdown_table(["command", *verdicts], rows, ["text", *["number"] * len(verdicts)])


def options(description: str | None, *, trials: str, short: int, seed: int = 0) -> argparse.ArgumentParser:
    """The command line of a campaign.

    Args:
        description: Docstring of the campaign.
        trials: Name of the option that says how many trials to make.
        short: Number of trials of the short form.
        seed: Default random seed.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(f"--{trials}", type=int, default=short, dest="trials")
    parser.add_argument("--seed", type=int, default=seed)
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no further trial after this time")
    parser.add_argument("--out", type=Path, help="Markdown file to keep the totals in")
    return parser


def finish(title: str, totals: Totals, begun: float, out: Path | None) -> int:
    """Print the totals and keep them; returns the exit code, 1 if anything went wrong."""
    lines = [
        f"# {title}, {datetime.date.today().isoformat()}",
        "",
        f"Command: `python {' '.join(sys.argv)}`. Python {platform.python_version()}, {os.cpu_count()} cores, "
        f"{time.monotonic() - begun:.0f} s.",
        "",
        totals.table(),
    ]
    if totals.examples:
        lines += ["What went wrong:", "", *(f"* {' '.join(text.split())[:300]}" for text in totals.examples), ""]
    text = "\n".join(lines)
    print(text)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
    return int(totals.num_bad > 0)


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    """A temporary folder, where figures are made but not rendered: rendering takes most of the time of a trial.

    The numbers of a figure are in its alternative text, which is judged.
    """
    from unittest.mock import patch

    def not_rendered(figure: object, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"<svg/>")
        return path

    with patch("mfh.figures.style.save_figure", not_rendered), tempfile.TemporaryDirectory(prefix="mfh-") as folder:
        yield Path(folder)


def warm(folders: Iterable[Path] = ()) -> None:
    """Import everything once, and write the reports of run folders, so that forked trials start at once."""
    import torch

    import mfh.cli
    import mfh.gaussian.run
    import mfh.studies.diagnosis
    import mfh.studies.running  # noqa: F401
    from mfh.reporting import report

    torch.set_num_threads(1)
    for folder in folders:
        with tempfile.TemporaryDirectory() as place:
            report(folder, out=place, format="md")


def made(place: Path, names: Iterable[str] = FOLDERS) -> dict[str, Path]:
    """Undisturbed run folders by name.

    Raises:
        RuntimeError: A command failed on an undisturbed folder.
    """
    folders = {}
    for name in names:
        outcome = in_child([*FOLDERS[name], "--quiet", "--out", name], place)
        if outcome.code != 0:
            raise RuntimeError(f"{name}: {outcome}")
        folders[name] = place / name
    return folders


def on(words: Sequence[str], run: str) -> list[str]:
    """A command with the name of a run folder where RUN stands."""
    return [run if word == "RUN" else word for word in words]


def kept(folder: Path) -> dict[str, bytes]:
    """Results, networks and scores of a run folder: everything that must not depend on what happened to it."""
    found = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    names = ("config.json", "selection.json", "diagnosis.json", "truth.json")
    return {
        name: _content(path)
        for name, path in found.items()
        if path.suffix in (".csv", ".safetensors", ".ckpt", ".part") or path.name in names
    }


def _content(path: Path) -> bytes:
    content = path.read_bytes()
    if path.suffix != ".safetensors":
        return content
    # The order of the entries of a header differs from process to process.
    end = 8 + int.from_bytes(content[:8], "little")
    return json.dumps(json.loads(content[8:end]), sort_keys=True).encode() + content[end:]


def chances(seed: int, *names: object) -> random.Random:
    """A random generator of its own for each trial."""
    return random.Random(f"{seed} {' '.join(map(str, names))}")


def begun_folder(begin: Path | None, place: Path) -> Path:
    """A run folder in `place`: a copy of one that was begun, or none yet."""
    folder = place / "run"
    shutil.rmtree(folder, ignore_errors=True)
    if begin is not None:
        shutil.copytree(begin, folder)
    return folder
