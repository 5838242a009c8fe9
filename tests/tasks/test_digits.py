import itertools
import json
import pickle

import numpy as np
import pytest
import torch

from mfh.errors import InputError
from mfh.tasks.digits import World, task
from mfh.tasks.digits.networks import digit_of_channel, student, teacher
from mfh.tasks.digits.world import dial, load_scans, spectrogram, split_scans, write

SMALL = {"num_train": 40, "num_val": 20, "num_test": 30}
SPLITS = ("train", "val", "test")
WORLDS = [
    World(),
    World(general=2, teacher_only=1),
    World(general=1, teacher_only=1, student_only=1, student_distractors=0),
    World(general=0, teacher_only=2, teacher_distractors=1),
    World(general=1, teacher_only=0, student_distractors=0),
]


def tensors(data):
    return data.train.tensors + data.val.tensors + data.test.tensors


def test_same_seed_same_data_and_global_state_untouched():
    numpy_state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    first, second = task(seed=5, **SMALL), task(seed=5, **SMALL)
    assert all(torch.equal(a, b) for a, b in zip(tensors(first), tensors(second), strict=True))
    assert np.array_equal(numpy_state, np.random.get_state()[1])  # noqa: NPY002
    assert torch.equal(torch_state, torch.get_rng_state())


def test_other_seed_other_data():
    for a, b in zip(tensors(task(seed=0, **SMALL)), tensors(task(seed=1, **SMALL)), strict=True):
        assert not torch.equal(a, b)
    assert not np.array_equal(split_scans(0)["train"], split_scans(1)["train"])


def test_size_of_one_split_changes_nothing_in_another():
    small, large = task(**SMALL), task(**{**SMALL, "num_train": 80})
    for a, b in zip(small.test.tensors, large.test.tensors, strict=True):
        assert torch.equal(a, b)


def test_splits_share_no_scan_and_have_every_digit():
    _, classes = load_scans()
    for seed in range(3):
        parts = split_scans(seed)
        together = np.concatenate([parts[name] for name in SPLITS])
        assert np.array_equal(np.sort(together), np.arange(1797))  # disjoint and complete
        for name in SPLITS:
            counts = np.bincount(classes[parts[name]], minlength=10)
            assert counts.min() >= 40


def test_pictures_without_noise_are_scans_of_their_own_split():
    images, _ = load_scans()
    data = task(seed=2, picture_noise=0.0, **SMALL)
    parts = split_scans(2)
    for name in SPLITS:
        allowed = {image.tobytes() for image in images[parts[name]]}
        pictures = getattr(data, name).tensors[1].numpy()
        for start in (0, 8):
            cells = pictures[:, 0, :, start : start + 8]
            assert all(np.ascontiguousarray(cell).tobytes() in allowed for cell in cells)


@pytest.mark.parametrize("world", WORLDS, ids=str)
def test_shapes(world):
    recording, picture, target = world.split("train", 7, seed=0).tensors
    frames = 1 + 400 * world.num_heard // 64
    assert recording.shape == (7, 1, 65, frames)
    assert recording.dtype == torch.float32
    assert picture.shape == (7, 1, 8, 8 * world.num_seen)
    assert picture.dtype == torch.float32
    assert target.shape == (7,)
    assert target.dtype == torch.int64


def decode(signal):
    """Digits of noise-free recordings (N, 400 A): the strongest low and high frequency of every key."""
    keypad = {(697, 1209): 1, (697, 1336): 2, (697, 1477): 3, (770, 1209): 4, (770, 1336): 5, (770, 1477): 6}
    keypad |= {(852, 1209): 7, (852, 1336): 8, (852, 1477): 9, (941, 1336): 0}
    keys = signal.reshape(len(signal), -1, 400)
    power = np.abs(np.fft.rfft(keys * np.hanning(400), 8000)) ** 2
    frequencies = np.fft.rfftfreq(8000, 1 / 4000)

    def peak(low, high, known):
        band = (frequencies >= low) & (frequencies < high)
        strongest = frequencies[band][power[..., band].argmax(-1)]
        return np.array(known)[np.abs(strongest[..., None] - np.array(known)).argmin(-1)]

    low, high = peak(600, 1000, [697, 770, 852, 941]), peak(1150, 1600, [1209, 1336, 1477])
    return np.vectorize(lambda a, b: keypad[a, b])(low, high)


def read(picture, scans):
    """Digits of noise-free pictures (N, 1, 8, 8 B): those of the scans that match to the bit."""
    images, classes = load_scans()
    known = {images[scan].tobytes(): classes[scan] for scan in scans}
    cells = picture.reshape(len(picture), 8, -1, 8).transpose(0, 2, 1, 3)
    return np.array([[known[np.ascontiguousarray(cell).tobytes()] for cell in row] for row in cells])


@pytest.mark.parametrize("world", WORLDS, ids=str)
def test_renderings_show_the_drawn_digits_and_labels_follow(world):
    generator = np.random.default_rng(3)
    digits = world.draw(200, generator)
    heard = decode(dial(digits.heard, 0.0, generator))
    scans = split_scans(0)["val"]
    seen = read(write(digits.seen, scans, 0.0, generator).numpy(), scans)
    assert np.array_equal(heard, digits.heard)
    assert np.array_equal(seen, digits.seen)

    g, t, s = world.general, world.teacher_only, world.student_only
    assert np.array_equal(heard[:, :g], seen[:, :g])
    total = heard[:, : g + t].sum(1) + seen[:, g : g + s].sum(1)
    assert np.array_equal(digits.target, total > 4.5 * (g + t + s))
    assert 0 < digits.target.mean() < 1
    others = [heard[:, i] for i in range(g, heard.shape[1])] + [seen[:, i] for i in range(g, seen.shape[1])]
    for a, b in itertools.combinations(others, 2):
        assert not np.array_equal(a, b)


def test_split_is_what_draw_says():
    world = World(audio_noise=0.0, picture_noise=0.0)
    recording, picture, target = world.split("train", 50, seed=4).tensors
    seen = read(picture.numpy(), split_scans(4)["train"])
    # The general digit sounds under the first frames: nearest template of the ten keys.
    templates = spectrogram(dial(np.arange(10)[:, None], 0.0, np.random.default_rng(0)))
    distances = (recording[:, None, 0, :, 2:5] - templates[None, :, 0, :, 2:5]).square().sum((2, 3))
    assert np.array_equal(distances.argmin(1).numpy(), seen[:, 0])
    # With two digits, 0 + anything never exceeds 9 and 9 + anything above 0 does.
    assert (target.numpy()[seen[:, 0] == 0] == 0).all()


def test_noise_has_its_standard_deviation():
    digits = np.zeros((50, 2), dtype=np.int64)
    quiet, loud = (dial(digits, noise, np.random.default_rng(0)) for noise in (0.0, 2.0))
    assert (loud - quiet).std() == pytest.approx(2.0, rel=0.02)
    assert quiet.std() == pytest.approx(1.0, rel=0.02)  # two sinusoids of power 1/2
    scans = split_scans(0)["train"]
    clean, noisy = (write(digits, scans, noise, np.random.default_rng(0)) for noise in (0.0, 0.3))
    assert float((noisy - clean).std()) == pytest.approx(0.3, rel=0.03)
    assert float(clean.min()) == 0.0
    assert float(clean.max()) == 1.0


@pytest.mark.parametrize("counts", [(1, 1, 0), (2, 1, 0), (1, 1, 1), (0, 2, 1), (1, 0, 0), (2, 1, 1)], ids=str)
def test_best_accuracies_equal_brute_force(counts):
    general, teacher_only, student_only = counts
    world = World(general=general, teacher_only=teacher_only, student_only=student_only)
    digits = np.array(list(itertools.product(range(10), repeat=sum(counts))))
    label = digits.sum(1) > 4.5 * sum(counts)

    def best(columns):
        right = 0
        _, group = np.unique(digits[:, columns], axis=0, return_inverse=True)
        for member in range(group.max() + 1 if columns else 1):
            labels = label[group == member] if columns else label
            right += max(labels.sum(), (~labels).sum())
        return right / len(digits)

    heard = list(range(general + teacher_only))
    seen = [*range(general), *range(general + teacher_only, sum(counts))]
    facts = world.facts()
    assert facts["best_teacher_accuracy"] == pytest.approx(best(heard), abs=1e-12)
    assert facts["best_student_accuracy"] == pytest.approx(best(seen), abs=1e-12)
    assert facts["best_joint_accuracy"] == 1.0
    assert facts["majority_accuracy"] == pytest.approx(best([]), abs=1e-12)


@pytest.mark.parametrize("num_classes", [3, 4, 10])
def test_more_classes_are_ranges_of_the_sum_that_are_about_equally_likely(num_classes):
    world = World(general=1, teacher_only=1, num_classes=num_classes)
    digits = np.array(list(itertools.product(range(10), repeat=2)))
    target = world.draw(4000, np.random.default_rng(0)).target
    share = np.bincount(target, minlength=num_classes) / len(target)
    assert len(share) == num_classes
    assert np.abs(share - 1 / num_classes).max() < 0.07
    label = np.searchsorted(world.limits, digits.sum(1))
    right = sum(np.bincount(label[digits[:, 0] == digit]).max() for digit in range(10))
    facts = world.facts()
    assert facts["best_student_accuracy"] == pytest.approx(right / 100, abs=1e-12)
    assert facts["majority_accuracy"] == pytest.approx(np.bincount(label).max() / 100, abs=1e-12)
    assert len(facts["classes"]) == num_classes
    assert facts["classes"][0].startswith("sum 0 to ")
    made = task(num_classes=num_classes, **SMALL)
    assert made.student()(made.train[0][1][None]).shape == (1, num_classes)


@pytest.mark.parametrize("wrong", [1, 11, True, 2.5, "3"])
def test_a_number_of_classes_out_of_range_is_refused(wrong):
    with pytest.raises(InputError, match=r"num_classes is .*; choose 2 to 10"):
        World(num_classes=wrong)


def test_facts():
    facts = task(general=1, teacher_only=2, student_only=1, **SMALL).facts
    assert (facts["alpha"], facts["beta"], facts["gamma"]) == (2 / 3, 1 / 2, 1 / 4)
    assert json.loads(json.dumps(facts)) == facts
    assert facts["description"].count(".") == 1
    assert World(general=np.int64(1)).facts() == World().facts()


@pytest.mark.parametrize("world", WORLDS, ids=str)
def test_networks_fit_the_world_and_truth_fits_the_layer(world):
    recording, picture, _ = world.split("train", 3, seed=0).tensors
    teacher_net, student_net = teacher(world.num_heard), student(world.num_seen)
    assert teacher_net(recording).shape == (3, 2)
    assert student_net(picture).shape == (3, 2)
    width = teacher_net.get_submodule("fc1").in_features
    assert digit_of_channel(world.num_heard).shape == (width,)


def test_task_truth_and_layers():
    data = task(general=2, teacher_only=1, teacher_distractors=1, **SMALL)
    columns = 16
    assert data.truth.dtype == bool
    assert data.truth.shape == (8 * 16 * columns,)
    by_column = data.truth.reshape(-1, columns)
    assert by_column[:, :8].all()
    assert not by_column[:, 8:].any()
    assert data.layer in dict(data.teacher().named_modules())
    assert data.student_layer in dict(data.student().named_modules())
    recording, picture, _ = data.train[0]
    assert data.teacher()(recording[None]).shape == (1, 2)
    assert data.student()(picture[None]).shape == (1, 2)
    assert isinstance(pickle.loads(pickle.dumps(data.teacher))(), torch.nn.Module)


@pytest.mark.parametrize("changed", [0, 1])
def test_a_digit_moves_the_channels_of_its_own_columns(changed):
    """The same phases and noise, one digit replaced: how much moves under the other digit?"""
    draw = np.random.default_rng(0)
    digits = draw.integers(10, size=(300, 2))
    other = digits.copy()
    other[:, changed] = (digits[:, changed] + draw.integers(1, 10, size=300)) % 10
    torch.manual_seed(0)
    trunk = teacher(2)[:6]
    with torch.no_grad():
        before, after = (trunk(spectrogram(dial(d, 1.0, np.random.default_rng(1)))) for d in (digits, other))
    moved = (after - before).square().sum(0).numpy()
    of_digit = digit_of_channel(2)
    assert moved[of_digit != changed].sum() < 0.2 * moved.sum()
    by_column = moved.reshape(-1, 8).sum(0)
    # Nothing at all reaches the columns far from the border; a report says how far, digits-networks-2026-11-23.md.
    assert (by_column[[0, 1]] == 0).all() if changed == 1 else by_column[7] == 0
    assert (by_column[4:] > 0).all() if changed == 1 else (by_column[:4] > 0).all()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"general": 0, "teacher_only": 0}, "no feature is decisive"),
        ({"general": -1}, "general is -1"),
        ({"general": 1.5}, r"general is 1\.5"),
        ({"teacher_only": "two"}, "teacher_only is 'two'"),
        ({"student_distractors": -1}, "student_distractors is -1"),
        ({"teacher_distractors": True}, "teacher_distractors is True"),
        ({"teacher_only": 8}, "recording has 9 digits"),
        ({"student_distractors": 20}, "picture has 21 digits"),
        ({"general": 0, "student_distractors": 0}, "picture has 0 digits"),
        ({"general": 0, "teacher_only": 0, "student_only": 1}, "recording has 0 digits"),
        ({"num_train": 0}, "num_train is 0"),
        ({"num_val": -5}, "num_val is -5"),
        ({"num_test": 2.5}, r"num_test is 2\.5"),
        ({"audio_noise": -0.1}, r"audio_noise is -0\.1"),
        ({"picture_noise": float("nan")}, "picture_noise is nan"),
        ({"audio_noise": "loud"}, "audio_noise is 'loud'"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 0.5}, r"seed is 0\.5"),
    ],
)
def test_bad_input(arguments, says):
    with pytest.raises(InputError, match=says) as error:
        task(**{**SMALL, **arguments})
    assert "\n" not in str(error.value)


def test_best_accuracy_of_more_digits_than_there_are():
    with pytest.raises(InputError, match="known is 3"):
        World().best_accuracy(known=3)
