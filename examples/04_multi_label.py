"""Several labels per sample, text for the teacher and a table for the student.

    python examples/04_multi_label.py

An article is about any of four topics. The teacher reads its words, the student a table: how long it is, how many
links it has, where it was filed. Two topics leave traces in both, two only in the words. Takes about ten seconds.
"""

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import mfh

TOPICS, WORDS, LENGTH = 4, 40, 12


class Articles(Dataset):
    def __init__(self, count: int, generator: torch.Generator) -> None:
        self.topics = (torch.rand(count, TOPICS, generator=generator) < 0.4).long()
        # Word 1 to 5 belong to the first topic and so on; the rest are filling. 0 is padding.
        own = 1 + 5 * torch.multinomial(self.topics + 0.05, LENGTH, replacement=True, generator=generator)
        own = own + torch.randint(0, 5, own.shape, generator=generator)
        filling = torch.randint(1 + 5 * TOPICS, WORDS, own.shape, generator=generator)
        self.words = torch.where(torch.rand(own.shape, generator=generator) < 0.5, own, filling)
        self.numbers = self.topics[:, :2] + 0.8 * torch.randn(count, 2, generator=generator)
        self.filed = (self.topics[:, 0] + torch.randint(0, 2, (count,), generator=generator)).clamp(max=2)

    def __len__(self) -> int:
        return len(self.topics)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        table = {"numbers": self.numbers[index], "filed": self.filed[index]}
        return self.words[index], table, self.topics[index]


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.EmbeddingBag(WORDS, 32, padding_idx=0)
        self.hidden = nn.Sequential(nn.Linear(32, 32), nn.ReLU())
        self.label = nn.Linear(32, TOPICS)

    def forward(self, words: Tensor) -> Tensor:
        return self.label(self.hidden(self.embed(words)))


class TableReader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Embedding(3, 4)
        self.hidden = nn.Sequential(nn.Linear(6, 32), nn.ReLU())
        self.label = nn.Linear(32, TOPICS)

    def forward(self, table: dict[str, Tensor]) -> Tensor:
        return self.label(self.hidden(torch.cat([table["numbers"], self.place(table["filed"])], dim=1)))


def task(seed: int = 0) -> mfh.Task:
    draws = torch.Generator().manual_seed(seed)
    return mfh.Task(
        name="articles",
        teacher=Reader,
        student=TableReader,
        layer="hidden",
        train=Articles(400, draws),
        val=Articles(200, draws),
        test=Articles(400, draws),
        problem=mfh.Problem.multi_label(),  # binary cross-entropy, sum of Bernoulli divergences, average precision
        recipe=mfh.Recipe(epochs=5, optimizer=lambda parameters: torch.optim.Adam(parameters, lr=5e-3)),
    )


if __name__ == "__main__":
    result = mfh.study(task, arms=["no-kd", "regular", "aligned", "general", "soft"], num_seeds=2)
    print(f"{result.scale.title}, by seed:")
    print((100 * result.by_seed()).round(1))
