"""A focused teacher in a plain PyTorch loop: the mask needs no trainer.

    python examples/03_own_training_loop.py

Takes a few seconds on one core.
"""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import mfh

torch.manual_seed(0)


def network(inputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 64), nn.ReLU(), nn.Linear(64, 2))


def pairs(count: int) -> TensorDataset:
    both, rich, poor = (torch.randn(count, width) for width in (10, 10, 20))
    target = (both.sum(1) + rich.sum(1) > 0).long()
    return TensorDataset(torch.cat([both, rich], 1), torch.cat([both, poor], 1), target)


def train(network: nn.Module, loss_of_batch) -> None:
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in range(5):
        for batch in DataLoader(data, batch_size=64, shuffle=True):
            loss = loss_of_batch(*batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


data, test = pairs(600), pairs(2000)
teacher, first_student, student = network(20), network(30), network(30)
cross_entropy = nn.CrossEntropyLoss()

train(teacher, lambda t, _s, y: cross_entropy(teacher(t), y))
train(first_student, lambda _t, s, y: cross_entropy(first_student(s), y))

# How much of each of the teacher's 64 channels can be seen in the student's modality?
loader = DataLoader(data, batch_size=64)
saliency = mfh.channel_saliency(teacher, first_student, loader, layer="1", score="probe")
focused = mfh.mask_channels(teacher, saliency.mask("soft")).eval().requires_grad_(False)

loss_of = mfh.KDLoss(temperature=2.0)
train(student, lambda t, s, y: loss_of(student(s), focused(t), y))

for name, trained in (("labels only", first_student), ("focused teacher", student)):
    with torch.no_grad():
        right = trained.eval()(test.tensors[1]).argmax(1) == test.tensors[2]
    print(f"student from {name}: {100 * right.double().mean():.1f} % of the test pairs (one seed shows nothing)")
