"""What a study shows, in sentences and as a table of numbers: the same on the terminal, in the report and in Python."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mfh.problems.scale import ACCURACY, Scale
from mfh.studies.grid import UNMASKED, Cell
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
    labels = ""
    if len(run.fractions) > 1:
        labels = f"With {max(labels_by_fraction(run).values()):,} labels, the most of this study: "
    return labels + finding(run.summary)


def finding(summary: Summary) -> str:
    """What the study shows, in one sentence that claims no more than the intervals do."""
    best = summary.chosen()
    if best is None or best.gain is None:
        return "This study cannot tell whether distillation helps: it needs no-kd and at least one other arm."
    if best.gain.num_pairs == 1:
        return f"Against no-kd, {summary.says(best.label, best.gain)}."
    num_compared = sum(variant.gain is not None for variant in summary.variants)
    among = f", the best of {summary.num_candidates} by validation," if summary.num_candidates > 1 else ""
    regular = summary.chosen("regular")
    sentence = "against no-kd, "
    if regular is not None and regular.gain is not None and regular is not best:
        sentence += f"{summary.says('ordinary distillation', regular.gain)} and "
    sentence += f"{best.label}{among} {summary.says('', best.gain)}"
    if best.gain.outcome == "gains":
        sentence = sentence[0].upper() + sentence[1:] + _after_correction(best, num_compared)
    else:
        sentence = f"Distillation is not shown to help here: {sentence}"
    sentence += _against_control(summary, best)
    for arm in ("general", "soft"):
        variant = summary.chosen(arm)
        if variant is not None and variant.masking is not None:
            shown = summary.says(variant.label, variant.masking)
            sentence += f"; against {UNMASKED[arm]}, the same teacher unmasked, {shown}"
    if summary.repeats.caveat:
        sentence += f"; {summary.repeats.caveat}"
    if summary.split != "test":
        sentence += "; all numbers are of the validation split"
    return sentence + "."


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
    gain, error = (scale.factor * float(choice[name]) for name in ("validation_gain", "standard_error"))
    unit = f" {scale.unit}" if scale.unit else ""
    sign = "\u2212" if gain < 0 else "+"
    change = f"{sign}{abs(gain):.3g}{unit} there against no-kd, standard error {error:.2g}"
    best = f"{Cell.chosen(choice).name} is the best of {choice['candidates']} by validation"
    rule = "no-kd is recommended unless the gain exceeds its standard error"
    note = " The test split was read for all arms before this choice, which rests on validation alone." * tested_all
    return f"Recommended: {choice['recommended']}. {best} ({change}); {rule}.{note}"


def _against_control(summary: Summary, best: Variant) -> str:
    """What the best arm gains over the best control, and whether the control gains as much; empty without controls."""
    control, over = summary.control, summary.over_control(best)
    if control is None or over is None:
        return ""
    text = f"; against {control.label}, the best control by validation, {summary.says(best.label, over)}"
    gains = best.gain is not None and best.gain.outcome == "gains"
    if not gains or over.outcome == "gains":
        return text
    as_much = over.mean_difference <= 0 or (control.gain is not None and control.gain.outcome == "gains")
    return text + (": the control gains as much" if as_much else ": a gain over the control is not shown")


def _after_correction(best: Variant, num_compared: int) -> str:
    """What remains of the best arm's gain after correcting for the number of arms; empty for a single comparison."""
    if best.gain is None or best.corrected_p is None or num_compared < 2:
        return ""
    p_value = f"p {p_in_words(best.corrected_p)} after correction for {num_compared} comparisons"
    return f", {p_value}" if best.corrected_p <= 0.05 else f", taken alone ({p_value})"
