"""Can the gain of a soft mask be foretold? What could say it, against what the arm `soft` gained over `regular`.

    python research/verdict/focus.py RUNS/real RUNS/verdict RUNS/focus --groups chosen
    python research/verdict/focus.py RUNS/real RUNS/verdict RUNS/focus --report research/verdict/reports/focus-YYYY-MM-DD.md

The first two folders are those of `verdict.py`, and hold the measured gains on the test split, averaged over all seeds of
a study. The third keeps what this script computes.

Protocol, written before any candidate was computed for a held-out setting. (The measured gains of most of these settings
were printed in the report of `verdict.py` before, but nothing was chosen by them.)

- `CANDIDATES` are computed from seeds 0 to 2 and averaged: a rehearsal by regressions on the features of untrained
  networks, and five readings of the networks that a diagnosis trains on labels.
- Chosen on the 24 settings `CHOSEN` of `verdict.py`: the candidate with the largest Spearman correlation with the gain,
  among those whose 95 % interval, which resamples directions, excludes zero. If there is none, nothing is forecast.
- Outcome on the chosen settings, written before the held-out ones were computed: the trial of heads was chosen, +.50 (+.15
  to +.78). The rehearsal had -.11 and costs most, so it was not computed for held-out settings.
- Outcome on the held-out settings: the correlation is +.41 (+.11 to +.64), but the error is 0.72 points against 0.62 of the
  mean gain. So there is no forecast, and `diagnose` states the empirical interval.
- The *empirical interval* is the mean of the gains in these 24 settings, plus and minus 1.645 standard deviations. It
  stands for a forecast that knows nothing of the setting.
- Reported on held-out settings (all others with measured gains): Spearman of the chosen candidate and of all others, how
  often the chosen one's sign is right where a gain is over half a point, its mean absolute error (after a line fitted to
  the chosen settings) beside that of the mean gain, and how often the empirical interval holds the gain.
- The candidate becomes a forecast of `diagnose` only if its held-out interval excludes zero and its error is smaller than
  that of the mean gain. Otherwise `diagnose` states the empirical interval, over all settings.
"""

import argparse
import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from scipy import stats

import mfh

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).parent))

from verdict import CHOSEN, SEEN, SMARTWATCH, UNSEEN, made, settings_of, spearman

from common import Report
from mfh.saliency.probe import cross_fitted_r2
from mfh.saliency.scores import ChannelSaliency, soft_weights
from mfh.studies import forecast as rehearsal
from mfh.studies.folder import Run
from mfh.studies.networks import Networks
from mfh.studies.settings import Settings
from mfh.tasks.small_networks import WIDTH
from real import table

REHEARSED = "rehearsed gain of soft"
CANDIDATES = {
    REHEARSED: "rehearsed",
    "trial of heads, soft minus regular": "trial",
    "the same on validation pairs": "held_out",
    "softly masked teacher's accuracy minus the teacher's": "teacher",
    "mean R^2 of the channels": "seen",
    "share of the decision that is left": "share",
}
SEEDS = 3


def rehearsed(task, seed):
    """What `soft` gains over `regular` in points, where regressions stand in for all networks."""
    networks = Networks(task, seed, Settings())
    rows = rehearsal._Rows.of(networks)
    student, teacher = (rehearsal._features(networks, role, rows).double() for role in ("student", "teacher"))
    # The features of each untrained teacher are weighted by what those of one untrained student predict of them.
    each = [math.ceil(x.shape[1] / 32) if x.shape[1] < 2048 else x.shape[1] // 32 for x in (student, teacher)]
    training = torch.cat([rows.train, rows.others])
    weights = torch.cat(
        [
            torch.from_numpy(
                soft_weights(cross_fitted_r2(student[training, : each[0]], part[training][:, :, None])[0].numpy())
            )
            for part in teacher.split(each[1], 1)
        ]
    )
    gram = rehearsal._gram(student)
    scale = teacher.square().sum(1).mean()
    plain, masked = (teacher @ (other * teacher).T / scale for other in (torch.ones_like(weights), weights))
    loss = networks.protocol.loss if isinstance(networks.protocol.loss, mfh.KDLoss) else mfh.KDLoss()
    gains = []
    for draw in range(rehearsal.DRAWS):
        labelled, held_out = rows.drawn(seed + draw)
        known, pairs = rows.targets[labelled], torch.cat([labelled, rows.others])
        level = known.mean(0)
        system = plain[labelled][:, labelled] + rehearsal.PENALTY * len(labelled) * torch.eye(len(labelled))
        solved = torch.cholesky_solve(known - level, torch.linalg.cholesky(system.double()))
        says = [rehearsal._sharpened(task.problem, one[pairs][:, labelled] @ solved + level) for one in (plain, masked)]
        says[0][: len(labelled)] = known
        found = []
        for one in says:
            stands_for = torch.ones(len(pairs), dtype=torch.float64)
            stands_for[len(labelled) :] = rows.each
            taught = loss.teacher_weight * stands_for / stands_for.sum()
            told = torch.zeros_like(taught)
            told[: len(labelled)] = loss.label_weight / len(labelled)
            wanted = one * taught[:, None]
            wanted[: len(labelled)] += known * told[: len(labelled), None]
            both = taught + told
            (out,) = rehearsal._regression(gram, pairs, wanted / both[:, None], both / both.sum(), (held_out,))
            found.append(100 * float((out.argmax(1) == rows.raw[held_out]).double().mean()))
        gains.append(found[1] - found[0])
    return float(np.mean(gains))


def read(setting, seed, folder, scratch):
    """What a diagnosis says of the task's layer, from the networks that a study kept."""
    own = setting.task in ("halves", "cells")
    copy = scratch / f"{setting.name}-{seed}"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(
        folder,
        copy,
        ignore=lambda _, names: [n for n in names if n in ("students", "cells", "histories", "results.csv")],
    )
    given = {} if own else {"set": setting.arguments}
    task = (lambda seed: made(setting, seed)) if own else setting.task
    try:
        seen = mfh.diagnose(task, seed=seed, out=copy, settings=Settings.of(**given))
    finally:
        shutil.rmtree(copy, ignore_errors=True)
    view = seen.layers[0]
    return {
        "trial": view.trial.value - seen.trial.value,
        "held_out": view.held_out.value - seen.held_out.value,
        "teacher": 100 * (view.accuracy - seen.teacher_accuracy),
        "seen": view.seen,
        "share": view.share.value,
    }


def candidates(setting, folder, scratch, with_rehearsal):
    """All candidates, averaged over seeds; kept in the scratch folder."""
    kept = scratch / f"{setting.name}.json"
    if kept.exists():
        return json.loads(kept.read_text())
    rows = [
        ({"rehearsed": rehearsed(made(setting, seed), seed)} if with_rehearsal else {})
        | read(setting, seed, folder, scratch)
        for seed in range(SEEDS)
    ]
    found = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    kept.write_text(json.dumps(found))
    print(setting.name, {name: round(value, 3) for name, value in found.items()}, flush=True)
    return found


def measured(folder):
    """Gain of soft over regular in points: mean over seeds, its standard error, and the number of seeds."""
    rows = Run(folder).results
    rows = rows[(rows["split"] == "test") & (rows["metric"] == "accuracy")]
    means = 100 * rows.groupby(["arm", "seed"])["value"].mean().unstack(0)
    gains = (means["soft"] - means["regular"]).dropna()
    return {"gain": float(gains.mean()), "error": float(gains.std() / len(gains) ** 0.5), "seeds": len(gains)}


def main():
    """Compute what is missing, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("real", type=Path, help="folder of benchmarks/real.py")
    parser.add_argument("own", type=Path, help="folder of the studies of verdict.py")
    parser.add_argument("scratch", type=Path, help="folder that keeps the candidates")
    parser.add_argument("--report", type=Path)
    parser.add_argument("--kept-only", action="store_true", help="report the settings that are computed already")
    parser.add_argument("--groups", nargs="*", default=("chosen", "held-out"), choices=("chosen", "held-out"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.scratch.mkdir(parents=True, exist_ok=True)
    later = dict.fromkeys(SMARTWATCH, ("50", "100", "300"))  # these take longest
    sooner = {direction: budgets for direction, budgets in UNSEEN.items() if direction not in later}
    held_out = [*settings_of(SEEN), *settings_of(sooner | later)]
    groups = {"chosen": settings_of(CHOSEN), "held-out": held_out}
    say = Report("Can the gain of a soft mask be foretold?", "No times are measured here.")
    rows = {}
    for group in options.groups:
        rows[group] = []
        for setting in groups[group]:
            folders = [root / setting.name for root in (options.real, options.own)]
            folder = next((one for one in folders if Run(one).holds_results), None)
            known = (options.scratch / f"{setting.name}.json").exists()
            if folder is None or (options.kept_only and not known):
                say(f"{setting.name} is not {'measured' if folder is None else 'computed'}.")
                continue
            rows[group].append(
                (setting, candidates(setting, folder, options.scratch, group == "chosen") | measured(folder))
            )
    chosen = rows.get("chosen", [])
    spread = _interval(chosen) if chosen else None
    for group, part in rows.items():
        _say_group(say, group, part, chosen, spread)
    everything = [row for part in rows.values() for row in part]
    mean, half = _interval(everything)
    say(
        f"All {len(everything)} settings: soft changes the gain of regular by {mean:+.2f} points on average; empirical 90 % "
        f"interval {mean - half:+.1f} to {mean + half:+.1f}; quantiles of 5 and 95 %: "
        + " to ".join(f"{q:+.1f}" for q in np.quantile([r["gain"] for _, r in everything], [0.05, 0.95]))
        + "."
    )
    say()
    _say_fading(say, [folder for folder in sorted(options.real.iterdir()) if Run(folder).holds_results])
    say.write(options.report)


def _say_fading(say, folders):
    """What would be left of the masks if they faded with the number of pairs, as research/theory/derivation.md derives."""
    rows = []
    for folder in folders:
        pairs = Run(folder).config["pairs"][-1]
        kappa = WIDTH / (pairs["labelled"] + pairs["unlabelled"] - WIDTH - 1)
        masks = [ChannelSaliency.load(folder / f"seed-{seed}" / "saliency-probe.safetensors") for seed in range(SEEDS)]
        soft = np.concatenate([mask.mask("soft").weights for mask in masks])
        rows.append((kappa, soft.mean(), (soft / (soft + kappa * (1 - soft) + 1e-12)).mean()))
    kappa, soft, fading = np.array(rows).T
    say(
        f"A mask that fades with the pairs: kappa is {kappa.min():.3f} to {kappa.max():.3f} in {len(rows)} settings of the first "
        f"folder. The mean weight is {soft.mean():.2f} of `soft` and would be {fading.mean():.2f} (median of settings "
        f"{np.median(fading):.2f})."
    )
    say()


def _interval(rows):
    """Mean and half width of the empirical 90 % interval."""
    gains = [row["gain"] for _, row in rows]
    return float(np.mean(gains)), 1.645 * float(np.std(gains, ddof=1))


def _say_group(say, title, rows, chosen, spread):
    listed = {words: name for words, name in CANDIDATES.items() if name in rows[0][1]}
    say(f"## {title.capitalize()}: {len(rows)} settings")
    say()
    table(
        say,
        ["direction", "labels", "soft over regular (standard error)", "seeds", *listed],
        [
            [
                f"{s.task}: {s.teacher} to {s.student}",
                s.labels,
                f"{r['gain']:+.2f} ({r['error']:.2f})",
                str(r["seeds"]),
                *(f"{r[name]:+.3f}" for name in listed.values()),
            ]
            for s, r in rows
        ],
    )
    gains = np.array([r["gain"] for _, r in rows])
    directions = [(s.task, s.teacher, s.student) for s, _ in rows]
    lines = []
    for words, name in listed.items():
        values = np.array([r[name] for _, r in rows])
        line = stats.linregress([r[name] for _, r in chosen], [r["gain"] for _, r in chosen]) if chosen else None
        told = line.intercept + line.slope * values if line else np.full(len(values), np.nan)
        large = np.abs(gains) > 0.5
        lines.append(
            [
                words,
                spearman(values, gains, directions),
                f"{np.mean((told > 0)[large] == (gains > 0)[large]):.2f}",
                f"{np.abs(told - gains).mean():.2f}",
            ]
        )
    table(say, ["candidate", "Spearman", "sign right where the gain is over half a point", "mean error, points"], lines)
    if spread:
        mean, half = spread
        inside = np.mean(np.abs(gains - mean) <= half)
        noise = np.sqrt(np.mean([r["error"] ** 2 for _, r in rows]))
        say(
            f"The mean gain of the chosen settings, {mean:+.2f} points, misses by {np.abs(gains - mean).mean():.2f} points on "
            f"average. The empirical interval, {mean - half:+.1f} to {mean + half:+.1f}, holds {100 * inside:.0f} % of these "
            f"gains. The gains have a standard deviation of {gains.std(ddof=1):.2f} points, of which {noise:.2f} is noise "
            "of the measurement."
        )
        say()


if __name__ == "__main__":
    main()
