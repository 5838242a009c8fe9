"""Tables and sentences about a study, for the terminal and for the report."""

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from mfh.reporting.page import Table
from mfh.studies.findings import alone_in_words
from mfh.studies.findings import finding as finding
from mfh.studies.findings import recommendation as recommendation
from mfh.studies.grid import UNMASKED
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
    table = Table(
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
    return table.without_empty_columns()


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
    rows = []
    for question, variant, baseline, comparison in asked:
        if variant is None or comparison is None:
            continue
        alone = alone_in_words(summary, variant) if comparison is variant.gain else ""
        answer = summary.describe(comparison) + alone
        rows.append([question, f"{variant.label} against {baseline}", answer, _still_needed(comparison, bool(alone))])
    if not rows:
        return None
    columns = ["Question", "Compared", "Answer", "To settle it"]
    caption = (
        "Questions and answers: those against no-kd are corrected for the arms compared, the others taken alone. The "
        "last column assumes the observed difference is the true one."
    )
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


def _still_needed(comparison: Comparison, alone: bool) -> str:
    """What would settle a comparison; `alone` says that it excludes zero, but not after correction."""
    if alone:
        return "more data" if comparison.test_to_train else "more seeds"
    needed = pairs_needed(comparison)
    if comparison.num_pairs == 1:
        return "more than one seed"
    if needed == 0:
        return "settled"
    if needed is None:
        return "more data" if comparison.test_to_train else "no reasonable number of seeds"
    return "1 more seed" if needed == 1 else f"about {needed} more seeds"
