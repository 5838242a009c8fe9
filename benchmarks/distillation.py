"""What `mfh.distill` costs beside a lean loop written by hand: the same networks, data, epochs and steps.

    python benchmarks/distillation.py --report benchmarks/reports/distillation-YYYY-MM-DD.md

Both distil from logits computed once. The lean loop has what a result needs and nothing else: a shuffle for each epoch,
KL divergence and cross-entropy, Adam, validation after each epoch, and the weights of the best epoch. Both are run in
turn, so that they meet the same other work; ratios are taken pair by pair. Takes a few minutes.
"""

import argparse
import copy
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from common import Report, fresh, seconds
from mfh.tasks.digits import task
from mfh.training.fitting import distill, pretrain
from mfh.training.recipe import Recipe


def lean(student, train, val, logits, epochs, batch_size=64):
    """Distillation as one would write it for this very case: tensors in memory, one device."""
    _, inputs, target = train.tensors
    _, val_inputs, val_target = val.tensors
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-3)
    best, weights = (-1.0, 0.0), None
    for epoch in range(epochs):
        student.train()
        order = torch.randperm(len(target), generator=torch.Generator().manual_seed(epoch))
        for rows in order.split(batch_size):
            optimizer.zero_grad()
            output = student(inputs[rows])
            taught = F.log_softmax(logits[rows], 1)
            divergence = F.kl_div(F.log_softmax(output, 1), taught, reduction="batchmean", log_target=True)
            (F.cross_entropy(output, target[rows]) + divergence).backward()
            optimizer.step()
        student.eval()
        with torch.no_grad():
            output = torch.cat([student(part) for part in val_inputs.split(256)])
            accuracy = float((output.argmax(1) == val_target).double().mean())
            loss = float(F.cross_entropy(output, val_target))
        if (accuracy, -loss) > best:
            best, weights = (accuracy, -loss), copy.deepcopy(student.state_dict())
    student.load_state_dict(weights)
    return student


def mlp(inputs, classes=8):
    return nn.Sequential(
        nn.Linear(inputs, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, classes)
    )  # fmt: skip


def small():
    generator = torch.Generator().manual_seed(0)

    def split(count):
        teacher_input, student_input = (torch.randn(count, width, generator=generator) for width in (40, 30))
        return TensorDataset(teacher_input, student_input, torch.randint(0, 8, (count,), generator=generator))

    return (lambda: mlp(40)), (lambda: mlp(30)), split(1000), split(200), 30


def digits():
    world = task()
    return world.teacher, world.student, world.train, world.val, 15


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


class ItemByItem(Dataset):
    """The same data as a data set of one's own, which gives one item at a time."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        return self.data[index]


#: Name -> (what to train, the most that the ratio may be).
CASES = {
    "digits, 15 epochs": (digits, 1.05),
    "three layers of width 96, 1000 samples, 30 epochs": (small, 1.2),
    "images of 64 x 64, 3 epochs": (images, 1.05),
}


def measure(case, runs):
    make_teacher, make_student, train, val, epochs = case()
    recipe, teacher = Recipe(epochs=epochs), fresh(make_teacher).eval()
    with torch.no_grad():
        logits = torch.cat([teacher(part) for part in train.tensors[0].split(256)])
    items = [ItemByItem(split) for split in (train, val)]
    kinds = {
        "lean": lambda: lean(fresh(make_student), train, val, logits, epochs),
        "ours": lambda: distill(
            None, fresh(make_student), train, val, teacher_logits=logits, recipe=recipe, device="cpu"
        ),
        "labels": lambda: pretrain(fresh(make_student), train, val, role="student", recipe=recipe, device="cpu"),
        "teacher": lambda: distill(teacher, fresh(make_student), train, val, recipe=recipe, device="cpu"),
        "items": lambda: distill(None, fresh(make_student), *items, teacher_logits=logits, recipe=recipe, device="cpu"),
    }
    taken = {kind: [] for kind in kinds}
    for run in range(runs + 1):
        for kind, function in kinds.items():
            wall, cpu, _ = seconds(function)
            if run:  # the first of each loads code
                taken[kind].append((wall, cpu))
    return taken


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--report", type=Path, help="markdown file to write")
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1, help="one is disturbed least by other work on the machine")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    say = Report("Distillation beside a lean loop", f"Medians of {options.runs} runs each, ratios pair by pair.")
    say("| training | lean loop, s | `distill`, s | ratio | of CPU time | at most |")
    say("| --- | ---: | ---: | ---: | ---: | ---: |")
    rest = []
    for name, (case, most) in CASES.items():
        taken = measure(case, options.runs)
        pairs = list(zip(taken["ours"], taken["lean"], strict=True))
        wall, cpu = (median(ours[place] / theirs[place] for ours, theirs in pairs) for place in (0, 1))
        middle = {kind: median(seconds for seconds, _ in values) for kind, values in taken.items()}
        say(
            f"| {name} | {middle['lean']:.3f} | {middle['ours']:.3f} | **{wall:.3f}** | {cpu:.3f} "
            f"| {most} {'(met)' if wall <= most else '(MISSED)'} |"
        )
        rest.append((name, middle))
    say()
    say(
        "Beside them, in seconds: training on labels alone, distillation with the teacher's one pass over the data, and"
    )
    say("distillation from a data set that gives one item at a time.")
    say()
    say("| training | labels alone | with the teacher's pass | item by item |")
    say("| --- | ---: | ---: | ---: |")
    for name, middle in rest:
        say(f"| {name} | {middle['labels']:.3f} | {middle['teacher']:.3f} | {middle['items']:.3f} |")
    say.write(options.report)


if __name__ == "__main__":
    main()
