"""The report of a study: its run folder as sections of a page."""

from collections.abc import Iterator, Mapping
from typing import Any

from mfh.reporting.budgets import budgets_section
from mfh.reporting.classes import classes_section
from mfh.reporting.costs import costs_section
from mfh.reporting.curves import training_section
from mfh.reporting.diagnosis import estimated_venn, kept_diagnosis
from mfh.reporting.legend import legend_table
from mfh.reporting.page import Block, Command, Content, Files, Folded, Section, Table
from mfh.reporting.pictures import (
    gains_picture,
    saliency_picture,
    sweep_picture,
    teachers_picture,
    venn_picture,
)
from mfh.reporting.student import student_section
from mfh.reporting.summary import (
    arms_table,
    auroc_table,
    questions_table,
)
from mfh.studies.findings import recommendation, study_finding
from mfh.studies.folder import Run
from mfh.studies.grid import method_and_focus
from mfh.studies.recommended import STARTED_IN
from mfh.studies.summary import Summary
from mfh.venn import ModalityVenn


def study_content(run: Run) -> Content:
    """The report of one study.

    Args:
        run: The run folder of a study.

    Raises:
        InputError: The folder holds no study, or one of its files cannot be read.
    """
    facts: Mapping[str, Any] = run.config.get("facts") or {}
    summary, seeds = run.summary, set(run.results["seed"])
    measured = [folder for folder in run.seeds if folder.seed in seeds]  # others are being added
    sections = [
        _compared(run, facts, summary),
        _results(summary, run),
        student_section(run),
        budgets_section(run),
        Section("Better teachers, better students?", _given(teachers_picture(summary))),
        *kept_diagnosis(run, with_venn=bool(_known_counts(facts))),
        _channels(run, summary),
        classes_section(measured, summary, facts),
        training_section(measured, summary),
        costs_section(measured, summary),
        making_section(run),
    ]
    return Content(
        f"Study: {run.config.get('task', run.folder.name)}",
        str(facts.get("description") or ""),
        study_finding(run).split("\n"),
        [part for part in sections if part.blocks],
    )


def comparison_table(runs: Mapping[str, Run]) -> Table:
    """A table with one row for each study: the metric of its students, and the gain from distillation.

    Args:
        runs: Run folders of studies, by the names to show.
    """
    rows = []
    for name, run in runs.items():
        summary = run.summary
        none, best = summary.chosen("no-kd"), summary.chosen()
        rows.append(
            [
                name,
                str(run.config.get("task", "")),
                summary.seeds_in_words,
                summary.scale.title,
                summary.number(none.student) if none else "",
                best.label if best else "",
                summary.number(best.student) if best else "",
                summary.difference(best.gain) if best else "",
            ]
        )
    columns = ["Run", "Task", "Seeds", "Metric", "no-kd", "Best arm", "Its student", "Gain"]
    caption = "The best arm is chosen on the validation split; the gain is paired by seed, with a 95 % interval."
    return Table(columns, rows, caption)


def _compared(run: Run, facts: Mapping[str, Any], summary: Summary) -> Section:
    """What the modalities share, as far as it is known or was estimated, and what each arm is."""
    section = Section("What was compared")
    if counts := _known_counts(facts):
        section.blocks.append(venn_picture(ModalityVenn(*counts)))
    else:
        section.blocks.extend(estimated_venn(run))
    names = {
        "best_teacher_accuracy": "the best possible accuracy on the teacher's modality is",
        "best_student_accuracy": "on the student's",
        "majority_accuracy": "always predicting the majority class gives",
    }
    known = [f"{words} {100 * float(facts[name]):.1f} %" for name, words in names.items() if name in facts]
    none = summary.chosen("no-kd")
    if known:
        text = "; ".join(known)
        reached = f" The student without a teacher reaches {summary.number(none.student)} %." if none else ""
        section.blocks.append(f"{text[0].upper()}{text[1:]}.{reached}")
    section.blocks.append(legend_table(list(dict.fromkeys(variant.arm for variant in summary.variants))))
    return section


def _known_counts(facts: Mapping[str, Any]) -> list[int]:
    """Numbers of decisive features: general, teacher-only and student-only; none where they are not known."""
    counts = [facts.get(name) for name in ("general", "teacher_only", "student_only")]
    known = [count for count in counts if isinstance(count, int)]
    return known if len(known) == len(counts) and any(known) else []


def _results(summary: Summary, run: Run) -> Section:
    section, choice = Section("Results"), run.selection
    if choice is not None:
        section.blocks.append(recommendation(choice, summary.scale, tested_all=not run.config.get("select")))
    blocks = (gains_picture(summary), arms_table(summary), questions_table(summary), sweep_picture(summary))
    section.blocks.extend(_given(*blocks))
    most = summary.num_seeds[1]
    notes = (
        "Judge a mask by its gain over the same teacher without it: general, specific and random against aligned, "
        "soft against regular. "
    )
    if any(method_and_focus(variant.arm)[1] for variant in summary.variants):
        notes += (
            "Likewise METHOD+soft is judged against METHOD, and METHOD+general, METHOD+specific and METHOD+random "
            "against METHOD+aligned. "
        )
    notes += f"{summary.repeats.sentence} "
    if most > 1:
        notes += summary.repeats.p_values_in_words(summary.num_shared, summary.split)
        if 1 < summary.num_shared < most:
            notes += f" They use the {summary.num_shared} seeds that all arms have."
    else:
        notes += "One seed has no interval: run more seeds before you draw conclusions."
    section.blocks.extend([*_pairs_in_words(run), notes])
    return section


def _pairs_in_words(run: Run) -> list[str]:
    """How many pairs there are of each kind and how they were used, where some of them have no label."""
    budgets = run.config.get("pairs") or []
    if not any(counts.get("unlabelled") for counts in budgets):
        return []
    identity = run.config.get("identity") or {}
    size = int(identity.get("batch_size", 1)) * int(identity.get("accumulate", 1))
    epochs = int(identity.get("epochs", 1))
    steps = [
        f"{counts['labelled']:,} labelled and {counts['unlabelled']:,} unlabelled pairs: about "
        f"{epochs * -(-counts['labelled'] // size):,} steps for no-kd, on the labelled pairs, and "
        f"{epochs * -(-(counts['labelled'] + counts['unlabelled']) // size):,} for distillation, joint training and "
        "the controls, on all pairs"
        for counts in budgets
    ]
    share = identity.get("labelled_share")
    composed = (
        "labelled and unlabelled pairs are dealt out evenly over the batches, so it is one pass over all pairs"
        if share is None
        else f"{100 * float(share):g} % of every batch is labelled, and it has the steps of one pass over all pairs"
    )
    return [
        f"Optimizer steps with {'; with '.join(steps)}. In each of the {epochs} epochs on all pairs, {composed}. The "
        "label loss counts on labelled pairs, the teacher's term on all. Validation has "
        f"{budgets[-1]['val']:,} labelled pairs and the test {budgets[-1]['test']:,}."
    ]


def _channels(run: Run, summary: Summary) -> Section:
    section = Section("Which channels can cross")
    kept = run.seeds[0] if run.seeds else None
    if kept is not None:
        truth, order = kept.read_truth(), [*(run.config.get("scores") or []), "distance", "agreement", "probe"]
        saliencies = sorted(kept.saliencies(), key=lambda saliency: (order.index(saliency.score), saliency.layer))
        several = len({saliency.layer for saliency in saliencies}) > 1
        for saliency in saliencies:
            mask = summary.chosen("general", score=saliency.score, layer=saliency.layer)
            section.blocks.append(
                saliency_picture(
                    saliency,
                    ratio=mask.ratio if mask else None,
                    truth=truth if truth is not None and truth.shape == (len(saliency.scores),) else None,
                    name=f"saliency-{saliency.score}" + (f"-{saliency.layer}" if several else ""),
                    seed=kept.seed,
                )
            )
    section.blocks.extend(_given(auroc_table(run.results)))
    return section


def _given(*blocks: Block | None) -> list[Block]:
    """The blocks that there are."""
    return [block for block in blocks if block is not None]


def making_section(run: Run) -> Section:
    """The section on how a run was made: command, time, data, configuration, software and hardware."""
    section, environment = Section("How it was made"), run.environment
    repeat, seconds = environment.get("repeat"), environment.get("seconds")
    if repeat:
        section.blocks.extend(["This command repeats the run:", Command(str(repeat))])
    if isinstance(seconds, int | float):
        section.blocks.append(f"The run took {_duration(float(seconds))}.")
    if run.shown_files:
        section.blocks.append(Files(run.shown_files))
    # The identity of the networks repeats many settings: show each one once, under its short name.
    named: dict[str, str] = {}
    for name, value in _flatten(run.config):
        name = name.removeprefix("identity.").removeprefix("problem.")
        if value and not name.startswith("facts."):
            named.setdefault(name, value)
    settings = [[name, value] for name, value in named.items()]
    facts = [[name, value] for name, value in _flatten(environment) if name not in ("repeat", "seconds", STARTED_IN)]
    tables = [
        Table(["Setting", "Value"], settings, "Configuration of the run, with all defaults filled in."),
        Table(["Item", "Value"], facts, "Software and hardware of the run."),
    ]
    section.blocks.append(Folded("Configuration, software and hardware", [table for table in tables if table.rows]))
    return section


def _flatten(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Names and values of nested settings as text, in order: {"a": {"b": [1, 2]}} gives ("a.b", "1, 2")."""
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple):
            yield f"{prefix}{name}", ", ".join(map(str, value))
        else:
            yield f"{prefix}{name}", "" if value is None else str(value)


def _duration(seconds: float) -> str:
    """A duration as text, for instance "42 s", "3 min 5 s" or "2 h 7 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if whole < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
