"""Embeddings in the place of the teacher's inputs."""

import torch
from torch.utils.data import Dataset, TensorDataset

from mfh.data.embeddings import embedded
from mfh.data.epochs import all_targets
from mfh.data.pairs import Collated, groups_of
from networks import randn

ROWS = randn(4, 3)


class Grouped(Dataset):
    """Pairs with groups, and targets that are held apart from the items."""

    groups = ("a", "a", "b", "b")
    targets = (0, 1, 1, 0)
    read = 0

    def __len__(self):
        return 4

    def __getitem__(self, index):
        Grouped.read += 1
        return torch.ones(2), torch.ones(5), self.targets[index]


def test_groups_and_targets_are_kept():
    tensors = TensorDataset(torch.ones(4, 2), torch.ones(4, 5), torch.tensor(Grouped.targets))
    tensors.groups = Grouped.groups
    for dataset in (Grouped(), tensors, Collated(Grouped(), list)):
        made = embedded(dataset, ROWS)
        assert groups_of(made).tolist() == list(Grouped.groups)
    assert all_targets(embedded(Grouped(), ROWS)).tolist() == list(Grouped.targets)
    assert not Grouped.read


def test_one_network_alone_gets_no_input_of_the_other():
    made = embedded(Grouped(), ROWS)
    assert torch.equal(made[1][0], ROWS[1])
    assert [len(part) for part in made.only("teacher")[1][:2]] == [3, 0]
    assert [len(part) for part in made.only("student")[1][:2]] == [0, 5]
