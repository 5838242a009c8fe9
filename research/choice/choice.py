"""Does the choice of a study hurt, and what does it leave on the table? Rules of choice in finished studies.

    python research/choice/choice.py RUNS/real RUNS/methods RUNS/more --report research/choice/reports/choice-YYYY-MM-DD.md

Every folder below the given ones that holds a study of 10 seeds or more, with measurements of all arms on both splits,
is one study; of two with the same setting and candidates, the one with more seeds. A rule sees the validation split only. What it recommends is then measured on the test split, over all
seeds, against `no-kd`.

Protocol, written before any rule was evaluated:

- Halves: the pairs of views of `benchmarks/real.py` in their order, alternately (`CHOOSING`, `REPORTING`), so a direction
  and its reverse are in the same half, with all label budgets and all studies of methods. `digits` is in the half that is
  reported.
- Rules: the variant with the best mean on validation is recommended if its gain exceeds z standard errors, otherwise
  `no-kd`. The gain is over `no-kd` alone, or over the best control by validation (`no-kd` included). z is 0, 0.5, 1, 1.5
  or 2. The standard error is corrected for re-split data as everywhere.
- z is chosen on the choosing half, with the best control: the highest mean gain among those whose mean loss has an upper
  95 % bound of at most .2 points.
- Loss of a study: how far the recommended variant is below `no-kd` on the test split, 0 where it is not. Bounds and
  intervals resample directions.
- Oracle: the best of `no-kd` and all candidates by the test split itself, so it is flattered and the share of its gain
  is a lower limit. Beside it stands the oracle that also keeps to the rule: it recommends a candidate only where that
  beats the best control on the test split.
- Goal: on the reporting half, mean loss at most .2 points (upper bound), at least 80 % of the oracle's mean gain, and a
  teacher recommended in at least half of the studies in which one gains over 1 point against `no-kd`.
- What pooling adds: the same rule with the validation splits of the first 1, 2 and 5 seeds, and of further such blocks.
- Other seeds: choice on the validation splits of one half of the seeds, measured on the test splits of the other half,
  because a study's seeds share pairs and networks between the two splits.

Added after the first evaluation: the level in use (`USED`) beside the chosen one, studies of five seeds of further
directions (`--further`), and how far the gains of single seeds spread, compared with the error of one validation split.
"""

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from common import Report
from mfh.studies.choice import NO_KD, Choice, choose
from mfh.studies.folder import Run
from mfh.studies.grid import CONTROLS, PLAIN_CONTROLS, Cell
from real import DIRECTIONS, table

_PAIRS = list(dict.fromkeys((task, frozenset((a, b))) for task, a, b in DIRECTIONS if "both" not in (a, b)))
_PAIRS.insert(1, ("htad", "both"))  # both directions from "both" are one pair
CHOOSING, REPORTING = _PAIRS[0::2], _PAIRS[1::2]
LEVELS = (0.0, 0.5, 1.0, 1.5, 2.0)
FEWEST_SEEDS = 10
#: The level that `mfh.studies.choice` uses. It was chosen on synthetic data before (research/worlds): a mean above zero is
#: not yet credible, and there a level of 0 was significantly worse than no-kd in 19 of 200 studies of five seeds.
USED = 1.0


@dataclass(frozen=True)
class Study:
    """A finished study.

    Args:
        name: Its folder.
        direction: Task and views; studies of one direction are resampled together.
        chosen_on: Whether constants are chosen on it.
        validation: Metric by seed of each variant on the validation split.
        test: The same on the test split.
        run: The run.
    """

    name: str
    direction: str
    chosen_on: bool
    validation: dict
    test: dict
    run: Run

    def gain(self, cell, seeds=None):
        """Gain over no-kd on the test split in points."""
        seeds = self.seeds if seeds is None else seeds
        return float((self.test[cell].loc[seeds] - self.test[NO_KD].loc[seeds]).mean())

    @property
    def seeds(self):
        return list(self.test[NO_KD].index)

    @property
    def candidates(self):
        return [cell for cell in self.test if cell.arm not in ("no-kd", *CONTROLS)]

    def choice(self, seeds=None, controls=True) -> Choice:
        """The best variant by validation on these seeds, against the best control or no-kd alone."""
        values = {
            cell: values if seeds is None else values.loc[seeds]
            for cell, values in self.validation.items()
            if controls or cell.arm not in PLAIN_CONTROLS
        }
        return choose(values, self.run.scale, self.run.repeats, self.run.num_val)

    def oracle(self, with_controls):
        """Gain of the best candidate by the test split; 0 where none beats no-kd (or the best control)."""
        best = max(self.gain(cell) for cell in self.candidates)
        controls = [self.gain(cell) for cell in self.test if with_controls and cell.arm in PLAIN_CONTROLS]
        return best if best > max([0.0, *controls]) else 0.0


def read(folder, fewest=FEWEST_SEEDS):
    """A finished study of enough seeds; None for anything else. With fewer seeds, of other directions only."""
    run = Run(folder)
    if not run.holds_results or run.command != "study" or run.config.get("select"):
        return None
    rows = run.results
    rows = rows[(rows["metric"] == run.scale.name) & (rows["arm"] != "")]
    if rows["seed"].nunique() < fewest:
        return None
    found = {"val": {}, "test": {}}
    keys = [name for name in ("arm", "score", "layer", "ratio") if name in rows]
    for (split, *key), part in rows.groupby(["split", *keys], dropna=False, sort=False):
        cell = Cell.of(dict(zip(keys, key, strict=True)))
        found[split][cell] = run.scale.factor * part.groupby("seed")["value"].last()
    seeds = set.intersection(*(set(values.index) for part in found.values() for values in part.values()))
    if len(seeds) < fewest:
        return None
    kept = {split: {cell: values.loc[sorted(seeds)] for cell, values in part.items()} for split, part in found.items()}
    arguments = run.config.get("set", {})
    views = [arguments[name] for name in ("teacher", "student") if name in arguments]
    pair = (run.config["task"], "both" if "both" in views else frozenset(views))
    if (fewest < FEWEST_SEEDS) == (pair in _PAIRS) and views:
        return None
    direction = f"{run.config['task']} {' to '.join(views)}" if views else folder.name
    return Study(folder.name, direction, pair in CHOOSING, *kept.values(), run)


def distinct(studies):
    """Of studies of one setting with the same candidates, the one with the most seeds."""
    held = {}
    for study in studies:
        key = study.name, tuple(study.candidates)
        if key not in held or len(held[key].seeds) < len(study.seeds):
            held[key] = study
    return list(held.values())


# --- measures ---------------------------------------------------------------------------------------------------------


def resampled(values, directions, number=4000):
    """Means (number,) over studies, resampling directions."""
    values, generator = np.asarray(values, float), np.random.default_rng(0)
    groups = [np.flatnonzero([d == one for d in directions]) for one in dict.fromkeys(directions)]
    sums, counts = np.array([values[g].sum() for g in groups]), np.array([len(g) for g in groups])
    drawn = generator.integers(0, len(groups), (number, len(groups)))
    return sums[drawn].sum(1) / counts[drawn].sum(1)


@dataclass(frozen=True)
class Outcome:
    """What a rule does in a group of studies; one entry for each (study, block of seeds)."""

    gains: np.ndarray
    taught: np.ndarray
    oracle: np.ndarray
    ruled: np.ndarray
    directions: list

    @property
    def loss(self):
        return float(np.maximum(-self.gains, 0).mean())

    @property
    def loss_bound(self):
        return float(np.quantile(resampled(np.maximum(-self.gains, 0), self.directions), 0.95))

    @property
    def share(self):
        return float(self.gains.mean() / self.oracle.mean())

    @property
    def share_ruled(self):
        return float(self.gains.mean() / self.ruled.mean())

    def recommended(self, oracle):
        """Share of studies with a teacher, where one gains over 1 point."""
        large = oracle > 1
        return f"{int(self.taught[large].sum())} of {int(large.sum())}"

    @property
    def half(self):
        large = self.oracle > 1
        return float(self.taught[large].mean())

    def row(self):
        low, high = np.quantile(resampled(self.gains, self.directions), [0.025, 0.975])
        return [
            f"{self.loss:.2f} ({self.loss_bound:.2f})",
            f"{-self.gains.min():.1f}" if self.gains.min() < 0 else "0.0",
            f"{self.gains.mean():+.2f} ({low:+.2f} to {high:+.2f})",
            f"{100 * self.share:.0f} %",
            f"{100 * self.share_ruled:.0f} %",
            self.recommended(self.oracle),
            self.recommended(self.ruled),
        ]


COLUMNS = [
    "mean loss (upper bound)",
    "largest loss",
    "mean gain over no-kd",
    "share of the oracle",
    "share of the ruled oracle",
    "teacher where one gains over 1 point",
    "the same, over the best control",
]


def outcome(studies, z, *, controls=True, blocks=None, crossed=False):
    """What the rule does in these studies.

    Args:
        studies: The studies.
        z: Standard errors that the gain must exceed.
        controls: Whether the gain is over the best control, otherwise over no-kd.
        blocks: Number of seeds that the choice reads (default: all).
        crossed: Whether to choose on half of the seeds and to measure on the other half.
    """
    rows = []
    for study in studies:
        seeds = study.seeds
        half = len(seeds) // 2
        if crossed:
            parts = [(seeds[:half], seeds[half:]), (seeds[half:], seeds[:half])]
        elif blocks:
            parts = [(seeds[i : i + blocks], seeds) for i in range(0, len(seeds) - blocks + 1, blocks)]
        else:
            parts = [(seeds, seeds)]
        oracles = study.oracle(False), study.oracle(True)
        for read_on, measured_on in parts:
            choice = study.choice(read_on, controls)
            taught = choice.gain > z * choice.error * (1 + 1e-9)
            gain = study.gain(choice.best, measured_on) if taught else 0.0
            rows.append((gain, taught, *oracles, study.direction))
    gains, taught, oracle, ruled, directions = zip(*rows, strict=True)
    return Outcome(*map(np.array, (gains, taught, oracle, ruled)), list(directions))


def spread(studies):
    """Root mean square of what single seeds' validation gains miss, over the error of their validation split.

    What is missed is the difference to the mean gain of the same two variants over the test splits of all seeds.
    """
    missed = []
    for study in studies:
        for seed in study.seeds:
            one = study.choice([seed])
            if one.error:
                missed.append((one.gain - study.gain(one.best) + study.gain(one.control)) / one.error)
    return float(np.sqrt(np.mean(np.square(missed))))


def rules(say, studies):
    """All rules in these studies."""
    lines = [
        [f"{'best control' if controls else 'no-kd'}, z = {z:g}", *outcome(studies, z, controls=controls).row()]
        for controls in (True, False)
        for z in LEVELS
    ]
    table(say, ["gain over", *COLUMNS], lines)
    say()


def main():
    """Read the studies, choose on one half, report on the other."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", type=Path, nargs="+", help="folders with run folders")
    parser.add_argument("--further", type=Path, nargs="*", default=(), help="folders with studies of five seeds")
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    found = [read(folder) for one in options.folders for folder in sorted(one.iterdir()) if folder.is_dir()]
    studies = distinct(study for study in found if study is not None)
    choosing = [study for study in studies if study.chosen_on]
    reporting = [study for study in studies if not study.chosen_on]
    say = Report("The choice of a study: what it loses and what it leaves", "No times are measured here.")
    for title, half in (("choosing", choosing), ("reporting", reporting)):
        say(f"The {title} half: {len(half)} studies of {len({s.direction for s in half})} directions.")
    say()
    say("## Choosing half")
    say()
    rules(say, choosing)
    allowed = [z for z in LEVELS if outcome(choosing, z).loss_bound <= 0.2]
    z = max(allowed, key=lambda z: outcome(choosing, z).gains.mean(), default=math.nan)
    say(f"Chosen: z = {z:g}.")
    say()
    say("## Reporting half")
    say()
    rules(say, reporting)
    for level in dict.fromkeys((z, USED)):
        one = outcome(reporting, level)
        met = ["met" if ok else "missed" for ok in (one.loss_bound <= 0.2, one.share >= 0.8, one.half >= 0.5)]
        say(f"Goal at z = {level:g}: mean loss {met[0]}, share of the oracle {met[1]}, teachers {met[2]}.")
    say(f"In use is z = {USED:g}. All studies, of which none played a part in that choice:")
    say()
    table(say, ["gain over", *COLUMNS], [[f"best control, z = {USED:g}", *outcome(studies, USED).row()]])
    say()
    say("## What pooling the seeds' validation splits adds")
    say()
    lines = []
    for level in (0.0, USED):
        lines += [[f"{b or 'all'}, z = {level:g}", *outcome(reporting, level, blocks=b).row()] for b in (1, 2, 5, None)]
        lines.append([f"half, measured on the others, z = {level:g}", *outcome(reporting, level, crossed=True).row()])
    table(say, ["seeds that the choice reads", *COLUMNS], lines)
    say()
    for title, half in (("choosing", choosing), ("reporting", reporting)):
        say(
            f"Gains of single seeds spread {spread(half):.2f} times the error of their validation pairs ({title} half)."
        )
    say()
    further = [read(folder, 5) for one in options.further for folder in sorted(one.iterdir()) if folder.is_dir()]
    further = [study for study in further if study is not None]
    if further:
        say("## Further directions, five seeds")
        say()
        say(f"{len(further)} studies of {len({s.direction for s in further})} directions.")
        say()
        table(
            say,
            ["gain over", *COLUMNS],
            [[f"best control, z = {level:g}", *outcome(further, level).row()] for level in LEVELS],
        )
        say()
    say("## Every study of the reporting half")
    say()
    lines = []
    for study in reporting:
        choice = study.choice()
        lines.append(
            [
                study.name,
                str(len(study.seeds)),
                choice.best.name,
                choice.control.name,
                f"{choice.gain:+.1f} ({choice.error:.1f})",
                choice.best.name if choice.helps else "no-kd",
                f"{study.gain(choice.best) if choice.helps else 0.0:+.1f}",
                f"{study.oracle(False):+.1f}",
                f"{study.oracle(True):+.1f}",
            ]
        )
    table(
        say,
        [
            "study",
            "seeds",
            "best by validation",
            "best control",
            "gain there (standard error)",
            "recommended",
            "gain on test",
            "oracle",
            "ruled oracle",
        ],
        lines,
    )
    say.write(options.report)


if __name__ == "__main__":
    main()
