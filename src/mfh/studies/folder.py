"""The run folder: the only module that knows the names and formats of its files.

A `Run` is one run folder, of a study, of single steps, of a diagnosis or of the Gaussian experiments. A `SeedFolder` is
what one seed keeps in it: networks, saliencies, masks, measurements. Everything is written whole or not at all.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NotRequired, TypedDict
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from mfh import files
from mfh.errors import InputError, refuse_difference
from mfh.problems.scale import ACCURACY, Scale
from mfh.studies import records
from mfh.studies.grid import COLUMNS, FRACTION, Cell
from mfh.studies.stats import Repeats

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from mfh.saliency.masks import ChannelMask
    from mfh.saliency.scores import ChannelSaliency
    from mfh.studies.diagnosis import Diagnosis
    from mfh.studies.summary import Summary

#: One measurement: column -> value.
Row = dict[str, Any]
#: A network that a seed keeps: trained on labels, one of the jointly trained pair, or the student of an arm.
#: "aligned-best-student" is the jointly trained student with the weights of the epoch that the recipe keeps.
NetworkKey = Literal["teacher", "student", "aligned-teacher", "aligned-student", "aligned-best-student"] | Cell
#: A training that a seed keeps the history of; "aligned" is the joint one.
HistoryKey = Literal["teacher", "student", "aligned"] | Cell

#: Counts up when networks and measurements of an earlier version must not be mixed with new ones.
FORMAT = 2

#: No metric, loss or count is as large as this; larger ones cannot be drawn.
_LARGEST = 1e15

#: With more classes than this, only correct and wrong predictions are counted: a larger matrix shows nothing.
MOST_CLASSES = 50

# File systems allow 255 bytes; an ending, the digest of a checkpoint and a temporary name are added.
_LONGEST_NAME = 150

_CONFIG, _ENVIRONMENT, _RESULTS = "config.json", "environment.json", "results.csv"
_SELECTION, _DIAGNOSIS, _TRUTH = "selection.json", "diagnosis.json", "truth.json"
_CHECKSUMS, _ADDITION, _EXPORT = "checksums.json", "addition.json", "export.json"
_STUDY = "study.toml"
_STUDENTS = "students"
_KINDS = {"study": "a study", "steps": "single steps", "diagnose": "a diagnosis", "gauss": "Gaussian experiments"}
_COUNTS = ("target", "predicted", "count")
_MEASURE_AGAIN = "remove it to measure this cell again"
_TRAIN_AGAIN = "remove it, and give the command of the run again to train the student again"
_WITHOUT_IT = "remove it to have a report without it"
_RESTORE = "restore it, or choose another --out"
_RUN_AGAIN = "remove it and give the command of the run again"
#: Folders of a run folder that only the holder of its lock writes to.
_OURS = (".", "figures", "seed-*", "seed-*/*", "seed-*/labels-*/*", "students", "students/*")


class _Config(TypedDict, total=False):
    """What mfh reads of a configuration."""

    command: str
    task: str
    arms: list[str]
    ratios: list[float]
    scores: list[str]
    layers: list[str]
    weights: list[list[float]] | None
    label_fractions: list[float]
    pairs: list[dict[str, int]]
    select: bool
    data: str | None
    preset: str | None
    augment: bool
    data_redrawn: bool
    resplit: "_Resplit"
    set: dict[str, str]
    metric: Scale
    facts: "_Facts | None"
    identity: dict[str, Any]
    experiments: dict[str, Any] | list[str]
    first_seed: int
    num_seeds: int


@dataclass
class _Resplit:
    """What was split anew for every seed, see `Repeats`."""

    num_train: int
    num_val: int
    num_test: int
    unit: str = "pairs"
    same_test: bool = False


class _Facts(TypedDict, total=False):
    """What mfh reads of a task's facts."""

    description: str
    best_teacher_accuracy: float
    best_student_accuracy: float
    majority_accuracy: float
    general: int | None
    teacher_only: int | None
    student_only: int | None


class _Environment(TypedDict, total=False):
    """What mfh reads of how a run was made."""

    repeat: str
    seconds: float
    source: str


class _Selection(TypedDict):
    """What mfh reads of a choice."""

    arm: str
    score: str
    ratio: float | None
    layer: str
    weights: list[float] | None
    validation_gain: float
    standard_error: float | None
    recommended: str
    candidates: int


class _Truth(TypedDict):
    """Which channels are modality-general."""

    general: list[bool]


class _NetworkFacts(TypedDict):
    """What is kept with a network."""

    made_with: dict[str, Any]
    best_epoch: int | None
    history: list[dict[str, Any]]


class Cost(TypedDict):
    """What a training cost: seconds, and what it needed beside the networks that it trains.

    `together` is the number of trainings that happened at once, of whose seconds these are a share; 1 for one alone.
    Version 0.1 does not say.
    """

    seconds: float
    extra_parameters: int
    extra_bytes: int
    together: NotRequired[int]


class _StudentFacts(TypedDict):
    """What is kept with the best student of a variant."""

    made_with: dict[str, Any]
    seed: int
    validation: float


class _Export(TypedDict):
    """What was exported last: the file, the arm, and what the report says of it."""

    file: str
    arm: str
    lines: list[str]


class _Checksums(TypedDict):
    """Digests that the content of tables may have: the present one, and the next one while it is written."""

    digests: dict[str, list[str]]


class _Addition(TypedDict):
    """Seeds that are being added: how many, and how many there are then."""

    add_seeds: int
    num_seeds: int


class Run:
    """One run folder.

    Args:
        folder: Its path; it need not exist yet. Use `Run.open` for a folder that must hold a run.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._held = False

    @classmethod
    def open(cls, run: "str | Path | Run") -> "Run":
        """A run that exists.

        Args:
            run: The path of a run folder, or a `Run`.

        Raises:
            InputError: The folder holds no run.
        """
        found = run if isinstance(run, Run) else cls(run)
        if not (found.holds_config or found.holds_diagnosis):
            what = f"has no {_CONFIG}" if found.folder.is_dir() else "is no folder"
            inner = sorted(path.parent for path in found.folder.glob(f"*/{_CONFIG}"))
            if inner:
                raise InputError(f"{found.folder} {what}; give a run in it: {', '.join(map(str, inner[:5]))}")
            raise InputError(
                f"{found.folder} {what}; give the folder of a run, as `mfh study ... --out {found.folder}` makes it"
            )
        return found

    def refresh(self) -> None:
        """Forget what was read, because another process may have written since."""
        for name in ("config", "environment", "results", "summary", "diagnosis"):
            self.__dict__.pop(name, None)

    # --- one writer at a time ---------------------------------------------------------------------------------------

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process. Every command that writes to a run folder does.

        What killed processes left unfinished is removed. A `Run` that is held already may be held again within.

        Raises:
            InputError: Another process holds it.
        """
        if self._held:
            yield
            return
        with files.claimed(self.folder, _OURS):
            self._held = True
            try:
                yield
            finally:
                self._held = False

    def refuse_foreign(self) -> None:
        """Refuse a folder that holds files of another program.

        Raises:
            InputError: It does.
        """
        if self.folder.exists() and not self.holds_config:
            ours = ("seed-", ".in-use", f".{_CONFIG}.", _DIAGNOSIS, f".{_DIAGNOSIS}.", "report.", ".report.", "figures")
            self._refuse_lost_config()
            strange = [item.name for item in self.folder.iterdir() if not item.name.startswith(ours)]
            if strange:
                raise InputError(f"{self.folder} is not empty ({strange[0]!r}) and no run of mfh; choose another --out")

    # --- configuration ----------------------------------------------------------------------------------------------

    @property
    def holds_config(self) -> bool:
        """Whether the folder has a configuration."""
        return records.present(self.folder / _CONFIG, _RESTORE)

    @cached_property
    def config(self) -> dict[str, Any]:
        """The configuration, read once; empty where there is none.

        Raises:
            InputError: The file cannot be read.
        """
        return records.read_record(self.folder / _CONFIG, _Config, _RESTORE) if self.holds_config else {}

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Keep the configuration.

        Raises:
            InputError: The folder holds measurements whose configuration is lost.
        """
        self._refuse_lost_config()
        records.write_record(self.folder / _CONFIG, config)
        self.__dict__.pop("config", None)

    def _refuse_lost_config(self) -> None:
        if not self.holds_config and self.num_cells:
            raise InputError(
                f"{self.folder} holds measurements but no {_CONFIG}, so nobody knows what they were made with; "
                f"{_RESTORE}"
            )

    def claim(self, config: Mapping[str, Any]) -> None:
        """Make the folder that of a study, or check that it is already; only seeds may be added.

        Args:
            config: Everything that decides the study's results, with `num_seeds`.

        Raises:
            InputError: The folder holds results of another configuration.
        """
        self.refresh()  # what was read before the folder was locked may be out of date
        if self.holds_config and self.num_cells:
            refuse_other_format(self.described, self.config.get("identity") or {})
            refuse_difference(
                self.described,
                _deciding(self.config),
                _deciding(config),
                "choose another --out, or the same options to resume",
            )
            if self.num_seeds > config["num_seeds"]:
                raise InputError(
                    f"{self.folder} holds {self.num_seeds} seeds, now num_seeds is {config['num_seeds']}; "
                    "ask for at least as many, or choose another --out"
                )
        self.write_config(config)

    @property
    def num_seeds(self) -> int:
        """The number of seeds that the configuration asks for.

        Raises:
            InputError: The configuration does not say.
        """
        if "num_seeds" not in self.config:
            raise InputError(f"{self.folder / _CONFIG}: num_seeds is missing; {_RESTORE}")
        return int(self.config["num_seeds"])

    def seeds_with(self, added: int) -> int:
        """The number of seeds once some are added. An addition that was interrupted is finished, not repeated.

        Args:
            added: Number of seeds to add.

        Raises:
            InputError: The folder holds no study to add to.
        """
        if not self.holds_config:
            raise InputError(f"add_seeds is {added}, but {self.folder} holds no study to add to; use num_seeds")
        unfinished = self._addition
        if unfinished is None:
            return self.num_seeds + added
        return int(unfinished["num_seeds"] - unfinished["add_seeds"] + max(added, unfinished["add_seeds"]))

    def begin_addition(self, added: int, num_seeds: int) -> None:
        """Note that seeds are being added, before anything is done for them.

        Args:
            added: How many.
            num_seeds: How many there are then.
        """
        records.write_record(self.folder / _ADDITION, {"add_seeds": added, "num_seeds": num_seeds})

    def end_addition(self) -> None:
        """Forget the note of `begin_addition`: everything that was asked for is done."""
        (self.folder / _ADDITION).unlink(missing_ok=True)

    @property
    def _addition(self) -> dict[str, Any] | None:
        path, way_out = self.folder / _ADDITION, "remove it, and say with num_seeds how many seeds there shall be"
        return records.read_record(path, _Addition, way_out) if records.present(path, way_out) else None

    @property
    def command(self) -> str:
        """What made the run: "study", "steps", "diagnose" or "gauss"."""
        command = str(self.config.get("command", "study" if self.holds_config else "steps"))
        return "diagnose" if command == "steps" and self.holds_diagnosis else command.split(" ")[0]

    @property
    def described(self) -> str:
        """The folder and what made it, for messages."""
        return f"{self.folder} ({_KINDS.get(self.command, self.command)})"

    @property
    def scale(self) -> Scale:
        """How the task's metric reads."""
        return Scale(**self.config["metric"]) if "metric" in self.config else ACCURACY

    @property
    def repeats(self) -> Repeats:
        """What differs between the seeds of a study."""
        if "resplit" in self.config:
            return Repeats("resplit", **self.config["resplit"])
        return Repeats("redrawn" if self.config.get("data_redrawn", True) else "fixed")

    @property
    def num_val(self) -> int:
        """Number of validation pairs of a seed; 0 where the run does not say."""
        pairs: Sequence[Mapping[str, int]] = self.config.get("pairs", ())
        return pairs[0]["val"] if pairs else 0

    # --- how it was made --------------------------------------------------------------------------------------------

    @cached_property
    def environment(self) -> dict[str, Any]:
        """Versions, hardware, seconds and the command that repeats the run; empty where the run left none."""
        path = self.folder / _ENVIRONMENT
        return records.read_record(path, _Environment, _WITHOUT_IT) if records.present(path, _WITHOUT_IT) else {}

    @property
    def shown_files(self) -> dict[Path, str]:
        """Files that a report links, and what each of them holds."""
        kept = {_RESULTS: "all measurements, one in a row", _STUDY: "the study, to run again: mfh study study.toml"}
        return {self.folder / name: words for name, words in kept.items() if (self.folder / name).is_file()}

    def write_study(self, text: str) -> None:
        """Keep the file that repeats the study; see `mfh.studies.study_file`."""
        path = self.folder / _STUDY
        if not path.is_file() or path.read_bytes() != text.encode():
            with files.atomic_write(path) as file:
                file.write(text)

    def write_environment(self, environment: Mapping[str, Any]) -> None:
        """Keep how the run was made."""
        records.write_record(self.folder / _ENVIRONMENT, environment)
        self.__dict__.pop("environment", None)

    # --- results ----------------------------------------------------------------------------------------------------

    def write_results(self, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
        """Keep the table of all measurements. It says that the run is finished, so it is written last."""
        self.write_checked(_RESULTS, files.table_text(columns, rows))
        self.__dict__.pop("results", None)
        self.__dict__.pop("summary", None)

    def write_checked(self, name: str, text: str) -> None:
        """Keep a file whose format has no room for a checksum; its digest is kept beside it.

        Args:
            name: Name of the file.
            text: Its content.
        """
        path, held = self.folder / name, self._digests
        # Whenever this process is killed, what is there is either the earlier file or the new one, and both are known.
        before = files.file_digest(path) if path.is_file() else ""
        known = [digest for digest in held.get(name, ()) if digest == before]
        digest = hashlib.sha256(text.encode()).hexdigest()
        records.write_record(
            self.folder / _CHECKSUMS, {"digests": {**held, name: list(dict.fromkeys([*known, digest]))}}
        )
        with files.atomic_write(path) as file:
            file.write(text)

    def checked(self, name: str) -> Path:
        """The path of a file that `write_checked` wrote.

        Raises:
            InputError: It is missing although the run is finished, or it was changed after it was written.
        """
        path, known = self.folder / name, self._digests.get(name)
        if not records.present(path, _RUN_AGAIN):
            raise InputError(f"no file {path}; a finished run holds one: give the command of the run again")
        if known is not None and files.file_digest(path) not in known:
            raise InputError(f"{path} was changed after it was written (its checksum differs); {_RUN_AGAIN}")
        return path

    def holds(self, name: str) -> bool:
        """Whether the run keeps, or once kept, a file that `write_checked` wrote."""
        return (self.folder / name).is_file() or name in self._digests

    @property
    def _digests(self) -> dict[str, list[str]]:
        path, way_out = self.folder / _CHECKSUMS, "remove it to read the results unchecked"
        if not records.present(path, way_out):
            return {}
        digests: dict[str, list[str]] = records.read_record(path, _Checksums, way_out)["digests"]
        return digests

    @property
    def holds_results(self) -> bool:
        """Whether the table of all measurements is there."""
        return (self.folder / _RESULTS).is_file()

    @cached_property
    def results(self) -> "pd.DataFrame":
        """A study's tidy table, one row per measurement, read once.

        Raises:
            InputError: The folder has no such table, or the file is not the table of a study.
        """
        return self.table(COLUMNS)

    def table(self, columns: Sequence[str]) -> "pd.DataFrame":
        """The table of all measurements, of whatever kind of run.

        Args:
            columns: Columns that it must have.

        Raises:
            InputError: There is no such table, or it lacks a column.
        """
        return files.read_frame(self.checked(_RESULTS), columns)

    @cached_property
    def summary(self) -> "Summary":
        """Every arm of a study against no-kd and against the same teacher unmasked, computed once.

        Of a study of several label fractions, this is the largest.
        """
        return self.summary_at(max(self.measured_fractions, default=None))

    def summary_at(self, fraction: float | None) -> "Summary":
        """The summary at one label fraction of a study that compares several; None for a study of all labels."""
        from mfh.studies.summary import summarise

        rows = self.results if fraction is None else self.results[self.results[FRACTION] == fraction]
        return summarise(rows, repeats=self.repeats, scale=self.scale)

    @property
    def measured_fractions(self) -> list[float]:
        """Label fractions in the table of all measurements, in ascending order; empty where it compares none."""
        return sorted(self.results[FRACTION].dropna().unique()) if FRACTION in self.results else []

    @property
    def selection(self) -> dict[str, Any] | None:
        """What a study with selection has chosen; None without a choice."""
        path, way_out = self.folder / _SELECTION, "remove it to choose again"
        return records.read_record(path, _Selection, way_out) if records.present(path, way_out) else None

    def write_selection(self, choice: Mapping[str, Any]) -> None:
        """Keep what a study has chosen."""
        records.write_record(self.folder / _SELECTION, choice)

    @property
    def selection_file(self) -> Path:
        """Where the choice is kept, for messages."""
        return self.folder / _SELECTION

    @property
    def holds_diagnosis(self) -> bool:
        """Whether the folder has a diagnosis."""
        return records.present(self.folder / _DIAGNOSIS, "remove it and diagnose again")

    @cached_property
    def diagnosis(self) -> "Diagnosis | None":
        """The diagnosis that the folder holds, read once; None without one.

        Raises:
            InputError: The file cannot be read.
        """
        from mfh.studies.diagnosis import Diagnosis

        return Diagnosis.load(self.folder / _DIAGNOSIS) if self.holds_diagnosis else None

    def write_diagnosis(self, diagnosis: "Diagnosis") -> None:
        """Keep a diagnosis."""
        diagnosis.save(self.folder / _DIAGNOSIS)
        self.__dict__.pop("diagnosis", None)

    # --- students ---------------------------------------------------------------------------------------------------

    def student_file(self, cell: Cell, fraction: float | None = None) -> Path:
        """Where the best student of a variant is kept.

        Args:
            cell: The variant.
            fraction: Share of the labels that it was trained on, in a study of several.
        """
        folder = self.folder / _STUDENTS
        folder = folder if fraction is None else folder / f"labels-{fraction!r}"
        return folder / f"{safe_name(cell.name)}.safetensors"

    @property
    def students_folder(self) -> Path:
        """Where the best student of every variant is kept."""
        return self.folder / _STUDENTS

    @property
    def holds_students(self) -> bool:
        """Whether any student is kept as the best of its variant."""
        return any(self.students_folder.glob("**/*.safetensors"))

    def student_facts(self, cell: Cell, fraction: float | None = None) -> dict[str, Any] | None:
        """Seed, validation metric and origin of the best student of a variant; None where none is kept.

        Raises:
            InputError: Its file cannot be read.
        """
        path = self.student_file(cell, fraction)
        if not records.present(path, _TRAIN_AGAIN):
            return None
        return self._fitted_student(path, files.load_facts(path, "student"))

    def read_student(self, cell: Cell, fraction: float | None = None) -> "tuple[dict[str, Tensor], dict[str, Any]]":
        """Weights of the best student of a variant, and the facts kept with them.

        Raises:
            InputError: None is kept, or its file cannot be read.
        """
        path = self.student_file(cell, fraction)
        weights, facts = files.load_tensors(path, "student", self._student_place(path))
        return weights, self._fitted_student(path, facts)

    def write_student(
        self, cell: Cell, fraction: float | None, weights: "Mapping[str, Tensor]", facts: Mapping[str, Any]
    ) -> None:
        """Keep a student as the best of its variant.

        Args:
            cell: The variant.
            fraction: Share of the labels that it was trained on, in a study of several.
            weights: Its weights.
            facts: `seed`, `validation` (its metric there) and `made_with`, as JSON can hold it.
        """
        path = self.student_file(cell, fraction)
        files.save_tensors(path, "student", weights, facts, self._student_place(path))

    def offer_student(
        self,
        cell: Cell,
        fraction: float | None,
        weights: "Callable[[], Mapping[str, Tensor]]",
        facts: Mapping[str, Any],
        sign: int,
    ) -> None:
        """Keep a student if it is better on validation than the one that is kept, or as good with a lower seed.

        Cells finish in any order and in several processes; what is kept in the end is the same.

        Args:
            cell: The variant.
            fraction: Share of the labels that it was trained on, in a study of several.
            weights: Returns its weights.
            facts: As in `write_student`.
            sign: 1 if a higher metric is better, otherwise -1.
        """
        with files.locked(self.folder / _STUDENTS / ".lock"):
            held = self.student_facts(cell, fraction)
            if held is None or held["seed"] == facts["seed"] or _merit(facts, sign) > _merit(held, sign):
                self.write_student(cell, fraction, weights(), facts)

    def _fitted_student(self, path: Path, facts: dict[str, Any]) -> dict[str, Any]:
        try:
            fitted: dict[str, Any] = records.fitted(facts, _StudentFacts)
        except ValueError as error:
            raise InputError(f"{path}: {error}; {_TRAIN_AGAIN}") from None
        return fitted

    def _student_place(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    @property
    def exported(self) -> dict[str, Any] | None:
        """What was exported last: `file`, `arm` and the `lines` of the report on it; None where nothing was."""
        path = self.folder / _EXPORT
        return records.read_record(path, _Export, _WITHOUT_IT) if records.present(path, _WITHOUT_IT) else None

    def write_exported(self, file: Path, arm: str, lines: Sequence[str]) -> None:
        """Keep what was exported, for the report."""
        records.write_record(self.folder / _EXPORT, {"file": str(file), "arm": arm, "lines": list(lines)})

    def forget_exported(self) -> None:
        """Forget what was exported, because more was measured since; the file stays where it is."""
        (self.folder / _EXPORT).unlink(missing_ok=True)

    def export_file(self, format: str) -> Path:  # noqa: A002 (the word users know)
        """Where an exported student goes unless the user says otherwise."""
        return self.folder / f"student.{format}"

    # --- seeds ------------------------------------------------------------------------------------------------------

    def seed(self, seed: int, fraction: float | None = None) -> "SeedFolder":
        """What one seed keeps.

        Args:
            seed: The random seed.
            fraction: Share of the labels that it was trained on, in a study of several.
        """
        folder = self.folder / f"seed-{seed}"
        return SeedFolder(folder if fraction is None else folder / f"labels-{fraction!r}", seed, fraction)

    @property
    def fractions(self) -> list[float]:
        """Shares of the labels that a study compares, in ascending order; empty where it compares none."""
        return [float(fraction) for fraction in self.config.get("label_fractions") or []]

    @property
    def seeds(self) -> "list[SeedFolder]":
        """What every seed keeps, in order of the seeds; of several label fractions, the largest."""
        found = [re.fullmatch(r"seed-(\d+)", path.name) for path in self.folder.glob("seed-*")]
        largest = max(self.fractions, default=None)
        return [self.seed(seed, largest) for seed in sorted(int(match[1]) for match in found if match)]

    @property
    def num_cells(self) -> int:
        """How many tables of measurements all seeds have."""
        return len([*self.folder.glob("seed-*/cells/*.csv"), *self.folder.glob("seed-*/labels-*/cells/*.csv")])


class SeedFolder:
    """What one seed keeps in a run folder.

    Args:
        folder: Its path; it need not exist yet.
        seed: The random seed.
        fraction: Share of the labels that it was trained on, in a study of several.
    """

    def __init__(self, folder: Path, seed: int, fraction: float | None = None) -> None:
        self.folder, self.seed, self.fraction = folder, seed, fraction

    # --- networks ---------------------------------------------------------------------------------------------------

    def network_file(self, key: NetworkKey) -> Path:
        """Where a network's weights are kept."""
        return self.folder / f"{_stem(key)}.safetensors"

    def read_network(self, key: NetworkKey) -> "tuple[dict[str, Tensor], dict[str, Any]]":
        """Weights of a network, and the facts kept with them.

        Raises:
            InputError: There is no such network, or its file cannot be read.
        """
        path = self.network_file(key)
        weights, facts = files.load_tensors(path, "network", self._place(path))
        try:
            return weights, records.fitted(facts, _NetworkFacts)
        except ValueError as error:
            raise InputError(f"{path}: {error}; remove it to train the network again") from None

    def write_network(self, key: NetworkKey, weights: "Mapping[str, Tensor]", facts: Mapping[str, Any]) -> None:
        """Keep the weights of a network, with facts that JSON can hold."""
        path = self.network_file(key)
        files.save_tensors(path, "network", weights, facts, self._place(path))

    def checkpoint_file(self, key: NetworkKey, made_with: str) -> Path:
        """Where an unfinished training is kept; named after what decides it, so that no other one resumes from it.

        Args:
            key: The network that is trained; of the joint training, the teacher.
            made_with: Digest of everything that decides the training.
        """
        return self.folder / f"{_stem(key)}-{made_with[:8]}.ckpt"

    def logs(self) -> Path:
        """Folder for what loggers write."""
        return self.folder / "logs"

    # --- saliencies and masks ---------------------------------------------------------------------------------------

    def saliency_file(self, score: str, layer: str = "") -> Path:
        """Where the scores of a layer's channels are kept.

        Args:
            score: "distance", "agreement" or "probe".
            layer: Empty for the task's own layer.
        """
        return self.folder / (safe_name(f"saliency-{score}" + (f"-{layer}" if layer else "")) + ".safetensors")

    def saliency_picture(self, score: str, layer: str = "") -> Path:
        """Where `mfh saliency` puts its picture."""
        return self.saliency_file(score, layer).with_suffix(".svg")

    def saliencies(self) -> "list[ChannelSaliency]":
        """All scores that the seed keeps, each with its score's name and layer.

        Raises:
            InputError: A file cannot be read.
        """
        from mfh.saliency.scores import ChannelSaliency

        found = sorted(self.folder.glob("saliency-*.safetensors"))
        return [files.load_fields(ChannelSaliency, path, "saliency", self._place(path)) for path in found]

    def write_saliency(self, path: Path, saliency: "ChannelSaliency") -> None:
        """Keep the scores of a layer's channels.

        Args:
            path: The file, as `saliency_file` names it.
            saliency: The scores.
        """
        files.save_fields(saliency, path, "saliency", self._place(path))

    @property
    def truth_file(self) -> Path:
        """Where it is kept which channels are modality-general, if that is known."""
        return self.folder / _TRUTH

    def read_truth(self) -> NDArray[np.bool_] | None:
        """(C,) whether each channel of the task's layer is modality-general; None where that is not known."""
        path = self.truth_file
        if not records.present(path, _WITHOUT_IT):
            return None
        return np.asarray(records.read_record(path, _Truth, _WITHOUT_IT, self._place(path))["general"], dtype=bool)

    def write_truth(self, general: NDArray[np.bool_]) -> None:
        """Keep which channels are modality-general."""
        path = self.truth_file
        records.write_record(path, {"general": np.asarray(general).tolist()}, self._place(path))

    def write_mask(self, cell: Cell, mask: "ChannelMask") -> None:
        """Keep the mask of an arm, unless it is kept already."""
        path = self.folder / f"{safe_name(f'mask-{cell.unweighted.name}')}.safetensors"
        if not path.exists():
            mask.save(path)

    # --- measurements -----------------------------------------------------------------------------------------------

    def rows_file(self, cell: Cell | None, splits: Sequence[str]) -> Path:
        """Where the measurements of one arm are kept; with None those of the scores."""
        name = "scores" if cell is None else cell.name
        return self.folder / "cells" / f"{safe_name(f'{name}-' + '-'.join(splits))}.csv"

    def holds_rows(self, cell: Cell | None, splits: Sequence[str]) -> bool:
        """Whether an arm is measured; its file exists once it is whole."""
        return records.present(self.rows_file(cell, splits), _MEASURE_AGAIN)

    def write_rows(
        self, cell: Cell | None, splits: Sequence[str], columns: Sequence[str], rows: Sequence[Mapping[str, Any]]
    ) -> None:
        """Keep the measurements of one arm, with a checksum in every row."""
        path = self.rows_file(cell, splits)
        records.write_rows(path, columns, rows)

    def read_rows(self, cell: Cell | None, splits: Sequence[str], columns: Sequence[str]) -> list[Row]:
        """The measurements of one arm; none if it is not measured yet.

        Raises:
            InputError: The file was damaged, or it holds another arm or seed.
        """
        path = self.rows_file(cell, splits)
        rows: list[Row] = [{**row} for row in records.read_rows(path, columns, _MEASURE_AGAIN, needs_checksum=True)]
        for row in rows:
            same = row["arm"] == "" if cell is None else _cell_of(row, path) == cell
            same &= self.fraction is None or row.get(FRACTION) == str(self.fraction)
            if row["seed"] != str(self.seed) or not same:
                raise InputError(
                    f"{path} holds measurements of another arm, seed or label fraction "
                    f"({row['arm'] or row['score']}, seed {row['seed']}); {_MEASURE_AGAIN}"
                )
        missing = [split for split in splits if all(row["split"] != split for row in rows)]
        if cell is not None and missing and self.holds_rows(cell, splits):
            raise InputError(f"{path} holds no measurement on the split {missing[0]}; {_MEASURE_AGAIN}")
        return rows

    def read_history(self, key: HistoryKey) -> dict[str, NDArray[np.float64]] | None:
        """How a training went: column -> one value for each epoch; None where that is not kept.

        Raises:
            InputError: The file is no such table.
        """
        path = self._history_file(key)
        rows = records.read_rows(path, None, _WITHOUT_IT, self._place(path))
        if not rows:
            return None
        try:
            history = {column: np.array([float(row[column]) for row in rows]) for column in rows[0]}
        except ValueError:
            raise InputError(f"{path} is not a table of numbers; {_WITHOUT_IT}") from None
        if any((np.abs(values) > _LARGEST).any() for values in history.values()):
            raise InputError(f"{path} holds numbers beyond {_LARGEST:g}; {_WITHOUT_IT}")
        return history

    def write_history(self, key: HistoryKey, history: Sequence[Mapping[str, float]]) -> None:
        """Keep how a training went.

        Args:
            key: What was trained.
            history: One mapping for each epoch, all with the same names.
        """
        path = self._history_file(key)
        records.write_rows(path, list(history[0]) if history else ["epoch"], history, self._place(path))

    def write_cost(self, key: HistoryKey, cost: Cost) -> None:
        """Keep what a training cost."""
        path = self._cost_file(key)
        records.write_record(path, cost, self._place(path))

    def read_cost(self, key: HistoryKey) -> Cost | None:
        """What a training cost; None where that is not kept.

        Raises:
            InputError: The file cannot be read.
        """
        path = self._cost_file(key)
        if not records.present(path, _WITHOUT_IT):
            return None
        return records.read_record(path, Cost, _WITHOUT_IT, self._place(path))  # type: ignore[return-value]

    def _cost_file(self, key: HistoryKey) -> Path:
        return self._history_file(key).with_suffix(".json")

    def _history_file(self, key: HistoryKey) -> Path:
        return self.folder / "histories" / f"{_stem(key)}.csv"

    def write_counts(self, cell: Cell, split: str, counts: NDArray[np.int64]) -> None:
        """Keep how often samples of each true class were predicted as each class.

        Only what occurs is written, and every class once. With more than `MOST_CLASSES` classes, all wrong predictions
        of a class count together.

        Args:
            cell: The student's arm.
            split: The split that it was measured on.
            counts: (K, K), true class by predicted class.
        """
        correct = np.diag(counts)
        rows: list[tuple[int, int | str, int]] = []
        for true, predicted in enumerate(counts):
            rows.append((true, true, int(correct[true])))
            if len(counts) > MOST_CLASSES:
                rows.append((true, "", int(predicted.sum() - correct[true])))
            else:
                rows += [(true, int(k), int(predicted[k])) for k in np.flatnonzero(predicted) if k != true]
        table = (dict(zip(_COUNTS, row, strict=True)) for row in rows)
        path = self._counts_file(cell, split)
        records.write_rows(path, _COUNTS, table, self._place(path))

    def read_counts(self, cell: Cell, split: str) -> NDArray[np.int64] | None:
        """What `write_counts` kept; None if it kept nothing.

        Returns:
            (K, K) true class by predicted class; with more than `MOST_CLASSES` classes (K, 2), correct and wrong.

        Raises:
            InputError: The file is no such table.
        """
        path = self._counts_file(cell, split)
        rows = records.read_rows(path, _COUNTS, _WITHOUT_IT, self._place(path))
        if not rows:
            return None
        try:
            found = [(int(row["target"]), row["predicted"], int(row["count"])) for row in rows]
            num_classes = len({true for true, _, _ in found})  # every class is there once at least
            whole = num_classes <= MOST_CLASSES
            counts = np.zeros((num_classes, num_classes if whole else 2), dtype=np.int64)
            for true, predicted, count in found:
                column = int(predicted) if whole else int(predicted == "")
                if min(true, column, count) < 0 or count > _LARGEST:
                    raise ValueError
                counts[true, column] = count
        except (IndexError, ValueError):
            raise InputError(f"{path} is not a table of counts; {_WITHOUT_IT}") from None
        return counts

    def _counts_file(self, cell: Cell, split: str) -> Path:
        return self.folder / "counts" / f"{safe_name(f'{cell.name}-{split}')}.csv"

    def _place(self, path: Path) -> str:
        """What a file is within the run folder, however the run folder is called."""
        labels = "" if self.fraction is None else f"{self.folder.name}/"
        return f"seed-{self.seed}/{labels}{path.relative_to(self.folder).as_posix()}"


def _merit(facts: Mapping[str, Any], sign: int) -> tuple[float, int]:
    """What students of a variant are chosen by; of equal ones, the lowest seed."""
    return sign * facts["validation"], -facts["seed"]


def refuse_other_format(holder: str, identity: Mapping[str, Any]) -> None:
    """Refuse to continue what another version of mfh began.

    Args:
        holder: The run folder or file, for the message.
        identity: What decided its networks, with the `FORMAT` of the version that made them.

    Raises:
        InputError: Another version made it.
    """
    if identity.get("format") != FORMAT:
        raise InputError(
            f"{holder} was made by another version of mfh, which this one cannot continue; choose another --out "
            "(`mfh report` still writes its report)"
        )


def _deciding(config: Mapping[str, Any]) -> dict[str, Any]:
    """What decides a study's results, without groups; only seeds may be added."""
    identity = config.get("identity") or {}
    return {name: value for name, value in {**config, **identity}.items() if name not in ("identity", "num_seeds")}


def _stem(key: NetworkKey | HistoryKey) -> str:
    return safe_name(f"distilled-{key.name}") if isinstance(key, Cell) else key


def safe_name(name: str) -> str:
    """A file name for any layer's name: what could be part of a path is written in percent notation.

    Of a long one, the start and a digest of the whole are kept.
    """
    quoted = quote(name, safe="+", errors="backslashreplace")
    if len(quoted) <= _LONGEST_NAME:
        return quoted
    return f"{quoted[:_LONGEST_NAME]}-{hashlib.sha256(quoted.encode()).hexdigest()[:16]}"


def _cell_of(row: Row, path: Path) -> Cell:
    try:
        return Cell.of(row)
    except ValueError:
        raise InputError(f"{path} is not a table of measurements; {_MEASURE_AGAIN}") from None
