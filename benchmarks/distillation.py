"""What distillation from a frozen teacher costs, against supervised training of the student alone.

    python benchmarks/distillation.py --report benchmarks/reports/distillation-YYYY-MM-DD.md

Both through `mfh.training`, the same epochs over the same data. The teacher's outputs are computed once per teacher and
reused by all arms, ratios and epochs; what that single pass costs is shown beside it. Takes a few minutes.
"""

import argparse
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

from common import Report, fresh, seconds
from mfh.tasks.digits import task
from mfh.training.fitting import distill, pretrain
from mfh.training.recipe import Recipe

FLOOR = 1.05


def convolutional(channels, pooled):
    layers, before = [], channels
    for count in (16, 32, 64):
        layers += [nn.Conv2d(before, count, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        before = count
    layers[-1] = nn.AdaptiveMaxPool2d(pooled)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * pooled**2, 128), nn.ReLU(), nn.Linear(128, 8))


def images():
    generator = torch.Generator().manual_seed(0)

    def split(count):
        return TensorDataset(
            torch.randn(count, 1, 40, 64, generator=generator),
            torch.randn(count, 3, 64, 64, generator=generator),
            torch.randint(0, 8, (count,), generator=generator),
        )

    return (lambda: convolutional(1, 4)), (lambda: convolutional(3, 4)), split(512), split(64), 3


def digits():
    world = task()
    return world.teacher, world.student, world.train, world.val, 15


CASES = {"digits, 15 epochs": digits, "images of 64 x 64, 3 epochs": images}


def measure(case, runs):
    make_teacher, make_student, train, val, epochs = case()
    recipe, teacher = Recipe(epochs=epochs), fresh(make_teacher).eval()
    with torch.no_grad():
        logits = torch.cat([teacher(part) for part in train.tensors[0].split(256)])
    times = {"alone": [], "cached": [], "once": []}
    pretrain(fresh(make_student), val, val, role="student", recipe=Recipe(epochs=1))  # load Lightning
    common = {"recipe": recipe, "device": "cpu"}
    for _ in range(runs):  # in turn, so that all meet the same other work
        times["alone"].append(seconds(pretrain, fresh(make_student), train, val, role="student", **common))
        times["cached"].append(seconds(distill, None, fresh(make_student), train, val, teacher_logits=logits, **common))
        times["once"].append(seconds(distill, teacher, fresh(make_student), train, val, **common))
    best = {kind: min(wall for wall, *_ in values) for kind, values in times.items()}
    best["cpu"] = min(cpu for _, cpu, _ in times["cached"]) / min(cpu for _, cpu, _ in times["alone"])
    return best


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--report", type=Path, help="markdown file to write")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1, help="one is disturbed least by other work on the machine")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    say = Report("Distillation: speed", f"Least of {options.runs} runs each.")
    say("| training | student alone, s | distilled, s | ratio | of CPU time | with the teacher's pass, s | ratio |")
    say("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    verdicts = []
    for name in CASES:
        best = measure(CASES[name], options.runs)
        ratio = best["cached"] / best["alone"]
        say(
            f"| {name} | {best['alone']:.2f} | {best['cached']:.2f} | **{ratio:.3f}** | {best['cpu']:.3f} "
            f"| {best['once']:.2f} | {best['once'] / best['alone']:.3f} |"
        )
        verdicts.append(f"- {name}: the floor of {FLOOR} {'holds' if ratio <= FLOOR else 'is MISSED'}.")
    say()
    for verdict in verdicts:
        say(verdict)
    say()
    say(
        "Distilled: from logits computed once and shared by arms, ratios and epochs. With the teacher's one pass: what a"
    )
    say("single distillation costs from nothing.")
    say.write(options.report)


if __name__ == "__main__":
    main()
