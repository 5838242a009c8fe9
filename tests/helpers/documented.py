"""What the documentation says to type: found, made small, and run; shared by the tests of the documentation.

Commands run as they stand, in the order of their page and in one empty folder, through the parser and the command's own
function. Only their size is changed: one epoch, one seed, few and small samples.
"""

import csv
import re
import shlex
import shutil
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import tyro

from mfh import reporting
from mfh.cli import commands as command_line
from mfh.cli import demo, options
from mfh.tasks import digits, ravdess, vggsound
from mfh.training.recipe import Recipe
from ravdess_clips import write_clips, write_features
from real_views import replace_real_data
from vggsound_clips import write_strips, write_vggsound

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]

_FENCED = r"(?:^<!-- (?P<mark>[^\n]*?) -->\n)?^```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^```$"


class Block(NamedTuple):
    mark: str
    language: str
    code: str


class Line(NamedTuple):
    """One command: its words; whether the page shows it with the error it ends in."""

    words: tuple[str, ...]
    refused: bool = False


def blocks(page: Path) -> list[Block]:
    found = re.finditer(_FENCED, page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [Block(*(part or "" for part in match.groups())) for match in found]


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def lines(page: Path) -> list[Line]:
    """Every line of a shell block, and every command in the running text, in the order of the page."""
    pattern = rf"{_FENCED}|`(?P<inline>(?:mfh(?= [a-z])|python|torchrun|sbatch|make|pip) [^`]+)`"
    found = []
    for match in re.finditer(pattern, page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        if match["inline"]:
            found.append(Line(tuple(shlex.split(match["inline"]))))
            continue
        code = match["code"].replace("\\\n", " ").splitlines()
        for number, line in enumerate(code):
            if match["language"] in ("bash", "console") or line.startswith("$ "):
                answer = code[number + 1] if number + 1 < len(code) else ""
                words = tuple(shlex.split(line.removeprefix("$ "), comments=True))
                found += [Line(words, refused=answer.startswith("mfh: "))] if words else []
    return found


def is_pattern(words: tuple[str, ...]) -> bool:
    """Whether it stands for commands, by TASK, RUN or dots, and is none itself."""
    return any(re.fullmatch(r"[A-Z]+|\.\.\.", word) for word in words)


def commands(page: Path) -> list[tuple[str, ...]]:
    """The words after `mfh` of every command of a page that can be run as it stands and is not shown to fail."""
    return [
        line.words[1:]
        for line in lines(page)
        if line.words[0] == "mfh" and not is_pattern(line.words) and not line.refused
    ]


# --- small ------------------------------------------------------------------------------------------------------------

SMALL = {
    options.Gauss: {"num_seeds": 2, "steps": 20},
    options.PrepareRavdess: {"height": 16, "width": 32, "mfcc_frames": 32, "processes": 0},
    options.PrepareVggsound: {"num_frames": 4, "size": 32, "seconds": 1.0, "clips_per_shard": 10, "processes": 0},
}
SMALL_TRAINING = {"epochs": 1, "num_seeds": 1, "processes": 1, "engine": "processes"}


def smaller(given: Any) -> Any:
    """The same options, for less work of the same kind."""
    if isinstance(given, options.Prepare):
        return replace(given, dataset=smaller(given.dataset))
    return _changed(given, SMALL.get(type(given), SMALL_TRAINING))


def _changed(given: Any, changes: dict[str, Any]) -> Any:
    """A copy of options and of their groups with some values changed."""
    values = {field.name: getattr(given, field.name) for field in fields(given)}
    groups = {name: _changed(value, changes) for name, value in values.items() if is_dataclass(value)}
    return replace(given, **groups, **{name: value for name, value in changes.items() if name in values})


def shrink_tasks(monkeypatch: Any) -> None:
    """What no option makes smaller: data and networks of the shipped tasks, a demo's epochs, figures in two formats."""
    for function, sizes in (
        (digits.task, {"num_train": 100, "num_val": 60, "num_test": 60}),
        (vggsound.task, {"num_frames": 2, "width": 4, "num_workers": 0}),
        (reporting.report, {"figures": ("svg",)}),
    ):
        for name, value in sizes.items():
            monkeypatch.setitem(function.__kwdefaults__, name, value)
    replace_real_data(monkeypatch)
    monkeypatch.setattr(ravdess.networks, "_WIDTHS", (64, 128))
    monkeypatch.setattr(demo, "TRAINING", {"epochs": 1, "batch_size": 64})
    monkeypatch.setattr(digits, "Recipe", lambda **given: Recipe(**given | {"epochs": 1}))


# --- what the pages take for granted ----------------------------------------------------------------------------------

HOME = "~/"


def write_files(folder: Path) -> None:
    """The files that pages tell to save: my_task.py and others."""
    for page in PAGES:
        for block in blocks(page):
            if block.mark.startswith("file: "):
                (folder / block.mark.removeprefix("file: ")).write_text(block.code, encoding="utf-8")


def write_raw_data(folder: Path, mentioned: set[str]) -> None:
    """Clips and authors' files at the places that the pages name."""
    if "~/Downloads/ravdess" in mentioned:
        write_clips(folder / "home/Downloads/ravdess", seconds=0.4, size=(36, 64))
    if "path/to/authors/data" in mentioned:
        write_features(folder / "path/to/authors/data")
    if "vggsound.csv" in mentioned:
        _, table = write_vggsound(folder, train=8, val=3, test=3, faults=False)
        with table.open("a", newline="", encoding="utf-8") as file:  # --classes 100 wants so many; these have no clips
            rows = [(f"{split}{n:07d}", 0, f"sound {n}", split) for n in range(97) for split in ("train", "test")]
            csv.writer(file).writerows(rows)
    if "authors/Train" in mentioned:
        write_strips(folder / "authors")
    if "pairs.npz" in mentioned:
        sensors = np.random.default_rng(0).normal(size=(2, 60, 5))
        np.savez(folder / "pairs.npz", teacher=sensors[0], student=sensors[1], target=np.arange(60) % 3)
    if "results/teacher_mod_1_overlap.pkl" in mentioned:
        results = folder / "results"
        results.mkdir()
        trained = ravdess.networks.audio_network(0.0, 1.0).state_dict().items()
        weights = [tensor for name, tensor in trained if not name.startswith("normalize")]
        torch.save({f"layer{i}": tensor for i, tensor in enumerate(weights)}, results / "teacher_mod_1_overlap.pkl")
        scores = np.random.default_rng(0).permutation(128) / 127
        np.save(results / "overlap_tag_teacher_place5_repeat10.npy", scores)


def needed_first(page: Path) -> list[tuple[str, ...]]:
    """Commands of other pages that make the prepared folders which this one only uses."""
    ours = commands(page)
    made = {words[3] for words in ours if words[0] == "prepare" and len(words) > 3}
    first = []
    for name in ("ravdess", "vggsound"):
        out = f"data/{name}"
        if out not in made and any(out in words for words in ours):
            others = commands(ROOT / f"docs/{name}.md")
            first.append(next(words for words in others if words[:2] == ("prepare", name) and out in words))
    return first


# --- run --------------------------------------------------------------------------------------------------------------


def run(words: tuple[str, ...], folder: Path) -> None:
    """What `mfh WORDS` does in this folder, the current one, on less data."""
    if "--help" in words:
        with pytest.raises(SystemExit) as end:
            command_line.main(words)
        assert not end.value.code
        return
    given = tyro.cli(options.Command, prog="mfh", args=[_as_the_shell(word, folder) for word in words])
    if isinstance(given, options.Prepare):
        _make_way(given.dataset)
    command_line.run_command(smaller(given))


def _as_the_shell(word: str, folder: Path) -> str:
    return str(folder / "home" / word.removeprefix(HOME)) if word.startswith(HOME) else word


def _make_way(dataset: options.PrepareRavdess | options.PrepareVggsound) -> None:
    """A page shows several ways to make the same folder; each but the further parts of one starts without it."""
    shard = getattr(dataset, "shard", None)
    if not getattr(dataset, "merge", False) and (shard is None or shard.startswith("0/")):
        shutil.rmtree(dataset.out, ignore_errors=True)


def pages_with_commands() -> list[Path]:
    """All pages to run, but those that repeat a single command of another."""
    found = [page for page in PAGES if commands(page)]
    alone = [page for page in found if len(commands(page)) == 1]
    rest = [page for page in found if page not in alone]
    return rest + [page for page in alone if not any(commands(page)[0] in commands(other) for other in rest)]


def run_page(page: Path, folder: Path, monkeypatch: Any) -> list[tuple[str, ...]]:
    """Run all commands of a page in this empty folder; returns them."""
    monkeypatch.chdir(folder)
    shrink_tasks(monkeypatch)
    ours = needed_first(page) + commands(page)
    write_files(folder)
    write_raw_data(folder, {word for words in ours for word in words})
    for words in ours:
        monkeypatch.setattr("sys.argv", ["mfh", *words])
        try:
            run(words, folder)
        except Exception as error:
            raise AssertionError(f"{name_of(page)}: mfh {shlex.join(words)}: {error}") from error
    return ours


#: Pages whose commands are run on generated clips, and the reference whose commands are run in order.
DATA_PAGES = [ROOT / f"docs/{name}.md" for name in ("coming-from-the-paper-code", "ravdess", "vggsound")]
REFERENCE_PAGES = [ROOT / "docs/command-line.md"]
