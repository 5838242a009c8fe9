"""Measures the tables of benchmarks/reports/digits-networks-*.md: python docs/scripts/digits_border.py"""

import numpy as np
import torch
import torch.nn.functional as F

from mfh.tasks.digits import task
from mfh.tasks.digits.world import dial, spectrogram

torch.set_num_threads(1)


def trained(network, data, side):
    """Train on labels for 15 epochs, keep the best by validation; (network, test accuracy)."""
    inputs, target = data.train.tensors[side], data.train.tensors[2]
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    best = -1.0
    for _ in range(15):
        for batch in torch.randperm(len(target)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(network(inputs[batch]), target[batch]).backward()
            optimizer.step()
        if (accuracy := score(network, data.val.tensors, side)) > best:
            best, state = accuracy, {name: value.clone() for name, value in network.state_dict().items()}
    network.load_state_dict(state)
    return network, score(network, data.test.tensors, side)


@torch.no_grad()
def score(network, tensors, side):
    return (network(tensors[side]).argmax(1) == tensors[2]).float().mean().item()


@torch.no_grad()
def change_by_column(network, which):
    """Squared change of `flatten` when one of two digits is replaced, per time column.

    Returns it relative to the difference of unrelated recordings, and the share under the other key.
    """
    generator = np.random.default_rng(0)
    digits = generator.integers(10, size=(1000, 2))
    other = digits.copy()
    other[:, which] = (digits[:, which] + generator.integers(1, 10, size=1000)) % 10
    trunk = network[: list(dict(network.named_children())).index("flatten") + 1]
    before, after = (
        trunk(spectrogram(dial(d, 1.0, np.random.default_rng(5)))).reshape(1000, -1, 8) for d in (digits, other)
    )
    change = (after - before).square().mean((0, 1))
    own = change[4 * which : 4 * which + 4].sum()
    return change / (2 * before.var(0).mean(0)), 1 - (own / change.sum()).item()


worlds = {"1/1/0": ({}, 12), "2/1/0": ({"general": 2}, 4), "1/1/1": ({"student_only": 1, "student_distractors": 0}, 4)}
for name, (knobs, seeds) in worlds.items():
    accuracies, changes = [], []
    for seed in range(seeds):
        data = task(seed=seed, **knobs)
        torch.manual_seed(seed)
        teacher, teacher_accuracy = trained(data.teacher(), data, 0)
        torch.manual_seed(seed)
        _, student_accuracy = trained(data.student(), data, 1)
        accuracies.append((teacher_accuracy, student_accuracy))
        if name == "1/1/0":
            changes.append([change_by_column(teacher, which) for which in (0, 1)])
    mean, sd = np.mean(accuracies, 0) * 100, np.std(accuracies, 0, ddof=1) * 100
    print(f"{name}: teacher {mean[0]:.1f} ({sd[0]:.1f}), student {mean[1]:.1f} ({sd[1]:.1f}), {seeds} seeds")
    for which in (0, 1) if changes else ():
        columns = torch.stack([change[which][0] for change in changes]).mean(0).tolist()
        shares = [100 * change[which][1] for change in changes]
        print(f"digit {which}:", *(f"{c:.4f}" for c in columns), f"other key {min(shares):.1f}-{max(shares):.1f} %")
