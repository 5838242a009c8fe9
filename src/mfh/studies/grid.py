"""The ways to make one student, and the table their results go to. Light: the command line's help imports it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mfh.errors import InputError, close_names

#: All arms of a study that are run unless others are chosen, in the order of tables and figures.
ARMS = ("no-kd", "regular", "aligned", "aligned-student", "random", "specific", "general", "soft")
#: Arms that only check others, run on request.
CONTROLS = ("soft-shuffled", "tempered")
#: Arms that need the fraction of channels to remove.
MASKED_BY_RATIO = ("random", "specific", "general")
#: The arm that distils from the same teacher with nothing removed: the only one that may credit a mask.
UNMASKED = {
    "random": "aligned",
    "specific": "aligned",
    "general": "aligned",
    "soft": "regular",
    "soft-shuffled": "regular",
    "tempered": "regular",
}
#: The columns of a study's results.csv, one row per measurement.
COLUMNS = ("arm", "score", "layer", "ratio", "seed", "split", "metric", "value")
#: Further columns, where a study compares weights of the loss.
WEIGHTS = ("label_weight", "teacher_weight")
#: Scores an Algorithm-1 mask can be made from.
SCORES = ("distance", "agreement")


@dataclass(frozen=True)
class Cell:
    """One student per seed.

    Args:
        arm: one of `ARMS` or `CONTROLS`.
        score: of the saliency behind the mask; empty where there is none.
        ratio: fraction of channels removed; None where there is none.
        layer: of the teacher, where the mask sits; empty where there is none.
        weights: of labels and teacher in the loss, where a study compares several; None for the task's loss.
    """

    arm: str
    score: str = ""
    ratio: float | None = None
    layer: str = ""
    weights: tuple[float, float] | None = None

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Cell":
        """The cell that a row of a study's tidy table speaks of; missing values count as empty."""
        # Not a number is the missing value of pandas, and differs from itself.
        told = {name: value for name, value in row.items() if value is not None and value != "" and value == value}
        label, teacher = (told.get(name) for name in WEIGHTS)
        return cls(
            arm=str(told.get("arm", "")),
            score=str(told.get("score", "")),
            ratio=float(told["ratio"]) if "ratio" in told else None,
            layer=str(told.get("layer", "")),
            weights=None if label is None or teacher is None else (float(label), float(teacher)),
        )

    @classmethod
    def chosen(cls, choice: Mapping[str, Any]) -> "Cell":
        """The cell that a study's selection.json names."""
        label_and_teacher = choice.get("weights")
        return replace(cls.of(choice), weights=tuple(label_and_teacher) if label_and_teacher else None)

    @property
    def teacher(self) -> str | None:
        """Which teacher the arm starts from: "pretrained", "aligned", or None for no teacher at all."""
        if self.arm in ("no-kd", "aligned-student"):
            return None
        return "aligned" if self.arm == "aligned" or UNMASKED.get(self.arm) == "aligned" else "pretrained"

    @property
    def name(self) -> str:
        """For messages and files, for instance "general-distance-0.5-flatten"."""
        parts = [str(part) for part in (self.arm, self.score, self.ratio, self.layer) if part not in ("", None)]
        if self.weights is not None:
            parts.append("label-{:g}-teacher-{:g}".format(*self.weights))
        return "-".join(parts)

    @property
    def unweighted(self) -> "Cell":
        """The same under the task's loss: it has the same teacher and mask."""
        return replace(self, weights=None)

    @property
    def unmasked(self) -> "Cell | None":
        """The same teacher with nothing removed, at the same weights; None for arms without a mask."""
        return Cell(UNMASKED[self.arm], weights=self.weights) if self.arm in UNMASKED else None


def cells(
    arms: Sequence[str],
    ratios: Sequence[float],
    scores: Sequence[str],
    layers: Sequence[str],
    weights: Sequence[tuple[float, float]] = (),
) -> list[Cell]:
    """The grid: every arm at every ratio, score, layer and pair of weights that applies, in the order of `ARMS`.

    Raises:
        InputError: an arm, ratio or score is unknown, or there is none where one is needed.
    """
    known = [*ARMS, *CONTROLS]
    for arm in arms:
        if arm not in known:
            raise InputError(f"arm is {arm!r}; {close_names(arm, known, limit=len(known))}")
    for score in scores:
        if score not in SCORES:
            raise InputError(f"score is {score!r}; masks with a ratio are made from {' or '.join(SCORES)}")
    for ratio in ratios:
        if not 0 <= ratio < 1:
            raise InputError(
                f"ratio is {ratio}; a fraction of channels to remove, at least 0 and below 1, was expected"
            )
    if not arms:
        raise InputError(f"no arm is chosen; choose from {', '.join(known)}")
    if set(arms) & set(MASKED_BY_RATIO) and not (ratios and scores):
        needing = next(arm for arm in MASKED_BY_RATIO if arm in arms)
        what = "a score" if ratios else "a ratio (the fraction of channels to remove), for instance 0.5"
        raise InputError(f"arm {needing!r} needs {what}")
    grid: list[Cell] = []
    for arm in sorted(set(arms), key=known.index):
        if arm not in UNMASKED:
            grid.append(Cell(arm))
            continue
        by_ratio = arm in MASKED_BY_RATIO
        chosen_scores = ["probe"] if not by_ratio else [""] if arm == "random" else dict.fromkeys(scores)
        chosen_ratios = sorted(set(map(float, ratios))) if by_ratio else [None]
        grid += [
            Cell(arm, score, ratio, layer)
            for layer in dict.fromkeys(layers)
            for score in chosen_scores
            for ratio in chosen_ratios
        ]
    if not weights:
        return grid
    pairs = dict.fromkeys((float(label), float(teacher)) for label, teacher in weights)
    return [replace(cell, weights=pair) for cell in grid for pair in (pairs if cell.teacher else [None])]
