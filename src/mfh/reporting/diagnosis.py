"""A diagnosis in words and tables, for the terminal and for the report."""

from mfh.problems.scale import Scale
from mfh.reporting.page import Block, Content, Section, Table
from mfh.reporting.pictures import estimated_venn_picture
from mfh.studies.criteria import Measure, Shares
from mfh.studies.diagnosis import Diagnosis, gain_as_text
from mfh.studies.folder import Run
from mfh.studies.summary import Summary


def diagnosis_content(run: Run) -> Content:
    """The report of a run folder that holds a diagnosis and no study.

    Raises:
        InputError: The diagnosis cannot be read.
    """
    diagnosis = run.diagnosis
    assert diagnosis is not None
    shared = Section("What the modalities share", estimated_venn(run))
    criteria = Section("Criteria", [*diagnosis_tables(diagnosis), _reading(diagnosis)])
    return Content(f"Diagnosis: {diagnosis.task}", "", diagnosis_verdict(diagnosis), [shared, criteria])


def kept_diagnosis(run: Run, *, with_venn: bool) -> list[Section]:
    """The section on a run's diagnosis; an empty list for a run without one.

    Args:
        run: The run folder.
        with_venn: Whether to show the estimated Venn diagram too.
    """
    diagnosis = run.diagnosis
    if diagnosis is None:
        return []
    verdict, tables = diagnosis_verdict(diagnosis), diagnosis_tables(diagnosis)
    venn = estimated_venn(run) if with_venn else []
    words = " ".join([*verdict, *_as_measured(run.summary)])
    return [Section("Will distillation help?", [words, *venn, *tables, _reading(diagnosis)])]


def _as_measured(summary: Summary) -> list[str]:
    """What the forecast is of, as the study measured it: a sentence, or none without the arms."""
    regular = summary.chosen("regular")
    base = summary.chosen("longer") or summary.chosen("no-kd")
    measured = None if regular is None or base is None else summary.compare(regular.student, base.student)
    if base is None or measured is None:
        return []
    return [f"As measured, regular against {base.label}: {summary.describe(measured)}."]


def _reading(diagnosis: Diagnosis) -> str:
    return (
        "This diagnosis was made before any student was distilled. The forecast rehearses distillation by regressions "
        "on features of untrained networks; its interval says how far such forecasts were from measured gains. The "
        f"other criteria are shown for orientation. They use a teacher and a student trained on labels, "
        f"{diagnosis.num_train} labelled and {diagnosis.num_unlabelled} unlabelled training pairs, and "
        f"{diagnosis.samples} validation pairs (seed {diagnosis.seed}). What a soft mask "
        "adds in a single task cannot be told beforehand."
    )


def estimated_venn(run: Run) -> list[Block]:
    """The modality Venn diagram as a run's diagnosis estimates it, with an explanation; empty without a diagnosis."""
    diagnosis = run.diagnosis
    if diagnosis is None:
        return []
    picture = estimated_venn_picture(Shares(diagnosis.alpha, diagnosis.beta, diagnosis.gamma), diagnosis.samples)
    if picture is None:
        return ["The validation pairs are too few to estimate what the modalities share, so no diagram is drawn."]
    words = (
        "The estimate covers what both networks' features show. Information that they miss, or that they see under "
        "noise that differs between the modalities, does not count as shared."
    )
    return [picture, words]


def diagnosis_verdict(diagnosis: Diagnosis) -> list[str]:
    """The verdict and its reasons, a sentence each."""
    opening = {
        "likely to help": "Plain distillation is likely to help.",
        "not likely to help": "Plain distillation is not likely to help.",
        "cannot tell": "The diagnosis cannot tell whether plain distillation will help.",
    }[diagnosis.verdict]
    return [opening, *(reason[:1].upper() + reason[1:] for reason in diagnosis.reasons)]


def diagnosis_tables(diagnosis: Diagnosis) -> list[Table]:
    """Two tables: the criteria, and what each layer of the teacher shows."""
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
        Table(
            ["Criterion", "Value", "Interval", "Meaning"],
            rows,
            "Forecast and criteria on the validation split, with 95 % intervals (90 % for gains and trials of heads).",
        ),
        Table(
            ["Layer", "Channels", "Mean R\u00b2", "Decision seen", "Soft teacher, %", "Trial of heads, soft"],
            layers,
            "Layers of the teacher: what the student's features predict of the channels, and of the decision.",
        ),
    ]


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
