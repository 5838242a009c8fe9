"""Summary of a study's tidy table: every arm against no-kd and against the same teacher unmasked."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from mfh.errors import InputError
from mfh.problems.scale import ACCURACY, Scale
from mfh.studies.grid import CONTROLS, PLAIN_CONTROLS, WEIGHTS, Cell, place_of_arm
from mfh.studies.stats import Comparison, Repeats, corrected_p_values, paired_comparison

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Variant:
    """One arm at one score, layer, ratio and pair of weights.

    Args:
        cell: Cell of the study's grid.
        label: Name of the arm, with whatever distinguishes it from the arm's other variants.
        student: Metric of the student as shown (fractions in percent), by seed.
        validation: Mean metric of the student on the validation split; None if it was not measured.
        teacher: Metric of the teacher as masked, by seed; empty for an arm without a teacher.
        gain: Comparison with no-kd, paired by seed, positive where the student is better; None for no-kd itself, or
            in a study without no-kd.
        masking: Comparison with the same teacher unmasked; None for an arm without a mask.
        corrected_p: p-value of `gain`, corrected for the number of variants, see `corrected_p_values`; None without a
            gain, or where the variants share no two seeds.
    """

    cell: Cell
    label: str
    student: "pd.Series[float]"
    validation: float | None
    teacher: "pd.Series[float]"
    gain: Comparison | None
    masking: Comparison | None
    corrected_p: float | None

    @property
    def arm(self) -> str:
        """Name of the arm."""
        return self.cell.arm

    @property
    def ratio(self) -> float | None:
        """Fraction of channels removed; None for an arm without a ratio."""
        return self.cell.ratio

    @property
    def taken_alone(self) -> bool:
        """Whether the interval of `gain` excludes zero, but `corrected_p` is above 0.05: then nothing is shown."""
        excludes = self.gain is not None and self.gain.outcome != "open"
        return excludes and self.corrected_p is not None and self.corrected_p > 0.05

    @property
    def gains(self) -> bool:
        """Whether a gain over no-kd is shown, after correction for the arms compared."""
        return self.gain is not None and self.gain.outcome == "gains" and not self.taken_alone


@dataclass(frozen=True)
class Summary:
    """All variants of a study.

    Args:
        variants: The variants, in the order of `mfh.studies.grid.place_of_arm`.
        split: Split of the measurements: "test", or "val" for a study that has not read the test split.
        repeats: What differs between seeds, and so what the intervals cover.
        num_candidates: Number of variants other than no-kd and the controls that were measured on the validation split.
            These are more than were tested, if the study read the test split only for the chosen one.
        scale: How the task's metric reads.
    """

    variants: list[Variant]
    split: str
    repeats: Repeats
    num_candidates: int
    scale: Scale = ACCURACY

    def chosen(self, arm: str | None = None, *, score: str | None = None, layer: str | None = None) -> Variant | None:
        """The variant that is best on the validation split. The test split plays no part in the choice.

        Args:
            arm: Arm whose variants to choose among; None for all arms but no-kd and the controls.
            score: Score of the masks to choose among; None for all.
            layer: Layer of the masks to choose among; None for all.

        Returns:
            The variant; None if there is none.
        """
        candidates = [
            variant
            for variant in self.variants
            if (variant.arm == arm if arm else variant.arm not in ("no-kd", *CONTROLS))
            and score in (None, variant.cell.score)
            and layer in (None, variant.cell.layer.removeprefix("_orig_mod."))
        ]
        if not candidates:
            return None

        return max(candidates, key=self.rank)

    @cached_property
    def control(self) -> Variant | None:
        """The control beside no-kd without the teacher's knowledge that is best by validation; None without any."""
        found = [variant for arm in PLAIN_CONTROLS if (variant := self.chosen(arm)) is not None]
        return max(found, key=self.rank, default=None)

    def rank(self, variant: Variant) -> float:
        """What variants are chosen by. Without validation the first one stands; the test split decides nothing."""
        return -math.inf if variant.validation is None else self.scale.sign * variant.validation

    def over_control(self, variant: Variant) -> Comparison | None:
        """A variant against the best control; None without a control."""
        return None if self.control is None else self.compare(variant.student, self.control.student)

    @cached_property
    def digits(self) -> int:
        """Digits after the decimal point: one for percent, otherwise enough for three figures of the largest mean."""
        largest = max(abs(float(variant.student.mean())) for variant in self.variants)
        if self.scale.percent or not largest:
            return 1
        return min(8, max(0, 2 - math.floor(math.log10(largest))))

    def number(self, values: "pd.Series[float]") -> str:
        """Mean over seeds as text; empty without values."""
        return f"{values.mean():.{self.digits}f}" if len(values) else ""

    def difference(self, comparison: Comparison | None) -> str:
        """A comparison as text, for instance "+2.1 (1.0 to 3.1)"; empty without a comparison."""
        if comparison is None:
            return ""
        if comparison.num_pairs == 2 and comparison.outcome == "open":
            mean = interval_in_words(comparison.mean_difference, math.nan, math.nan, digits=self.digits, sign="+")
            return f"{mean} (too few seeds for an interval)"
        return interval_in_words(
            comparison.mean_difference, comparison.low, comparison.high, digits=self.digits, sign="+"
        )

    def describe(self, comparison: Comparison) -> str:
        """A comparison in words, in the metric's unit."""
        unit = self.scale.unit or f"of {self.scale.words}"
        return comparison.describe(unit, digits=self.digits)

    def says(self, label: str, comparison: Comparison) -> str:
        """A comparison as a sentence about `label`: "soft gains 2.1 points (...)"."""
        words = self.describe(comparison).replace("no difference shown", "shows no difference", 1)
        return f"{label} {words}".strip()

    def compare(self, treatment: "pd.Series[float]", baseline: "pd.Series[float]") -> Comparison | None:
        """Treatment against baseline over their common seeds, positive where treatment is better; None without any."""
        return _compare(treatment, baseline, self.scale, self.test_to_train)

    @property
    def test_to_train(self) -> float:
        """The correction of `paired_comparison` for re-split data; 0 where seeds are independent."""
        return self.repeats.test_to_train(self.split)

    @cached_property
    def num_seeds(self) -> tuple[int, int]:
        """Smallest and largest number of seeds of a variant; they differ while a study is unfinished."""
        counts = [len(variant.student) for variant in self.variants]
        return min(counts), max(counts)

    @cached_property
    def num_shared(self) -> int:
        """Number of seeds that all variants have; p-values are corrected over these."""
        return len(set.intersection(*(set(variant.student.index) for variant in self.variants)))

    @cached_property
    def seeds_in_words(self) -> str:
        """The number of seeds in words, for instance "5 seeds" or "3 to 5 seeds"."""
        fewest, most = self.num_seeds
        if fewest != most:
            return f"{fewest} to {most} seeds"
        return f"{most} seed" + ("s" if most != 1 else "")


def summarise(frame: "pd.DataFrame", *, repeats: Repeats | None = None, scale: Scale = ACCURACY) -> Summary:
    """Compare every arm of a study, seed by seed, with no-kd and with the same teacher unmasked.

    Args:
        frame: A study's tidy table with `mfh.studies.grid.COLUMNS`. Rows whose value is missing are left out, and
            comparisons use the seeds that both sides have.
        repeats: What differs between seeds (default: each seed draws its own data).
        scale: The metric, and how it reads (default: accuracy).

    Raises:
        InputError: The table does not hold the metric.
    """
    import pandas as pd

    frame = frame[frame["value"].notna()]
    text = {column: frame[column].astype(object).fillna("") for column in ("arm", "score", "layer")}
    numbers = {name: pd.to_numeric(frame[name], errors="coerce") for name in ("ratio", *WEIGHTS) if name in frame}
    frame = frame.assign(**numbers, **text)
    students = frame[(frame["metric"] == scale.name) & (frame["arm"] != "")]
    split = "test" if (students["split"] == "test").any() else "val"
    measured = students[students["split"] == split]
    if measured.empty:
        raise InputError(
            f"the results hold no {scale.words} of any arm; run the study until at least one cell is measured"
        )
    validations = students[students["split"] == "val"]
    teachers = frame[(frame["metric"] == f"teacher_{scale.name}") & (frame["split"] == split)]

    by_cell, validation, teacher = (_by_cell(rows, scale) for rows in (measured, validations, teachers))
    every_cell = _by_cell(students, scale)
    none = Cell("no-kd")
    repeats = repeats or Repeats()
    test_to_train = repeats.test_to_train(split)
    gains = {
        cell: _compare(values, by_cell[none], scale, test_to_train) if cell != none and none in by_cell else None
        for cell, values in by_cell.items()
    }
    compared = [cell for cell in by_cell if gains[cell] is not None]
    corrected = _corrected({cell: by_cell[cell] - by_cell[none] for cell in compared}, test_to_train)
    variants = []
    for cell in sorted(by_cell, key=_order):
        base = cell.unmasked
        variants.append(
            Variant(
                cell=cell,
                label=label_of(cell, every_cell),
                student=by_cell[cell],
                validation=float(validation[cell].mean()) if cell in validation else None,
                teacher=teacher.get(cell, by_cell[cell].iloc[:0]),
                gain=gains[cell],
                masking=_compare(by_cell[cell], by_cell[base], scale, test_to_train) if base in by_cell else None,
                corrected_p=corrected.get(cell),
            )
        )
    num_candidates = sum(cell.arm not in ("no-kd", *CONTROLS) for cell in validation)
    return Summary(variants, split, repeats, num_candidates, scale)


def representatives(summary: Summary, variants: list[Variant], most: int = 14) -> list[Variant]:
    """All variants; if there are more than `most`, the variant of each arm that is best on the validation split."""
    if len(variants) <= most:
        return variants
    arms = dict.fromkeys(variant.arm for variant in variants)
    return [chosen for arm in arms if (chosen := summary.chosen(arm)) is not None]


def p_in_words(p_value: float) -> str:
    """A p-value as text, with more digits where it is small."""
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}" if p_value < 0.1 else f"{p_value:.2f}"


def interval_in_words(mean: float, low: float, high: float, digits: int = 1, sign: str = "") -> str:
    """A mean and its interval as text, for instance "72.1 (70.9 to 73.3)"; without an interval that is NaN."""
    text = f"{mean:{sign}z.{digits}f}"
    if not math.isnan(low):
        # More digits until it shows on which side of zero an end lies.
        while digits < 4 and any(end and round(end, digits) == 0 for end in (low, high)):
            digits += 1
        text += f" ({low:{sign}z.{digits}f} to {high:{sign}z.{digits}f})"
    return text.replace("-", "\u2212")


def _by_cell(frame: "pd.DataFrame", scale: Scale) -> dict[Cell, "pd.Series[float]"]:
    """Cell -> values as shown, by seed."""
    keys = [name for name in ("arm", "score", "layer", "ratio", *WEIGHTS) if name in frame]
    return {
        Cell.of(dict(zip(keys, key, strict=True))): scale.factor * rows.groupby("seed")["value"].last()
        for key, rows in frame.groupby(keys, dropna=False, sort=False)
    }


def _order(cell: Cell) -> tuple[Any, ...]:
    ratio = -1.0 if cell.ratio is None else cell.ratio
    return (place_of_arm(cell.arm), cell.arm, cell.layer, cell.score, ratio, cell.weights or ())


def label_of(cell: Cell, cells: Iterable[Cell]) -> str:
    """Name of the arm, with whatever distinguishes the cell from the arm's other cells."""

    def told(cell: Cell) -> dict[str, str]:
        return {
            "score": cell.score,
            "layer": cell.layer,
            "ratio": "" if cell.ratio is None else f"r = {cell.ratio:g}",
            "weights": "" if cell.weights is None else "weights {:g}:{:g}".format(*cell.weights),
        }

    others = [told(other) for other in cells if other.arm == cell.arm]
    parts = [text for name, text in told(cell).items() if len({other[name] for other in others}) > 1]
    return cell.arm + (f" ({', '.join(parts)})" if parts else "")


def _corrected(differences: Mapping[Cell, "pd.Series[float]"], test_to_train: float) -> dict[Cell, float]:
    """Corrected p-values of one family of comparisons, over the seeds that all of them have.

    Args:
        differences: Differences by seed, for each comparison of the family. Without two common seeds there is no
            result.
        test_to_train: As in `paired_comparison`.
    """
    import pandas as pd

    if not differences:
        return {}
    shared = pd.concat(list(differences.values()), axis=1).dropna()
    if len(shared) < 2:
        return {}
    p_values = corrected_p_values(shared.to_numpy(), test_to_train=test_to_train)
    return dict(zip(differences, p_values.tolist(), strict=True))


def _compare(
    treatment: "pd.Series[float]", baseline: "pd.Series[float]", scale: Scale, test_to_train: float
) -> Comparison | None:
    seeds = treatment.index.intersection(baseline.index).sort_values()
    if not len(seeds):
        return None
    ours, theirs = treatment.loc[seeds].to_numpy(), baseline.loc[seeds].to_numpy()
    better, worse = (ours, theirs) if scale.higher_is_better else (theirs, ours)
    return paired_comparison(better, worse, test_to_train=test_to_train)
