"""Is the forecast right? Forecast against measured gain of plain distillation, on real paired data.

    python research/verdict/verdict.py RUNS/real RUNS/verdict --report research/verdict/reports/verdict-YYYY-MM-DD.md

The first folder is that of `benchmarks/real.py`; studies of the other settings are run in the second one, and what is
finished is not run again. The gain is that of the arm `regular` over `longer`, the same student with as many steps and no
teacher, on the test split, in points, averaged over seeds. Forecasts and other criteria are averaged over the first seeds.

Protocol, written before any held-out forecast was made:

- `CHOSEN`: six directions at four label budgets (24 settings). The penalty, the sharpness, the factor and the spread of
  `mfh.studies.forecast` were chosen on these alone.
- `HELD_OUT`: everything else. `SEEN` are four directions of the same data sets whose gains had been looked at before, but
  were not used to choose anything; `UNSEEN` are directions and data sets of which no gain had been looked at.
- Reported: Spearman's correlation of forecast and gain with a 95 % interval that resamples directions, how often the sign
  is right where the gain is over 1 point, the mean absolute error, and how often the 90 % interval holds the gain; the same
  for each rival criterion that needs trained networks. The pass mark is a correlation of .7 with an interval above 0.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from sklearn import datasets

import mfh

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from synthetic import DIGITS, NETS, SYNTHETIC

from common import Report
from mfh.figures.style import FAINT, INK, new_figure, save_figure, style
from mfh.studies.folder import Run
from mfh.studies.forecast import SLOPE, SPREAD, forecast
from mfh.studies.networks import Networks
from mfh.studies.settings import Settings
from mfh.tasks.finding import TaskArguments, find_task
from real import Setting, table

BUDGETS = ("50", "100", "300", "all")
CHOSEN = (
    ("htad", "audio", "accelerometer"),
    ("htad", "accelerometer", "audio"),
    ("htad", "both", "accelerometer"),
    ("numerals", "pix", "zer"),
    ("numerals", "fac", "mor"),
    ("numerals", "zer", "pix"),
)
SEEN = (
    ("htad", "both", "audio"),
    ("numerals", "mor", "fac"),
    ("numerals", "kar", "fou"),
    ("numerals", "fou", "kar"),
)
SMARTWATCH = (("smartwatch", "accelerometer", "gyroscope"), ("smartwatch", "gyroscope", "accelerometer"))
_VIEWS = ("fac", "fou", "kar", "mor", "pix", "zer")
_USED = {direction[1:] for direction in (*CHOSEN, *SEEN)}
NUMERALS = tuple(("numerals", a, b) for a in _VIEWS for b in _VIEWS if a != b and (a, b) not in _USED)
HALVES = tuple(
    ("halves", a, b) for a, b in (("left", "right"), ("right", "left"), ("top", "bottom"), ("bottom", "top"))
)
CELLS = tuple(("cells", a, b) for a, b in (("mean", "worst"), ("worst", "mean"), ("error", "worst"), ("error", "mean")))
#: Label budgets of the directions that nobody had looked at.
UNSEEN = {
    **dict.fromkeys(SMARTWATCH, ("50", "100", "300", "all")),
    **dict.fromkeys((*NUMERALS, *HALVES), ("100",)),
    **dict.fromkeys(CELLS, ("30",)),
}
ARMS = ("no-kd", "longer", "regular", "soft")
CRITERIA = {
    "teacher's lead": lambda seen: 100 * (seen.teacher_accuracy - seen.student_accuracy),
    "teacher's accuracy": lambda seen: 100 * seen.teacher_accuracy,
    "trial of heads": lambda seen: seen.trial.value,
    "non-target divergence": lambda seen: seen.non_target_divergence.value,
    "complementarity": lambda seen: seen.complementarity.value,
    "decision seen": lambda seen: seen.visible.value,
    "surplus": lambda seen: seen.surplus.value,
    "CKA": lambda seen: seen.kernel_alignment.value,
    "mutual neighbours": lambda seen: seen.mutual_neighbours.value,
    "cosine gap": lambda seen: seen.cosine_gap.value,
}
#: Criteria of which a smaller number should mean a larger gain, and those whose sign means nothing.
_SMALLER = {"non-target divergence", "surplus", "cosine gap"}
_UNSIGNED = {"teacher's accuracy", "non-target divergence", "decision seen", "CKA", "mutual neighbours", "cosine gap"}


def halves(teacher, student, labels):
    """Two halves of the images of digits that scikit-learn ships (1797 images of 8 x 8)."""
    images = datasets.load_digits()
    pixels, side = (
        images.images,
        {"left": np.s_[:, :, :4], "right": np.s_[:, :, 4:], "top": np.s_[:, :4], "bottom": np.s_[:, 4:]},
    )
    views = {name: pixels[part].reshape(len(pixels), -1) for name, part in side.items()}
    return mfh.Task.from_arrays(
        teacher=views[teacher], student=views[student], target=images.target, name="halves", labels=int(labels)
    )


def cells(teacher, student, labels):
    """Mean, standard error and largest value of ten features of cell nuclei (569 images), by scikit-learn."""
    data = datasets.load_breast_cancer()
    views = dict(zip(("mean", "error", "worst"), np.split(data.data, 3, axis=1), strict=True))
    return mfh.Task.from_arrays(
        teacher=views[teacher], student=views[student], target=data.target, name="cells", labels=int(labels)
    )


def made(setting, seed):
    """The task of a setting for a seed."""
    if setting in SYNTHETIC:
        return setting.made(seed)
    if setting.task in ("halves", "cells"):
        task = {"halves": halves, "cells": cells}[setting.task](setting.teacher, setting.student, setting.labels)
        return task.resplit(seed)
    return find_task(setting.task, TaskArguments(set=setting.arguments)).make(seed)


def settings_of(directions):
    """Settings by direction; a mapping names budgets, a sequence takes all four."""
    budgets = directions if isinstance(directions, dict) else dict.fromkeys(directions, BUDGETS)
    return [Setting(*direction, labels) for direction, listed in budgets.items() for labels in listed]


def measured(setting, real, own, num_seeds, run):
    """Gains in points: regular over longer and soft over regular, mean and number of seeds; None if not known."""
    folder = next((folder for folder in (real / setting.name, own / setting.name) if Run(folder).holds_results), None)
    if folder is None:
        if not run or setting.task == "smartwatch":
            return None
        named = setting not in SYNTHETIC and setting.task not in ("halves", "cells")
        given = {"set": setting.arguments} if named else {}
        task = setting.task if named else setting.made if setting in SYNTHETIC else made(setting, 0)
        options = Settings.of(processes=1, keep_students="none", **given)
        folder = own / setting.name
        mfh.study(task, arms=ARMS, num_seeds=num_seeds, out=folder, settings=options)
    rows = Run(folder).results
    rows = rows[(rows["split"] == "test") & (rows["metric"] == "accuracy")]
    means = 100 * rows.groupby(["arm", "seed"])["value"].mean().unstack(0)
    return {
        "gain": float((means["regular"] - means["longer"]).mean()),
        "soft": float((means["soft"] - means["regular"]).mean()),
        "seeds": len(means),
    }


def foreseen(setting, seeds, with_criteria):
    """The forecast, averaged over seeds, and rival criteria from networks trained on labels."""
    found = []
    for seed in range(seeds):
        task = made(setting, seed)
        seen = mfh.diagnose(lambda seed, task=task: task, seed=seed) if with_criteria else None  # noqa: ARG005
        one = forecast(Networks(task, seed, Settings())) if seen is None else seen.forecast
        row = {"forecast": one.gain.value, "low": one.gain.low, "high": one.gain.high, "rehearsed lead": one.lead.value}
        if seen is not None:
            row |= {name: read(seen) for name, read in CRITERIA.items()}
        found.append(row)
    names = found[0]
    return {name: float(np.mean([row[name] for row in found if row[name] is not None] or [np.nan])) for name in names}


def spearman(values, gains, directions):
    """Rank correlation with a 95 % interval that resamples directions."""
    values, gains = np.asarray(values), np.asarray(gains)
    groups = [np.flatnonzero([d == one for d in directions]) for one in dict.fromkeys(directions)]
    generator = np.random.default_rng(0)

    def drawn():
        rows = np.concatenate([groups[i] for i in generator.integers(0, len(groups), len(groups))])
        return stats.spearmanr(values[rows], gains[rows]).statistic

    with np.errstate(invalid="ignore"):
        low, high = np.nanquantile([drawn() for _ in range(2000)], [0.025, 0.975])
    return f"{stats.spearmanr(values, gains).statistic:+.2f} ({low:+.2f} to {high:+.2f})"


def direction_of(setting):
    """What a setting is of, without its label budget; settings of one direction are resampled together."""
    return setting.direction if setting in SYNTHETIC else f"{setting.task}: {setting.teacher} to {setting.student}"


def say_group(say, title, rows):
    """The table of one group of settings, and how good each criterion is."""
    say(f"## {title}")
    say()
    cells_of = [
        [
            direction_of(s),
            s.labels,
            f"{r['forecast']:+.1f} ({r['low']:+.1f} to {r['high']:+.1f})",
            f"{r['gain']:+.1f}",
            f"{r['soft']:+.1f}",
        ]
        for s, r in rows
    ]
    table(
        say,
        ["direction", "labels", "forecast", "gain of regular over longer", "soft over regular"],
        cells_of,
    )
    for words, part in (
        ("all", rows),
        ("with unlabelled pairs", [(s, r) for s, r in rows if s.labels != "all"]),
    ):
        if len({direction_of(s) for s, _ in part}) < 3:
            continue
        gains = np.array([r["gain"] for _, r in part])
        directions = [direction_of(s) for s, _ in part]
        large = np.abs(gains) > 1
        lines = []
        for name in ("forecast", "rehearsed lead", *CRITERIA):
            if not all(np.isfinite(r.get(name, np.nan)) for _, r in part):
                continue
            values = np.array([r[name] for _, r in part]) * (-1 if name in _SMALLER else 1)
            signs = "" if name in _UNSIGNED else f"{np.mean((values > 0)[large] == (gains > 0)[large]):.2f}"
            size = f"{np.abs(values - gains).mean():.1f}" if name == "forecast" else ""
            lines.append([name, spearman(values, gains, directions), signs, size])
        say(
            f"{len(part)} settings of {len(set(directions))} directions, {words}; {int(large.sum())} gains are over 1 point."
        )
        say()
        table(say, ["criterion", "Spearman", "sign right where the gain is over 1 point", "mean error, points"], lines)
        inside = np.mean([r["low"] <= r["gain"] <= r["high"] for _, r in part])
        sure = [(r, g) for (_, r), g in zip(part, gains, strict=True) if r["low"] > 0 or r["high"] < 0]
        right = np.mean([(r["forecast"] > 0) == (g > 0) for r, g in sure]) if sure else np.nan
        say(
            f"The 90 % interval holds the gain in {100 * inside:.0f} % of settings. It excludes zero in {len(sure)} of "
            f"{len(part)}; there the sign is right in {100 * right:.0f} %."
        )
        say()


COLOURS = {"htad": "#0072b2", "numerals": "#d55e00", "smartwatch": "#1f6f50", "halves": "#7b4fa3", "cells": "#8a6d00"}


def draw(rows, path):
    """Forecast against gain, how often intervals of several levels hold the gain, and what abstaining costs and saves."""
    gains, values = (np.array([r[name] for _, r in rows]) for name in ("gain", "forecast"))
    spreads = np.array([(r["high"] - r["low"]) / 2 / stats.norm.ppf(0.95) for _, r in rows])
    with style():
        figure, (left, right, last) = new_figure(7.2, 2.9, columns=3)
        ends = [min(gains.min(), values.min()) - 3, max(gains.max(), values.max()) + 3]
        left.plot(ends, ends, color=INK, linewidth=0.8)
        for name, colour in COLOURS.items():
            part = [index for index, (s, _) in enumerate(rows) if s.task == name]
            if part:
                left.errorbar(
                    values[part],
                    gains[part],
                    xerr=stats.norm.ppf(0.95) * spreads[part],
                    fmt="o",
                    markersize=3.5,
                    linewidth=0.6,
                    color=colour,
                    label=name,
                )
        left.axhline(0, color=FAINT, linewidth=0.8)
        left.axvline(0, color=FAINT, linewidth=0.8)
        left.set(xlabel="forecast, points", ylabel="measured gain, points", title="Size")
        left.legend(loc="upper left", frameon=False, fontsize=6, handletextpad=0.2)
        levels = np.linspace(0.05, 0.99, 40)
        held = [np.mean(np.abs(gains - values) <= stats.norm.ppf(0.5 + level / 2) * spreads) for level in levels]
        right.plot([0, 100], [0, 100], color=INK, linewidth=0.8)
        right.plot(100 * levels, 100 * np.array(held), color=COLOURS["htad"])
        right.set(xlabel="level of the interval, %", ylabel="gain inside, %", title="Calibration")
        # A setting is decided where the interval of a level excludes zero. At level 0 every setting is.
        decided = [np.abs(values) > stats.norm.ppf(0.5 + level / 2) * spreads for level in np.linspace(0, 0.99, 40)]
        right_sign = [np.mean((values > 0)[part] == (gains > 0)[part]) for part in decided]
        levels = 100 * np.linspace(0, 0.99, 40)
        last.plot(levels, 100 * np.array(right_sign), color=COLOURS["htad"], label="sign right, where decided")
        last.plot(
            levels, [100 * np.mean(part) for part in decided], color=COLOURS["numerals"], label="settings decided"
        )
        last.axvline(90, color=FAINT, linewidth=0.8)
        last.set(xlabel="level that excludes zero, %", ylabel="%", ylim=(0, 105), title="Abstention")
        last.legend(loc="lower left", frameon=False, fontsize=6)
        save_figure(figure, path)


def main():
    """Run what is missing, then write the report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("real", type=Path, help="folder of benchmarks/real.py")
    parser.add_argument("own", type=Path, help="folder of the other studies")
    parser.add_argument("--report", type=Path)
    parser.add_argument("--figure", type=Path, help="picture of the held-out settings")
    parser.add_argument(
        "--groups",
        nargs="*",
        default=("chosen", "seen", "unseen"),
        choices=("chosen", "seen", "unseen", "digits", "nets"),
    )
    parser.add_argument("--num-seeds", type=int, default=5, help="seeds of the studies that are run here")
    parser.add_argument("--forecast-seeds", type=int, default=3)
    parser.add_argument("--criteria", action="store_true", help="compute the rival criteria too")
    parser.add_argument("--report-only", action="store_true", help="run no study")
    options = parser.parse_args()
    torch.set_num_threads(1)
    titles = {
        "chosen": (settings_of(CHOSEN), "Settings on which the forecast was chosen"),
        "seen": (settings_of(SEEN), "Held out: not used to choose, but looked at before"),
        "unseen": (settings_of(UNSEEN), "Held out: never looked at before"),
        "digits": (DIGITS, "Held out, synthetic: digits"),
        "nets": (NETS, "Held out, synthetic: worlds of networks"),
    }
    data = "real paired data" if {"chosen", "seen", "unseen"} & {*options.groups} else "synthetic data"
    say = Report(f"Forecast against measured gain on {data}", "No times are measured here.")
    real, synthetic = [], []
    for group in options.groups:
        listed, title = titles[group]
        rows = []
        for setting in listed:
            gain = measured(setting, options.real, options.own, options.num_seeds, not options.report_only)
            if gain is None:
                say(f"{setting.name} is not measured yet.")
                continue
            kept = options.own / f"{setting.name}-foreseen.json"
            seen = json.loads(kept.read_text()) if kept.exists() else {}
            if "forecast" not in seen or (options.criteria and "CKA" not in seen):
                seen = foreseen(setting, options.forecast_seeds, options.criteria)
                kept.parent.mkdir(parents=True, exist_ok=True)
                kept.write_text(json.dumps(seen))
            rows.append((setting, seen | gain))
        if group == "chosen":
            _fitted(say, rows)
        say_group(say, title, rows)
        if group != "chosen":
            (synthetic if group in ("digits", "nets") else real).extend(rows)
    if {"seen", "unseen"} <= {*options.groups}:
        say_group(say, "All held-out settings", real)
    if {"digits", "nets"} <= {*options.groups}:
        say_group(say, "All synthetic settings", synthetic)
    say.write(options.report)
    if options.figure:
        draw(real, options.figure)


def _fitted(say, rows):
    """What the constants of the forecast are by these settings."""
    part = [r for s, r in rows if s.labels != "all"]
    raw, gains = np.array([r["forecast"] / SLOPE for r in part]), np.array([r["gain"] for r in part])
    slope = float((raw * gains).sum() / (raw * raw).sum())
    spread = float(np.sqrt(((gains - slope * raw) ** 2).sum() / (len(part) - 1)))
    rest = np.array([r["gain"] for s, r in rows if s.labels == "all"])
    say(
        f"Fitted with unlabelled pairs: factor {slope:.2f}, standard deviation of the rest {spread:.2f} points (in use: {SLOPE}, "
        f"{SPREAD}). Without unlabelled pairs the gain has a root mean square of {np.sqrt((rest**2).mean()):.2f} points."
    )
    say()


if __name__ == "__main__":
    main()
