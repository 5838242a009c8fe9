"""Two networks of your own and paired data of your own form: a transformer that reads a padded sequence beside a number
of readings, and a student that reads three sensors.

    python examples/02_own_networks.py
    mfh study examples/02_own_networks.py --num-seeds 4      # the same from the command line

Takes about twenty seconds on one core. Data are drawn anew for every seed, so intervals speak about new data.
"""

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import mfh

LENGTH = 6


class Recordings(Dataset):
    """Machines: the vibration is heard by a microphone and felt by a sensor, the voices around it only heard."""

    def __init__(self, count: int, generator: torch.Generator) -> None:
        self.shaking, self.voices = torch.randn(2, count, 3, generator=generator)
        noise = torch.randn(count, LENGTH, 6, generator=generator)
        self.sound = torch.cat([self.shaking, self.voices], 1)[:, None] + noise
        self.length = torch.randint(3, LENGTH + 1, (count,), generator=generator)
        self.felt = self.shaking + 0.5 * torch.randn(count, 3, generator=generator)
        self.label = (self.shaking.sum(1) + self.voices.sum(1) > 0).long()

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, index: int) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        padding = torch.arange(LENGTH) >= self.length[index]
        return {"sound": self.sound[index], "padding": padding}, self.felt[index], self.label[index]


class Listener(nn.Module):
    """The teacher: any nn.Module with one input (here a dict) that returns logits."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 32)
        self.attend = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True)
        self.pooled = nn.Identity()  # a name for the place to look at: 32 channels
        self.classify = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        padding = inputs["padding"]
        hidden = self.attend(self.embed(inputs["sound"]), src_key_padding_mask=padding)
        heard = (hidden * ~padding[:, :, None]).sum(1) / (~padding).sum(1, keepdim=True)
        return self.classify(self.pooled(heard))


def sensor() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 2))


def task(seed: int = 0) -> mfh.Task:
    draws = torch.Generator().manual_seed(seed)
    return mfh.Task(
        name="machines",
        teacher=Listener,
        student=sensor,
        layer="pooled",
        train=Recordings(300, draws),
        val=Recordings(200, draws),
        test=Recordings(500, draws),
        recipe=mfh.Recipe(epochs=4, optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=3e-3)),
    )


if __name__ == "__main__":
    result = mfh.study(task, arms=["no-kd", "regular", "soft"], num_seeds=2)
    print(result.by_seed().round(3))
