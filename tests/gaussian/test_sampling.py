import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mfh.errors import InputError
from mfh.gaussian import VaryAlpha, VaryGamma, World, sample, world_of
from mfh.gaussian.sampling import published_modification, published_sweep
from mfh.venn import ModalityVenn

COUNTS = st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(0, 6), st.integers(0, 4))


@settings(max_examples=60, deadline=None)
@given(counts=COUNTS, spare=st.integers(0, 5), seed=st.integers(0, 10_000))
def test_worlds_carry_what_their_counts_say(counts, spare, seed):
    general, teacher_only, student_only, unseen = counts
    if not (general + teacher_only and general + student_only):
        return
    venn = ModalityVenn(general, teacher_only, student_only)
    teacher_dim, student_dim = general + teacher_only + spare, general + student_only + spare
    world = world_of(venn, teacher_dim=teacher_dim, student_dim=student_dim, unseen=unseen)
    assert world.venn == venn
    assert world.num_decisive == venn.total + unseen
    assert list(world.general_places) == list(range(general))

    train, test = sample(world, num_train=9, num_test=5, seed=seed, equal_coefficients=True)
    assert train.teacher_inputs.shape == (9, teacher_dim)
    assert test.student_inputs.shape == (5, student_dim)
    np.testing.assert_array_equal(train.teacher_inputs[:, :general], train.student_inputs[:, :general])
    # Nothing but the general inputs occurs in both modalities.
    assert not np.isin(train.teacher_inputs[:, general:], train.student_inputs[:, general:]).any()
    assert set(np.unique(train.target)) <= {0.0, 1.0}
    if not unseen:
        decisive = np.concatenate(
            [
                train.teacher_inputs[:, : general + teacher_only],
                train.student_inputs[:, general : general + student_only],
            ],
            axis=1,
        )
        np.testing.assert_array_equal(train.target, (decisive.sum(axis=1) > 0).astype(float))


def test_samples_are_standard_normal_and_labels_balanced():
    train, _ = sample(world_of(ModalityVenn(2, 3, 1), unseen=2), num_train=20_000, seed=1)
    for inputs in (train.teacher_inputs, train.student_inputs):
        assert np.abs(inputs.mean(axis=0)).max() < 0.04
        assert np.abs(np.cov(inputs.T) - np.eye(50)).max() < 0.06
    assert abs(train.target.mean() - 0.5) < 0.02


def test_same_seed_same_data_and_splits_differ():
    world = world_of(ModalityVenn(2, 1, 1))
    first, again = sample(world, seed=3), sample(world, seed=3)
    np.testing.assert_array_equal(first[0].teacher_inputs, again[0].teacher_inputs)
    np.testing.assert_array_equal(first[1].target, again[1].target)
    assert not np.array_equal(first[0].teacher_inputs, first[1].teacher_inputs[:200])
    assert not np.array_equal(first[0].teacher_inputs, sample(world, seed=4)[0].teacher_inputs)


def test_global_generator_is_left_alone():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    sample(world_of(ModalityVenn(1)), seed=0)
    published_sweep(0, VaryGamma().worlds[0], 10, 10)
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_published_sweep_recipe():
    world = VaryGamma().worlds[3]  # overlap 6: the teacher carries decisive inputs 4..13 in places 4..13
    train, test = published_sweep(7, world, 200, 1000)
    stream = np.random.RandomState(7)
    coefficients = stream.randn(500)[:20]
    decisive, student_noise, teacher_noise = stream.randn(200, 20), stream.randn(200, 50), stream.randn(200, 25)
    np.testing.assert_array_equal(train.target, (decisive @ coefficients > 0).astype(float))
    teacher_noise[:, 4:14] = decisive[:, 4:14]
    student_noise[:, :10] = decisive[:, :10]
    np.testing.assert_array_equal(train.teacher_inputs(world), teacher_noise)
    np.testing.assert_array_equal(train.student_inputs(world), student_noise)
    np.testing.assert_array_equal(test.decisive, np.random.RandomState(8).randn(1000, 20))


def test_published_modification_recipe():
    world = world_of(ModalityVenn(general=5, teacher_only=10))
    first, test, fresh = published_modification(42, world, 200, 1000)
    stream = np.random.RandomState(42)
    for draw, num_samples in ((first, 200), (test, 1000), (fresh, 200)):
        decisive, teacher_noise, student_noise = (stream.randn(num_samples, width) for width in (15, 50, 50))
        np.testing.assert_array_equal(draw.target, (decisive.sum(axis=1) > 0).astype(float))
        teacher_noise[:, :15] = decisive
        student_noise[:, :5] = decisive[:, :5]
        np.testing.assert_array_equal(draw.teacher_inputs(world), teacher_noise)
        np.testing.assert_array_equal(draw.student_inputs(world), student_noise)


def test_published_worlds():
    assert [round(world.venn.gamma, 2) for world in VaryGamma().worlds] == [0, 0.11, 0.25, 0.43, 0.67, 1]
    assert [round(world.venn.alpha, 3) for world in VaryAlpha().worlds] == [0, 0.5, 0.667, 0.75, 0.8]
    for world in VaryAlpha().worlds:
        assert world.venn.beta == 0
        assert world.venn.gamma == pytest.approx(1 - world.venn.alpha)
    # For an overlap of v, v decisive inputs are seen by neither.
    assert [world.num_decisive - world.venn.total for world in VaryGamma().worlds] == [0, 2, 4, 6, 8, 10]


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: world_of(ModalityVenn(10, 20), teacher_dim=25), "teacher_dim is 25.*at least 30"),
        (lambda: world_of(ModalityVenn(10, 0, 20), student_dim=25), "student_dim is 25.*at least 30"),
        (lambda: world_of(ModalityVenn(0, 3, 0)), "student carries no decisive input"),
        (lambda: world_of(ModalityVenn(1), unseen=-1), "unseen is -1"),
        (lambda: World(num_decisive=3, teacher=(0, 3), student=(0,)), "numbers from 0 to 2"),
        (lambda: World(num_decisive=3, teacher=(0, 0), student=(0,)), "distinct"),
        (lambda: sample(world_of(ModalityVenn(1)), num_train=0), "num_train is 0"),
        (lambda: sample(world_of(ModalityVenn(1)), num_test=-4), "num_test is -4"),
    ],
)
def test_bad_input(build, match):
    with pytest.raises(InputError, match=match) as caught:
        build()
    assert "\n" not in str(caught.value)
