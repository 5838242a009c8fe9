"""Networks of every kind a user may bring, and slow, independent ways to compute what the package computes fast."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


def seeded(make: Callable[[], Any], seed: int = 0) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Residual(nn.Module):
    """Paths around the layer, one of them modified in place."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(4 * 36, 3)
        self.skip = nn.Linear(72, 3)

    def forward(self, x):
        y = self.relu(self.stem(x))
        y = self.relu(self.conv(y) + y)
        return self.fc(y.view(y.size(0), -1)) + self.skip(x.reshape(x.shape[0], -1))


class Functional(nn.Module):
    """Sizes computed from the batch, constants made on the way, functional activations."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.out = nn.Linear(5, 6), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        count, length, _ = x.shape
        hidden = F.relu(self.first(x.reshape(count * length, -1)).reshape(count, length, 6))
        hidden = torch.tanh(self.second(hidden)).reshape(count * length, -1).reshape(count, length, -1)
        weight = torch.arange(1, length + 1, dtype=hidden.dtype)[None, :, None] / length
        return self.out((hidden * weight).mean(1))


class DictNet(nn.Module):
    """Two inputs by name, one reaches the tail only."""

    def __init__(self):
        super().__init__()
        self.sound, self.look, self.join = nn.Linear(5, 6), nn.Linear(4, 6), nn.Linear(12, 3)

    def forward(self, inputs):
        sound = torch.tanh(self.sound(inputs["sound"]))
        return self.join(torch.cat([torch.tanh(sound), torch.tanh(self.look(inputs["more"]["look"]))], dim=1))


class Attention(nn.Module):
    """A transformer whose padding mask bypasses every layer."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(5, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.3)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.out = nn.Linear(8, 3)

    def forward(self, inputs):
        hidden = self.encoder(self.embed(inputs["x"]), src_key_padding_mask=inputs["padding"])
        keep = (~inputs["padding"])[:, :, None]
        return self.out((hidden * keep).sum(1) / keep.sum(1))


class Recurrent(nn.Module):
    """A recurrent layer, whose output is a tuple, after the tapped one."""

    def __init__(self, kind=nn.LSTM):
        super().__init__()
        self.embed, self.rnn, self.out = nn.Linear(5, 6), kind(6, 7, batch_first=True), nn.Linear(7, 3)

    def forward(self, x):
        hidden, _ = self.rnn(self.embed(x))
        return self.out(hidden[:, -1])


class Branching(nn.Module):
    """Control flow that depends on values: cannot be traced."""

    def __init__(self):
        super().__init__()
        self.first, self.out = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x):
        hidden = self.first(x)
        if hidden.sum() > 1e9:
            hidden = hidden * 2
        return self.out(torch.tanh(hidden))


class Mixing(nn.Module):
    """What happens to a sample depends on its batch."""

    def __init__(self):
        super().__init__()
        self.first, self.out = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x):
        hidden = self.first(x)
        return self.out(torch.tanh(hidden - hidden.mean(0)))


class BatchScale(nn.Module):
    """A number computed from the whole batch goes around the layer."""

    def __init__(self):
        super().__init__()
        self.first, self.out = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.out(torch.tanh(self.first(x)) * x.abs().amax())


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.relu, self.out, self.unused = nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 3), nn.Linear(2, 2)

    def forward(self, x):
        return self.out(self.relu(self.first(self.relu(x))))


class Tied(nn.Module):
    """Two layers share one weight."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.out = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 3)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.out(torch.relu(self.second(torch.relu(self.first(x)))))


class Blocks(nn.Module):
    """Layers in containers, a direct path into the last one."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(5, 5), nn.Dropout(0.5), nn.GELU()) for _ in range(3))
        self.out = nn.Linear(5, 3)

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x)
        return self.out(x)


def conv():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Dropout(0.4),
        nn.AdaptiveAvgPool2d((3, 2)),
        nn.Flatten(),
        nn.Linear(24, 7),
        nn.ReLU(inplace=True),
        nn.Linear(7, 3),
    )


def padding(count, length, seed=0):
    lengths = torch.randint(2, length + 1, (count,), generator=torch.Generator().manual_seed(seed))
    return torch.arange(length)[None] >= lengths[:, None]


@dataclass
class Case:
    make: Callable[[], nn.Module]
    inputs: Callable[[int, int], Any]  # (count, seed)
    layer: str
    traced: bool = True
    channel_dim: int = 1


def image(count, seed):
    return randn(count, 2, 6, 6, seed=seed)


def flat(count, seed):
    return randn(count, 5, seed=seed)


def series(count, seed):
    return randn(count, 4, 5, seed=seed)


CASES = {
    "in-place after a convolution": Case(conv, image, "0"),
    "convolution, pooled": Case(conv, image, "4"),
    "flattened": Case(conv, image, "5"),
    "flattened by the head": Case(
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(64, 7), nn.Tanh(), nn.Linear(7, 3)),
        image,
        "0",
    ),
    "hidden": Case(conv, image, "7"),
    "logits themselves": Case(conv, image, "8"),
    "residual, in the block": Case(Residual, image, "conv"),
    "residual, around": Case(Residual, image, "stem"),
    "functional, sizes from the batch": Case(Functional, series, "second", channel_dim=2),
    "dictionary": Case(
        DictNet,
        lambda n, s: {"sound": randn(n, 5, seed=s), "more": {"look": randn(n, 4, seed=s + 1)}},
        "sound",
    ),
    "attention": Case(
        Attention,
        lambda n, s: {"x": randn(n, 4, 5, seed=s), "padding": padding(n, 4, s)},
        "encoder.layers.0",
        channel_dim=-1,
    ),
    "inside attention": Case(
        Attention,
        lambda n, s: {"x": randn(n, 4, 5, seed=s), "padding": padding(n, 4, s)},
        "encoder.layers.1.linear1",
        channel_dim=2,
    ),
    "before a recurrent layer": Case(Recurrent, series, "embed", channel_dim=2),
    "linear by position": Case(
        lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)),
        series,
        "1",
    ),
    "branching": Case(Branching, flat, "first", traced=False),
    "tied": Case(Tied, flat, "first"),
    "blocks": Case(Blocks, flat, "blocks.1.2"),
}


def run(model, layer, inputs, change=None):
    """(activation, logits) of one whole forward; `change` maps the activation to what goes on instead."""
    seen = []

    def hook(_module, _args, output):
        seen.append(output.clone())
        return output.clone() if change is None else change(output.clone())

    modes = [(m, m.training) for m in model.modules()]
    handle = model.get_submodule(layer).register_forward_hook(hook)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            return seen, model.eval()(inputs)
    finally:
        handle.remove()
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, mode in modes:
            module.training = mode


def mse(h, s):
    return (h - s).square().mean(1)


def l1(h, s):
    return (h - s).abs().mean(1)


def slow_rises(teacher, student, pairs, layer, permutations, *, channel_dim=1, distance=mse):
    """(M, C): rise of the distance, one whole forward per channel and permutation."""
    teacher_input, student_input, _ = pairs
    (activation,), logits = run(teacher, layer, teacher_input)
    with torch.no_grad():
        target = student.eval()(student_input).double()
    base = distance(logits.double(), target).mean()
    rises = []
    for permutation in permutations:
        row = []
        for c in range(activation.shape[channel_dim]):

            def change(z, c=c, permutation=permutation):
                moved = z.movedim(channel_dim, 0)
                moved[c] = moved[c][permutation]
                return z

            _, changed = run(teacher, layer, teacher_input, change)
            row.append(distance(changed.double(), target).mean() - base)
        rises.append(torch.stack(row))
    return torch.stack(rises)


def drawn(count, repeats, seed=0):
    """The permutations the package draws."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randperm(count, generator=generator) for _ in range(repeats)]


def rotations(count):
    """All rotations: their mean is the mean over all permutations, since every donor serves every sample once."""
    return [torch.arange(count).roll(k) for k in range(count)]


def batches(pairs, size):
    """Cut (teacher input, student input, target) into batches."""
    count = len(pairs[2])

    def cut(value, rows):
        return {k: cut(v, rows) for k, v in value.items()} if isinstance(value, dict) else value[rows]

    return [tuple(cut(part, slice(i, i + size)) for part in pairs) for i in range(0, count, size)]
