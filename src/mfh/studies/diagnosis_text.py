"""A diagnosis in words and rows of text, for the report, the terminal and `print`."""

from collections.abc import Sequence
from textwrap import wrap

from mfh.problems.scale import Scale
from mfh.studies.criteria import Measure
from mfh.studies.diagnosis import Diagnosis, gain_as_text

#: Width of the text in columns; only the last column of a table is folded.
_WIDTH = 120


def diagnosis_verdict(diagnosis: Diagnosis) -> list[str]:
    """The verdict and its reasons, a sentence each."""
    opening = {
        "likely to help": "Plain distillation is likely to help.",
        "not likely to help": "Plain distillation is not likely to help.",
        "cannot tell": "The diagnosis cannot tell whether plain distillation will help.",
    }[diagnosis.verdict]
    return [opening, *(reason[:1].upper() + reason[1:] for reason in diagnosis.reasons)]


def diagnosis_rows(diagnosis: Diagnosis) -> list[tuple[str, list[str], list[list[str]]]]:
    """Two tables, each with its caption, headings and rows: the criteria, and what each layer of the teacher shows."""
    scale = diagnosis.scale
    ahead = (
        (
            "expected gain, all pairs",
            diagnosis.forecast.gain,
            "of plain distillation over the same training without a teacher",
        ),
        ("expected gain, labelled pairs", diagnosis.forecast.labelled_only, "the same without the unlabelled pairs"),
        ("a soft mask adds", diagnosis.forecast.masked, "what it changed of this gain in 78 real settings"),
        ("rehearsed lead", diagnosis.forecast.lead, "how far the rehearsed teacher is ahead of the rehearsed student"),
    )
    measures = (
        (
            "trial of heads, regular",
            diagnosis.trial,
            "above 0: a linear head learns more from all training pairs with the teacher than from the labels alone",
        ),
        (
            "trial on validation pairs",
            diagnosis.held_out,
            "the same for a teacher that has not memorised its pairs, and without unlabelled pairs",
        ),
        ("gamma", diagnosis.gamma, "share of all decisive information that both modalities carry"),
        ("alpha", diagnosis.alpha, "share of the teacher's decisive information that only the teacher has"),
        ("beta", diagnosis.beta, "share of the student's decisive information that only the student has"),
        ("teacher's decision seen", diagnosis.visible, "R\u00b2 of the teacher's logits from the student's features"),
        ("student's surplus", diagnosis.surplus, "above 0: the student's modality knows what the teacher does not"),
        (
            "non-target divergence",
            diagnosis.non_target_divergence,
            "0 to 0.69 nats; smaller should be better (arXiv 2409.02438)",
        ),
        ("complementarity", diagnosis.complementarity, "in nats; above 0 should help (arXiv 2510.13182)"),
        ("CKA", diagnosis.kernel_alignment, "0 to 1: how alike both networks' features are"),
        (
            "mutual neighbours",
            diagnosis.mutual_neighbours,
            "share of 10 nearest neighbours that both networks agree on",
        ),
        ("cosine gap", diagnosis.cosine_gap, "0 to 2: how different both networks' logits are"),
    )
    rows = [[name, *_gains(measure, scale), measure.note or meaning] for name, measure, meaning in ahead]
    rows += [
        [name, *_numbers(measure), measure.note or meaning]
        for name, measure, meaning in measures
        if measure.note != "needs one class per sample"
    ]
    values = (("teacher", diagnosis.teacher_accuracy), ("student, labels only", diagnosis.student_accuracy))
    rows += [[f"{name}: {scale.words}", scale.show(value), "", ""] for name, value in values]
    layers = [
        [
            view.layer,
            str(view.channels),
            f"{view.seen:.2f}",
            " ".join(_numbers(view.share)),
            "" if view.accuracy is None else f"{100 * view.accuracy:.1f}",
            " ".join(_numbers(view.trial)),
        ]
        for view in diagnosis.layers
    ]
    return [
        (
            "Forecast and criteria on the validation split, with 95 % intervals (90 % for gains and trials of heads).",
            ["Criterion", "Value", "Interval", "Meaning"],
            rows,
        ),
        (
            "Layers of the teacher: what the student's features predict of the channels, and of the decision.",
            ["Layer", "Channels", "Mean R\u00b2", "Decision seen", "Soft teacher, %", "Trial of heads, soft"],
            layers,
        ),
    ]


def diagnosis_text(diagnosis: Diagnosis) -> str:
    """The tables, the verdict and its reasons, as `mfh diagnose` prints them."""
    tables = [f"{caption}\n{_table([columns, *rows])}" for caption, columns, rows in diagnosis_rows(diagnosis)]
    opening, *reasons = diagnosis_verdict(diagnosis)
    return "\n\n".join([*tables, "\n".join([opening, *(f"* {reason}" for reason in reasons)])])


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text in columns; a last cell that is too long goes on below."""
    widths = [max(map(len, column)) for column in list(zip(*rows, strict=True))[:-1]]
    left = sum(widths) + 2 * len(widths)
    lines = []
    for *cells, last in rows:
        first, *more = wrap(last, max(_WIDTH - left, 30)) or [""]
        start = "".join(f"{cell:<{width}}  " for cell, width in zip(cells, widths, strict=True))
        lines += [(start + first).rstrip(), *(" " * left + line for line in more)]
    return "\n".join(lines)


def _gains(measure: Measure, scale: Scale) -> tuple[str, str]:
    """A gain and its interval in units of the metric, as text."""
    value, interval = gain_as_text(measure, scale)
    return value or "\u2013", f"({interval})" if interval else ""


def _numbers(measure: Measure) -> tuple[str, str]:
    """Value and interval of a measure, as text."""
    if measure.value is None:
        return "\u2013", ""
    signed = "+z.3f" if measure.low is not None and measure.low < 0 else "z.3f"
    interval = "" if measure.low is None else f"({measure.low:{signed}} to {measure.high:{signed}})"
    return f"{measure.value:{signed}}".replace("-", "\u2212"), interval.replace("-", "\u2212")
