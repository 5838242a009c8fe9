"""Which distillation method helps? Every shipped method, with and without a soft focus, beside all controls.

    python benchmarks/methods.py runs/methods --report benchmarks/reports/methods-YYYY-MM-DD.md
    python benchmarks/methods.py runs/cost --parts no-kd regular dist fitnets soft dist+soft --report ...

Each setting is one study in a folder of its own; what is finished is not run again. Four real directions have 100 labels,
once with the other training pairs as unlabelled ones and once without them, and `digits` has four classes. Loss weights
are the published defaults of each method, for all settings. The directions were fixed before any of them was run, and
the report names all of them. With `--parts`, one seed of one direction is run with these arms in one study and in a study
for each arm, to compare the cost of the study with that of its parts.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

import mfh
from common import Report, seconds
from mfh.errors import InputError
from mfh.methods.names import SHIPPED
from mfh.reporting.curves import history_key
from mfh.studies.folder import Run, safe_name
from mfh.studies.grid import PLAIN_CONTROLS
from mfh.studies.stats import mean_interval
from real import Setting, add_engine, gain, run_grid, table

DIRECTIONS = (
    ("htad", "audio", "accelerometer"),
    ("htad", "accelerometer", "audio"),
    ("numerals", "pix", "zer"),
    ("numerals", "fac", "mor"),
)
DIGITS = "digits-four-classes"
METHODS = tuple("regular" if name == "kd" else name for name in SHIPPED)
FOCUSED = tuple("soft" if name == "kd" else f"{name}+soft" for name in SHIPPED if name != "c2kd")
ARMS = ("no-kd", *PLAIN_CONTROLS, *METHODS, *FOCUSED)


def run_setting(folder, setting, num_seeds, **engine):
    """One study in this process or on a cluster; returns its name and what went wrong, if anything did."""
    torch.set_num_threads(1)
    name, task, given, seeds = (
        (DIGITS, "digits", {"num_classes": "4"}, 2 * num_seeds)
        if setting is None
        else (setting.name, setting.task, setting.arguments, num_seeds)
    )
    try:
        settings = mfh.Settings.of(processes=1, set=given, keep_students="none", **engine)
        mfh.study(task, arms=ARMS, num_seeds=seeds, out=folder / name, settings=settings)
    except InputError as error:
        return name, str(error)
    return name, ""


def report(folder, settings, path):
    """Write the tables of all finished studies."""
    named = [(DIGITS if setting is None else setting.name, setting) for setting in settings]
    found = [(name, setting, Run(folder / name)) for name, setting in named]
    found = [(name, setting, run.summary, run) for name, setting, run in found if run.holds_results]
    say = Report("Distillation methods under one control", "No times are measured here.")
    say(
        f"{len(found)} of {len(settings)} studies are finished. Gains are differences to no-kd in points of test accuracy "
        "with 95 % intervals, corrected after Nadeau and Bengio where seeds re-split one data set; in bold where they "
        "exclude zero. † marks an arm whose gain over the best control (by validation) has an interval above zero."
    )
    say()
    columns = [name.replace("-labelled-only", ", labelled only") for name, *_ in found]
    rows = [["no-kd", *(summary.number(summary.chosen("no-kd").student) for *_, summary, _ in found)]]
    rows += [[arm, *(_cell(summary, arm) for *_, summary, _ in found)] for arm in ARMS[1:]]
    table(say, ["arm", *columns], rows)
    seeds = ", ".join(f"{name} {summary.num_seeds[1]}" for name, _, summary, _ in found)
    say(f"Seeds: {seeds}.")
    say()
    say("## What a soft focus adds to each method")
    say()
    rows, means = [], []
    for focused in FOCUSED:
        cells, values = [focused], []
        for *_, summary, _ in found:
            variant = summary.chosen(focused)
            comparison = variant and variant.masking
            cells.append(summary.difference(comparison) if comparison else "")
            values += [comparison.mean_difference] if comparison else []
        means.append(np.mean(values) if values else np.nan)
        rows.append([*cells, f"{means[-1]:+.2f}"])
    table(say, ["arm", *columns, "mean"], rows)
    known = np.array([value for value in means if np.isfinite(value)])
    if len(known) > 1:
        mean, low, high = mean_interval(known)
        say(
            f"The focus improves {int((known > 0).sum())} of {len(known)} methods in the mean over settings; mean over "
            f"methods {mean:+.2f} ({low:+.2f} to {high:+.2f})."
        )
    say()
    say("## What each arm costs")
    say()
    rows = []
    for arm in ARMS:
        seconds = [_seconds(run, arm) for *_, run in found]
        rows.append([arm, *(f"{value:.1f}" if value else "" for value in seconds)])
    table(say, ["arm", *(f"{name}, s" for name in columns)], rows)
    say("Mean seconds of one training in a study, on a machine that did other work too.")
    say.write(path)


def _cell(summary, arm):
    text, variant = gain(summary, arm), summary.chosen(arm)
    over = summary.over_control(variant) if variant is not None else None
    return f"{text} †" if over is not None and over.outcome == "gains" else text


def _seconds(run, arm):
    """Mean seconds of an arm's training; None where they are not known."""
    variant = run.summary.chosen(arm)
    if variant is None:
        return None
    known = [run.seed(seed).read_cost(history_key(variant.cell)) for seed in range(run.summary.num_seeds[1])]
    values = [cost["seconds"] for cost in known if cost]
    return float(np.mean(values)) if values else None


def parts(folder, arms, path):
    """Processor seconds of a study of several arms, and of as many studies of one arm each."""
    torch.set_num_threads(1)
    setting = Setting(*DIRECTIONS[0], "100")
    say = Report("Cost of a study against the sum of its parts", "Processor seconds of one process.")

    def cost(name, *chosen):
        settings = mfh.Settings.of(processes=1, set=setting.arguments, keep_students="none")
        return seconds(mfh.study, setting.task, arms=chosen, num_seeds=1, out=folder / name, settings=settings)[1]

    cost("warm-up", "no-kd")
    together = cost("together", *arms)
    alone = {arm: cost(safe_name(arm), *dict.fromkeys(("no-kd", arm))) for arm in arms}
    table(say, ["arm", "study of this arm and no-kd, s"], [[arm, f"{value:.1f}"] for arm, value in alone.items()])
    total = sum(alone.values())
    say(
        f"One study of all {len(arms)} arms: {together:.1f} s. Sum of the studies above: {total:.1f} s, {total / together:.2f} times."
    )
    say.write(path)


def main():
    """Run what is missing, then write the report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="where studies are kept")
    parser.add_argument("--report", type=Path, help="Markdown file for the tables")
    parser.add_argument("--num-seeds", type=int, default=10, help="seeds of a real direction; digits has twice as many")
    add_engine(parser)
    parser.add_argument("--report-only", action="store_true", help="run nothing")
    parser.add_argument("--parts", nargs="*", help="arms whose study is compared with a study for each of them")
    options = parser.parse_args()
    if options.parts:
        return parts(options.folder, options.parts, options.report)
    settings = [Setting(*d, "100", unlabelled) for unlabelled in (True, False) for d in DIRECTIONS] + [None]
    if not options.report_only:
        run_grid(run_setting, settings, options)
    return report(options.folder, settings, options.report)


if __name__ == "__main__":
    main()
