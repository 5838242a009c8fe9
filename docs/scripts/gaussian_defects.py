"""What each defect of the published Gaussian scripts does to Table 2: prints the tables of its report.

python docs/scripts/gaussian_defects.py --num-seeds 200
"""

import argparse

import numpy as np

from mfh.files import markdown_table
from mfh.gaussian import ModifyGamma, fit, gains, initial_classifiers, modify_gamma
from mfh.gaussian.sampling import published_modification


def regular_students(world, seeds):
    """Gains over No-KD, (variant, seeds), of regular KD done right and with the published slips."""
    draws = [published_modification(seed, world, 200, 1000) for seed in seeds]
    teacher_inputs, student_inputs = (
        [np.stack([getattr(splits[k], side)(world) for splits in draws]) for k in range(3)]
        for side in ("teacher_inputs", "student_inputs")
    )
    target = [np.stack([splits[k].target for splits in draws]) for k in range(3)]
    first, test, fresh = range(3)

    start = initial_classifiers(np.random.default_rng(0), 50)
    teachers = {k: fit(teacher_inputs[k], target[k], start) for k in (first, fresh)}
    soft = {k: teacher.probability(teacher_inputs[fresh]) for k, teacher in teachers.items()}

    def student(inputs, teacher=None):
        trained = fit(inputs, target[fresh], start, teacher_probability=None if teacher is None else soft[teacher])
        return trained.accuracy(student_inputs[test], target[test])[:, 0]

    alone = student(student_inputs[fresh])
    return {
        "none: as here": student(student_inputs[fresh], fresh) - alone,
        "modalities swapped": student(teacher_inputs[fresh], fresh) - alone,
        "teacher fitted on the first draw": student(student_inputs[fresh], first) - alone,
        "both, as published": student(teacher_inputs[fresh], first) - alone,
    }


def distinct_share(num_kept, dim, seeds):
    """Mean number of different inputs when `num_kept` of `dim` are drawn with replacement."""
    return np.mean([len(set(np.random.default_rng(seed).integers(dim, size=num_kept))) for seed in seeds])


def cell(values):
    return f"{np.mean(values):+.2f} \u00b1 {np.std(values, ddof=1) / np.sqrt(len(values)):.2f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-seeds", type=int, default=200)
    num_seeds = parser.parse_args().num_seeds
    seeds = range(42, 42 + num_seeds)
    worlds = ModifyGamma().worlds
    headings = [f"{world.venn.gamma:.2f}" for world in worlds]

    print(f"Gain of regular KD over No-KD in points, by gamma; mean and standard error of {num_seeds} seeds.\n")
    columns = [regular_students(world, seeds) for world in worlds]
    rows = [[name, *(cell(column[name]) for column in columns)] for name in columns[0]]
    print(markdown_table(["defect", *headings], rows))

    print("Gain of each arm over No-KD in points, by gamma and reduction of the divergence.\n")
    rows, frames = [], {}
    for reduction in ("mean", "batchmean"):
        frames[reduction] = modify_gamma(num_seeds, settings=ModifyGamma(reduction=reduction))
        gain = gains(frames[reduction])
        for arm in ("regular", "algorithm-1"):
            part = gain[gain["arm"] == arm]
            cells = [cell(part[np.isclose(part["gamma"], world.venn.gamma)]["gain"]) for world in worlds]
            rows.append([reduction, arm, *cells])
    print(markdown_table(["reduction", "arm", *headings], rows))

    print("Sampling Algorithm 1 with 100 permutations instead of all: general inputs found, and the gain.\n")
    sampled = modify_gamma(num_seeds, settings=ModifyGamma(permutations=100))
    rows = []
    for name, frame in (("all", frames["mean"]), ("100", sampled)):
        found, cells = frame.attrs["general_found"], []
        gain = gains(frame).query("arm == 'algorithm-1'")
        for world in worlds:
            share = np.mean([r["found"] for r in found if np.isclose(r["gamma"], world.venn.gamma)])
            cells.append(
                f"{share:.2f} of {world.venn.general}, {cell(gain[np.isclose(gain.gamma, world.venn.gamma)].gain)}"
            )
        rows.append([name, *cells])
    print(markdown_table(["permutations", *headings], rows))

    print("Random teachers: different inputs left when they are drawn with replacement.\n")
    cells = [f"{distinct_share(world.venn.general, 50, seeds):.1f} of {world.venn.general}" for world in worlds]
    print(markdown_table(headings, [cells]))


if __name__ == "__main__":
    main()
