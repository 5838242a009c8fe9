"""The arms of a study and the columns of its results. Imports no torch, because the command line's help needs it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mfh.errors import InputError, close_names
from mfh.methods.names import SHIPPED as METHODS
from mfh.problems.scale import ACCURACY as ACCURACY
from mfh.problems.scale import Scale as Scale

#: Arms that a study runs by default, in the order of tables and figures.
ARMS = ("no-kd", "regular", "aligned", "aligned-student", "random", "specific", "general", "soft")
#: Controls that refute the gain of any teacher: more steps, softer labels, the student's own predictions, and a
#: teacher that says nothing of the sample.
PLAIN_CONTROLS = ("longer", "label-smoothing", "self-training", "teacher-shuffled")
#: A linear model on the student's inputs, fitted to the labels: no network, for orientation.
LINEAR = "linear"
#: All controls: arms that exist to refute the gain of another arm, and the linear model. "soft-shuffled" and "tempered"
#: refute that of a mask.
CONTROLS = (*PLAIN_CONTROLS, "soft-shuffled", "tempered", LINEAR)
#: Controls that run by default where there are unlabelled pairs. Without any, `longer` is `no-kd`.
WITH_UNLABELLED = ("longer", "self-training")
#: Arms that can do with a teacher's outputs, without its network.
TAUGHT_BY_OUTPUTS = ("regular", "self-training", "teacher-shuffled")
#: Arms without a teacher.
TAUGHT_BY_LABELS = ("no-kd", "aligned-student", "longer", "label-smoothing", LINEAR)
#: Arms that need the fraction of channels to remove.
MASKED_BY_RATIO = ("random", "specific", "general")
#: Masked arm -> the arm with the same teacher unmasked. A mask is judged by its gain over that arm only.
UNMASKED = {
    "random": "aligned",
    "specific": "aligned",
    "general": "aligned",
    "soft": "regular",
    "soft-shuffled": "regular",
    "tempered": "regular",
}
#: What may stand behind the "+" of an arm METHOD+FOCUS: what is done to the teacher before the method learns from it.
#: "aligned" only exchanges the teacher for the jointly trained one, the baseline of the three masks by ratio.
FOCUSES = ("aligned", "random", "specific", "general", "soft")
#: Other spellings of the paper's arms, which are recorded under its names.
SPELLINGS = {"kd": "regular", **{f"kd+{focus}": focus for focus in FOCUSES}}
#: Columns of a study's results.csv, which has one row for each measurement.
COLUMNS = ("arm", "score", "layer", "ratio", "seed", "split", "metric", "value")
#: Further column of results.csv where a study compares label budgets.
FRACTION = "label_fraction"
#: Further columns of results.csv where a study compares weights of the loss.
WEIGHTS = ("label_weight", "teacher_weight")
#: Scores that the masks of the arms specific and general can be made from.
SCORES = ("distance", "agreement")


@dataclass(frozen=True)
class Cell:
    """One cell of a study's grid: a kind of student, of which every seed makes one.

    Args:
        arm: Name of the arm: one of `ARMS` or `CONTROLS`, or METHOD or METHOD+FOCUS.
        score: Name of the score behind the mask; empty without such a score.
        ratio: Fraction of channels removed; None for an arm without a ratio.
        layer: Layer of the teacher that is masked; empty for an arm without a mask, and for a method of features,
            which says itself what layers it reads.
        weights: Label weight and teacher weight of the loss, where a study compares several; None for the task's loss.
    """

    arm: str
    score: str = ""
    ratio: float | None = None
    layer: str = ""
    weights: tuple[float, float] | None = None

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Cell":
        """The cell that a row of a study's tidy table belongs to; missing values count as empty."""
        # NaN is the missing value of pandas, and it differs from itself.
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
        """Teacher that the arm starts from: "pretrained", "aligned" or "student"; None for an arm without a teacher."""
        if self.arm in TAUGHT_BY_LABELS:
            return None
        if self.arm == "self-training":
            return "student"
        return "aligned" if self.focus in ("aligned", *MASKED_BY_RATIO) else "pretrained"

    @property
    def method(self) -> str | None:
        """Name of the method that the student is distilled by; None for an arm without a teacher."""
        if self.arm in TAUGHT_BY_LABELS:
            return None
        return "kd" if self.arm in (*ARMS, *CONTROLS) else method_and_focus(self.arm)[0]

    @property
    def focus(self) -> str:
        """What is done to the teacher first: one of `FOCUSES`, "soft-shuffled", "tempered", or nothing."""
        if self.arm in (*ARMS, *CONTROLS):
            return self.arm if self.arm in (*UNMASKED, "aligned") else ""
        return method_and_focus(self.arm)[1]

    @property
    def masked(self) -> bool:
        """Whether channels are removed or weighted: the arm has a score, and is judged against `unmasked`."""
        return self.focus not in ("", "aligned")

    @property
    def name(self) -> str:
        """Name of the cell in messages and files, for instance "general-distance-0.5-flatten"."""
        parts = [str(part) for part in (self.arm, self.score, self.ratio, self.layer) if part not in ("", None)]
        if self.weights is not None:
            parts.append("label-{:g}-teacher-{:g}".format(*self.weights))
        return "-".join(parts)

    @property
    def unweighted(self) -> "Cell":
        """The cell with the same teacher and mask under the task's own loss."""
        return replace(self, weights=None)

    @property
    def unmasked(self) -> "Cell | None":
        """The cell with the same teacher unmasked, at the same weights; None for an arm without a mask."""
        if not self.masked:
            return None
        base = UNMASKED.get(self.arm)
        if base is None:
            base = f"{self.method}+aligned" if self.teacher == "aligned" else str(self.method)
        return Cell(base, weights=self.weights)


def method_and_focus(arm: str) -> tuple[str, str]:
    """The parts of METHOD+FOCUS; the focus is empty where there is none.

    Example:
        >>> method_and_focus("fitnets+soft"), method_and_focus("fitnets")
        (('fitnets', 'soft'), ('fitnets', ''))
    """
    method, plus, focus = arm.rpartition("+")
    return (method, focus) if plus and focus in FOCUSES else (arm, "")


def place_of_arm(arm: str, own: Sequence[str] = ()) -> tuple[Any, ...]:
    """What arms are sorted by: `ARMS`, then methods as they are shipped, then methods of one's own, then `CONTROLS`.

    Args:
        arm: Name of the arm.
        own: Names of methods of one's own, in their order (default: by name).
    """
    if arm in ARMS:
        return 0, ARMS.index(arm)
    if arm in CONTROLS:
        return 3, CONTROLS.index(arm)
    method, focus = method_and_focus(arm)
    place = (1, list(METHODS).index(method)) if method in METHODS else (2, [*own].index(method) if method in own else 0)
    return *place, method, ("", *FOCUSES).index(focus)


def default_arms(*, unlabelled: bool, linear: bool = False) -> tuple[str, ...]:
    """Arms of a study that names none.

    Args:
        unlabelled: Whether there are pairs without labels.
        linear: Whether the task asks for the linear model beside its networks.
    """
    return (*ARMS, *(WITH_UNLABELLED if unlabelled else ()), *((LINEAR,) if linear else ()))


def cells(
    arms: Sequence[str],
    ratios: Sequence[float],
    scores: Sequence[str],
    layers: Sequence[str],
    weights: Sequence[tuple[float, float]] = (),
    methods: Mapping[str, Any] | None = None,
) -> list[Cell]:
    """The grid of a study: every arm at every ratio, score, layer and pair of weights that applies to it.

    Args:
        arms: Names of arms: from `ARMS` and `CONTROLS`, METHOD, or METHOD+FOCUS.
        ratios: Fractions of channels to remove, for the focuses random, specific and general.
        scores: Scores behind the masks of specific and general, from `SCORES`.
        layers: Layers of the teacher to mask, for all arms with a mask. A method of features reads its own.
        weights: Pairs of label weight and teacher weight, for all arms with a teacher; none for the loss's own.
        methods: Methods by name that are not shipped, or not as they are shipped; see `mfh.methods.resolve`.

    Returns:
        The cells, in the order of `place_of_arm`.

    Raises:
        InputError: An arm, ratio or score is unknown, there is none where one is needed, or a method takes no focus.
    """
    own = methods or {}
    known = [*ARMS, *(name for name in (*METHODS, *own) if name not in SPELLINGS), *CONTROLS]
    arms = [SPELLINGS.get(arm, arm) for arm in arms]
    for arm in arms:
        if arm not in known and method_and_focus(arm)[0] not in known[len(ARMS) : -len(CONTROLS)]:
            raise InputError(f"arm is {arm!r}; {close_names(arm, known, limit=len(known))}")
    for score in scores:
        if score not in SCORES:
            raise InputError(f"score is {score!r}; choose {' or '.join(SCORES)}")
    for ratio in ratios:
        if not 0 <= ratio < 1:
            raise InputError(f"ratio is {ratio}; choose a fraction of channels to remove, at least 0 and below 1")
    if not arms:
        raise InputError(f"no arm is given; choose from {', '.join(known)}")
    needing = [Cell(arm).arm for arm in sorted(set(arms)) if Cell(arm).focus in MASKED_BY_RATIO]
    if needing and not (ratios and scores):
        named = next((arm for arm in MASKED_BY_RATIO if arm in needing), needing[0])
        what = "a score" if ratios else "a ratio (the fraction of channels to remove), for instance 0.5"
        raise InputError(f"arm {named!r} needs {what}; none is given")
    grid: list[Cell] = []
    for arm in sorted(set(arms), key=lambda arm: place_of_arm(arm, [*own])):
        plain = Cell(arm)
        features = _reads_features(plain, own)
        if not plain.masked:
            grid.append(plain)
            continue
        by_ratio = plain.focus in MASKED_BY_RATIO
        chosen_scores = ["probe"] if not by_ratio else [""] if plain.focus == "random" else dict.fromkeys(scores)
        chosen_ratios = sorted(set(map(float, ratios))) if by_ratio else [None]
        grid += [
            Cell(arm, score, ratio, layer)
            for layer in ([""] if features else dict.fromkeys(layers))
            for score in chosen_scores
            for ratio in chosen_ratios
        ]
    if not weights:
        return grid
    pairs = dict.fromkeys((float(label), float(teacher)) for label, teacher in weights)
    return [replace(cell, weights=pair) for cell in grid for pair in (pairs if cell.teacher else [None])]


def _reads_features(cell: Cell, own: Mapping[str, Any]) -> bool:
    """Whether the arm's method reads features of the teacher, so that a focus weights channels and masks nothing."""
    if cell.method in (None, "kd"):
        return False
    from mfh.methods.finding import reads_features, resolve  # only now: methods need torch

    method = resolve(own.get(str(cell.method), cell.method))
    if cell.focus and not method.takes_focus:
        raise InputError(f"arm {cell.arm!r}: method {cell.method} takes no focus; choose the arm {cell.method!r}")
    return reads_features(method)
