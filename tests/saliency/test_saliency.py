import json
import logging
import random
import subprocess
import sys
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from captum.attr import FeaturePermutation
from hypothesis import given, settings
from sklearn.inspection import permutation_importance
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import two_processes
from mfh import ChannelSaliency, channel_saliency
from mfh.errors import InputError
from networks import (
    CASES,
    Attention,
    Branching,
    Mixing,
    Recurrent,
    Twice,
    batches,
    conv,
    drawn,
    flat,
    image,
    l1,
    mse,
    padding,
    randn,
    rotations,
    run,
    seeded,
    slow_rises,
)

DISTANCES = {"mse": mse, "l1": l1}


def student():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


# name -> (teacher, teacher input, layer, channel_dim): the tail is affine.
AFFINE = {
    "(N, C)": (
        lambda: nn.Sequential(nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 4), nn.Linear(4, 3)),
        flat,
        "1",
        1,
    ),
    "(N, C, H, W)": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.ReLU(inplace=True), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)
        ),
        image,
        "1",
        1,
    ),
    "(N, T, C)": (
        lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Flatten(), nn.Linear(24, 3)),
        lambda n, s: randn(n, 4, 5, seed=s),
        "1",
        -1,
    ),
    "input": (lambda: nn.Sequential(nn.Identity(), nn.Linear(5, 3)), flat, "0", 1),
}


def setting(name, count=40, scale=1.0):
    make, inputs, layer, channel_dim = AFFINE[name]
    teacher, pairs = seeded(make), (inputs(count, 1) * scale, randn(count, 4, seed=2), torch.zeros(count))
    # The student sees some of what the teacher sees, otherwise all channels score alike.
    pairs[1][:, :2] += pairs[0].flatten(1)[:, :2]
    return teacher, seeded(student, 7), pairs, {"layer": layer, "channel_dim": channel_dim}


def score(teacher, student, pairs, size=16, **options):
    return channel_saliency(teacher, student, batches(pairs, size), **options)


def spread(values):
    return float(np.ptp(np.asarray(values)))


# --- exact -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("name", AFFINE)
def test_exact_is_the_mean_over_all_permutations(name, distance):
    teacher, student, pairs, options = setting(name)
    slow = slow_rises(
        teacher,
        student,
        pairs,
        options["layer"],
        rotations(40),
        channel_dim=options["channel_dim"],
        distance=DISTANCES[distance],
    )
    saliency = score(teacher, student, pairs, **options, distance=distance)
    assert saliency.permutations == "exact"
    assert spread(saliency.scores) > 0.005
    np.testing.assert_allclose(saliency.scores, slow.mean(0), rtol=1e-4, atol=1e-6)
    assert (saliency.standard_error == 0).all()
    with torch.no_grad():
        target = student(pairs[1])
        logits = teacher.eval()(pairs[0])
    assert saliency.baseline == pytest.approx(float(DISTANCES[distance](logits, target).mean()), rel=1e-5)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("name", ["(N, C)", "(N, C, H, W)"])
def test_exact_lies_within_the_standard_error_of_a_slow_loop(name, distance):
    teacher, student, pairs, options = setting(name)
    permutations = drawn(40, 120, seed=123)
    slow = slow_rises(teacher, student, pairs, options["layer"], permutations, distance=DISTANCES[distance]).numpy()
    error = slow.std(0, ddof=1) / np.sqrt(len(slow))
    saliency = score(teacher, student, pairs, **options, distance=distance, permutations="exact")
    assert (error > 0).sum() > 2
    assert (np.abs(saliency.scores - slow.mean(0)) <= 4 * error + 1e-7).all()


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("name", AFFINE)
def test_batch_size_and_order_do_not_matter(name, distance):
    count = 150
    teacher, student, pairs, options = setting(name, count)
    reference = score(teacher, student, pairs, count, **options, distance=distance)
    assert reference.permutations == "exact"
    order = torch.randperm(count, generator=torch.Generator().manual_seed(5))
    shuffled = tuple(part[order] for part in pairs)
    tolerance = 1e-5 * np.abs(reference.scores).max()
    for size, data in [(1, pairs), (7, pairs), (64, pairs), (count, shuffled), (7, shuffled)]:
        other = score(teacher, student, data, size, **options, distance=distance)
        assert other.permutations == "exact"
        np.testing.assert_allclose(other.scores, reference.scores, rtol=0, atol=tolerance)
        np.testing.assert_allclose(other.means, reference.means, rtol=1e-5, atol=1e-6)
        assert other.baseline == pytest.approx(reference.baseline, rel=1e-5)
        assert list(other.ranking) == list(reference.ranking)


def test_a_small_first_batch_does_not_decide_what_is_affine():
    teacher, student, pairs, options = setting("input", 60)
    weight, bias = teacher[1].weight.detach(), teacher[1].bias.detach()
    pairs[0][0] = -torch.linalg.lstsq(weight, bias[:, None]).solution[:, 0]
    pairs[0][1:] *= 1000
    with torch.no_grad():
        assert teacher(pairs[0])[0].abs().max() < 1e-5
    assert score(teacher, student, pairs, 1, **options).permutations == "exact"


def test_closed_form_of_a_linear_teacher():
    # A student that agrees completely: the rise is 2/K * var(z_c) |w_c|^2, as in permutation importance.
    teacher, _, pairs, options = setting("input")
    pairs = (pairs[0], pairs[0], pairs[2])
    saliency = score(teacher, seeded(AFFINE["input"][0]), pairs, **options)
    weight = teacher[1].weight.detach().square().sum(0)
    expected = 2 / 3 * pairs[0].var(0, correction=0) * weight
    assert saliency.baseline == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(saliency.scores, expected, rtol=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10**6), st.integers(2, 12), st.integers(1, 6), st.integers(1, 4), st.sampled_from(list(DISTANCES))
)
def test_exact_for_any_small_problem(seed, count, width, classes, distance):
    # Few distinct values: ties everywhere.
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-2, 3, (count, width), generator=generator).float()
    s = torch.randint(-2, 3, (count, classes), generator=generator).float()
    teacher = nn.Sequential(nn.Identity(), nn.Linear(width, classes))
    with torch.no_grad():
        teacher[1].weight.copy_(torch.randint(-2, 3, (classes, width), generator=generator))
        teacher[1].bias.copy_(torch.randint(-2, 3, (classes,), generator=generator))
    pairs = (x, s, torch.zeros(count))
    slow = slow_rises(teacher, nn.Identity(), pairs, "0", rotations(count), distance=DISTANCES[distance])
    saliency = score(teacher, nn.Identity(), pairs, 5, layer="0", distance=distance)
    np.testing.assert_allclose(saliency.scores, slow.mean(0), atol=1e-5)


@pytest.mark.parametrize("parity", [0, 1])
@pytest.mark.parametrize("size", [1, 7, 40])
def test_a_tail_affine_in_every_second_channel_only_is_not_affine(parity, size):
    class Tail(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(6, 3)

        def forward(self, z):
            bent = torch.where(torch.arange(6) % 2 == parity, z.abs(), z)
            return self.out(bent)

    teacher = seeded(lambda: nn.Sequential(nn.Linear(5, 6), Tail()))
    pairs = (flat(40, 1), randn(40, 4, seed=2), torch.zeros(40))
    saliency = score(teacher, seeded(student), pairs, size, layer="0")
    assert saliency.permutations == 10
    with pytest.raises(InputError, match=r"'exact', but the network after layer '0' is not affine"):
        score(teacher, seeded(student), pairs, size, layer="0", permutations="exact")


def test_a_tail_without_gradient_is_not_affine():
    class Rounded(nn.Module):
        def forward(self, z):
            return z[:, :3].round()

    teacher = seeded(lambda: nn.Sequential(nn.Linear(5, 6), Rounded()))
    pairs = (flat(40, 1) * 5, randn(40, 4, seed=2), torch.zeros(40))
    saliency = score(teacher, seeded(student), pairs, layer="0")
    assert saliency.permutations == 10
    assert (saliency.scores[:3] > 0).all()
    assert (saliency.scores[3:] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_precisions(dtype):
    teacher, student, pairs, options = setting("(N, C, H, W)", 60)
    reference = score(teacher, student, pairs, **options)
    other = (pairs[0].to(dtype), pairs[1].to(dtype), pairs[2])
    saliency = score(teacher.to(dtype), student.to(dtype), other, **options)
    assert saliency.permutations == "exact"
    limit = 1e-5 if dtype == torch.float64 else 0.05
    np.testing.assert_allclose(saliency.scores, reference.scores, atol=limit * np.abs(reference.scores).max())
    bent = seeded(lambda: nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))).to(dtype)
    data = (flat(60, 1).to(dtype), other[1], pairs[2])
    assert score(bent, student, data, layer="0").permutations == 10


# --- other people's permutations -------------------------------------------------------------------------------------


def test_agrees_with_captum():
    case = CASES["hidden"]
    teacher, inputs = seeded(conv).eval(), image(30, 1)
    trained, s = seeded(student), randn(30, 4, seed=2)
    with torch.no_grad():
        target = trained(s)
    (activation,), _ = run(teacher, case.layer, inputs)
    (permutation,) = drawn(30, 1, seed=9)

    def permute(z, mask):
        return torch.where(mask.bool(), z[permutation], z)

    captum = FeaturePermutation(lambda z: mse(teacher[8:](z), target).mean(), perm_func=permute)
    with torch.no_grad():
        expected = -captum.attribute(activation)[0]
    saliency = score(teacher, trained, (inputs, s, torch.zeros(30)), layer="7", permutations=1, seed=9)
    assert spread(saliency.scores) > 0.001
    np.testing.assert_allclose(saliency.scores, expected, atol=1e-6)


def test_agrees_with_scikit_learn():
    teacher, student, pairs, options = setting("input", 80)
    with torch.no_grad():
        target = student(pairs[1]).numpy()

    def negative_distance(model, x, y):
        with torch.no_grad():
            return -float(np.square(model(torch.from_numpy(x)).numpy() - y).mean())

    class Estimator:
        def __init__(self, model):
            self.model = model

        def fit(self, x, y):
            raise AssertionError

        def __call__(self, x):
            return self.model(x)

    found = permutation_importance(
        Estimator(teacher), pairs[0].numpy(), target, scoring=negative_distance, n_repeats=200, random_state=0
    )
    error = found.importances_std / np.sqrt(200)
    saliency = score(teacher, student, pairs, **options)
    assert spread(saliency.scores) > 5 * error.max()
    assert (np.abs(saliency.scores - found.importances_mean) < 4 * error).all()


# --- sampled ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_sampled_equals_permuting_with_whole_forwards(name):
    case, count = CASES[name], 23
    teacher, trained = seeded(case.make), seeded(student, 7)
    pairs = (case.inputs(count, 1), randn(count, 4, seed=2), torch.zeros(count))
    slow = slow_rises(teacher, trained, pairs, case.layer, drawn(count, 2, 3), channel_dim=case.channel_dim).numpy()
    assert spread(slow) > 1e-4
    # Batches, blocks and groups of channels are the package's business: the answer is that of the whole data set.
    saliency = score(teacher, trained, pairs, 9, layer=case.layer, channel_dim=case.channel_dim, permutations=2, seed=3)
    assert saliency.permutations == 2
    scale = np.abs(slow).max()
    np.testing.assert_allclose(saliency.scores, slow.mean(0), atol=1e-4 * scale)
    np.testing.assert_allclose(saliency.standard_error, slow.std(0, ddof=1) / np.sqrt(2), atol=1e-4 * scale)


@pytest.mark.parametrize("distance", ["l1", lambda h, s: (h - s).abs().amax(1)])
def test_sampled_with_other_distances(distance):
    teacher, trained = seeded(conv), seeded(student, 7)
    pairs = (image(23, 1), randn(23, 4, seed=2), torch.zeros(23))
    function = l1 if distance == "l1" else distance
    slow = slow_rises(teacher, trained, pairs, "2", drawn(23, 2, 3), distance=function)
    saliency = score(teacher, trained, pairs, 9, layer="2", permutations=2, seed=3, distance=distance)
    assert spread(slow) > 1e-4
    np.testing.assert_allclose(saliency.scores, slow.mean(0), atol=1e-5)
    assert saliency.distance == ("l1" if distance == "l1" else "<lambda>")


def test_sampled_approaches_exact():
    teacher, student, pairs, options = setting("(N, C, H, W)")
    exact = score(teacher, student, pairs, **options)
    sampled = score(teacher, student, pairs, **options, permutations=200)
    assert (sampled.standard_error > 0).all()
    assert (np.abs(sampled.scores - exact.scores) < 4 * sampled.standard_error).all()
    assert np.isnan(score(teacher, student, pairs, **options, permutations=1).standard_error).all()


def test_a_network_that_mixes_samples_is_run_on_the_given_batches():
    # One batch: the whole data set. Stacking versions of it would change every mean.
    teacher, trained = seeded(Mixing), seeded(student, 7)
    pairs = (flat(23, 1), randn(23, 4, seed=2), torch.zeros(23))
    slow = slow_rises(teacher, trained, pairs, "first", drawn(23, 2, 3))
    saliency = score(teacher, trained, pairs, 23, layer="first", permutations=2, seed=3)
    assert spread(slow) > 1e-4
    np.testing.assert_allclose(saliency.scores, slow.mean(0), atol=1e-6)


def test_fallback_warns_once_and_auto_is_right(caplog):
    teacher, trained = seeded(Branching), seeded(student, 7)
    pairs = (flat(23, 1), randn(23, 4, seed=2), torch.zeros(23))
    with caplog.at_level(logging.WARNING, "mfh"):
        saliency = score(teacher, trained, pairs, 9, layer="first")
    assert len([r for r in caplog.records if "could not be cut" in r.getMessage()]) == 1
    slow = slow_rises(teacher, trained, pairs, "first", drawn(23, 10, 0))
    np.testing.assert_allclose(saliency.scores, slow.mean(0), atol=1e-6)


def test_inputs_of_several_lengths():
    def make():
        return nn.Sequential(nn.Conv1d(1, 4, 3), nn.AdaptiveMaxPool1d(2), nn.Flatten(), nn.Tanh(), nn.Linear(8, 3))

    teacher, trained = seeded(make), seeded(student, 7)
    data = [(randn(6, 1, n, seed=n), randn(6, 4, seed=n), torch.zeros(6)) for n in (20, 31, 20)]
    hidden = torch.cat([run(teacher, "2", batch[0])[0][0] for batch in data])
    tail = nn.Sequential(nn.Identity(), *teacher[3:])
    pairs = (hidden, torch.cat([batch[1] for batch in data]), torch.zeros(18))
    saliency = channel_saliency(teacher, trained, data, layer="2", permutations=3)
    np.testing.assert_allclose(saliency.scores, slow_rises(tail, trained, pairs, "0", drawn(18, 3)).mean(0), atol=1e-6)
    with pytest.raises(InputError, match=r"layer '0' returns shape \(4, 18\) per sample in one batch and \(4, 29\)"):
        channel_saliency(teacher, trained, data, layer="0")


# --- agreement -------------------------------------------------------------------------------------------------------


def test_agreement_is_its_formula():
    teacher, trained, pairs, options = setting("(N, C)")
    (z,), _ = run(teacher, options["layer"], pairs[0])
    weight = (teacher[3].weight @ teacher[2].weight).detach()
    s = trained(pairs[1]).detach()
    covariance = (s - s.mean(0)).T @ (z - z.mean(0)) / len(z)
    expected = 2 / 3 * (weight * covariance).sum(0)
    saliency = score(teacher, trained, pairs, **options, score="agreement")
    assert saliency.permutations == "exact"
    assert spread(expected) > 0.01
    np.testing.assert_allclose(saliency.scores, expected, atol=1e-6)
    # What is missing to the distance's rise is redundancy: -2/K sum over other channels of w_j.w_c cov(z_j, z_c).
    products, covariances = weight.T @ weight, torch.cov(z.T, correction=0)
    redundancy = -2 / 3 * ((products * covariances).sum(0) - products.diag() * covariances.diag())
    rise = score(teacher, trained, pairs, **options)
    np.testing.assert_allclose(rise.scores, expected + redundancy, atol=1e-6)


def test_sampled_agreement():
    teacher, trained, pairs, options = setting("(N, C, H, W)")
    exact = score(teacher, trained, pairs, **options, score="agreement")
    sampled = score(teacher, trained, pairs, **options, score="agreement", permutations=200)
    assert sampled.baseline == pytest.approx(exact.baseline, rel=1e-5)
    assert spread(exact.scores) > 0.001
    assert (np.abs(sampled.scores - exact.scores) < 4 * sampled.standard_error + 1e-7).all()
    with torch.no_grad():
        s = trained(pairs[1])

    def involved(h, target):
        return -2 * ((target - s.double().mean(0)) * h).mean(1)

    bent = seeded(conv)
    slow = slow_rises(bent, trained, pairs, "0", drawn(40, 2), distance=involved)
    bent_score = score(bent, trained, pairs, layer="0", score="agreement", permutations=2)
    np.testing.assert_allclose(bent_score.scores, slow.mean(0), atol=1e-6)


# --- what must hold --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["exact mse", "exact l1", "agreement", "sampled"])
def test_a_channel_without_influence_scores_zero(kind):
    teacher, trained, pairs, options = setting("(N, C)")
    with torch.no_grad():
        teacher[2].weight[:, 3] = 0
    if kind == "sampled":
        teacher.insert(3, nn.Tanh())
    more = {
        "exact mse": {},
        "exact l1": {"distance": "l1"},
        "agreement": {"score": "agreement"},
        "sampled": {"permutations": 4},
    }[kind]
    saliency = score(teacher, trained, pairs, **options, **more)
    assert saliency.permutations == (4 if kind == "sampled" else "exact")
    assert saliency.scores[3] == pytest.approx(0, abs=1e-12)
    assert (np.delete(saliency.scores, 3) != 0).all()


def test_a_constant_channel_scores_zero():
    teacher, trained, pairs, options = setting("input")
    pairs[0][:, 2] = 3.7
    for more in ({}, {"distance": "l1"}, {"score": "agreement"}, {"permutations": 3}):
        assert score(teacher, trained, pairs, **options, **more).scores[2] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("more", [{}, {"distance": "l1"}, {"permutations": 3}, {"score": "probe"}])
def test_same_seed_same_results_whatever_the_global_state(more):
    teacher, trained, pairs, options = setting("(N, C, H, W)")
    first = score(teacher, trained, pairs, **options, **more, seed=4)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    loader = DataLoader(TensorDataset(*pairs), batch_size=16)
    again = channel_saliency(teacher, trained, loader, **options, **more, seed=4)
    assert torch.equal(states[0], torch.get_rng_state())
    assert np.array_equal(states[1], np.random.get_state()[1])  # noqa: NPY002
    assert states[2] == random.getstate()
    torch.manual_seed(99)
    third = score(teacher, trained, pairs, **options, **more, seed=4)
    for other in (again, third):
        assert np.array_equal(first.scores, other.scores)
        assert np.array_equal(first.standard_error, other.standard_error)
    if "permutations" in more or "score" in more:
        assert not np.array_equal(first.scores, score(teacher, trained, pairs, **options, **more, seed=5).scores)


@pytest.mark.parametrize("mode", [True, False])
def test_batch_norm_and_dropout_are_off_and_modes_restored(mode):
    teacher, trained = seeded(conv).train(mode), seeded(student)
    teacher[3].train(not mode)
    pairs = (image(30, 1), randn(30, 4, seed=2), torch.zeros(30))
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    first, second = (score(teacher, trained, pairs, layer="2", permutations=2) for _ in range(2))
    assert np.array_equal(first.scores, second.scores)
    assert [teacher.training, teacher[1].training, teacher[3].training] == [mode, mode, not mode]
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_works_in_a_callers_inference_mode():
    teacher, trained, pairs, options = setting("(N, C)")
    expected = score(teacher, trained, pairs, **options)
    with torch.inference_mode():
        assert np.array_equal(score(teacher, trained, pairs, **options).scores, expected.scores)


def test_attention_with_padding():
    count = 20
    teacher, trained = seeded(Attention), seeded(student)
    pairs = (
        {"x": randn(count, 4, 5, seed=1), "padding": padding(count, 4, 1)},
        randn(count, 4, seed=2),
        torch.zeros(count),
    )
    # How many frames count differs by sample, and with it the matrix of the tail: no closed form.
    with pytest.raises(InputError, match="not affine"):
        score(teacher, trained, pairs, 7, layer="encoder", channel_dim=2, permutations="exact")
    saliency = score(teacher, trained, pairs, 7, layer="encoder", channel_dim=2)
    slow = slow_rises(teacher, trained, pairs, "encoder", drawn(count, 10), channel_dim=2)
    assert spread(slow) > 1e-3
    np.testing.assert_allclose(saliency.scores, slow.mean(0), atol=1e-6)


def test_progress_shows_nothing_but_a_bar(capsys):
    teacher, trained, pairs, options = setting("(N, C)")
    expected = score(teacher, trained, pairs, **options)
    for more in ({}, {"distance": "l1"}, {"permutations": 2}, {"score": "probe"}):
        saliency = score(teacher, trained, pairs, **options, **more, progress=True)
    assert len(saliency.scores) == len(expected.scores)
    bent = seeded(conv)
    assert score(bent, trained, (image(40, 1), *pairs[1:]), layer="0", progress=True).permutations == 10


# --- the result ------------------------------------------------------------------------------------------------------


def test_normalized_and_ranking():
    teacher, trained, pairs, options = setting("(N, C)")
    saliency = score(teacher, trained, pairs, **options)
    assert saliency.normalized.min() == 0
    assert saliency.normalized.max() == 1
    np.testing.assert_allclose(np.argsort(saliency.normalized), np.argsort(saliency.scores))
    assert list(saliency.ranking) == sorted(range(9), key=lambda c: -saliency.scores[c])
    assert (saliency.samples, saliency.layer, saliency.channel_dim, saliency.distance) == (40, "1", 1, "mse")
    (z,), _ = run(teacher, "1", pairs[0])
    np.testing.assert_allclose(saliency.means, z.mean(0), atol=1e-6)


def test_negative_channel_dim_is_stored_from_the_front():
    teacher, trained, pairs, options = setting("(N, T, C)")
    saliency = score(teacher, trained, pairs, **options)
    (z,), _ = run(teacher, "1", pairs[0])
    assert saliency.channel_dim == 2
    np.testing.assert_allclose(saliency.means, z.mean(0).T, atol=1e-6)
    positive = score(teacher, trained, pairs, layer="1", channel_dim=2)
    assert np.array_equal(saliency.scores, positive.scores)


@pytest.mark.parametrize("more", [{}, {"permutations": 1}, {"score": "probe"}, {"permutations": np.int64(3)}])
def test_save_and_load(tmp_path, more):
    teacher, trained, pairs, options = setting("(N, C, H, W)")
    saliency = score(teacher, trained, pairs, **options, **more)
    saliency.save(tmp_path / "s.safetensors")
    loaded = ChannelSaliency.load(tmp_path / "s.safetensors")
    for name in ChannelSaliency.__dataclass_fields__:
        a, b = getattr(saliency, name), getattr(loaded, name)
        assert np.array_equal(a, b, equal_nan=True) if isinstance(a, np.ndarray) else a == b
    assert np.array_equal(loaded.mask("general", ratio=0.5).weights, saliency.mask("general", ratio=0.5).weights)


def test_plot(tmp_path):
    teacher, trained, pairs, options = setting("(N, C)")
    score(teacher, trained, pairs, **options).plot(tmp_path / "s.svg", ratio=0.5)
    assert (tmp_path / "s.svg").read_text().lstrip().startswith("<?xml")


# --- bad input -------------------------------------------------------------------------------------------------------


def refused(match, teacher=None, trained=None, pairs=None, **options):
    base = setting("(N, C)")
    teacher, trained = teacher or base[0], trained or base[1]
    pairs = batches(base[2], 16) if pairs is None else pairs
    with pytest.raises(InputError, match=match):
        channel_saliency(teacher, trained, pairs, **{"layer": "1", **options})
    for model in (teacher, trained):
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_bad_options():
    refused(r"score is 'distanze'", score="distanze")
    refused(r"distance is 'l2'; choose 'mse', 'l1'", distance="l2")
    refused(r"score 'probe' takes only 'mse'", score="probe", distance="l1")
    for wrong in (0, -3, 2.5, True, "all", None, 1_000_001):
        refused(r"permutations is .* 1 to 1000000 or 'auto' or 'exact'", permutations=wrong)
    refused(r"channel_dim is 2, but layer '1' returns shape \(8, 9\)|channel_dim is 2", channel_dim=2)
    refused(r"'exact', but a callable distance has no closed form", distance=mse, permutations="exact")
    refused(r"one value per sample was expected", distance=lambda h, s: (h - s).square())
    refused(r"one value per sample was expected", distance=lambda h, s: 1.0)


def test_bad_layers():
    refused(r"no layer 'features'; known names: '0', '1'", layer="features")
    refused(r"'relu' ran 2 times", teacher=Twice(), layer="relu")
    refused(r"'unused' ran 0 times", teacher=Twice(), layer="unused")
    refused(r"returns a tuple", teacher=Recurrent(), layer="rnn", pairs=[(randn(9, 4, 5), randn(9, 4), torch.zeros(9))])
    refused(r"no layer 'nowhere'", score="probe", student_layer="nowhere")


@pytest.mark.parametrize("score", ["distance", "agreement", "probe"])
def test_labels_are_not_needed(score):
    teacher, trained, (x, s, y) = setting("(N, C)")[:3]
    with_labels = channel_saliency(teacher, trained, batches((x, s, y), 16), layer="1", score=score)
    pairs = [batch[:2] for batch in batches((x, s, y), 16)]
    without = channel_saliency(teacher, trained, pairs, layer="1", score=score)
    assert np.array_equal(with_labels.scores, without.scores)


def test_bad_pairs():
    x, s, y = setting("(N, C)")[2]
    for count, match in ((0, "pairs has no samples"), (1, "pairs has 1 sample; give at least 2")):
        for more in ({}, {"permutations": 3}, {"distance": "l1"}):
            refused(match, pairs=[(x[:count], s[:count], y[:count])], **more)
    refused("pairs has no samples", pairs=[])
    refused(r"list_iterator, which can be read only once", pairs=iter([(x, s, y)]))
    refused(r"generator, which can be read only once", pairs=((x, s, y) for _ in range(2)))
    refused(r"pairs is a data set \(TensorDataset\).*DataLoader", pairs=TensorDataset(x, s, y))
    refused(r"pairs is a int", pairs=3)
    refused(r"a batch of pairs is a tuple of length 1", pairs=[(x,)])
    refused(r"a batch has 40 teacher inputs, 39 student inputs and 40 targets", pairs=[(x, s[1:], y)])

    class Once:
        """Looks like a list of batches but hands out one iterator."""

        def __init__(self):
            self.batches = iter(batches((x, s, y), 16))

        def __iter__(self):
            return iter(list(self.batches))

    refused(
        r"pairs (gave 40 samples when first read and then 0|has no samples)",
        teacher=Branching(),
        layer="first",
        pairs=Once(),
        permutations=2,
    )


def test_empty_batches_are_passed_over():
    teacher, trained, pairs, options = setting("(N, C)")
    empty = tuple(part[:0] for part in pairs)
    saliency = channel_saliency(teacher, trained, [empty, *batches(pairs, 16), empty], **options)
    assert np.array_equal(saliency.scores, score(teacher, trained, pairs, **options).scores)


@pytest.mark.parametrize(
    "more", [{}, {"permutations": "exact"}, {"permutations": 3}, {"distance": "l1"}, {"score": "probe"}]
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", [0, 35])
def test_logits_that_are_not_finite(more, value, where):
    _, _, (x, s, y), _ = setting("(N, C)")
    s = s.clone()
    s[where] = value
    refused("the student returned NaN or infinite logits", pairs=batches((x, s, y), 16), **more)
    x = x.clone()
    x[where] = value
    refused("the teacher returned NaN or infinite logits", pairs=batches((x, setting("(N, C)")[2][1], y), 16), **more)


def test_scores_that_are_not_finite():
    refused("of 9 scores are NaN or infinite", distance=lambda h, s: (h - s).sum(1) * torch.nan)


def test_different_numbers_of_logits():
    match = r"teacher returns logits of shape \(16, 3\) and the student \(16, 4\); both must have the same classes"
    for more in ({}, {"permutations": 3}, {"score": "probe"}):
        refused(match, trained=nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 4)), **more)


# --- two processes ---------------------------------------------------------------------------------------------------


def test_two_processes_equal_one(tmp_path):
    script = Path(two_processes.__file__)
    processes = [
        subprocess.Popen(
            [sys.executable, script, str(rank), str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        text, _ = process.communicate(timeout=900)
        assert process.returncode == 0, text
    together = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    alone = two_processes.measure(two_processes.pairs())
    for name, expected in alone.items():
        assert name == "errors" or spread(expected["scores"]) > 1e-3, name
        for found in together:
            if name == "errors":
                continue
            assert found[name]["samples"] == 41
            for part in ("scores", "standard_error", "means", "baseline"):
                np.testing.assert_allclose(
                    found[name][part], expected[part], rtol=1e-4, atol=1e-5, err_msg=f"{name} {part}"
                )
    for found in together:
        assert "process 1 of 2 has no samples" in found["errors"]["empty"]
        assert "the student returned NaN" in found["errors"]["nan"]
