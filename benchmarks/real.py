"""Does distillation help on real paired data? Every direction of the shipped data sets at several label budgets.

    python benchmarks/real.py runs/real --report benchmarks/reports/real-YYYY-MM-DD.md

Each direction (which view teaches, which view the student reads) and label budget is one study of the same arms and
controls, in a folder of its own. The budgets "50", "100" and "300" label so many training pairs and keep all other
training pairs as unlabelled ones; "all" labels every training pair. The same budget "labelled pairs only" leaves the
unlabelled pairs out (`--labelled-only`, for the budgets it names). What is finished is not run again, so the same
command resumes. Networks, recipes and splits are those of the tasks; nothing here was chosen by an outcome, and the
report names every direction.
"""

import argparse
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from scipy import stats

import mfh
from common import Report
from mfh.errors import InputError
from mfh.studies.folder import Run
from mfh.studies.grid import ARMS, PLAIN_CONTROLS
from mfh.studies.recommended import Students
from mfh.studies.stats import mean_interval
from mfh.tasks.baseline import linear_baseline
from mfh.tasks.finding import TaskArguments, find_task

DIRECTIONS = (
    ("htad", "audio", "accelerometer"),
    ("htad", "accelerometer", "audio"),
    ("htad", "both", "accelerometer"),
    ("htad", "both", "audio"),
    ("numerals", "pix", "zer"),
    ("numerals", "zer", "pix"),
    ("numerals", "fac", "mor"),
    ("numerals", "mor", "fac"),
    ("numerals", "kar", "fou"),
    ("numerals", "fou", "kar"),
    ("smartwatch", "accelerometer", "gyroscope"),
    ("smartwatch", "gyroscope", "accelerometer"),
)
BUDGETS = ("50", "100", "300", "all")
SHOWN = (
    "longer",
    "label-smoothing",
    "self-training",
    "teacher-shuffled",
    "regular",
    "soft",
    "aligned",
    "random",
    "specific",
    "general",
    "aligned-student",
)


@dataclass(frozen=True)
class Setting:
    """One study: a direction at a label budget.

    Args:
        task: Name of the task.
        teacher: View that the teacher reads.
        student: View that the student reads.
        labels: Number of labelled training pairs, or "all".
        unlabelled: Whether the other training pairs are used without their labels.
    """

    task: str
    teacher: str
    student: str
    labels: str
    unlabelled: bool = True

    @property
    def name(self):
        pairs = "" if self.unlabelled else "-labelled-only"
        return f"{self.task}-{self.teacher}-{self.student}-{self.labels}{pairs}"

    @property
    def arguments(self):
        given = {"teacher": self.teacher, "student": self.student, "labels": self.labels}
        return given | ({} if self.unlabelled else {"unlabelled": "false"})


def add_engine(parser):
    """Options of where a grid runs."""
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--engine", choices=("processes", "ray"), default="processes")
    parser.add_argument("--address", help="HOST:PORT of the Ray cluster's head")


def run_grid(run_setting, settings, options):
    """Run all studies: each in a process of its own, or one after the other on a Ray cluster, which shares out cells."""
    if options.engine == "ray":
        engine = {"engine": "ray", "address": options.address}
        found = (run_setting(options.folder, setting, options.num_seeds, **engine) for setting in settings)
        _tell(found, len(settings))
        return
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(run_setting, options.folder, setting, options.num_seeds) for setting in settings]
        _tell((job.result() for job in as_completed(jobs)), len(jobs))


def _tell(found, total):
    for done, (name, problem) in enumerate(found, start=1):
        print(f"{done} of {total}: {name}{': ' + problem if problem else ''}", flush=True)


def run_setting(folder, setting, num_seeds, **engine):
    """One study in this process or on a cluster; returns its name and what went wrong, if anything did."""
    torch.set_num_threads(1)
    try:
        settings = mfh.Settings.of(processes=1, set=setting.arguments, **engine)
        arms = (*ARMS, *PLAIN_CONTROLS)
        mfh.study(setting.task, arms=arms, num_seeds=num_seeds, out=folder / setting.name, settings=settings)
        _baseline(folder / setting.name, setting, num_seeds)
    except InputError as error:
        return setting.name, str(error)
    return setting.name, ""


def _baseline(folder, setting, num_seeds):
    """Keep the linear baseline of every seed beside the study."""
    file = folder / "baseline.npy"
    if file.exists() and len(np.load(file)) == num_seeds:
        return
    source = find_task(setting.task, TaskArguments(set=setting.arguments))
    np.save(file, np.array([linear_baseline(source.make(seed), seed) for seed in range(num_seeds)]))


def gain(summary, arm):
    """Gain of an arm over no-kd as text; bold where its interval excludes zero."""
    variant = summary.chosen(arm)
    if variant is None or variant.gain is None:
        return ""
    text = summary.difference(variant.gain)
    return f"**{text}**" if variant.gain.outcome in ("gains", "loses") else text


def table(say, columns, rows):
    """A Markdown table."""
    say("| " + " | ".join(columns) + " |")
    say("|" + "---|" * len(columns))
    for row in rows:
        say("| " + " | ".join(row) + " |")
    say()


def report(folder, settings, path):
    """Write tables of all finished studies."""
    found = [(setting, Run(folder / setting.name)) for setting in settings]
    found = [(setting, run) for setting, run in found if run.holds_results]
    say = Report("Real paired data", "No times are measured here.")
    seeds = sorted({run.summary.num_seeds[1] for _, run in found})
    several = " to ".join(map(str, sorted({seeds[0], seeds[-1]})))
    say(
        f"{len(found)} of {len(settings)} studies are finished, with {several} seeds "
        "each. Every seed is another split of one data set, so intervals carry the correction of Nadeau and Bengio. Gains "
        "are differences to no-kd in points of test accuracy with 95 % intervals, in bold where they exclude zero. The "
        "linear baseline is a logistic regression on the student's view, trained on the labelled pairs."
    )
    say()
    for unlabelled in (True, False):
        for labels in dict.fromkeys(setting.labels for setting in settings):
            part = [(s, run) for s, run in found if (s.labels, s.unlabelled) == (labels, unlabelled)]
            if not part:
                continue
            more = "" if unlabelled else ", labelled pairs only"
            say(f"## {'All pairs labelled' if labels == 'all' else f'{labels} labelled pairs'}{more}")
            say()
            rows = []
            for setting, run in part:
                summary, counts = run.summary, run.config["pairs"][-1]
                teacher = summary.chosen("regular")
                baseline = np.load(run.folder / "baseline.npy")
                rows.append(
                    [
                        f"{setting.task}: {setting.teacher} to {setting.student}",
                        f"{counts['labelled']} + {counts['unlabelled']}",
                        summary.number(summary.chosen("no-kd").student),
                        summary.number(teacher.teacher) if teacher else "",
                        f"{100 * baseline.mean():.1f}",
                        *(gain(summary, arm) for arm in SHOWN),
                    ]
                )
            table(say, ["direction", "pairs", "no-kd", "teacher", "linear", *SHOWN], rows)
    say("## How often an arm gains")
    say()
    rows = []
    for arm in SHOWN:
        row = [arm]
        for unlabelled, few in ((True, True), (True, False), (False, True)):
            part = [run.summary for s, run in found if s.unlabelled is unlabelled and (s.labels != "all") is few]
            chosen = [(summary, summary.chosen(arm)) for summary in part if summary.chosen(arm)]
            outcomes = [variant.gain.outcome for _, variant in chosen]
            means = np.array([variant.gain.mean_difference for _, variant in chosen])
            over = [summary.over_control(variant).outcome for summary, variant in chosen if summary.control]
            mean, low, high = mean_interval(means) if len(means) > 1 else (np.nan,) * 3
            row.append(
                ""
                if not len(means)
                else f"{mean:+.1f} ({low:+.1f} to {high:+.1f}); {outcomes.count('gains')} up, "
                f"{outcomes.count('loses')} down of {len(outcomes)}; {over.count('gains')} over the best control"
            )
        rows.append(row)
    table(say, ["arm", "few labels, all pairs", "all labelled", "few labels, labelled pairs only"], rows)
    say(
        "Each cell: mean gain over no-kd over the settings with an interval over settings; how many settings have an "
        "interval above or below zero; in how many the interval of the gain over the best control (by validation) is "
        "above zero."
    )
    say()
    predicted(say, found)
    say()
    recommended(say, found)
    say.write(path)


def predicted(say, found):
    """Does the teacher's lead over the student on validation data, known before any distillation, predict the gain?"""
    leads = []
    for _, run in found:
        val = run.results[run.results["split"] == "val"]
        metric = run.scale.name
        teacher = val[(val["arm"] == "regular") & (val["metric"] == f"teacher_{metric}")]["value"].mean()
        student = val[(val["arm"] == "no-kd") & (val["metric"] == metric)]["value"].mean()
        leads.append(100 * (teacher - student))
    say("## What predicts the gain")
    say()
    rows = []
    for arm in ("regular", "soft", "aligned", "general", "aligned-student"):
        for words, wanted in (("few labels, all pairs", True), ("all settings", None)):
            rows_of = {}
            for (setting, run), lead in zip(found, leads, strict=True):
                variant = run.summary.chosen(arm)
                if variant is not None and (wanted is None or (setting.unlabelled and setting.labels != "all")):
                    direction = (setting.task, setting.teacher, setting.student)
                    rows_of.setdefault(direction, []).append((lead, variant.gain.mean_difference))
            if len(rows_of) > 3:
                rows.append([arm, words, f"{sum(map(len, rows_of.values()))}", *_spearman([*rows_of.values()])])
    table(say, ["arm", "settings", "number", "Spearman", "sign right"], rows)
    say(
        "The lead is the teacher's accuracy minus that of no-kd on the validation split, before anything is distilled. "
        "Intervals resample directions. Signs are counted in all settings, also where the interval of the gain includes zero."
    )


def recommended(say, found):
    """What `result.best` recommends by validation, and what its choice gains on test data."""
    say("## What result.best is worth")
    say()
    rows, gained, most = [], [], []
    for setting, run in found:
        summary, best = run.summary, Students(run, None, None).best()
        gains = {v.cell: v.gain.mean_difference for v in summary.variants if v.gain and v.arm not in PLAIN_CONTROLS}
        gained.append(gains.get(best.cell, 0.0))
        most.append(max(0.0, *gains.values()))
        name = f"{setting.task}: {setting.teacher} to {setting.student}"
        pairs = "" if setting.unlabelled else ", labelled only"
        rows.append([name, setting.labels + pairs, best.arm, f"{gained[-1]:+.1f}", f"{most[-1]:+.1f}"])
    table(say, ["direction", "labels", "recommended", "its gain over no-kd, test", "best arm's gain"], rows)
    gained, most = np.array(gained), np.array(most)
    taught = [row[2] != "no-kd" for row in rows]
    worth = most > 1
    say(
        f"Over {len(rows)} settings the recommended student gains {gained.mean():.1f} points in the mean, "
        f"{100 * gained.sum() / most.sum():.0f} % of what the best arm gains, which is known only afterwards. It is worse than "
        f"no-kd by more than 0.2 points in {int((gained < -0.2).sum())} settings, by {max(0.0, -gained.min()):.1f} points at "
        f"most. A teacher is recommended in {int(np.sum(np.array(taught) & worth))} of the {int(worth.sum())} settings where "
        "one gains more than 1 point. The linear model is no candidate."
    )


def _spearman(directions):
    """Rank correlation of leads and gains with an interval over directions, and how often their signs agree."""
    rng = np.random.default_rng(0)

    def rank(chosen):
        lead, gained = np.concatenate([np.array(directions[index]) for index in chosen]).T
        return stats.spearmanr(lead, gained).statistic

    drawn = [rank(rng.integers(0, len(directions), len(directions))) for _ in range(2000)]
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    lead, gained = np.concatenate([np.array(one) for one in directions]).T
    agree = np.mean((lead > 0) == (gained > 0))
    return f"{rank(range(len(directions))):+.2f} ({low:+.2f} to {high:+.2f})", f"{agree:.2f}"


def main():
    """Run what is missing, then write the report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="where studies are kept")
    parser.add_argument("--report", type=Path, help="Markdown file for the tables")
    parser.add_argument("--num-seeds", type=int, default=10)
    parser.add_argument("--budgets", nargs="*", default=BUDGETS, choices=BUDGETS)
    parser.add_argument(
        "--labelled-only",
        nargs="*",
        default=(),
        choices=BUDGETS[:-1],
        help="budgets to run once more without the unlabelled pairs",
    )
    parser.add_argument("--directions", nargs="*", help="only these, for instance htad-audio-accelerometer")
    add_engine(parser)
    parser.add_argument("--report-only", action="store_true", help="run nothing")
    options = parser.parse_args()
    directions = [d for d in DIRECTIONS if not options.directions or "-".join(d) in options.directions]
    settings = [Setting(*d, labels) for labels in options.budgets for d in directions]
    settings += [Setting(*d, labels, False) for labels in options.labelled_only for d in directions]
    if not options.report_only:
        run_grid(run_setting, settings, options)
    report(options.folder, settings, options.report)


if __name__ == "__main__":
    main()
