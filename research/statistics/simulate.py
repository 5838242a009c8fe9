"""Do the intervals and corrected p-values of studies hold what they say? A simulation in which the truth is known.

Every arm is a least squares classifier on its own block of features. All blocks are drawn alike, so no arm is better than
another on new data: the null hypothesis holds exactly. On one finite data set some block is luckier, and seeds that
re-split this set see the same luck again and again. For power, the first arm's features are less noisy.

    python research/statistics/simulate.py                      # about 10 minutes on one core
    python research/statistics/simulate.py --data-sets 200      # a look
    python research/statistics/simulate.py --only people        # settings by name
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from mfh.studies.stats import corrected_p_values, holm

ARMS = 5  # compared with one baseline
WIDTH = 8  # features of a block
SHARED = 4  # features that all arms have

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Setting:
    """A data set and how seeds use it.

    Args:
        name: How the table calls it.
        pool: Training pairs, or people, of a seed.
        test: Test pairs, or people.
        rest: Pairs, or people, of the validation split, which is not used.
        labelled: Labelled pairs of the pool; None labels all.
        windows: Pairs of a person; 0 splits pairs.
        redrawn: Whether seeds draw their own data.
    """

    name: str
    pool: int
    test: int
    rest: int
    labelled: int | None = None
    windows: int = 0
    redrawn: bool = False

    @property
    def test_to_train(self) -> float:
        """The correction that a study makes."""
        return 0.0 if self.redrawn else self.test / self.pool


SETTINGS = (
    Setting("786 training, 500 test pairs, all labelled", 786, 500, 100),
    Setting("the same, 100 labelled", 786, 500, 100, labelled=100),
    Setting("1000 training, 900 test pairs, 100 labelled", 1000, 900, 100, labelled=100),
    Setting("300 training, 50 test pairs, all labelled", 300, 50, 50),
    Setting("10 people: 6 training, 2 test", 6, 2, 2, windows=60),
    Setting("data redrawn, 100 training, 500 test pairs", 100, 500, 0, redrawn=True),
)


def draw(setting: Setting, generator: np.random.Generator, effect: float) -> tuple[Floats, Floats]:
    """One data set: features (arms + 1, pairs, columns) and labels -1 or 1."""
    units = setting.pool + setting.test + setting.rest
    pairs = units * max(1, setting.windows)
    hidden = generator.standard_normal(pairs)
    noise = np.full(ARMS + 1, 3.0)
    noise[1] -= effect
    own = hidden[:, None] + noise[:, None, None] * generator.standard_normal((ARMS + 1, pairs, WIDTH))
    if setting.windows:  # every person moves in a way of their own
        habits = 1.5 * generator.standard_normal((ARMS + 1, units, WIDTH))
        own += np.repeat(habits, setting.windows, axis=1)
    shared = hidden[:, None] + 3 * generator.standard_normal((pairs, SHARED))
    ones = np.ones((ARMS + 1, pairs, 1))
    features = np.concatenate([own, np.broadcast_to(shared, (ARMS + 1, pairs, SHARED)), ones], axis=2)
    return features, np.where(hidden + 0.7 * generator.standard_normal(pairs) > 0, 1.0, -1.0)


def accuracies(setting: Setting, generator: np.random.Generator, num_seeds: int, effect: float) -> Floats:
    """Test accuracies in percent, (seeds, arms + 1), the baseline first."""
    rows = []
    features, target = draw(setting, generator, effect)
    for _ in range(num_seeds):
        if setting.redrawn:
            features, target = draw(setting, generator, effect)
        units = np.split(
            generator.permutation(setting.pool + setting.test + setting.rest),
            [setting.pool, setting.pool + setting.test],
        )
        if setting.windows:
            units = [(part[:, None] * setting.windows + np.arange(setting.windows)).ravel() for part in units]
        train, test = units[0][: setting.labelled], units[1]
        known = features[:, train]
        gram = known.transpose(0, 2, 1) @ known + 1e-3 * np.eye(known.shape[2])
        weights = np.linalg.solve(gram, known.transpose(0, 2, 1) @ target[train][None, :, None])
        scores = features[:, test] @ weights
        rows.append(100 * ((scores[..., 0] > 0) == (target[test] > 0)).mean(1))
    return np.array(rows)


def studies(setting: Setting, data_sets: int, num_seeds: int, effect: float) -> Iterator[Floats]:
    """Differences (seeds, arms) of as many studies."""
    generator = np.random.default_rng(0)
    for _ in range(data_sets):
        measured = accuracies(setting, generator, num_seeds, effect)
        yield measured[:, 1:] - measured[:, :1]


def shares(setting: Setting, data_sets: int, num_seeds: int, effect: float) -> dict[str, float]:
    """Shares of studies in which something is found at 5 %, and the mean gain of the first arm."""
    found: dict[str, list[float]] = {}
    for differences in studies(setting, data_sets, num_seeds, effect):
        # By the formula of Nadeau and Bengio, not by the package's own way to it.
        spread = differences.var(0, ddof=1)
        equal = spread == 0  # of a few seeds, which show nothing
        plain, corrected = (
            np.where(equal, 1.0, 2 * stats.t.sf(np.abs(differences.mean(0)) / error, num_seeds - 1))
            for error in (
                np.sqrt(np.where(equal, 1.0, spread) * (1 / num_seeds + share))
                for share in (0.0, setting.test_to_train)
            )
        )
        maximum = corrected_p_values(differences, test_to_train=setting.test_to_train, resamples=1999)
        for name, value in {
            "one arm, plain": plain[0] <= 0.05,
            "one arm, corrected": corrected[0] <= 0.05,
            "any arm, plain": plain.min() <= 0.05,
            "any arm, corrected": corrected.min() <= 0.05,
            "any arm, Holm": holm(corrected).min() <= 0.05,
            "any arm, max-t": maximum.min() <= 0.05,
            "power, one arm": corrected[0] <= 0.05,
            "power, max-t": maximum[0] <= 0.05,
            "gain": differences[:, 0].mean(),
        }.items():
            found.setdefault(name, []).append(float(value))
    return {name: float(np.mean(values)) for name, values in found.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-sets", type=int, default=1000)
    parser.add_argument("--num-seeds", type=int, nargs="*", default=[3, 5, 10, 20])
    parser.add_argument("--only", default="", help="run the settings whose names hold this text")
    options = parser.parse_args()
    names = ("one arm, plain", "one arm, corrected", "any arm, plain", "any arm, corrected", "any arm, Holm")
    names = (*names, "any arm, max-t")
    powers = ("power, one arm", "power, max-t")
    print(f"{options.data_sets} data sets, {ARMS} arms and one baseline. Percent of studies that find a difference.\n")
    print(f"| setting | seeds | {' | '.join((*names, *powers))} | gain, points |")
    print(f"|---|---|{'---|' * (len(names) + 3)}")
    for setting in (setting for setting in SETTINGS if options.only in setting.name):
        for num_seeds in options.num_seeds:
            null = shares(setting, options.data_sets, num_seeds, 0.0)
            real = shares(setting, max(100, options.data_sets // 4), num_seeds, 2.0)
            values = [100 * null[name] for name in names] + [100 * real[name] for name in powers] + [real["gain"]]
            print(f"| {setting.name} | {num_seeds} | {' | '.join(f'{value:.1f}' for value in values)} |", flush=True)


if __name__ == "__main__":
    main()
