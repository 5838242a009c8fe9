"""How fast the Gaussian laboratory is, against a plain PyTorch loop that does the same work.

    python benchmarks/gaussian.py --report benchmarks/reports/gaussian-YYYY-MM-DD.md

The loop is what one writes first: `nn.Linear`, `torch.optim.SGD`, one model at a time, the test accuracy after every
step, Algorithm 1 by 100 permutations. It runs on the same data as ours, in the same process, and its accuracies
are compared with ours, so that both are known to have done the same. Takes about ten minutes.
"""

import argparse
import os
import resource
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn

import mfh.gaussian as gaussian
from common import Report, seconds
from mfh.gaussian.sampling import published_modification, published_sweep

EXPERIMENTS = {
    "vary gamma": gaussian.vary_gamma,
    "vary alpha": gaussian.vary_alpha,
    "modify gamma": gaussian.modify_gamma,
}


def train(inputs, target, test_inputs, test_target, teacher_logits=None, steps=1000):
    """One classifier, full-batch SGD, the test accuracy after every step."""
    model = nn.Linear(inputs.shape[1], 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    accuracy = 0.0
    for _ in range(steps):
        logits = model(inputs)
        loss = nn.functional.cross_entropy(logits, target)
        if teacher_logits is not None:
            loss = loss + nn.functional.kl_div(logits.log_softmax(1), teacher_logits.softmax(1), reduction="mean")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            accuracy = (model(test_inputs).argmax(1) == test_target).float().mean().item()
    with torch.no_grad():
        return model(inputs), 100 * accuracy


def train_jointly(teacher_inputs, student_inputs, target, steps=1000):
    teacher, student = nn.Linear(teacher_inputs.shape[1], 2), nn.Linear(student_inputs.shape[1], 2)
    optimizer = torch.optim.SGD([*teacher.parameters(), *student.parameters()], lr=0.01, momentum=0.9)
    for _ in range(steps):
        ours, theirs = teacher(teacher_inputs), student(student_inputs)
        loss = nn.functional.cross_entropy(ours, target) + nn.functional.cross_entropy(theirs, target)
        loss = loss + nn.functional.mse_loss(ours, theirs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return teacher, student


def permutation_scores(teacher, student, teacher_inputs, student_inputs, repeats=100):
    scores = torch.zeros(teacher_inputs.shape[1])
    with torch.no_grad():
        reference = student(student_inputs)
        for channel in range(len(scores)):
            for _ in range(repeats):
                permuted = teacher_inputs.clone()
                permuted[:, channel] = permuted[torch.randperm(len(permuted)), channel]
                scores[channel] += nn.functional.mse_loss(teacher(permuted), reference)
    return scores / repeats


def tensors(draw, world):
    return (
        torch.from_numpy(draw.teacher_inputs(world)).float(),
        torch.from_numpy(draw.student_inputs(world)).float(),
        torch.from_numpy(draw.target).long(),
    )


def loop_sweep(settings, num_seeds):
    """(seeds, settings, 3) accuracies of teacher, No-KD and KD."""
    result = []
    for seed in range(num_seeds):
        rows = []
        for index, world in enumerate(settings.worlds):
            x1, x2, y = tensors((draws := published_sweep(seed, world, 200, 1000))[0], world)
            t1, t2, ty = tensors(draws[1], world)
            teacher_logits, teacher = train(x1, y, t1, ty)
            # The student alone is the same in every setting: the loop trains it once, too.
            alone = train(x2, y, t2, ty)[1] if index == 0 else rows[0][1]
            rows.append((teacher, alone, train(x2, y, t2, ty, teacher_logits)[1]))
        result.append(rows)
    return np.array(result)


def loop_modification(settings, num_seeds):
    """(seeds, settings, 3) accuracies of regular teacher, No-KD and KD by Algorithm 1; other arms are trained too."""
    result = []
    for seed in range(42, 42 + num_seeds):
        rows = []
        for world in settings.worlds:
            first, test, fresh = (tensors(draw, world) for draw in published_modification(seed, world, 200, 1000))
            scores = permutation_scores(*train_jointly(*first), first[0], first[1])
            g = world.venn.general
            kept = {
                "regular": torch.arange(50),
                "random": torch.randperm(50)[:g],
                "true-general": torch.arange(g),
                "algorithm-1": scores.argsort(descending=True)[:g],
            }
            accuracy = {}
            for arm, places in kept.items():
                logits, accuracy["teacher", arm] = train(fresh[0][:, places], fresh[2], test[0][:, places], test[2])
                accuracy["student", arm] = train(fresh[1], fresh[2], test[1], test[2], logits)[1]
            alone = train(fresh[1], fresh[2], test[1], test[2])[1]
            rows.append((accuracy["teacher", "regular"], alone, accuracy["student", "algorithm-1"]))
        result.append(rows)
    return np.array(result)


def ours_like_loop(frame, arm):
    """Means over seeds, (settings, 3), in the loop's order."""
    means = frame.groupby(["alpha", "gamma", "role", "arm"], sort=False)["accuracy"].mean().unstack(["role", "arm"])
    return means[[("teacher", "regular"), ("student", "no-kd"), ("student", arm)]].to_numpy()


def table_row(name, times):
    loop, ours, loop_cpu, ours_cpu = times
    return (
        f"| {name} | {loop:.1f} | {ours:.3f} | **{loop / ours:.0f}** "
        f"| {loop_cpu:.1f} | {ours_cpu:.3f} | {loop_cpu / ours_cpu:.0f} |"
    )


def peak_memory(num_seeds, chunk_size):
    """Peak resident memory of a fresh process that runs vary_alpha, in MiB."""
    # The high-water mark of rusage may be the parent's; the kernel's own starts anew with the program.
    code = (
        "import re, mfh.gaussian as g\n"
        f"g.vary_alpha({num_seeds}, chunk_size={chunk_size})\n"
        "print(int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) / 1024)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return float(out)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10, help="of the loop")
    parser.add_argument("--many", type=int, default=1000, help="seeds of our long run")
    parser.add_argument("--report", type=Path, help="write a Markdown report here as well")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="reduction: 'mean'")  # the published reduction, on purpose
    say = Report("Gaussian laboratory: speed", f"numpy {np.__version__}.")
    say(f"## {options.seeds} seeds: the loop against ours")
    say()
    for experiment in EXPERIMENTS.values():
        experiment(1)  # compile, or load what was compiled
    loops = {
        "vary gamma": (loop_sweep, gaussian.VaryGamma(), "regular"),
        "vary alpha": (loop_sweep, gaussian.VaryAlpha(), "regular"),
        "modify gamma": (loop_modification, gaussian.ModifyGamma(), "algorithm-1"),
    }
    say("| experiment | loop, s | ours, s | ratio | loop, CPU s | ours, CPU s | ratio | largest difference, points |")
    say("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    totals = np.zeros(4)
    for name, (function, settings, arm) in loops.items():
        # Before and after the loop, so that both meet the same other work; the lesser of each kind of time.
        ours = [seconds(EXPERIMENTS[name], options.seeds) for _ in range(3)]
        wall, cpu, accuracies = seconds(function, settings, options.seeds)
        ours += [seconds(EXPERIMENTS[name], options.seeds) for _ in range(3)]
        times = np.array([wall, min(o[0] for o in ours), cpu, min(o[1] for o in ours)])
        totals += times
        difference = np.abs(accuracies.mean(axis=0) - ours_like_loop(ours[0][2], arm)).max()
        say(table_row(name, times) + f" {difference:.2f} |")
    say(table_row("all three", totals) + " |")
    loop_total = totals[0]
    say()
    say("The floor is a ratio of 100. Ours is the best of three runs before the loop and three after it, without")
    say("compilation (a few seconds once, then cached). Wall time uses all cores for ours and one for the loop, whose")
    say(
        "operations are too small for more; CPU time counts all cores and hardly depends on other work. The last column"
    )
    say("compares mean accuracies: the loop draws other initial weights and samples Algorithm 1's permutations.")
    say()
    say(f"## {options.many} seeds")
    say()
    many = {name: seconds(f, options.many)[0] for name, f in EXPERIMENTS.items()}
    tenth = {name: seconds(f, options.many // 10)[0] for name, f in EXPERIMENTS.items()}
    say(f"| experiment | {options.many // 10} seeds, s | {options.many} seeds, s | ratio |")
    say("| --- | ---: | ---: | ---: |")
    for name in EXPERIMENTS:
        say(f"| {name} | {tenth[name]:.1f} | {many[name]:.1f} | {many[name] / tenth[name]:.1f} |")
    many_total = sum(many.values())
    say(f"| all three | {sum(tenth.values()):.1f} | {many_total:.1f} | {many_total / sum(tenth.values()):.1f} |")
    say()
    verdict = "less" if many_total < loop_total else "MORE"
    say(f"{options.many} seeds of all three took {many_total:.0f} s: {verdict} than the")
    say(f"loop's {loop_total:.0f} s for {options.seeds}.")
    say("Ten times the seeds should cost ten times as much.")
    say()
    say("## Memory")
    say()
    say("| seeds | chunk | peak resident memory, MiB |")
    say("| ---: | ---: | ---: |")
    for num_seeds, chunk in ((20, 20), (80, 20), (320, 20), (80, 80)):
        say(f"| {num_seeds} | {chunk} | {peak_memory(num_seeds, chunk):.0f} |")
    say()
    say("Bounded by the chunk, not by the number of seeds.")
    say()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    say(f"Load average at the end: {os.getloadavg()[0]:.1f}. Peak memory of the benchmark itself: {peak:.0f} MiB.")
    say.write(options.report)


if __name__ == "__main__":
    main()
