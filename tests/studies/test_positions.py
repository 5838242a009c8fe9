"""Positions of dense problems: the same place in targets, logits and maps of features."""

import pytest
import torch
from torch import nn

import mfh
from mfh.studies import positions


def test_the_class_at_a_place_is_that_of_the_target():
    target = torch.randint(4, (5, 6, 7), generator=torch.Generator().manual_seed(0))
    classes, places = positions.labelled_places(mfh.Problem.dense(), target, 0)
    assert places.shape == (5, positions.PER_ITEM, 2)
    assert len(set(classes.tolist())) == 4
    maps = nn.functional.one_hot(target, 4).movedim(3, 1).float()
    assert torch.equal(positions.at_places(maps, places, "maps").argmax(1), classes)
    halved = positions.at_places(maps[:, :, ::2, ::2], places, "maps")  # a slow loop over a map of another size
    for row, expected in enumerate(halved):
        item, place = divmod(row, positions.PER_ITEM)
        y, x = (places[item, place] * torch.tensor([3, 4])).long().tolist()
        assert torch.equal(maps[item, :, 2 * y, 2 * x], expected)


def test_positions_without_a_class_are_not_drawn():
    target = torch.full((3, 10), -100)
    target[:, 4], target[0, 7] = 1, -1
    classes, places = positions.labelled_places(mfh.Problem.dense(missing=-1), target, 0)
    assert set(classes.tolist()) == {1}
    assert torch.equal((places * 10).long(), torch.full((3, positions.PER_ITEM, 1), 4))


def test_maps_of_another_number_of_dimensions_are_named():
    places = positions.any_places(2, 2, 0)
    assert 0 <= places.min() < places.max() < 1
    with pytest.raises(mfh.InputError, match=r"the teacher's logits have shape \(2, 3\); .* positions in 2 dimension"):
        positions.at_places(torch.zeros(2, 3), places, "the teacher's logits")


def test_features_are_those_before_the_classifier_channels_first():
    series = torch.randn(2, 4, 6)
    convolutions = nn.Sequential(nn.Conv1d(4, 5, 1), nn.ReLU(), nn.Conv1d(5, 3, 1))
    assert torch.equal(positions.feature_map(convolutions, None, series), convolutions[:2](series))
    assert torch.equal(positions.feature_map(convolutions, "0", series), convolutions[0](series))
    frames = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    found = positions.feature_map(frames, None, series.movedim(1, 2))
    assert torch.equal(found, frames[:2](series.movedim(1, 2)).movedim(2, 1))


def test_the_input_is_a_layer_and_others_are_named():
    series = torch.randn(2, 4, 6)
    network = nn.Sequential(nn.Conv1d(4, 4, 1), nn.ReLU())
    assert torch.equal(positions.feature_map(network, "input", series), series)
    with pytest.raises(mfh.InputError, match="has 2 inputs; name a layer"):
        positions.feature_map(network, "input", (series, series))

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Conv1d(4, 4, 1)

        def forward(self, inputs):
            return self.head(self.head(inputs))

    class ByName(Twice):
        def forward(self, inputs):
            return self.head(input=inputs)

    for network in (Twice(), ByName()):
        with pytest.raises(mfh.InputError, match="'head' does not run once on one tensor"):
            positions.feature_map(network, None, series)
