import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import nn

from mfh import channel_saliency
from mfh.errors import InputError
from mfh.saliency import probe
from mfh.saliency.probe import PENALTIES, cross_fitted_r2, default_layer, ridge_predictions, student_features
from networks import Attention, Recurrent, Residual, batches, conv, image, padding, randn, run, seeded


def brute_force(features, targets, folds=5, seed=0):
    """The same, fit by fit: scikit-learn's ridge for every fold, channel and penalty; penalty by GCV."""
    x, y = features.double().numpy(), targets.double().numpy()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    rss, tss = np.zeros((folds, y.shape[1])), np.zeros((folds, y.shape[1]))
    for k, held_out in enumerate(order.tensor_split(folds)):
        fit = np.setdiff1d(np.arange(len(x)), held_out.numpy())
        centred = x[fit] - x[fit].mean(0)
        values = np.linalg.eigvalsh(centred.T @ centred if x.shape[1] <= len(fit) else centred @ centred.T)
        scale = values[values > values[-1] * 1e-10].mean()
        for c in range(y.shape[1]):
            best = (math.inf, None)
            for penalty in PENALTIES.numpy() * scale:
                model = Ridge(alpha=penalty, solver="svd").fit(x[fit], y[fit, c])
                residual = ((model.predict(x[fit]).reshape(y[fit, c].shape) - y[fit, c]) ** 2).sum()
                hat = centred @ np.linalg.solve(centred.T @ centred + penalty * np.eye(x.shape[1]), centred.T)
                gcv = residual / (1 - (1 + np.trace(hat)) / len(fit)) ** 2
                if gcv < best[0]:
                    best = (gcv, model)
            predicted = best[1].predict(x[held_out]).reshape(y[held_out, c].shape)
            rss[k, c] = ((predicted - y[held_out, c]) ** 2).sum()
            tss[k, c] = ((y[fit, c].mean(0) - y[held_out, c]) ** 2).sum()
    each = 1 - rss / np.where(tss > 0, tss, np.inf) - (tss == 0)
    total = tss.sum(0)
    return 1 - rss.sum(0) / np.where(total > 0, total, np.inf) - (total == 0), each.std(0, ddof=1) / np.sqrt(folds)


def problem(count, width, positions=1, channels=4):
    """Channels from pure noise (0) to perfectly linear in the features (the last)."""
    x = randn(count, width, seed=1)
    weight = randn(width, channels * positions, seed=2)
    signal = (x @ weight).reshape(count, channels, positions)
    noise = randn(count, channels, positions, seed=3) * signal.std()
    share = torch.linspace(0, 1, channels)[None, :, None]
    return x, share * signal + (1 - share) * noise + 5


@pytest.mark.parametrize("positions", [1, 3])
@pytest.mark.parametrize(("count", "width"), [(60, 8), (40, 70), (30, 24)])
def test_equals_brute_force(count, width, positions):
    x, y = problem(count, width, positions)
    scores, error = cross_fitted_r2(x, y, seed=3)
    expected, expected_error = brute_force(x, y, seed=3)
    assert np.ptp(expected) > 0.3
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    np.testing.assert_allclose(error, expected_error, atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 2**24])
def test_chunks_of_channels_do_not_matter(monkeypatch, chunk):
    x, y = problem(40, 6, 2)
    expected, _ = cross_fitted_r2(x, y)
    monkeypatch.setattr(probe, "_CHUNK_ELEMENTS", chunk)
    torch.testing.assert_close(cross_fitted_r2(x, y)[0], expected)


def test_noise_scores_zero_and_what_is_determined_one():
    x, y = problem(400, 10, channels=6)
    scores, error = cross_fitted_r2(x, y)
    assert abs(scores[0]) < 0.05
    assert scores[-1] > 0.999
    assert (scores.diff() > 0).all()
    assert (error >= 0).all()
    many = randn(200, 30, 1, seed=9)  # pure noise, never above zero by much
    assert cross_fitted_r2(randn(200, 50, seed=8), many)[0].abs().max() < 0.1


@pytest.mark.parametrize("constant", [0.0, 3.7, 1e6])
def test_constant_channels_score_zero(constant):
    x, y = problem(50, 8)
    y[:, 1] = constant
    assert cross_fitted_r2(x, y)[0][1] == 0
    # Constant but for one sample: nothing to learn from elsewhere, and nothing gained.
    y[:, 1] = 0
    y[7, 1] = 1
    assert -0.2 < cross_fitted_r2(x, y)[0][1] <= 0


def test_units_and_constant_features_do_not_matter():
    x, y = problem(60, 8)
    scores, _ = cross_fitted_r2(x, y)
    for other_x, other_y in ((x * 1000, y), (x + 50, y), (torch.cat([x, torch.ones(60, 1)], 1), y), (x, y * 1e-3)):
        torch.testing.assert_close(cross_fitted_r2(other_x, other_y)[0], scores, atol=2e-3, rtol=0)
    nothing, _ = cross_fitted_r2(torch.ones(60, 3), y)
    torch.testing.assert_close(nothing, torch.zeros_like(nothing))


def test_seed_decides_the_folds():
    x, y = problem(40, 8)
    first, again, other = (cross_fitted_r2(x, y, seed=seed)[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(("layer", "channel_dim"), [("2", 1), ("7", 1), ("2", -1)])
def test_scores_of_networks(layer, channel_dim):
    teacher = seeded(conv)
    student = seeded(lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)))
    pairs = (image(40, 1), randn(40, 4, seed=2), torch.zeros(40))
    pairs[1][:, :2] += pairs[0].flatten(1)[:, :2]
    (z,), logits = run(teacher, layer, pairs[0])
    (x,), target = run(student, "1", pairs[1])
    moved = z.movedim(channel_dim, 1)
    expected, error = brute_force(x, moved.reshape(40, moved.shape[1], -1))
    for name in (None, "1"):  # the default is the input of the last layer
        saliency = channel_saliency(
            teacher,
            student,
            batches(pairs, 7),
            layer=layer,
            channel_dim=channel_dim,
            score="probe",
            student_layer=name,
        )
        np.testing.assert_allclose(saliency.scores, expected, atol=1e-4)
        np.testing.assert_allclose(saliency.standard_error, error, atol=1e-4)
        np.testing.assert_allclose(saliency.means, moved.mean(0), atol=1e-5)
        assert saliency.permutations is None
        assert saliency.baseline == pytest.approx(float((logits - target).square().mean()), rel=1e-5)


def test_a_teacher_that_cannot_be_cut_is_only_read(caplog):
    pairs = [({"x": randn(20, 4, 5), "padding": padding(20, 4)}, randn(20, 4, 5), torch.zeros(20))]
    student = seeded(Recurrent)
    channel_saliency(seeded(Attention), student, pairs, layer="encoder", channel_dim=2, score="probe")
    assert not caplog.records


def test_default_layer():
    assert default_layer(conv()) == "8"
    assert default_layer(Residual()) == "skip"
    assert default_layer(nn.Linear(2, 3)) == ""
    logits, features = student_features(nn.Linear(2, 3), None, torch.ones(4, 2))
    assert torch.equal(features, torch.ones(4, 2))
    assert logits.shape == (4, 3)
    with pytest.raises(InputError, match="no layer with parameters; name student_layer"):
        default_layer(nn.ReLU())


class LastTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(3, 3)

    def forward(self, x):
        return self.out(self.out(x))


def test_bad_input():
    student = LastTwice()
    with pytest.raises(InputError, match=r"'out' does not run once.*name a student_layer"):
        student_features(student, None, torch.ones(4, 3))
    assert not student.out._forward_pre_hooks
    with pytest.raises(InputError, match="at least 10 samples; there are 9"):
        cross_fitted_r2(randn(9, 3), randn(9, 2, 1))
    with pytest.raises(InputError, match="at most 8192 features"):
        cross_fitted_r2(torch.zeros(1, 1).expand(9000, 9000), torch.zeros(1, 1, 1).expand(9000, 2, 1))

    def several_lengths():
        return nn.Sequential(nn.Conv1d(1, 2, 3), nn.AdaptiveAvgPool1d(2), nn.Flatten(), nn.Linear(4, 3))

    pairs = [(image(8, n), randn(8, 1, n), torch.zeros(8)) for n in (9, 12)]
    with pytest.raises(InputError, match=r"14 features in one batch and 20 in another"):
        channel_saliency(seeded(conv), several_lengths(), pairs, layer="2", score="probe", student_layer="0")
    channel_saliency(seeded(conv), several_lengths(), pairs, layer="2", score="probe")


@pytest.mark.parametrize(("count", "width"), [(40, 6), (20, 35)])
@pytest.mark.parametrize("decide", [None, 0])
def test_ridge_predictions_are_scikit_learns_at_the_penalty_of_least_gcv(count, width, decide):
    generator = torch.Generator().manual_seed(0)
    x, new_x = (torch.randn(n, width, generator=generator, dtype=torch.float64) for n in (count, 7))
    targets = torch.randn(count, 2, 3, generator=generator, dtype=torch.float64)
    targets[:, 1] += 20 * (x @ x.T[:, :3])  # mostly one strong direction each: another penalty
    centred = x - x.mean(0)
    scale = torch.linalg.eigvalsh(centred @ centred.T)[-min(width, count - 1) :].mean()

    def gcv(penalty, target):
        hat = centred @ torch.linalg.solve(centred.T @ centred + penalty * torch.eye(width).double(), centred.T)
        middle = target - target.mean(0)
        freedom = count - 1 - torch.trace(hat)
        return float((middle - hat @ middle).square().sum() / freedom**2)

    best = [min((float(p * scale) for p in PENALTIES), key=lambda p: gcv(p, targets[:, c])) for c in range(2)]
    assert best[0] != best[1]
    found = ridge_predictions(x, targets, new_x, decide=decide)
    for channel in range(2):
        alpha = best[channel if decide is None else decide]
        expected = Ridge(alpha=alpha).fit(x.numpy(), targets[:, channel].numpy()).predict(new_x.numpy())
        np.testing.assert_allclose(found[:, channel], expected, rtol=1e-6, atol=1e-8)


def test_features_of_several_layers_stand_side_by_side():
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    x = torch.randn(5, 6)
    logits, features = student_features(student, ["input", "1", "3"], x)
    assert torch.equal(logits, student(x))
    assert torch.equal(features, torch.cat([x, student[:2](x), student[:4](x)], 1))
    assert torch.equal(student_features(student, ["3"], x)[1], student_features(student, "3", x)[1])
    named = nn.Sequential()
    named.add_module("input", student)
    assert torch.equal(student_features(named, "input", x)[1], student(x))  # a layer of that name goes first


def test_more_of_the_student_shows_more_of_the_teacher():
    torch.manual_seed(0)
    x = torch.randn(400, 6)
    teacher = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 2))
    narrow = nn.Sequential(nn.Linear(6, 1), nn.Linear(1, 2))
    pairs = [(x, x, torch.zeros(400, dtype=torch.long))]
    few = channel_saliency(teacher, narrow, pairs, layer="0", score="probe")
    more = channel_saliency(teacher, narrow, pairs, layer="0", score="probe", student_layer=["input", "0"])
    assert (more.scores > 0.99).all()
    assert (few.scores < 0.9).all()
    with pytest.raises(InputError, match="no layer 'nope'"):
        channel_saliency(teacher, narrow, pairs, layer="0", score="probe", student_layer=["input", "nope"])


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("told", [None, 300, 240, 12])
def test_sums_give_the_scores_that_all_samples_give(monkeypatch, offset, told):
    """Whatever number of samples the loader tells: the right one, none, too many, or too few."""

    class Loader:
        def __init__(self):
            x = randn(240, 12, seed=1)
            z = torch.cat([x[:, :6] @ randn(6, 3, seed=2), randn(240, 3, seed=3), torch.ones(240, 1)], 1) + offset
            self.batches = [(z[i : i + 50], x[i : i + 50], torch.zeros(len(x[i : i + 50]))) for i in range(0, 240, 50)]
            if told is not None:
                self.dataset = range(told)

        def __iter__(self):
            return iter(self.batches)

    taken = []
    for kind in (probe._Sums, probe._Samples):

        def scores(self, track, kind=kind, whole=kind.scores):
            taken.append(kind)
            return whole(self, track)

        monkeypatch.setattr(kind, "scores", scores)
    teacher, student = nn.Sequential(nn.Identity(), nn.Linear(7, 2)), nn.Linear(12, 2)
    options = {"layer": "0", "score": "probe", "student_layer": "input"}
    found = channel_saliency(teacher, student, Loader(), **options)
    assert taken == [probe._Samples if told in (None, 12) else probe._Sums]
    monkeypatch.setattr(probe, "_SAMPLES_PER_FEATURE", 1000)
    expected = channel_saliency(teacher, student, Loader(), **options)
    assert taken[-1] is probe._Samples
    assert np.ptp(expected.scores) > 0.3
    assert found.scores[-1] == 0
    for name in ("scores", "standard_error", "means"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-9, atol=1e-12)
    assert found.baseline == expected.baseline
    assert found.samples == 240


def test_sums_equal_brute_force():
    x, y = problem(100, 8, 3)
    sums = probe._Sums(x, y, probe._folds(100, 5, 3))
    for start in range(0, 100, 30):
        sums.add(x[start : start + 30], y[start : start + 30])
    scores, error = sums.scores(iter)
    expected, expected_error = brute_force(x, y, seed=3)
    assert np.ptp(expected) > 0.3
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    np.testing.assert_allclose(error, expected_error, atol=1e-6)
