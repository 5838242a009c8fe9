"""The measured half of docs/what-crosses.md: simulates settings of its sliders and writes table and report.

    python docs/scripts/what_crosses.py --report research/theory/reports/what-crosses-YYYY-MM-DD.md

Half a minute on one core.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "research" / "theory"))
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from gain import World, accuracies, simulate

from common import Report

ROOT = Path(__file__).parents[2]
#: General, teacher-only and student-only factors, labelled and unlabelled pairs of the table on the page.
SETTINGS = ((8, 8, 0, 100, 0), (8, 8, 0, 100, 700), (12, 4, 0, 100, 300), (8, 0, 0, 100, 700), (0, 8, 8, 100, 0))
#: Positions of the sliders in docs/what-crosses.js, from which further settings are drawn.
LABELLED, UNLABELLED = (75, 100, 150, 200, 300, 500, 1000), (0, 100, 300, 700, 1500, 3100, 6300)


def world_of(general: int, teacher_only: int, student_only: int, labelled: int, unlabelled: int) -> World:
    """A setting of the sliders."""
    return World((1.0,) * general + (0.0,) * teacher_only, student_only, labelled, unlabelled)


def gains(world: World, seeds: int) -> np.ndarray:
    """Points from the plain teacher over labels alone, and from the focus over the plain teacher: (2, 2), predicted
    in the first row, simulated in the second."""
    simulated = {kind: values.mean() for kind, values in simulate(world, seeds).items()}
    return np.array([(a["plain"] - a["no-kd"], a["soft"] - a["plain"]) for a in (accuracies(world), simulated)])


def drawn(count: int) -> list[tuple[int, ...]]:
    """Random positions of the sliders, with at least one general factor."""
    generator = np.random.default_rng(0)
    return [
        (
            int(generator.integers(1, 17)),
            int(generator.integers(0, 17)),
            int(generator.integers(0, 9)),
            int(generator.choice(LABELLED)),
            int(generator.choice(UNLABELLED)),
        )
        for _ in range(count)
    ]


def main() -> None:
    """Simulate, write the report, and put the table into the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--settings", type=int, default=40, help="number of random settings")
    parser.add_argument("--report", type=Path, help="Markdown file for the tables")
    options = parser.parse_args()
    say = Report(
        "What crosses: predicted and simulated gains at the sliders of the page", "No times are measured here."
    )
    table = [
        "| general, teacher-only, student-only | labelled, unlabelled | plain teacher | focus adds |",
        "|---|---|---|---|",
    ]
    for setting in SETTINGS:
        told, seen = gains(world_of(*setting), options.seeds)
        cells = [f"{a:+.1f} / {b:+.1f}" for a, b in zip(told, seen, strict=True)]
        table.append(f"| {setting[0]}, {setting[1]}, {setting[2]} | {setting[3]}, {setting[4]} | {' | '.join(cells)} |")
    settings = drawn(options.settings)
    found = np.array([gains(world_of(*setting), options.seeds) for setting in settings])
    misses = found[:, 0] - found[:, 1]
    rms, worst = np.sqrt((misses**2).mean(0)), np.abs(misses).max(0)
    missed = (
        f"At {options.settings} random positions of the sliders, the formula misses the simulated gain of the plain\n"
        f"teacher by {rms[0]:.1f} points in root mean square and {worst[0]:.1f} at most, and what the focus adds by "
        f"{rms[1]:.1f} and {worst[1]:.1f}.\n"
        f"It overrates the plain teacher by {misses.mean(0)[0]:.1f} points on average."
    )
    for line in ("", *table, "", missed):
        say(line)
    say()
    say("| general | teacher-only | student-only | labelled | unlabelled | plain teacher | focus adds |")
    say("|---|---|---|---|---|---|---|")
    for setting, (told, seen) in zip(settings, found, strict=True):
        cells = [f"{a:+.1f} / {b:+.1f}" for a, b in zip(told, seen, strict=True)]
        say(f"| {' | '.join(map(str, setting))} | {' | '.join(cells)} |")
    say.write(options.report)
    if options.report:
        page = ROOT / "docs" / "what-crosses.md"
        before, begin, rest = page.read_text(encoding="utf-8").partition("<!-- what-crosses: begin -->\n")
        _, end, after = rest.partition("<!-- what-crosses: end -->\n")
        intro = f"The model against a **simulation** of it ({options.seeds} seeds; points, predicted / simulated):"
        link = f"{missed}\n[Report](../research/theory/reports/{options.report.name})."
        page.write_text(before + begin + "\n".join((intro, "", *table, "", link, "")) + end + after, encoding="utf-8")


if __name__ == "__main__":
    main()
