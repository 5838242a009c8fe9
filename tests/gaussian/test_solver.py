import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mfh.errors import InputError
from mfh.gaussian import Classifiers, fit, fit_jointly, initial_classifiers
from mfh.gaussian.solver import _descend_in_torch, _descend_jointly_in_torch
from mfh.problems.losses import KDLoss

pytestmark = pytest.mark.filterwarnings("ignore:reduction. 'mean':UserWarning")


@pytest.fixture(autouse=True)
def one_thread():
    """Operations this small only get slower with more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def problems(groups=3, members=2, num_samples=40, dim=7, seed=0):
    generator = np.random.default_rng(seed)
    inputs = generator.standard_normal((groups, num_samples, dim))
    target = (inputs[:, :, :3].sum(axis=2) + 0.3 * generator.standard_normal((groups, num_samples)) > 0).astype(float)
    initial = Classifiers(
        generator.uniform(-0.3, 0.3, (groups, members, 2, dim)), generator.uniform(-0.3, 0.3, (groups, members, 2))
    )
    probability = generator.uniform(0, 1, (groups, members, num_samples))
    return inputs, target, initial, probability


def one_at_a_time(inputs, target, weight, bias, probability, loss, steps, learning_rate, dtype=torch.float64):
    """nn.Linear, autograd and torch.optim.SGD: nothing in common with the solver."""
    model = nn.Linear(inputs.shape[1], 2).to(dtype)
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(weight))
        model.bias.copy_(torch.from_numpy(bias))
    x, y = torch.from_numpy(inputs).to(dtype), torch.from_numpy(target).long()
    teacher = torch.from_numpy(np.stack([np.log1p(-probability), np.log(probability)], axis=1)).to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model(x), teacher, y).backward()
        optimizer.step()
    return model.weight.detach().double().numpy(), model.bias.detach().double().numpy()


@pytest.mark.parametrize(
    ("reduction", "label_weight", "teacher_weight", "dim"),
    [
        ("mean", 1.0, 1.0, 7),
        ("batchmean", 1.0, 1.0, 6),
        ("mean", 0.5, 2.0, 1),
        ("batchmean", 0.0, 1.0, 7),
        ("mean", 1.0, 0.0, 4),
    ],
)
def test_equals_one_at_a_time_training(reduction, label_weight, teacher_weight, dim):
    inputs, target, initial, probability = problems(groups=2, members=3, dim=dim)
    trained = fit(
        inputs,
        target,
        initial,
        teacher_probability=probability,
        steps=60,
        label_weight=label_weight,
        teacher_weight=teacher_weight,
        reduction=reduction,
        device="cpu",
    )
    assert np.abs(trained.weight - initial.weight).max() > 0.02
    loss = KDLoss(label_weight=label_weight, teacher_weight=teacher_weight, reduction=reduction)
    for group in range(2):
        for member in range(3):
            weight, bias = one_at_a_time(
                inputs[group],
                target[group],
                initial.weight[group, member],
                initial.bias[group, member],
                probability[group, member],
                loss,
                steps=60,
                learning_rate=0.1,
            )
            np.testing.assert_allclose(trained.weight[group, member], weight, rtol=0, atol=1e-12)
            np.testing.assert_allclose(trained.bias[group, member], bias, rtol=0, atol=1e-12)


def test_published_size_in_single_precision_differs_by_rounding_only():
    inputs, target, initial, probability = problems(groups=1, members=1, num_samples=200, dim=50)
    trained = fit(inputs, target, initial, teacher_probability=probability, steps=300, device="cpu")
    arguments = (inputs[0], target[0], initial.weight[0, 0], initial.bias[0, 0], probability[0, 0])
    loss = KDLoss(reduction="mean")
    double, _ = one_at_a_time(*arguments, loss, 300, 0.1)
    single, _ = one_at_a_time(*arguments, loss, 300, 0.1, dtype=torch.float32)
    np.testing.assert_allclose(trained.weight[0, 0], double, rtol=0, atol=1e-11)
    np.testing.assert_allclose(trained.weight[0, 0], single, rtol=0, atol=2e-5)


def test_without_a_teacher_it_is_plain_training():
    inputs, target, initial, probability = problems()
    plain = fit(inputs, target, initial, steps=50, label_weight=3.0, device="cpu")
    with_idle_teacher = fit(
        inputs, target, initial, teacher_probability=probability, steps=50, teacher_weight=0.0, device="cpu"
    )
    np.testing.assert_allclose(plain.weight, with_idle_teacher.weight, rtol=0, atol=1e-14)


def test_members_and_groups_do_not_touch_each_other():
    inputs, target, initial, probability = problems(groups=4, members=5)
    together = fit(inputs, target, initial, teacher_probability=probability, steps=30, device="cpu")
    alone = fit(
        inputs[2:3],
        target[2:3],
        Classifiers(initial.weight[2:3, 3:4], initial.bias[2:3, 3:4]),
        teacher_probability=probability[2:3, 3:4],
        steps=30,
        device="cpu",
    )
    np.testing.assert_allclose(together.weight[2, 3], alone.weight[0, 0], rtol=0, atol=1e-14)


def test_initial_weights_broadcast_and_are_left_alone():
    inputs, target, initial, probability = problems()
    start = Classifiers(initial.weight[:1, :1], initial.bias[:1, :1])
    before = start.weight.copy()
    trained = fit(inputs, target, start, teacher_probability=probability, steps=0, device="cpu")
    assert trained.weight.shape == initial.weight.shape
    np.testing.assert_allclose(trained.weight, np.broadcast_to(before, trained.weight.shape), atol=1e-15)
    np.testing.assert_array_equal(start.weight, before)


@settings(max_examples=15, deadline=None)
@given(scale=st.floats(0.1, 1e4), seed=st.integers(0, 1000))
def test_stays_finite_for_extreme_inputs(scale, seed):
    inputs, target, initial, probability = problems(groups=1, members=1, num_samples=8, seed=seed)
    trained = fit(scale * inputs, target, initial, teacher_probability=probability, steps=20, device="cpu")
    assert np.isfinite(trained.weight).all()


def test_joint_training_equals_autograd():
    inputs, target, _, _ = problems(groups=2, dim=7)
    student_inputs = np.random.default_rng(5).standard_normal((2, 40, 4))
    generator = np.random.default_rng(1)
    teacher_start, student_start = initial_classifiers(generator, 7), initial_classifiers(generator, 4)
    teachers, students = fit_jointly(
        inputs, student_inputs, target, teacher_start, student_start, steps=60, device="cpu"
    )
    for group in range(2):
        models = [nn.Linear(7, 2).double(), nn.Linear(4, 2).double()]
        with torch.no_grad():
            for model, start in zip(models, (teacher_start, student_start), strict=True):
                model.weight.copy_(torch.from_numpy(start.weight[0, 0]))
                model.bias.copy_(torch.from_numpy(start.bias[0, 0]))
        optimizer = torch.optim.SGD([p for model in models for p in model.parameters()], lr=0.01, momentum=0.9)
        y = torch.from_numpy(target[group]).long()
        for _ in range(60):
            a = models[0](torch.from_numpy(inputs[group]))
            b = models[1](torch.from_numpy(student_inputs[group]))
            loss = nn.functional.cross_entropy(a, y) + nn.functional.cross_entropy(b, y) + nn.functional.mse_loss(a, b)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        for model, ours in zip(models, (teachers, students), strict=True):
            np.testing.assert_allclose(ours.weight[group, 0], model.weight.detach().numpy(), rtol=0, atol=1e-12)
            np.testing.assert_allclose(ours.bias[group, 0], model.bias.detach().numpy(), rtol=0, atol=1e-12)


def test_batched_torch_path_equals_compiled_path():
    from mfh.gaussian._kernels import descend, descend_jointly

    generator = np.random.default_rng(3)
    inputs = generator.standard_normal((3, 5, 20))
    soft_target = generator.uniform(0, 1, (3, 4, 20))
    weight, bias = generator.standard_normal((3, 4, 5)), generator.standard_normal((3, 4))
    in_torch = _descend_in_torch(inputs, soft_target, weight, bias, 0.3, 60, "cpu")
    descend(inputs, soft_target, weight, bias, 0.3, 60)
    np.testing.assert_allclose(in_torch[0], weight, rtol=0, atol=1e-12)
    np.testing.assert_allclose(in_torch[1], bias, rtol=0, atol=1e-12)

    second = generator.standard_normal((3, 6, 20))
    target = (generator.uniform(size=(3, 20)) > 0.5).astype(float)
    weights = [generator.standard_normal((3, 2, dim)) for dim in (5, 6)]
    biases = [generator.standard_normal((3, 2)) for _ in range(2)]
    in_torch = _descend_jointly_in_torch([inputs, second], target, weights, biases, 0.05, 0.9, 60, "cpu")
    descend_jointly(inputs, second, target, weights[0], biases[0], weights[1], biases[1], 0.05, 0.9, 60)
    for theirs, ours in zip([*in_torch[0], *in_torch[1]], [*weights, *biases], strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-12)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_gpu_equals_cpu():
    inputs, target, initial, probability = problems()
    results = [
        fit(inputs, target, initial, teacher_probability=probability, device=device) for device in ("cpu", "cuda")
    ]
    np.testing.assert_allclose(results[0].weight, results[1].weight, rtol=0, atol=1e-10)


def test_accuracy_and_probability_follow_the_logits():
    inputs, target, initial, _ = problems()
    logits = torch.from_numpy(initial.logits(inputs))
    np.testing.assert_allclose(initial.probability(inputs), logits.softmax(-1)[..., 1].numpy(), atol=1e-15)
    right = (logits.argmax(-1).numpy() == target[:, None]).mean(-1)
    np.testing.assert_allclose(initial.accuracy(inputs, target), 100 * right)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"steps": -1}, "steps is -1"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"label_weight": -1.0}, "label_weight is -1.0"),
        ({"label_weight": 0.0, "teacher_weight": 0.0}, "one of them positive"),
        ({"reduction": "sum"}, "reduction is 'sum'"),
        ({"device": "tpu"}, "device is 'tpu'"),
        ({"target": np.zeros((3, 39))}, "target has shape"),
        ({"teacher_probability": np.zeros((3, 2, 39))}, "teacher_probability has shape"),
        ({"initial": Classifiers(np.zeros((3, 2, 2, 6)), np.zeros((3, 2, 2)))}, "do not broadcast"),
    ],
)
def test_bad_input(change, match):
    inputs, target, initial, probability = problems()
    arguments = {"inputs": inputs, "target": target, "initial": initial, "teacher_probability": probability}
    with pytest.raises(InputError, match=match) as caught:
        fit(**{**arguments, **change})
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_gpu_asked_for_where_there_is_none():
    inputs, target, initial, _ = problems()
    with pytest.raises(InputError, match="finds no GPU"):
        fit(inputs, target, initial, device="cuda")
