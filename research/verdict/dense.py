"""Is the forecast right for dense prediction? Forecast against measured gain, on small networks.

    python research/verdict/dense.py RUNS/dense.json --report research/verdict/reports/dense-YYYY-MM-DD.md

Ten settings of five directions at two label budgets. *Series* are synthetic: both views show four numbers per frame under
noise of their own, and the class of a frame is decided by two of them. *Ink* are the images of digits that scikit-learn
ships: the class of a pixel is its ink (none, some, much), and the views are a noisy image and one of half the resolution.
Nothing in `mfh.studies.forecast` was chosen by these settings. The gain is that of `regular` over `longer` in points of
mean IoU on the test split, three seeds; the forecast is the mean of the same seeds.
"""

import argparse
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import torch
from sklearn import datasets
from torch import nn
from torch.utils.data import TensorDataset

import mfh

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).parent))

from verdict import spearman

from common import Report
from mfh.studies.forecast import forecast
from mfh.studies.networks import Networks
from mfh.studies.settings import Settings
from real import table

SERIES = ((0.0, 1.5), (1.5, 0.0), (0.5, 1.0))
INK = (("noisy", "coarse"), ("coarse", "noisy"))
BUDGETS = (5, 20)
UNLABELLED, VAL, TEST = 200, 60, 100


def network(channels, dimensions):
    """Two convolutions and a classifier of each position."""
    convolution = (nn.Conv1d, nn.Conv2d)[dimensions - 1]
    return nn.Sequential(
        convolution(channels, 32, 3, padding=1),
        nn.ReLU(),
        convolution(32, 32, 3, padding=1),
        nn.ReLU(),
        convolution(32, 3, 1),
    )


def series(teacher, student, count, seed):
    """Views and classes of synthetic series of 16 frames."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(count, 4, 16, generator=generator)
    hidden = hidden + hidden.roll(1, 2)
    target = torch.stack([hidden[:, 0], hidden[:, 1], -hidden[:, :2].sum(1)], 1).argmax(1)
    return *(hidden + noise * torch.randn(hidden.shape, generator=generator) for noise in (teacher, student)), target


def ink(teacher, student, count, seed):
    """Views and classes of images of digits, 8 x 8."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.from_numpy(datasets.load_digits().images).float()
    images = images[torch.randperm(len(images), generator=generator)[:count], None]
    coarse = nn.functional.interpolate(nn.functional.avg_pool2d(images, 2), scale_factor=2)
    views = {"noisy": images + 8 * torch.randn(images.shape, generator=generator), "coarse": coarse}
    target = (images[:, 0] > 2).long() + (images[:, 0] > 10).long()
    return *((views[name] - 5) / 6 for name in (teacher, student)), target


def made(kind, teacher, student, labels, seed):
    """The task of a setting for a seed."""
    ends = np.cumsum([0, labels, UNLABELLED, VAL, TEST])
    *views, target = {"series": series, "ink": ink}[kind](teacher, student, int(ends[-1]), seed)
    train, unlabelled, val, test = (
        [part[start:stop] for part in (*views, target)] for start, stop in itertools.pairwise(ends)
    )

    def build():
        return network(views[0].shape[1], target.ndim - 1)

    return mfh.Task(
        f"{kind}-{teacher}-{student}-{labels}",
        build,
        build,
        "3",
        *(TensorDataset(*part) for part in (train, val, test)),
        unlabelled=TensorDataset(*unlabelled[:2]),
        problem=mfh.Problem.dense(),
        recipe=mfh.Recipe(epochs=30, batch_size=16),
    )


def measured(setting, num_seeds):
    """Forecast, and gain of regular over longer in points; means over seeds."""
    result = mfh.study(
        lambda seed: made(*setting, seed),
        arms=["longer", "regular"],
        num_seeds=num_seeds,
        settings=Settings.of(processes=1, device="cpu"),
    )
    means = 100 * result.by_seed()
    seen = [forecast(Networks(made(*setting, seed), seed, Settings())).gain.value for seed in range(num_seeds)]
    return float(np.mean(seen)), float((means["regular"] - means["longer"]).mean())


def main():
    """Run the studies that are missing, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("kept", type=Path, help="file that keeps what was measured")
    parser.add_argument("--report", type=Path)
    parser.add_argument("--num-seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    kept = json.loads(options.kept.read_text()) if options.kept.exists() else {}
    rows = []
    for kind, directions in (("series", SERIES), ("ink", INK)):
        for direction, labels in itertools.product(directions, BUDGETS):
            setting = (kind, *direction, labels)
            name = "-".join(map(str, setting))
            if name not in kept:
                kept[name] = measured(setting, options.num_seeds)
                options.kept.write_text(json.dumps(kept))
                print(name, kept[name], flush=True)
            rows.append((kind, direction, labels, *kept[name]))
    say = Report("Forecast against measured gain of dense prediction", "No times are measured here.")
    table(
        say,
        ["direction", "labelled items", "forecast", "gain of regular over longer, points of mean IoU"],
        [
            [f"{kind}: {a} to {b}", str(labels), f"{value:+.1f}", f"{gain:+.1f}"]
            for kind, (a, b), labels, value, gain in rows
        ],
    )
    forecasts, gains = (np.array(column) for column in list(zip(*rows, strict=True))[3:])
    large = np.abs(gains) > 1
    say(
        f"Spearman {spearman(forecasts, gains, [row[:2] for row in rows])}; mean error {np.abs(forecasts - gains).mean():.1f} "
        f"points; the sign is right in {np.mean((forecasts > 0)[large] == (gains > 0)[large]):.2f} of {large.sum()} settings "
        "whose gain is over 1 point. The factor and the interval of the forecast are those of one class per item, so "
        "neither is applied."
    )
    say.write(options.report)


if __name__ == "__main__":
    main()
