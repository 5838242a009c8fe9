"""Tables and sentences about a study, for the terminal and for the report."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mfh.problems.scale import ACCURACY, Scale
from mfh.reporting.page import Table
from mfh.studies.grid import UNMASKED, Cell
from mfh.studies.stats import Comparison, mean_interval, pairs_needed
from mfh.studies.summary import Summary, Variant, interval_in_words, p_in_words

if TYPE_CHECKING:
    import pandas as pd


def arms_table(summary: Summary) -> Table:
    """The table of arms: metrics of students and teachers, and paired differences with 95 % intervals."""
    split, scale = {"test": "Test", "val": "Validation"}[summary.split], summary.scale
    rows = [
        [
            variant.label,
            summary.number(variant.student),
            summary.difference(variant.gain),
            "" if variant.corrected_p is None else p_in_words(variant.corrected_p),
            summary.difference(variant.masking),
            summary.number(variant.teacher),
        ]
        for variant in summary.variants
    ]
    unit = f", {scale.unit}" if scale.unit else ""
    direction = "" if scale.higher_is_better else f" Lower {scale.words} is better: a positive gain is a decrease."
    caveat = f"; {summary.repeats.caveat}" if summary.repeats.caveat else ""
    return Table(
        [
            "Arm",
            f"{split} {scale.title}",
            f"Against no-kd{unit}",
            "p (corrected)",
            f"Against the same teacher unmasked{unit}",
            f"Teacher {scale.title}",
        ],
        rows,
        f"Means over {summary.seeds_in_words}; differences are paired by seed, with 95 % intervals{caveat}.{direction}",
    )


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


def questions_table(summary: Summary) -> Table | None:
    """Questions that a study answers, and how many seeds would settle the open ones; None without answers."""
    asked: list[tuple[str, Variant | None, str, Comparison | None]] = []
    for arm, question in (("regular", "Does ordinary distillation help?"), ("aligned", "Does joint training help?")):
        variant = summary.chosen(arm)
        asked.append((question, variant, "no-kd", variant.gain if variant else None))
    for arm in ("general", "soft"):
        variant = summary.chosen(arm)
        asked.append((f"Does the {arm} mask help?", variant, UNMASKED[arm], variant.masking if variant else None))
    general = summary.chosen("general")
    twin = None if general is None else replace(general.cell, arm="random", score="")
    random = next((variant for variant in summary.variants if variant.cell == twin), None)
    if general is not None and random is not None:
        against_random = summary.compare(general.student, random.student)
        asked.append(("Does the ranking matter?", general, random.label, against_random))
    rows = [
        [question, f"{variant.label} against {baseline}", summary.describe(comparison), _still_needed(comparison)]
        for question, variant, baseline, comparison in asked
        if variant is not None and comparison is not None
    ]
    if not rows:
        return None
    columns = ["Question", "Compared", "Answer", "To settle it"]
    caption = "Questions and answers; the last column assumes the observed difference is the true one."
    return Table(columns, rows, caption)


def auroc_table(frame: "pd.DataFrame") -> Table | None:
    """How well each score separates general from specific channels where the truth is known; None without a truth."""
    rows = []
    known = frame[(frame["metric"] == "auroc") & frame["value"].notna()]
    named = known.astype({"score": object, "layer": object}).fillna({"score": "", "layer": ""})
    for (score, layer), group in named.groupby(["score", "layer"], sort=False):
        values = group.groupby("seed")["value"].last()
        mean, low, high = mean_interval(values.to_numpy())
        low, high = (float(np.clip(end, 0, 1)) for end in (low, high))  # a t interval may exceed the bounds
        rows.append([str(score), str(layer), interval_in_words(mean, low, high, digits=3), str(len(values))])
    if not rows:
        return None
    caption = "Area under the ROC curve against the known truth, mean and 95 % interval: 1 is perfect, 0.5 is chance."
    return Table(["Score", "Layer", "AUROC", "Seeds"], rows, caption)


def _after_correction(best: Variant, num_compared: int) -> str:
    """What remains of the best arm's gain after correcting for the number of arms; empty for a single comparison."""
    if best.gain is None or best.corrected_p is None or num_compared < 2:
        return ""
    p_value = f"p {p_in_words(best.corrected_p)} after correction for {num_compared} comparisons"
    return f", {p_value}" if best.corrected_p <= 0.05 else f", taken alone ({p_value})"


def _still_needed(comparison: Comparison) -> str:
    needed = pairs_needed(comparison)
    if comparison.num_pairs == 1:
        return "more than one seed"
    if needed == 0:
        return "settled"
    if needed is None:
        return "more data" if comparison.test_to_train else "no reasonable number of seeds"
    return "1 more seed" if needed == 1 else f"about {needed} more seeds"
