import json

import pytest
import torch

import methods_together
from mfh import InputError
from mfh.methods.features import BatchNorm, focused, pointwise, pooled, weighted_mean
from mfh.methods.rkd import RKD
from networks import randn
from processes import torchrun


def test_pooled_features_are_means_over_positions():
    features = randn(3, 4, 2, 5)
    assert torch.allclose(pooled(features), features.mean((2, 3)))
    assert pooled(features[:, :, 0, 0]).equal(features[:, :, 0, 0])
    assert pooled(features.bfloat16()).dtype == torch.float32


def test_focus_weights_squared_distances():
    features, weights = randn(3, 4, 5), torch.tensor([0.0, 1.0, 2.0, 1.0])
    assert focused(features, None) is features
    difference = focused(features, weights)[0] - focused(features, weights)[1]
    expected = (weights[:, None] * (features[0] - features[1]) ** 2).sum()
    assert float(difference.square().sum()) == pytest.approx(expected.item(), rel=1e-5)


def test_weights_of_one_change_nothing():
    values = randn(3, 4, 5).square()
    assert float(weighted_mean(values, torch.ones(4))) == pytest.approx(float(weighted_mean(values, None)))
    assert float(weighted_mean(values, torch.tensor([4.0, 0, 0, 0]))) == pytest.approx(float(values[:, 0].mean()))


@pytest.mark.parametrize("positions", [(), (3,), (3, 4), (2, 3, 4)])
def test_a_pointwise_layer_is_one_linear_map_at_every_position(positions):
    layer = pointwise(5, 6, len(positions))
    features = randn(2, 5, *positions)
    weight = layer.weight.flatten(1)
    expected = (features.movedim(1, -1) @ weight.T + layer.bias).movedim(-1, 1)
    assert torch.allclose(layer(features), expected, atol=1e-6)


@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 3), (6, 4, 3, 2)])
def test_batch_normalisation_is_torchs(shape):
    ours, kind = BatchNorm(4), {2: torch.nn.BatchNorm1d, 3: torch.nn.BatchNorm1d, 4: torch.nn.BatchNorm2d}[len(shape)]
    theirs = kind(4)
    for seed in range(2):
        assert torch.allclose(ours(randn(*shape, seed=seed)), theirs(randn(*shape, seed=seed)))
    assert torch.allclose(ours.running_var, theirs.running_var)
    before = ours.running_mean.clone()
    single = randn(1, 4, *[1] * (len(shape) - 2))
    assert torch.allclose(ours(single), theirs.eval()(single))
    assert ours.running_mean.equal(before)


def test_layers_are_named_in_a_tuple():
    assert RKD(student_layers=("a",)).student_layers == ("a",)
    assert RKD().student_layers is None
    with pytest.raises(InputError, match="student_layers is 'a'"):
        RKD(student_layers="a")


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    folder = tmp_path_factory.mktemp("together")
    code, said = torchrun(methods_together.__file__, folder, folder=folder)
    assert code == 0, said
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_two_processes_compute_what_one_computes(together):
    """Losses, gradients that are averaged by numbers of rows, queues and memories."""
    first, second = (found["measured"] for found in together)
    for name, expected in methods_together.measured().items():
        assert first[name] == second[name], name
        assert first[name] == pytest.approx(expected, rel=1e-6, abs=1e-9), name
        assert any(expected) or name == "attainable fitted", name


def test_two_processes_train_the_students_of_one(together):
    first, second = (found["students"] for found in together)
    alone = methods_together.students()
    for name, expected in alone.items():
        assert first[name] == second[name], name
        if name not in ("simkd", "c2kd"):  # they normalise the batch of a process
            assert first[name] == pytest.approx(expected, rel=1e-3, abs=1e-5), name
    assert len({str(weights) for weights in alone.values()}) == len(alone)
