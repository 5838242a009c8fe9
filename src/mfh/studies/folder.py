"""The run folder: the only module that knows the names and formats of its files.

A `Run` is one run folder, of a study, of single steps, of a diagnosis or of the Gaussian experiments. A `SeedFolder` is
what one seed keeps in it: networks, saliencies, masks, measurements. Everything is written whole or not at all.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from mfh import files
from mfh.errors import InputError, refuse_difference
from mfh.problems.scale import ACCURACY, Scale
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

#: With more classes than this, only correct and wrong predictions are counted: a larger matrix shows nothing.
MOST_CLASSES = 50

# File systems allow 255 bytes; an ending, the digest of a checkpoint and a temporary name are added.
_LONGEST_NAME = 150

_CONFIG, _ENVIRONMENT, _RESULTS = "config.json", "environment.json", "results.csv"
_SELECTION, _DIAGNOSIS, _TRUTH = "selection.json", "diagnosis.json", "truth.json"
_KINDS = {"study": "a study", "steps": "single steps", "diagnose": "a diagnosis", "gauss": "Gaussian experiments"}
_COUNTS = ("target", "predicted", "count")
_CHECKSUM = "checksum"
_MEASURE_AGAIN = "remove it to measure this cell again"
_WITHOUT_IT = "remove it to have a report without it"


class Run:
    """One run folder.

    Args:
        folder: Its path; it need not exist yet. Use `Run.open` for a folder that must hold a run.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

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
        """Hold the folder for this process. Every command that adds results to a run folder does.

        Raises:
            InputError: Another process holds it.
        """
        with files.claimed(self.folder):
            yield

    def refuse_foreign(self) -> None:
        """Refuse a folder that holds files of another program.

        Raises:
            InputError: It does.
        """
        if self.folder.exists() and not self.holds_config:
            ours = ("seed-", ".in-use", f".{_CONFIG}.", _DIAGNOSIS, f".{_DIAGNOSIS}.", "report.", "figures")
            strange = [item.name for item in self.folder.iterdir() if not item.name.startswith(ours)]
            if strange:
                raise InputError(f"{self.folder} is not empty ({strange[0]!r}) and no run of mfh; choose another --out")

    # --- configuration ----------------------------------------------------------------------------------------------

    @property
    def holds_config(self) -> bool:
        """Whether the folder has a configuration."""
        return (self.folder / _CONFIG).is_file()

    @cached_property
    def config(self) -> dict[str, Any]:
        """The configuration, read once; empty where there is none.

        Raises:
            InputError: The file cannot be read.
        """
        return files.read_json(self.folder / _CONFIG) if self.holds_config else {}

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Keep the configuration."""
        files.write_json(self.folder / _CONFIG, config)
        self.__dict__.pop("config", None)

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
            if self.config["num_seeds"] > config["num_seeds"]:
                raise InputError(
                    f"{self.folder} holds {self.config['num_seeds']} seeds, now num_seeds is {config['num_seeds']}; "
                    "ask for at least as many, or choose another --out"
                )
        self.write_config(config)

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

    # --- how it was made --------------------------------------------------------------------------------------------

    @cached_property
    def environment(self) -> dict[str, Any]:
        """Versions, hardware, seconds and the command that repeats the run; empty where the run left none."""
        path = self.folder / _ENVIRONMENT
        return files.read_json(path) if path.exists() else {}

    def write_environment(self, environment: Mapping[str, Any]) -> None:
        """Keep how the run was made."""
        files.write_json(self.folder / _ENVIRONMENT, environment)
        self.__dict__.pop("environment", None)

    # --- results ----------------------------------------------------------------------------------------------------

    def write_results(self, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
        """Keep the table of all measurements. It says that the run is finished, so it is written last."""
        files.write_table(self.folder / _RESULTS, columns, rows)
        self.__dict__.pop("results", None)
        self.__dict__.pop("summary", None)

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
        return files.read_frame(self.folder / _RESULTS, columns)

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
        path = self.folder / _SELECTION
        return files.read_json(path) if path.exists() else None

    def write_selection(self, choice: Mapping[str, Any]) -> None:
        """Keep what a study has chosen."""
        files.write_json(self.folder / _SELECTION, choice)

    @property
    def selection_file(self) -> Path:
        """Where the choice is kept, for messages."""
        return self.folder / _SELECTION

    @property
    def holds_diagnosis(self) -> bool:
        """Whether the folder has a diagnosis."""
        return (self.folder / _DIAGNOSIS).is_file()

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

    # --- seeds ------------------------------------------------------------------------------------------------------

    def seed(self, seed: int, fraction: float | None = None) -> "SeedFolder":
        """What one seed keeps.

        Args:
            seed: The random seed.
            fraction: Share of the labels that it was trained on, in a study of several.
        """
        folder = self.folder / f"seed-{seed}"
        return SeedFolder(folder if fraction is None else folder / f"labels-{fraction:g}", seed)

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
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed

    # --- networks ---------------------------------------------------------------------------------------------------

    def network_file(self, key: NetworkKey) -> Path:
        """Where a network's weights are kept."""
        return self.folder / f"{_stem(key)}.safetensors"

    def read_network(self, key: NetworkKey) -> "tuple[dict[str, Tensor], dict[str, Any]]":
        """Weights of a network, and the facts kept with them.

        Raises:
            InputError: There is no such network, or its file cannot be read.
        """
        return files.load_tensors(self.network_file(key), "network")

    def write_network(self, key: NetworkKey, weights: "Mapping[str, Tensor]", facts: Mapping[str, Any]) -> None:
        """Keep the weights of a network, with facts that JSON can hold."""
        files.save_tensors(self.network_file(key), "network", weights, facts)

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

        return [ChannelSaliency.load(path) for path in sorted(self.folder.glob("saliency-*.safetensors"))]

    def read_truth(self) -> NDArray[np.bool_] | None:
        """(C,) whether each channel of the task's layer is modality-general; None where that is not known."""
        path = self.folder / _TRUTH
        return np.asarray(files.read_json(path).get("general"), dtype=bool) if path.exists() else None

    def write_truth(self, general: NDArray[np.bool_]) -> None:
        """Keep which channels are modality-general."""
        files.write_json(self.folder / _TRUTH, {"general": np.asarray(general).tolist()})

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
        return self.rows_file(cell, splits).exists()

    def write_rows(
        self, cell: Cell | None, splits: Sequence[str], columns: Sequence[str], rows: Sequence[Mapping[str, Any]]
    ) -> None:
        """Keep the measurements of one arm, with a checksum in every row."""
        checksum = _checksum(columns, rows)
        files.write_table(
            self.rows_file(cell, splits), (*columns, _CHECKSUM), ({**row, _CHECKSUM: checksum} for row in rows)
        )

    def read_rows(self, cell: Cell | None, splits: Sequence[str], columns: Sequence[str]) -> list[Row]:
        """The measurements of one arm; none if it is not measured yet.

        Raises:
            InputError: The file was damaged, or it holds another arm or seed.
        """
        path = self.rows_file(cell, splits)
        if not path.exists():
            return []
        rows: list[Row] = [{**row} for row in files.read_table(path, None, _MEASURE_AGAIN)]
        if not rows:
            return []
        checksums = {row.pop(_CHECKSUM, None) for row in rows}
        if tuple(rows[0]) != tuple(columns):
            raise InputError(f"{path} has columns {','.join(rows[0])}, not {','.join(columns)}; {_MEASURE_AGAIN}")
        if checksums != {_checksum(columns, rows)}:
            raise InputError(f"{path} was changed after it was written (its checksum differs); {_MEASURE_AGAIN}")
        for row in rows:
            if row["seed"] != str(self.seed) or (cell is not None and _cell_of(row, path) != cell):
                raise InputError(
                    f"{path} holds measurements of another arm or seed ({row['arm'] or row['score']}, seed "
                    f"{row['seed']}); {_MEASURE_AGAIN}"
                )
        return rows

    def read_history(self, key: HistoryKey) -> dict[str, NDArray[np.float64]] | None:
        """How a training went: column -> one value for each epoch; None where that is not kept.

        Raises:
            InputError: The file is no such table.
        """
        path = self._history_file(key)
        rows = _rows(path, None)
        if not rows:
            return None
        try:
            return {column: np.array([float(row[column]) for row in rows]) for column in rows[0]}
        except ValueError:
            raise InputError(f"{path} is not a table of numbers; {_WITHOUT_IT}") from None

    def write_history(self, key: HistoryKey, history: Sequence[Mapping[str, float]]) -> None:
        """Keep how a training went.

        Args:
            key: What was trained.
            history: One mapping for each epoch, all with the same names.
        """
        files.write_table(self._history_file(key), list(history[0]) if history else ["epoch"], history)

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
        files.write_table(self._counts_file(cell, split), _COUNTS, table)

    def read_counts(self, cell: Cell, split: str) -> NDArray[np.int64] | None:
        """What `write_counts` kept; None if it kept nothing.

        Returns:
            (K, K) true class by predicted class; with more than `MOST_CLASSES` classes (K, 2), correct and wrong.

        Raises:
            InputError: The file is no such table.
        """
        path = self._counts_file(cell, split)
        rows = _rows(path, _COUNTS)
        if not rows:
            return None
        try:
            num_classes = 1 + max(int(row["target"]) for row in rows)
            whole = num_classes <= MOST_CLASSES
            counts = np.zeros((num_classes, num_classes if whole else 2), dtype=np.int64)
            for row in rows:
                true, predicted = int(row["target"]), row["predicted"]
                counts[true, int(predicted) if whole else int(predicted == "")] = int(row["count"])
        except (IndexError, ValueError):
            raise InputError(f"{path} is not a table of counts; {_WITHOUT_IT}") from None
        return counts

    def _counts_file(self, cell: Cell, split: str) -> Path:
        return self.folder / "counts" / f"{safe_name(f'{cell.name}-{split}')}.csv"


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


def _checksum(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Digest of all measurements of a file, as text."""
    content = [["" if (value := row.get(name)) is None else str(value) for name in columns] for row in rows]
    return hashlib.sha256(repr(content).encode()).hexdigest()[:12]


def _rows(path: Path, columns: Sequence[str] | None) -> list[dict[str, str]]:
    return files.read_table(path, columns, _WITHOUT_IT) if path.exists() else []
