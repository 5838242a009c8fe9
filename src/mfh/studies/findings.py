"""What a study shows, in sentences and as a table of numbers: the same on the terminal, in the report and in Python."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mfh.problems.scale import ACCURACY, Scale
from mfh.studies.grid import CONTROLS, LINEAR, UNMASKED, Cell
from mfh.studies.stats import Comparison
from mfh.studies.summary import Summary, Variant, p_in_words

if TYPE_CHECKING:
    import pandas as pd

    from mfh.studies.folder import Run


def study_finding(run: "Run") -> str:
    """What a study shows, as its report says it: of several label budgets, at the largest.

    Args:
        run: Run folder of a study.
    """
    text = finding(run.summary)
    if len(run.fractions) < 2:
        return text
    return f"{text}\nAll of this is with {max(labels_by_fraction(run).values()):,} labels, the most of this study."


def finding(summary: Summary) -> str:
    """What the study shows, in a few lines that claim no more than the intervals do.

    Args:
        summary: Summary of a study.

    Returns:
        Lines of whole sentences: whether distillation helps; then what ordinary distillation gains, what the best arm
        gains over no-kd and over the best other control, a linear model that does better than both, and what the masks
        add to the same teacher.
    """
    best = summary.chosen()
    if best is None or best.gain is None:
        return "This study cannot tell whether distillation helps: it needs no-kd and at least one other arm."
    if best.gain.num_pairs == 1:
        return (
            f"One seed cannot tell whether distillation helps.\nAgainst no-kd, {summary.says(best.label, best.gain)}."
        )
    lines = [_headline(summary, best)]
    regular = summary.chosen("regular")
    if regular is not None and regular.gain is not None and regular is not best:
        alone = alone_in_words(summary, regular)
        lines.append(f"Ordinary distillation, regular: {_over(summary, 'no-kd', regular.gain)}{alone}.")
    among = f" of {summary.num_candidates} by validation" if summary.num_candidates > 1 else ""
    corrected = alone_in_words(summary, best) or _after_correction(summary, best)
    line = f"Best arm{among}, {best.label}: {_over(summary, 'no-kd', best.gain)}{corrected}"
    control, over = summary.control, summary.over_control(best)
    if control is not None and over is not None:
        line += f"; {_over(summary, f'{control.label}, the best other control', over)}"
    lines.append(f"{line}.")
    masks = [
        f"{variant.label}: {_over(summary, UNMASKED[arm], variant.masking)}"
        for arm in ("general", "soft")
        if (variant := summary.chosen(arm)) is not None and variant.masking is not None
    ]
    linear = summary.chosen(LINEAR)
    students = [variant for variant in (best, summary.chosen("no-kd")) if variant is not None]
    if linear is not None and all(_better(summary, linear, student) for student in students):
        percent = " %" if summary.scale.percent else ""
        than = " and ".join(f"{student.label} ({summary.number(student.student)}{percent})" for student in students)
        lines.append(
            f"The linear model on the student's inputs reaches {summary.number(linear.student)}{percent}, better than "
            f"{than}: begin there."
        )
    if masks:
        lines.append(f"The masks alone, over the same teacher unmasked: {'; '.join(masks)}.")
    notes = [f"Means over {summary.seeds_in_words}, paired by seed, with 95 % intervals"]
    notes += [summary.repeats.caveat] if summary.repeats.caveat else []
    notes += ["all numbers are of the validation split"] if summary.split != "test" else []
    return "\n".join([*lines, f"{'; '.join(notes)}."])


def _better(summary: Summary, one: Variant, other: Variant) -> bool:
    """Whether the mean of one arm is better than that of another over their common seeds."""
    difference = summary.compare(one.student, other.student)
    return difference is not None and difference.mean_difference > 0


def _headline(summary: Summary, best: Variant) -> str:
    control, over = summary.control, summary.over_control(best)
    if not best.gains:
        others = [variant for variant in summary.variants if variant.gains and variant.arm not in CONTROLS]
        if others:
            other = max(others, key=summary.rank).label
            return f"{best.label}, the best arm by validation, is not shown to gain over no-kd, but {other} is."
        assert best.gain is not None
        if best.gain.outcome == "gains":
            return f"{best.label} gains over no-kd taken alone, but not after correction for the arms compared."
        split = {"test": "test", "val": "validation"}[summary.split]
        return f"Distillation is not shown to help on the {split} split."
    if control is None or over is None or over.outcome == "gains":
        beside = " and over the best other control" if control else ""
        return f"Distillation helps here: {best.label} gains over no-kd{beside}."
    as_much = over.mean_difference <= 0 or (control.gain is not None and control.gain.outcome == "gains")
    doubt = "the control gains as much" if as_much else "a gain over the control is not shown"
    return f"{best.label} gains over no-kd, but {doubt} ({control.label})."


def _over(summary: Summary, baseline: str, comparison: Comparison) -> str:
    """A comparison in words, for instance "+2.1 points over no-kd (1.0 to 3.1)"."""
    mean, _, interval = summary.difference(comparison).partition(" (")
    unit = summary.scale.unit or f"of {summary.scale.words}"
    shown = ", no difference shown" if comparison.outcome == "open" else ""
    return f"{mean} {unit} over {baseline} ({interval.removesuffix(')')}{shown})"


def labels_by_fraction(run: "Run") -> dict[float, int]:
    """Label fraction -> number of labelled training pairs of the first seed, in ascending order."""
    counts = [int(pairs["labelled"]) for pairs in run.config.get("pairs") or []]
    found = dict(zip(run.fractions, counts, strict=False))
    # Of fractions that keep the same pairs, the first one is shown.
    first = {count: fraction for fraction, count in reversed(found.items())}
    return {f: n for f, n in found.items() if f in run.measured_fractions and first[n] == f}


def arms_frame(summary: Summary) -> "pd.DataFrame":
    """The arms of a study as numbers; those that a study did not measure are NaN.

    Args:
        summary: Summary of the study.

    Returns:
        One row for each arm, with the columns arm, mean (of the student, as the terminal shows it: accuracies in
        percent), gain, low, high (over no-kd, with its 95 % interval), p (corrected for the number of arms),
        over_control, over_control_low, over_control_high (the same over the control that is best on validation).
    """
    import pandas as pd

    def three(comparison: Comparison | None) -> list[float]:
        if comparison is None:
            return [math.nan] * 3
        return [comparison.mean_difference, comparison.low, comparison.high]

    rows = [
        [
            variant.label,
            float(variant.student.mean()),
            *three(variant.gain),
            math.nan if variant.corrected_p is None else variant.corrected_p,
            *three(None if summary.control in (None, variant) else summary.over_control(variant)),
        ]
        for variant in summary.variants
    ]
    over = ["over_control", "over_control_low", "over_control_high"]
    return pd.DataFrame(rows, columns=["arm", "mean", "gain", "low", "high", "p", *over])


def recommendation(choice: Mapping[str, Any], scale: Scale = ACCURACY, *, tested_all: bool = False) -> str:
    """What a study with selection recommends, in a sentence.

    Args:
        choice: Content of selection.json.
        scale: How the study's metric reads (default: accuracy).
        tested_all: Whether the test split was read for all arms, before the choice.
    """
    gain, error = scale.factor * float(choice["validation_gain"]), choice["standard_error"]
    unit = f" {scale.unit}" if scale.unit else ""
    sign = "\u2212" if gain < 0 else "+"
    spread = (
        "no standard error, as there is one seed" if error is None else f"standard error {scale.factor * error:.2g}"
    )
    change = f"{sign}{abs(gain):.3g}{unit} there against {choice.get('control', 'no-kd')}, {spread}"
    best = f"{Cell.chosen(choice).name} is the best of {choice['candidates']} by validation"
    rule = "no-kd is recommended unless the gain exceeds its standard error"
    note = " The test split was read for all arms before this choice, which rests on validation alone." * tested_all
    return f"Recommended: {choice['recommended']}. {best} ({change}); {rule}.{note}"


def alone_in_words(summary: Summary, variant: Variant) -> str:
    """The end of a sentence on a gain that is shown taken alone, but not after correction; empty for other gains."""
    return f", taken alone{_after_correction(summary, variant)}" if variant.taken_alone else ""


def _after_correction(summary: Summary, variant: Variant) -> str:
    """The p-value of an arm's gain, corrected for the number of arms; empty for a single comparison."""
    num_compared = sum(other.gain is not None for other in summary.variants)
    if variant.corrected_p is None or num_compared < 2:
        return ""
    return f", p {p_in_words(variant.corrected_p)} after correction for {num_compared} comparisons"
