"""Tables of what `benchmarks/worlds.py` measured: scores, soft masks, criteria, verdicts and selection.

    python benchmarks/worlds_tables.py runs/worlds --report benchmarks/reports/worlds-YYYY-MM-DD.md

Criteria are computed by `mfh.studies.diagnosis` from what a user would have, one seed's validation split, and compared with the
mean gain of the world over all its seeds. Thresholds and choices come from the half "dev"; the half "held-out" is
reported beside it. Intervals are 95 %, of means over worlds (t) or by resampling whole worlds.
"""

import argparse
import csv
import datetime
import os
import platform
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import stats

from mfh.studies.criteria import (
    Views,
    complementarity,
    estimate_shares,
    head_trial,
    non_target_divergence,
    visible_share,
)
from mfh.studies.diagnosis import outcome_of
from worlds import worlds

ARMS = ("regular", "soft")
HALVES = ("dev", "held-out")
SHARES = ("gamma", "alpha", "beta")
MINUS = "\u2212"


def criteria_of(kept, seed, num_train):
    """name -> value, what `mfh diagnose` computes, and the ends of its intervals."""
    part = {name.split("/")[1]: torch.as_tensor(kept[name]) for name in kept if name.startswith(f"{seed}/")}
    soft = part.pop("soft")
    views = Views(
        part["target"].long(), part["teacher"], part["student"], part["teacher_features"], part["student_features"]
    )
    values = {}

    def note(name, measure):
        values[name] = np.nan if measure.value is None else measure.value
        values[f"{name} low"] = np.nan if measure.low is None else measure.low
        values[f"{name} high"] = np.nan if measure.high is None else measure.high

    note("trial regular", head_trial(views, views.teacher_logits, num_train=num_train, seed=seed))
    note("trial soft", head_trial(views, soft, num_train=num_train, seed=seed))
    shares = estimate_shares(views, seed=seed)
    for name in SHARES:
        note(name, getattr(shares, name))
    note("visible", visible_share(views.student_features, views.teacher_logits.double(), seed=seed))
    for arm, logits in (("regular", views.teacher_logits), ("soft", soft)):
        rest = views.labels - logits.double().softmax(1)
        note(f"surplus {arm}", visible_share(views.student_features, rest, seed=seed))
    note("complementarity", complementarity(views.teacher_logits, views.student_logits, views.target))
    for arm, logits in (("regular", views.teacher_logits), ("soft", soft)):
        note(f"non-target {arm}", non_target_divergence(logits, views.student_logits, views.target))
    values["teacher accuracy"] = float((views.teacher_logits.argmax(1) == views.target).double().mean())
    return values


def criteria(folder, most):
    """(world, kind, half, seed, criteria...), computed once and kept in criteria.csv."""
    path = folder / "criteria.csv"
    known = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=["world"])
    rows = []
    for world in worlds():
        file = folder / f"{world.name}.npz"
        if not file.exists() or not file.with_suffix(".csv").exists() or world.name in set(known["world"]):
            continue
        start = time.perf_counter()
        with np.load(file) as kept:
            seeds = sorted({int(name.split("/")[0]) for name in kept})[:most]
            for seed in seeds:
                facts = {"world": world.name, "kind": world.kind, "half": world.half, "seed": seed}
                facts |= {name: getattr(world, name) for name in ("noise", "shape", "classes")}
                facts |= {f"true {name}": getattr(world.venn, name) for name in SHARES}
                rows.append(facts | criteria_of(kept, seed, world.num_train))
        print(f"criteria of {world.name}: {time.perf_counter() - start:.0f} s", flush=True)
        known = pd.concat([known, pd.DataFrame(rows)], ignore_index=True)
        known.to_csv(path, index=False, quoting=csv.QUOTE_MINIMAL, float_format="%.5g")
        rows = []
    return known


def t_interval(values):
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return float(values.mean()), np.nan, np.nan
    reach = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return float(values.mean()), float(values.mean() - reach), float(values.mean() + reach)


def by_worlds(frame, statistic, resamples=400):
    """Statistic of a frame and its interval, whole worlds resampled."""
    groups = list(frame.groupby("world").indices.values())
    generator = np.random.default_rng(0)
    drawn = [
        statistic(frame.iloc[np.concatenate([groups[k] for k in generator.integers(len(groups), size=len(groups))])])
        for _ in range(resamples)
    ]
    return statistic(frame), *np.nanquantile(drawn, [0.025, 0.975])


def shown(value, low, high, digits=2, sign=""):
    if np.isnan(value):
        return ""
    if np.isnan(low):
        return f"{value:{sign}.{digits}f}".replace("-", MINUS)
    return f"{value:{sign}.{digits}f} ({low:{sign}.{digits}f} to {high:{sign}.{digits}f})".replace("-", MINUS)


def table(say, columns, rows):
    say("| " + " | ".join(columns) + " |")
    say("|" + " --- |" * len(columns))
    for row in rows:
        say("| " + " | ".join(row) + " |")
    say()


def gains_of(frame):
    """(world, kind, half, seed) x arm: points over no-kd on the test split."""
    test = frame[frame["what"] == "test"]
    wide = test.pivot_table(index=["world", "kind", "half", "seed"], columns="name", values="value")
    return 100 * wide.sub(wide["no-kd"], axis=0).drop(columns="no-kd")


def world_gains(gains, arm):
    """One row per world: mean, and whether it is beyond noise (paired t interval)."""
    rows = []
    for key, values in gains[arm].groupby(level=["world", "kind", "half"]):
        values = values.dropna()
        if len(values):
            mean, low, high = t_interval(values)
            rows.append((*key, mean, low, high, low > 0 or high < 0))
    return pd.DataFrame(rows, columns=["world", "kind", "half", "gain", "low", "high", "beyond noise"])


def scores_table(say, frame):
    say("## Scores against the truth")
    say()
    say("AUROC of the teacher's channels, mean over worlds (each the mean of its seeds), 95 % interval over worlds.")
    say()
    auroc = frame[frame["what"] == "auroc"].groupby(["kind", "half", "name", "world"])["value"].mean().reset_index()
    rows = []
    for name in sorted(auroc["name"].unique()):
        cells = [name]
        for kind in ("linear", "nets", "digits"):
            for part in HALVES:
                chosen = auroc[(auroc["name"] == name) & (auroc["kind"] == kind) & (auroc["half"] == part)]["value"]
                cells.append(shown(*t_interval(chosen)) if len(chosen) else "")
        rows.append(cells)
    table(say, ["score", *[f"{kind}, {part}" for kind in ("linear", "nets", "digits") for part in HALVES]], rows)


def masks_table(say, gains):
    say("## Soft masks and the mask of the truth")
    say()
    say(
        "Mean gain over no-kd in points, over worlds; and the share of the oracle's gain over the same teacher unmasked"
    )
    say("that each recovers: sum over worlds of (arm - regular) / sum of (oracle - regular), over worlds where the")
    say("oracle's gain over `regular` is beyond noise; worlds resampled.")
    say()
    kinds = gains.reset_index()["kind"]
    everywhere = [
        a
        for a in gains.columns
        if all(
            n in (0, len(g))
            for g in [gains[a].notna()[(kinds == k).to_numpy()] for k in kinds.unique()]
            for n in [g.sum()]
        )
    ]
    arms = [a for a in everywhere if not a.endswith(("-kl", "-heavy"))]
    means = gains.groupby(level=["world", "kind", "half"]).mean().reset_index()
    better = world_gains(pd.DataFrame({"x": gains["oracle"] - gains["regular"]}), "x")
    helped = set(better[(better["low"] > 0)]["world"])
    rows = []
    for arm in arms:
        cells = [arm]
        for kind in ("linear", "nets", "digits"):
            for part in HALVES:
                chosen = means[(means["kind"] == kind) & (means["half"] == part)].dropna(subset=[arm])
                if chosen.empty:
                    cells.append("")
                    continue
                text = f"{chosen[arm].mean():+.1f}".replace("-", MINUS)
                chosen = chosen[chosen["world"].isin(helped)]
                if len(chosen) > 1 and arm not in ("regular", "oracle"):

                    def share(f, arm=arm):
                        return (f[arm] - f["regular"]).sum() / (f["oracle"] - f["regular"]).sum()

                    value, low, high = by_worlds(chosen, share)
                    text += f"; {100 * value:.0f} % ({100 * low:.0f} to {100 * high:.0f})".replace("-", MINUS)
                cells.append(text)
        rows.append(cells)
    count = {
        (kind, part): len(means[(means["kind"] == kind) & (means["half"] == part) & means["world"].isin(helped)])
        for kind in ("linear", "nets", "digits")
        for part in HALVES
    }
    header = [f"{kind}, {part} ({count[kind, part]} worlds in the share)" for kind, part in count]
    table(say, ["arm", *header], rows)


def against_soft_table(say, gains):
    say("Other soft masks less `soft`, points, paired by seed, mean over worlds with its interval over worlds:")
    say()
    others = [a for a in gains.columns if a.startswith("soft-") and a not in ("soft-shuffled", "soft-root")]
    rows = []
    for arm in others:
        difference = (gains[arm] - gains["soft"]).dropna().groupby(level=["world", "kind", "half"]).mean().reset_index()
        cells = [arm]
        for kind in ("linear", "nets", "digits"):
            for part in HALVES:
                chosen = difference[(difference["kind"] == kind) & (difference["half"] == part)]
                cells.append(shown(*t_interval(chosen[0]), sign="+") if len(chosen) else "")
        rows.append(cells)
    table(
        say, ["mask or weights", *[f"{kind}, {part}" for kind in ("linear", "nets", "digits") for part in HALVES]], rows
    )


CRITERIA = {
    arm: (
        f"trial {arm}",
        f"surplus {arm}",
        "complementarity",
        "gamma",
        "visible",
        f"non-target {arm}",
        "teacher accuracy",
    )
    for arm in ARMS
}
LOWER_IS_BETTER = ("alpha", "beta", "surplus regular", "surplus soft", "non-target regular", "non-target soft")


def criteria_table(say, found, gains):
    say("## Criteria against measured gains")
    say()
    say(
        "Spearman: world means, over worlds. Sign: share of diagnoses (one per world and seed) whose side of the threshold"
    )
    say(
        "is the sign of the world's mean gain, over worlds with a gain beyond noise; threshold from the half dev (or zero);"
    )
    say("interval by resampling worlds. The last column is what always naming the commoner sign gets.")
    say()
    rows = []
    for arm in ARMS:
        truth = world_gains(gains, arm).set_index("world")
        joined = found.merge(truth[["gain", "beyond noise"]], left_on="world", right_index=True)
        for name in CRITERIA[arm]:
            flip = -1 if name in LOWER_IS_BETTER else 1
            data = joined.assign(x=flip * joined[name]).dropna(subset=["x"])
            cells = [arm, name]
            for part in HALVES:
                means = data[data["half"] == part].groupby("world")[["x", "gain"]].mean()
                cells.append(f"{stats.spearmanr(means['x'], means['gain'])[0]:+.2f}".replace("-", MINUS))
            clear = data[data["beyond noise"]]
            dev, rest = (clear[clear["half"] == part] for part in HALVES)
            if dev.empty or rest.empty:
                rows.append([*cells, "", "", "", ""])
                continue
            grid = np.unique(np.quantile(dev["x"], np.linspace(0, 1, 51)))
            rates = [((dev["x"] > t) == (dev["gain"] > 0)).mean() for t in grid]
            best = float(grid[int(np.argmax(rates))])
            for threshold in (0.0, best):
                value = by_worlds(rest, lambda f, t=threshold: ((f["x"] > t) == (f["gain"] > 0)).mean())
                cells.append(shown(*value))
            cells.insert(4, f"{flip * best:+.3f}".replace("-", MINUS))
            common = max((rest["gain"] > 0).mean(), (rest["gain"] < 0).mean())
            cells += [f"{common:.2f} ({rest['world'].nunique()} worlds)"]
            rows.append(cells)
    table(
        say,
        ["arm", "criterion", "Spearman, dev", "held-out", "threshold from dev", "sign held-out, at 0", "at that", "commoner sign"],
        rows,
    )  # fmt: skip


class _Interval:
    def __init__(self, low, high):
        self.low, self.high = low, high


def verdict_table(say, found, gains):
    say("## Verdicts")
    say()
    say(
        "`mfh diagnose` on one seed against the world's mean gain of the same arm. Right: the sign, where a verdict was"
    )
    say("given and the gain is beyond noise.")
    say()
    rows = []
    for part in HALVES:
        for kind in ("linear", "nets", "digits", "all"):
            for arm in (*ARMS, "named"):
                data = verdicts(found, gains, arm)
                data = data[(data["half"] == part) & ((data["kind"] == kind) | (kind == "all"))]
                if data.empty:
                    continue
                clear = data[data["beyond noise"] & (data["verdict"] != "cannot tell")]
                right = ((clear["verdict"] == "likely to help") == (clear["gain"] > 0)).astype(float)
                cells = [part, kind, arm, str(len(data))]
                cells += [
                    f"{(data['verdict'] == v).mean():.2f}"
                    for v in ("likely to help", "not likely to help", "cannot tell")
                ]
                cells.append(
                    shown(*by_worlds(clear.assign(right=right), lambda f: f["right"].mean())) if len(clear) else ""
                )
                forced = data[data["beyond noise"]]
                forced = forced.assign(right=((forced["trial"] > 0) == (forced["gain"] > 0)).astype(float))
                cells.append(shown(*by_worlds(forced, lambda f: f["right"].mean())) if len(forced) else "")
                for verdict in ("likely to help", "cannot tell", "not likely to help"):
                    gain = data[data["verdict"] == verdict].groupby("world")["gain"].first()
                    cells.append(f"{gain.mean():+.1f}".replace("-", MINUS) if len(gain) else "")
                rows.append(cells)
    table(
        say,
        ["half", "kind", "arm", "diagnoses", "likely", "not likely", "cannot tell", "sign right",
         "sign of the trial right, always", "mean gain when likely", "when it cannot tell", "when not likely"],
        rows,
    )  # fmt: skip


def verdicts(found, gains, arm):
    """One row per diagnosis: verdict, and the world's gain of the arm (for "named": of the arm that it names)."""
    truths = {a: world_gains(gains, a).set_index("world") for a in ARMS}
    rows = []
    for _, row in found.iterrows():
        chosen = max(ARMS, key=lambda a: row[f"trial {a}"]) if arm == "named" else arm
        interval = _Interval(row[f"trial {chosen} low"], row[f"trial {chosen} high"])
        truth = truths[chosen].loc[row["world"]]
        rows.append(
            (
                row["world"],
                row["kind"],
                row["half"],
                outcome_of(interval),
                truth["gain"],
                bool(truth["beyond noise"]),
                row[f"trial {chosen}"],
            )
        )
    return pd.DataFrame(rows, columns=["world", "kind", "half", "verdict", "gain", "beyond noise", "trial"])


def calibration_table(say, found, gains):
    say("## Calibration")
    say()
    say("Measured points of accuracy for 0.01 of the trial: one slope through zero, fitted on dev.")
    say()
    rows = []
    for arm in ARMS:
        truth = world_gains(gains, arm).set_index("world")
        joined = found.merge(truth[["gain"]], left_on="world", right_index=True)
        dev, rest = (joined[joined["half"] == part] for part in HALVES)
        x = dev[f"trial {arm}"]
        slope = float((x * dev["gain"]).sum() / (x * x).sum())
        error = rest["gain"] - slope * rest[f"trial {arm}"]
        spread = rest["gain"] - dev["gain"].mean()
        rows.append([arm, f"{slope / 100:.2f}", f"{(error**2).mean() ** 0.5:.2f}", f"{(spread**2).mean() ** 0.5:.2f}"])
    table(say, ["arm", "points per 0.01", "RMSE held-out", "RMSE of the mean gain of dev"], rows)


def shares_under_noise(world):
    """Gamma, alpha, beta of the decisive information that is left where features of unit variance are seen under noise.

    Only what is common to both observations of a general feature is shared: 1 / (1 + noise^2) of it.
    """
    power = 1 + world.noise**2
    shared = world.general / power**2
    teacher, student = ((world.general + own) / power for own in (world.teacher_only, world.student_only))
    return dict(
        zip(SHARES, (shared / (teacher + student - shared), 1 - shared / teacher, 1 - shared / student), strict=True)
    )


def shares_table(say, found):
    say("## Gamma, alpha and beta")
    say()
    say(
        "Estimate less truth, and how often the 95 % interval holds the truth. Truth counts features. Noise that differs"
    )
    say(
        "between the modalities lowers what they share; where features count linearly the last columns compare with that."
    )
    say()
    under = {w.name: shares_under_noise(w) if w.shape == "linear" and w.kind != "digits" else {} for w in worlds()}
    for share in SHARES:
        found[f"{share} under noise"] = [under[world].get(share, np.nan) for world in found["world"]]
    rows = []
    for share in SHARES:
        for (kind, noise, shape, classes), group in found.groupby(["kind", "noise", "shape", "classes"], sort=False):
            for part in HALVES:
                data = group[group["half"] == part]
                if data.empty:
                    continue
                seen = shape if kind != "digits" else ""
                cells = [share, kind, f"{noise:g}", seen, str(int(classes)), part, str(data["world"].nunique())]
                for truth in (f"true {share}", f"{share} under noise"):
                    bias = (data[share] - data[truth]).groupby(data["world"]).mean()
                    inside = (data[f"{share} low"] <= data[truth] + 1e-9) & (
                        data[f"{share} high"] >= data[truth] - 1e-9
                    )
                    known = not bias.isna().any()
                    cells += [shown(*t_interval(bias), sign="+"), f"{inside.mean():.2f}"] if known else ["", ""]
                means = data.groupby("world")[[share, f"true {share}"]].mean()
                rank = stats.spearmanr(*means.to_numpy().T)[0] if means.nunique().min() > 2 else np.nan
                rows.append([*cells, "" if np.isnan(rank) else f"{rank:+.2f}".replace("-", MINUS)])
    columns = ["share", "kind", "noise", "shape", "classes", "half", "worlds"]
    table(say, [*columns, "bias", "coverage", "bias under noise", "coverage", "Spearman"], rows)


CANDIDATES = (
    "regular",
    "aligned",
    "general-distance-joint",
    "soft",
    "regular-kl",
    "soft-kl",
    "regular-heavy",
    "soft-heavy",
)


def selection_table(say, frame, gains, size=5):
    say("## Selection on validation data")
    say()
    say(
        f"Studies of {size} seeds (the rest of a world's seeds makes further studies): the candidate with the best mean"
    )
    say(
        f"validation accuracy among {', '.join(CANDIDATES)}, tested against no-kd. Significantly: the paired 95 % interval"
    )
    say("excludes zero. The careful rule takes no-kd instead unless the chosen one's mean validation gain exceeds its")
    say("standard error over the study's seeds.")
    say()
    val = frame[frame["what"] == "val"].pivot_table(
        index=["world", "kind", "half", "seed"], columns="name", values="value"
    )
    rules = {"best of all": (0.0, True), "no-kd among them": (0.0, False), "careful": (1.0, False)}
    rows = []
    for name, (errors, forced) in rules.items():
        for part in HALVES:
            outcomes = []
            for world, group in val.groupby(level="world"):
                if group.index[0][2] != part:
                    continue
                candidates = [c for c in CANDIDATES if c in group and group[c].notna().all()]
                for start in range(0, len(group) - min(size, len(group)) + 1, size):
                    study = group.iloc[start : start + size]
                    best = study[candidates].mean().idxmax()
                    difference = 100 * (study[best] - study["no-kd"])
                    error = difference.std(ddof=1) / len(study) ** 0.5
                    if not forced and difference.mean() <= errors * error:
                        outcomes.append((world, 0.0, 0, 0, 1))
                        continue
                    tested = gains.loc[study.index, best]
                    mean, low, high = t_interval(tested)
                    outcomes.append((world, mean, high < 0, low > 0, 0))
            data = pd.DataFrame(outcomes, columns=["world", "gain", "worse", "better", "none"])
            rows.append([name, part, str(len(data)), f"{data['gain'].mean():+.2f}".replace("-", MINUS), f"{int(data['worse'].sum())}",
                         f"{int(data['better'].sum())}", f"{int(data['none'].sum())}",
                         f"{data['gain'].min():+.1f}".replace("-", MINUS)])  # fmt: skip
    table(say, ["rule", "half", "studies", "mean gain, points", "significantly worse", "significantly better", "chose no-kd", "worst"], rows)  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--report", type=Path)
    parser.add_argument("--criteria-seeds", type=int, default=6, help="diagnoses per world")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = []

    def say(text=""):
        lines.append(text)

    found = criteria(options.folder, options.criteria_seeds)
    present = {world.name for world in worlds()}
    files = [path for path in sorted(options.folder.glob("*.csv")) if path.stem in present]
    frame = pd.concat([pd.read_csv(path) for path in files], ignore_index=True)
    gains = gains_of(frame)
    counts = frame.groupby("kind").agg(worlds=("world", "nunique"), seeds=("seed", lambda s: s.nunique()))
    say(f"# Worlds: scores, masks, criteria, selection, {datetime.date.today().isoformat()}")
    say()
    say(f"{os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}.")
    for kind, row in counts.iterrows():
        say(f"- {kind}: {row['worlds']} worlds, seeds 0 to {row['seeds'] - 1}")
    say()
    say(
        f"Commands: `python benchmarks/worlds.py runs/worlds` (--kinds and --halves run a part), then this page: `python {' '.join(sys.argv)}`."
    )
    say(
        f"Diagnoses: the first {options.criteria_seeds} seeds of every world. Worlds are named kind, general, teacher-only"
    )
    say("and student-only decisive features, training pairs n, noise s, distractors d, shape, classes k.")
    say()
    say(
        "The form of the trial of heads and the rule careful are older than the worlds of held-out, which were written down"
    )
    say(
        "before they were run. The soft mask's ceiling was chosen when the linear worlds of dev, its first nine networks and"
    )
    say("one digits world were there; held-out was looked at after that. Thresholds and slopes come from dev alone.")
    say(
        "Networks are trained side by side, so another number of seeds rounds differently and moves single students of nets."
    )
    say()
    scores_table(say, frame)
    masks_table(say, gains)
    against_soft_table(say, gains)
    criteria_table(say, found, gains)
    verdict_table(say, found, gains)
    calibration_table(say, found, gains)
    shares_table(say, found)
    selection_table(say, frame, gains)
    print("\n".join(lines))
    if options.report:
        options.report.parent.mkdir(parents=True, exist_ok=True)
        options.report.write_text("\n".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    main()
