"""What our training loop costs beside a lean hand-written PyTorch loop that does the same work.

    python benchmarks/distillation.py --report benchmarks/reports/distillation-YYYY-MM-DD.md

Both distil a student from the same cached logits: the same network, data, optimizer, batches in the same order, epochs,
validation after every epoch and best epoch kept in memory. The two must end with the same weights. Takes a few minutes.
"""

import argparse
import copy
import gc
import statistics
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from common import Report, fresh, seconds
from mfh.data.epochs import EpochShuffle
from mfh.tasks.digits import task
from mfh.training.fitting import distill
from mfh.training.recipe import Recipe

SAMPLES, WIDTH, READ = 1000, 96, 256


class Items(Dataset):
    """Pairs of the user's own, made one by one."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        teacher_input, student_input, target = self.data[index]
        return teacher_input, student_input, int(target)


class WithIndex(Dataset):
    """What a hand-written loop needs to look cached logits up."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        return *self.data[index], index


def tensor_batches(data, seed, batch_size):
    """Functions that give the batches of an epoch and of the validation split."""
    train, val = (split.tensors for split in data)
    shuffle = EpochShuffle(len(train[0]), seed)

    def training(epoch):
        shuffle.set_epoch(epoch)
        for rows in shuffle.order().split(batch_size):
            yield train[1][rows], train[2][rows], rows

    return training, lambda: zip(val[1].split(READ), val[2].split(READ), strict=True)


def loader_batches(data, seed, batch_size):
    """The same from data sets of items, by DataLoader."""
    train, val = data
    shuffle = EpochShuffle(len(train), seed)
    loader = DataLoader(WithIndex(train), batch_size=batch_size, sampler=shuffle)
    reading = DataLoader(val, batch_size=READ)

    def training(epoch):
        shuffle.set_epoch(epoch)
        for _, inputs, target, rows in loader:
            yield inputs, target, rows

    return training, lambda: ((inputs, target) for _, inputs, target in reading)


def lean(student, logits, batches, recipe):
    """Distillation with T = 1 from cached logits, as one would write it for oneself."""
    training, validation = batches
    optimizer = recipe.optimizer(student.parameters())
    best, kept = (-1.0, 0.0), None
    for epoch in range(recipe.epochs):
        student.train()
        summed, seen = torch.zeros(()), 0
        for inputs, target, rows in training(epoch):
            output = student(inputs)
            divergence = F.kl_div(
                F.log_softmax(output, 1), F.log_softmax(logits[rows], 1), log_target=True, reduction="batchmean"
            )
            loss = F.cross_entropy(output, target) + divergence
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            summed += loss.detach() * len(rows)
            seen += len(rows)
        student.eval()
        with torch.no_grad():
            right, missed, count = torch.zeros(()), torch.zeros(()), 0
            for inputs, target in validation():
                output = student(inputs)
                right += (output.argmax(1) == target).sum()
                missed += F.cross_entropy(output, target, reduction="sum")
                count += len(target)
        value = float(right) / count, -float(missed) / count
        assert torch.isfinite(summed / seen)
        if value > best:
            best, kept = value, copy.deepcopy(student.state_dict())
    student.load_state_dict(kept)
    return student


def digits():
    world = task()
    return world.student, (world.train, world.val), tensor_batches


def perceptron():
    generator = torch.Generator().manual_seed(0)

    def split(count):
        inputs = torch.randn(count, WIDTH, generator=generator)
        noisy = inputs[:, :4].sum(1) + torch.randn(count, generator=generator)
        return TensorDataset(torch.randn(count, WIDTH, generator=generator), inputs, (noisy > 0).long())

    def student():
        hidden = [layer for _ in range(2) for layer in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]
        return nn.Sequential(*hidden, nn.Linear(WIDTH, 2))

    return student, (split(SAMPLES), split(500)), tensor_batches


def perceptron_on_items():
    student, data, _ = perceptron()
    return student, tuple(map(Items, data)), loader_batches


CASES = {
    "`digits` (two convolutions)": (digits, 1.05),
    f"three layers of width {WIDTH}": (perceptron, 1.2),
    f"three layers of width {WIDTH}, items of one's own class": (perceptron_on_items, 1.2),
}


def measure(case, epochs, repeats):
    make_student, (train, val), read = case()
    recipe = Recipe(epochs=epochs)
    logits = torch.randn(len(train), 2, generator=torch.Generator().manual_seed(1)) * 2

    def ours():
        fit = distill(None, fresh(make_student), train, val, teacher_logits=logits, recipe=recipe, device="cpu")
        return fit.student

    def theirs():
        return lean(fresh(make_student), logits, read((train, val), 0, recipe.batch_size), recipe)

    times = {ours: [], theirs: []}
    for repeat in range(repeats + 1):  # in turn, so that both meet the same other work; the first warms up
        ends = []
        for run in (ours, theirs) if repeat % 2 else (theirs, ours):
            gc.collect()
            wall, cpu, student = seconds(run)
            ends.append(torch.cat([value.flatten() for value in student.state_dict().values()]))
            if repeat:
                times[run].append((wall, cpu))
        torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-5)
    steps = epochs * -(-len(train) // recipe.batch_size)
    return steps, [tuple(map(statistics.median, zip(*times[run], strict=True))) for run in (ours, theirs)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--report", type=Path, help="markdown file to write")
    parser.add_argument("--repeats", type=int, default=15, help="runs of each loop")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1, help="one is disturbed least by other work on the machine")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    say = Report(
        "Distillation: our loop and a lean one", f"Medians of {options.repeats} runs each, in turn with the other."
    )
    say(f"{options.epochs} epochs of {SAMPLES} samples in batches of 64, 500 samples to validate after each. A step is")
    say("an optimizer step, its share of validation included.")
    say()
    say("| student | lean, ms per step | ours, ms per step | ratio, wall clock | ratio, processor time | target |")
    say("| --- | ---: | ---: | ---: | ---: | ---: |")
    verdicts = []
    for name, (case, target) in CASES.items():
        steps, (ours, theirs) = measure(case, options.epochs, options.repeats)
        wall, cpu = (mine / other for mine, other in zip(ours, theirs, strict=True))
        say(
            f"| {name} | {1000 * theirs[0] / steps:.3f} | {1000 * ours[0] / steps:.3f} | **{wall:.3f}** | {cpu:.3f} "
            f"| {target} |"
        )
        verdicts.append(f"- {name}: the target of {target} is {'met' if max(wall, cpu) <= target else 'MISSED'}.")
    say()
    for verdict in verdicts:
        say(verdict)
    say()
    say("Both loops end with the same weights in every run (checked to 1e-5). The last row reads items one by one: the")
    say("lean loop through a DataLoader, ours through its own reading.")
    say.write(options.report)


if __name__ == "__main__":
    main()
