"""When does focusing pay? A model that can be solved, and a simulation that checks it.

The teacher's input holds decisive inputs of which the student sees more or less; the student may have decisive inputs of
its own. Everything is Gaussian, the label is the sign of the sum of the decisive inputs, and both networks are linear
and fitted by least squares. `accuracies` predicts the student's accuracy without a teacher, with the plain teacher and
with a masked one; `simulate` measures the same. derivation.md derives the formulas.

    python research/theory/gain.py --report research/theory/reports/theory-YYYY-MM-DD.md
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from common import Report
from mfh.figures.style import INK, new_figure, save_figure, style

Floats = NDArray[np.float64]
#: Weights of the teacher's channels, as functions of what the student sees of each and of kappa = d / (N - d - 1).
MASKS: Mapping[str, Callable[[Floats, float], Floats]] = {
    "plain": lambda seen, kappa: np.ones_like(seen),  # noqa: ARG005
    "soft": lambda seen, kappa: seen,  # noqa: ARG005
    "best": lambda seen, kappa: seen / (seen + kappa * (1 - seen) + 1e-12),
}
KINDS = ("no-kd", *MASKS)


@dataclass(frozen=True)
class World:
    """A linear Gaussian setting.

    Args:
        seen: What the student sees of each decisive input of the teacher: the squared correlation of its own version
            with the teacher's, from 0 (teacher-only) to 1 (general).
        student_only: Number of decisive inputs of the student alone.
        labelled: Number n of labelled pairs; the teacher is fitted to these.
        unlabelled: Number of further pairs without labels.
        teacher_dim: Width of the teacher's input; what is not decisive is noise.
        student_dim: Width of the student's input.
        label_weight: Weight of the label loss, a mean over labelled pairs.
        teacher_weight: Weight of the teacher's term, a mean over all pairs.
    """

    seen: tuple[float, ...]
    student_only: int = 0
    labelled: int = 100
    unlabelled: int = 0
    teacher_dim: int = 50
    student_dim: int = 50
    label_weight: float = 1.0
    teacher_weight: float = 1.0

    @property
    def decisive(self) -> int:
        """Number of decisive inputs of both modalities together."""
        return len(self.seen) + self.student_only

    @property
    def pairs(self) -> int:
        """Number of training pairs."""
        return self.labelled + self.unlabelled

    @property
    def kappa(self) -> float:
        """d / (N - d - 1): what a unit of noise in the target costs the student."""
        return self.student_dim / max(1, self.pairs - self.student_dim - 1)


def accuracies(world: World) -> dict[str, float]:
    """Predicted accuracy, in percent, of the student of each kind."""
    return {kind: _accuracy(world, kind) for kind in KINDS}


def _accuracy(world: World, kind: str) -> float:
    seen, b, n, u = np.array(world.seen), world.student_only, world.labelled, world.unlabelled
    slope = np.sqrt(2 / (np.pi * world.decisive))  # of the label on every decisive input
    explained = slope**2 * len(seen)  # R^2 of the label from the teacher's input
    memorised = min(1.0, world.teacher_dim / n)  # share of the labels' noise that the teacher repeats on its own pairs
    spread = (1 - explained) / max(1, n - world.teacher_dim - 1)  # variance of each of the teacher's coefficients
    if kind == "no-kd":
        u, on_labels, on_teacher = 0, world.label_weight / n, 0.0
    else:
        on_labels, on_teacher = world.label_weight / n, world.teacher_weight / world.pairs
    weight = on_labels + on_teacher  # of a labelled pair; an unlabelled one has `on_teacher`
    total = n * weight + u * on_teacher
    a, first = on_labels / weight, n * weight / total
    # Coefficients of the target on the teacher's decisive inputs and on the student's own, and its variance: on
    # labelled pairs (0), where the teacher repeats a part of the labels' noise, and on the others (1).
    mask = np.ones_like(seen) if kind == "no-kd" else MASKS[kind](seen, world.kappa)
    others = 0.0 if kind in ("soft", "best") else 1.0  # whether what decides nothing is left in the teacher
    repeats = memorised if others else 0.0
    coefficients = slope * np.stack([a + (1 - a) * mask, mask])
    own = slope * np.array([a + (1 - a) * repeats, 0.0])
    errors = spread * np.stack([((1 - a) * mask) ** 2 * (0.0 if others else 1.0), mask**2])
    rest = np.array(
        [
            (a**2 if not others else repeats + a**2 * (1 - repeats)) * (1 - explained - slope**2 * b),
            others * (world.teacher_dim - len(seen)) * spread,
        ]
    )
    share = np.array([first, 1 - first])
    signal = share @ coefficients * np.sqrt(seen)
    mine = share @ own
    taught = share**2 @ errors  # the teacher's own errors on what the student sees
    blind = ((coefficients**2 + errors) * (1 - seen)).sum(1)  # what the student does not see is noise to it
    # A coefficient that differs between labelled and other pairs is noise, too.
    differs = b * (own - mine) ** 2 + ((coefficients - share @ coefficients) ** 2 * seen).sum(1)
    noise = rest + blind + differs
    squares = n * weight**2 + u * on_teacher**2
    variance = (n * weight**2 * noise[0] + u * on_teacher**2 * noise[1]) / total**2
    variance /= max(1e-3, 1 - (world.student_dim + 1) * squares / total**2)
    along = signal @ np.sqrt(seen) + b * mine
    length = (signal**2).sum() + taught @ seen + b * mine**2 + world.student_dim * variance
    return float(100 * (0.5 + np.arcsin(min(1.0, along / np.sqrt(length * world.decisive))) / np.pi))


def simulate(world: World, seeds: int, seed: int = 0) -> dict[str, Floats]:
    """Measured accuracies, in percent, (seeds,) of each kind: exact for the fitted weights, without a test set."""
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    seen, b, n, count = np.array(world.seen), world.student_only, world.labelled, world.pairs
    g = len(seen)
    decides = np.zeros(world.student_dim)
    decides[:g], decides[g : g + b] = np.sqrt(seen), 1
    for draw in range(seeds):
        generator = np.random.default_rng([seed, draw])
        teacher, student = (generator.standard_normal((count, dim)) for dim in (world.teacher_dim, world.student_dim))
        student[:, :g] = np.sqrt(seen) * teacher[:, :g] + np.sqrt(1 - seen) * student[:, :g]
        label = np.sign(teacher[:, :g].sum(1) + student[:, g : g + b].sum(1))[:n]
        weights = _least_squares(teacher[:n], label)
        for kind in KINDS:
            if kind == "no-kd":
                fitted = _least_squares(student[:n], label)
            else:
                mask = MASKS[kind](seen, world.kappa)
                target = teacher[:, :g] @ (weights[:g] * mask)
                if kind == "plain":
                    target += teacher[:, g:] @ weights[g:]
                row = np.full(count, world.teacher_weight / count)
                target = target * row
                row[:n] += world.label_weight / n
                target[:n] += label * world.label_weight / n
                fitted = _least_squares(student, target / row, row)
            cosine = fitted @ decides / np.linalg.norm(fitted) / np.sqrt(world.decisive)
            found[kind].append(100 * (0.5 + np.arcsin(cosine) / np.pi))
    return {kind: np.array(values) for kind, values in found.items()}


def _least_squares(inputs: Floats, target: Floats, weight: Floats | None = None) -> Floats:
    weighted = inputs if weight is None else inputs * weight[:, None]
    found: Floats = np.linalg.solve(weighted.T @ inputs, weighted.T @ target)
    return found


# --- the grid ---------------------------------------------------------------------------------------------------------

DECISIVE, LABELLED = 16, 100
PAIRS = (100, 200, 400, 800, 1600, 6400)
SHARES = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)
#: How the visibility of the teacher's decisive inputs is spread about its mean.
SPREADS: Mapping[str, Callable[[float], Floats]] = {
    "all or nothing": lambda mean: (np.arange(DECISIVE) < round(mean * DECISIVE)).astype(float),
    "graded": lambda mean: stats.beta(3 * mean, 3 * (1 - mean)).ppf((np.arange(DECISIVE) + 0.5) / DECISIVE),
}


def world_of(spread: str, mean: float, pairs: int, student_only: int = 0) -> World:
    """A setting of the grid: so many pairs, 100 of them labelled."""
    seen = tuple(np.clip(SPREADS[spread](mean), 0, 1))
    return World(seen, student_only, LABELLED, pairs - LABELLED)


def main() -> None:
    """Simulate the grid, compare with the formula, and draw the boundary."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--report", type=Path, help="Markdown file for the tables")
    parser.add_argument("--figure", type=Path, help="picture of the boundary")
    options = parser.parse_args()
    say = Report("When focusing pays: predicted and simulated gains", "No times are measured here.")
    say(
        f"{DECISIVE} decisive inputs of the teacher, widths of 50, {LABELLED} labelled pairs, {options.seeds} seeds. Gains "
        "are points of accuracy, predicted / simulated. `soft` weighs a channel by what the student sees of it, `best` as "
        "derivation.md derives."
    )
    errors: list[tuple[float, float]] = []
    found: dict[tuple[str, float, int], dict[str, float]] = {}
    for spread in SPREADS:
        for student_only in (0, 8):
            say()
            say(f"## Visibility {spread}, {student_only} decisive inputs of the student's own")
            say()
            say("| mean visibility | pairs | no-kd | plain gains | soft adds | best adds |")
            say("|---|---|---|---|---|---|")
            for mean in SHARES if student_only == 0 else (0.25, 0.5, 0.75):
                for pairs in PAIRS:
                    world = world_of(spread, mean, pairs, student_only)
                    told, seen = accuracies(world), simulate(world, options.seeds)
                    measured = {kind: float(values.mean()) for kind, values in seen.items()}
                    cells = []
                    for kind, base in (("plain", "no-kd"), ("soft", "plain"), ("best", "plain")):
                        pair = told[kind] - told[base], measured[kind] - measured[base]
                        cells.append("{:+.1f} / {:+.1f}".format(*pair))
                        if student_only == 0:
                            errors.append(pair)
                    if student_only == 0:
                        found[spread, mean, pairs] = measured
                    say(f"| {mean:g} | {pairs} | {told['no-kd']:.1f} / {measured['no-kd']:.1f} | {' | '.join(cells)} |")
    difference = np.array(errors)
    say()
    say(
        f"Without inputs of the student's own, the formula misses a gain by {np.abs(np.diff(difference)).max():.1f} points at "
        f"most and {np.sqrt((np.diff(difference) ** 2).mean()):.2f} in root mean square, over {len(difference)} gains."
    )
    say.write(options.report)
    if options.figure:
        draw(found, options.figure)


def draw(found: Mapping[tuple[str, float, int], Mapping[str, float]], path: Path) -> None:
    """Where the soft mask helps, predicted (shades and boundary) and simulated (numbers)."""
    means, counts = np.linspace(0.06, 0.94, 45), np.geomspace(72, 9000, 41)
    with style():
        figure, axes = new_figure(7.2, 3.4, columns=2)
        for axis, spread in zip(np.ravel(axes), SPREADS, strict=True):
            value = np.array(
                [
                    [
                        np.subtract(*(accuracies(world_of(spread, m, round(c)))[k] for k in ("soft", "plain")))
                        for c in counts
                    ]
                    for m in means
                ]
            )
            shades = axis.contourf(counts, means, value, levels=np.arange(-4, 4.5, 0.5), cmap="PuOr_r", extend="both")
            axis.contour(counts, means, value, levels=[0], colors=[INK], linewidths=1.4)
            for (kind, mean, pairs), measured in found.items():
                if kind == spread:
                    text = f"{measured['soft'] - measured['plain']:+.1f}".replace("-", "\N{MINUS SIGN}")
                    axis.text(
                        pairs,
                        mean,
                        text,
                        ha="center",
                        va="center",
                        fontsize=6.5,
                        color="white" if text > "+2.6" else INK,
                    )
            axis.set(
                xscale="log",
                xlim=(72, 9000),
                ylim=(0.06, 0.94),
                xlabel="pairs, 100 of them labelled",
                title=f"visibility: {spread}",
            )
            axis.set_xticks(PAIRS, [str(pairs) for pairs in PAIRS])
            axis.minorticks_off()
        np.ravel(axes)[0].set_ylabel("mean visibility of decisive inputs")
        bar = figure.colorbar(shades, ax=axes, label="points that the soft mask adds")
        bar.set_ticks([-4, -2, 0, 2, 4])
        save_figure(figure, path)


if __name__ == "__main__":
    main()
