"""A diagnosis in words and tables, for the terminal and for the report."""

from mfh.reporting.page import Block, Content, Section, Table
from mfh.reporting.pictures import estimated_venn_picture
from mfh.studies.criteria import Shares
from mfh.studies.diagnosis import Diagnosis
from mfh.studies.diagnosis_text import diagnosis_rows, diagnosis_verdict
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


def diagnosis_tables(diagnosis: Diagnosis) -> list[Table]:
    """Two tables: the criteria, and what each layer of the teacher shows."""
    return [Table(columns, rows, caption) for caption, columns, rows in diagnosis_rows(diagnosis)]
