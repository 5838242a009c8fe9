import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import reusing_logger
import tiny_task
from mfh import files
from mfh.errors import InputError
from mfh.networks.modes import fingerprint
from mfh.problems.losses import KDLoss
from mfh.saliency import masks
from mfh.studies import seed as seeds
from mfh.studies.folder import SeedFolder
from mfh.studies.grid import ARMS, CONTROLS, Cell, cells
from mfh.studies.networks import load_weights
from mfh.studies.seed import Seed, matching_temperature
from mfh.studies.settings import Settings
from mfh.tasks.task import Protocol
from mfh.training import by_method, loop
from mfh.training.fitting import evaluate


@pytest.fixture(scope="module")
def bench():
    return Seed(tiny_task.task(1), seed=1, settings=Settings())


def test_arms_start_from_the_same_weights_and_leave_the_global_generator_alone(bench):
    before = torch.random.get_rng_state()
    first, second = bench.networks.new("student"), bench.networks.new("student")
    assert fingerprint(first) == fingerprint(second)
    assert torch.equal(before, torch.random.get_rng_state())


def test_every_arm_is_measured_on_both_splits(bench):
    grid = cells([*ARMS, *CONTROLS], [0.5], ["distance", "agreement"], ["1"])
    rows = [row for rows in bench.measure(grid) for row in rows]
    for cell in grid:
        mine = [row for row in rows if (row["arm"], row["score"]) == (cell.arm, cell.score)]
        metrics = {(row["split"], row["metric"]) for row in mine}
        assert {("val", "accuracy"), ("test", "accuracy")} <= metrics
        assert (("test", "teacher_accuracy") in metrics) == (cell.teacher is not None)
        assert all(0 <= row["value"] <= 1 for row in mine if row["metric"] != "best_epoch")


def test_a_masked_teacher_is_measured_as_mask_channels_would_make_it(bench):
    cell = Cell("general", "distance", 0.5)
    (rows,) = bench.measure([cell])
    (value,) = [row["value"] for row in rows if (row["split"], row["metric"]) == ("test", "teacher_accuracy")]
    focused = masks.mask_channels(bench.networks.aligned("teacher").network, bench.mask(cell))
    assert value == pytest.approx(evaluate(focused, bench.task.test, "teacher"))


def test_shuffled_weights_are_the_same_weights_elsewhere(bench):
    soft, shuffled = bench.mask(Cell("soft", "probe")), bench.mask(Cell("soft-shuffled", "probe"))
    assert not np.array_equal(soft.weights, shuffled.weights)
    assert sorted(soft.weights) == sorted(shuffled.weights)


def test_the_matching_temperature_matches_the_entropy():
    generator = torch.Generator().manual_seed(0)
    sharp, soft = 6 * torch.randn(200, 5, generator=generator), torch.randn(200, 5, generator=generator)

    def entropy(logits):
        return float(torch.distributions.Categorical(logits=logits.double()).entropy().mean())

    temperature = matching_temperature(sharp, soft)
    assert temperature > 1
    assert entropy(sharp / temperature) == pytest.approx(entropy(soft), rel=1e-6)


def test_what_is_kept_in_a_folder_is_found_again_and_not_made_again(tmp_path, monkeypatch):
    first = Seed(tiny_task.task(), 0, Settings(), SeedFolder(tmp_path, 0))
    scores = first.saliency("distance").scores
    accuracy = evaluate(first.networks.pretrained("student").network, first.task.val, "student")
    monkeypatch.setattr("mfh.studies.networks.align", None)
    monkeypatch.setattr("mfh.studies.networks.pretrain", None)
    monkeypatch.setattr("mfh.studies.seed.channel_saliency", None)
    again = Seed(tiny_task.task(), 0, Settings(), SeedFolder(tmp_path, 0))
    assert np.array_equal(again.saliency("distance").scores, scores)
    assert evaluate(again.networks.pretrained("student").network, again.task.val, "student") == accuracy
    assert again.networks.pretrained("student").best_epoch == first.networks.pretrained("student").best_epoch


def test_networks_made_with_other_options_are_refused(tmp_path):
    Seed(tiny_task.task(), 0, Settings.of(epochs=1), SeedFolder(tmp_path, 0)).networks.pretrained("teacher")
    with pytest.raises(InputError, match="made with epochs 1, now it is 2"):
        Seed(tiny_task.task(), 0, Settings.of(epochs=2), SeedFolder(tmp_path, 0)).networks.pretrained("teacher")


def test_a_checkpoint_stands_for_pretraining(tmp_path):
    teacher = tiny_task.teacher()
    path = tmp_path / "teacher.pt"
    torch.save(teacher.state_dict(), path)
    bench = Seed(tiny_task.task(), 0, Settings.of(teacher_checkpoint=str(path)))
    assert fingerprint(bench.networks.pretrained("teacher").network) == fingerprint(teacher)


def test_a_checkpoint_that_does_not_fit_is_refused_in_one_line(tmp_path):
    with pytest.raises(InputError, match="no checkpoint"):
        load_weights(tiny_task.teacher(), tmp_path / "nowhere.pt")
    (tmp_path / "text.pt").write_text("not weights")
    torch.save(tiny_task.student().state_dict(), tmp_path / "other.pt")
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    said = {"text.pt": "cannot be read", "tensor.pt": "cannot be read", "other.pt": "does not fit Sequential"}
    for name, reason in said.items():
        with pytest.raises(InputError, match=f"{name} {reason}") as error:
            load_weights(tiny_task.teacher(), tmp_path / name)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda weights: {name: value * torch.nan for name, value in weights.items()}, "0.weight is NaN or infinite"),
        (lambda weights: {**weights, "2.bias": torch.tensor([0.0, torch.inf])}, "2.bias is NaN or infinite"),
        (lambda weights: {name: value.long() for name, value in weights.items()}, "0.weight is int64; floating point"),
        (lambda weights: {name: value + 0j for name, value in weights.items()}, "0.weight is complex64; floating"),
        (lambda weights: dict(enumerate(weights.values())), "is no state_dict; a mapping from parameter names"),
        (lambda weights: dict.fromkeys(weights, 3), "0.weight is of type int; a tensor was expected"),
    ],
)
def test_weights_that_pytorch_would_load_in_silence_or_choke_on(tmp_path, change, said):
    torch.save(change(tiny_task.teacher().state_dict()), tmp_path / "weights.pt")
    with pytest.raises(InputError, match=said) as error:
        load_weights(tiny_task.teacher(), tmp_path / "weights.pt")
    assert "\n" not in str(error.value)


def test_weights_in_half_precision_are_taken(tmp_path):
    torch.save({"state_dict": tiny_task.teacher().half().state_dict()}, tmp_path / "weights.pt")
    assert load_weights(tiny_task.teacher(), tmp_path / "weights.pt")[0].weight.dtype == torch.float32


def test_a_saliency_made_with_other_options_is_not_taken_for_this_one(tmp_path):
    made = Seed(tiny_task.task(), 0, Settings.of(permutations=3), SeedFolder(tmp_path, 0))
    made.saliency("distance")
    with pytest.raises(InputError, match="made with permutations 3, now it is 'exact'"):
        Seed(tiny_task.task(), 0, Settings.of(permutations="exact"), SeedFolder(tmp_path, 0)).saliency("distance")
    (tmp_path / "aligned-teacher.safetensors").unlink()
    torch.save(tiny_task.teacher().state_dict(), tmp_path / "teacher.pt")
    made.saliency("probe")
    other = Seed(
        tiny_task.task(), 0, Settings.of(teacher_checkpoint=str(tmp_path / "teacher.pt")), SeedFolder(tmp_path, 0)
    )
    with pytest.raises(InputError, match="another teacher"):
        other.saliency("probe")


class Augmented(torch.utils.data.Dataset):
    """Teacher inputs that differ whenever they are read."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        teacher_input, student_input, target = self.data[index]
        return teacher_input + 0.1 * torch.randn(8), student_input, target


def test_augmented_teacher_inputs_are_not_looked_up(caplog):
    whole = tiny_task.task()
    task = dataclasses.replace(whole, train=Augmented(whole.train))
    bench = Seed(task, 0, Settings.of(epochs=1))
    (rows,) = bench.measure([Cell("soft", "probe", layer="1")])
    assert {"accuracy", "teacher_accuracy"} <= {row["metric"] for row in rows}
    assert "the teacher runs on every batch" in caplog.text
    with pytest.raises(InputError, match="tempered"):
        list(bench.measure([Cell("tempered", "probe", layer="1")]))


def test_a_teacher_known_only_by_its_outputs_can_teach_but_not_be_masked():
    whole = tiny_task.task()
    logits = torch.nn.functional.one_hot(whole.train.tensors[2], 2).float() * 4
    task = dataclasses.replace(whole, teacher=None, teacher_logits=logits)
    bench = Seed(task, 0, Settings())
    rows = [row for rows in bench.measure(cells(["no-kd", "regular"], [], [], [])) for row in rows]
    assert {row["arm"] for row in rows} == {"no-kd", "regular"}
    with pytest.raises(InputError, match="has only its outputs"):
        list(bench.measure([Cell("soft", "probe")]))


def test_the_protocol_of_the_task_decides_unless_the_run_says_otherwise():
    loss = KDLoss(label_weight=0, reduction="mean")
    task = dataclasses.replace(tiny_task.task(), protocol=Protocol(loss=loss, fill="zero", distance="l1"))
    bench = Seed(task, 0, Settings.of(epochs=1, loss={"temperature": 2.0}))
    assert bench.protocol.loss == dataclasses.replace(loss, temperature=2.0)
    assert bench.saliency("distance").distance == "l1"
    assert bench.saliency("agreement").distance == "mse"
    mask = bench.mask(Cell("general", "distance", 0.5, "1"))
    assert mask is not None
    assert not mask.means.any()
    assert Seed(task, 0, Settings.of(loss=KDLoss())).protocol.loss == KDLoss()


def test_without_joint_training_the_pretrained_networks_stand_for_the_pair():
    task = dataclasses.replace(tiny_task.task(), protocol=Protocol(joint=False))
    bench = Seed(task, 0, Settings.of(epochs=1))
    assert bench.networks.aligned("teacher").network is bench.networks.pretrained("teacher").network
    assert bench.student(Cell("aligned-student")).network is bench.networks.pretrained("student").network
    assert bench.saliency("distance").fingerprint == fingerprint(bench.networks.pretrained("teacher").network)


def test_an_aligned_teacher_and_its_saliency_may_come_from_elsewhere(tmp_path):
    made = Seed(tiny_task.task(), 0, Settings.of(epochs=1))
    torch.save(made.networks.aligned("teacher").network.state_dict(), tmp_path / "teacher.pt")
    scores = made.saliency("distance").scores
    np.save(tmp_path / "scores.npy", scores)
    made.saliency("distance").save(tmp_path / "scores.safetensors")
    cell = Cell("general", "distance", 0.5, "1")
    wanted = made.mask(cell)
    assert wanted is not None
    teacher = str(tmp_path / "teacher.pt")
    for file in ("scores.npy", "scores.safetensors"):
        given = Settings.of(epochs=1, aligned_teacher_checkpoint=teacher, saliency=str(tmp_path / file))
        bench = Seed(tiny_task.task(), 1, given)
        mask = bench.mask(cell)
        assert mask is not None
        assert mask.removed.tolist() == wanted.removed.tolist()
        assert mask.fingerprint == wanted.fingerprint
        np.testing.assert_allclose(mask.means, wanted.means, rtol=1e-6)
    with pytest.raises(InputError, match="holds score 'distance' of layer '1', now 'distance' of '0'"):
        bench.saliency("distance", "0")
    with pytest.raises(InputError, match="now 'agreement' of '1'"):
        bench.saliency("agreement")
    with pytest.raises(InputError, match="aligned-student"):
        bench.student(Cell("aligned-student"))
    np.save(tmp_path / "short.npy", scores[:3])
    bench = Seed(tiny_task.task(), 0, given.changed(saliency=str(tmp_path / "short.npy")))
    with pytest.raises(InputError, match=r"shape \(3,\).*12 channels"):
        bench.mask(cell)
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    bench = Seed(tiny_task.task(), 0, given.changed(saliency=str(tmp_path / "objects.npy")))
    with pytest.raises(InputError, match="not an array of numbers"):
        bench.mask(cell)


def test_histories_and_counts_are_kept(tmp_path):
    task = tiny_task.task(0)
    bench = Seed(task, 0, Settings(), SeedFolder(tmp_path, 0))
    cells_ = [Cell("no-kd"), Cell("regular"), Cell("aligned")]
    accuracies = {
        (cell.name, row["split"]): row["value"]
        for cell, rows in zip(cells_, bench.measure(cells_), strict=True)
        for row in rows
        if row["metric"] == "accuracy"
    }
    assert len(accuracies) == 6
    for (name, split), accuracy in accuracies.items():
        counts = SeedFolder(tmp_path, 0).read_counts(Cell(name), split)
        target = torch.cat([item[2][None] for item in getattr(task, split)])
        assert counts.sum(1).tolist() == torch.bincount(target).tolist()
        assert counts.trace() / counts.sum() == accuracy
    for key in ("teacher", "student", "aligned", Cell("regular"), Cell("aligned")):
        history = SeedFolder(tmp_path, 0).read_history(key)
        role = "teacher" if key == "teacher" else "student"
        assert len(history[f"{role}_val_accuracy"]) == 2


@pytest.mark.parametrize("saved", [0, 1, 2])
def test_a_kill_while_networks_are_saved_loses_no_training(tmp_path, monkeypatch, saved):
    whole = Seed(tiny_task.task(0), 0, Settings())
    wanted = [fingerprint(whole.networks.aligned(role).network) for role in ("teacher", "student")]
    save, calls = files.save_tensors, []

    def killed(*arguments):
        calls.append(arguments)
        if len(calls) > saved:
            raise KeyboardInterrupt
        save(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(files, "save_tensors", killed)
        bench = Seed(tiny_task.task(0), 0, Settings(), SeedFolder(tmp_path, 0))
        with pytest.raises(KeyboardInterrupt):
            bench.networks.aligned("teacher")
    assert len(list(tmp_path.glob("aligned-*.safetensors"))) == saved
    monkeypatch.setattr(loop._Epoch, "train", None)  # nothing is trained again
    again = Seed(tiny_task.task(0), 0, Settings(), SeedFolder(tmp_path, 0))
    assert [fingerprint(again.networks.aligned(role).network) for role in ("teacher", "student")] == wanted
    assert not list(tmp_path.glob("*.ckpt"))


def test_training_is_followed_by_a_logger(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    bench = Seed(tiny_task.task(0), 0, Settings.of(logger="tensorboard"), SeedFolder(tmp_path, 0))
    history = bench.networks.pretrained("student").history
    events = EventAccumulator(str(tmp_path / "logs" / "student"))
    events.Reload()
    for name in ("train_loss", "student_val_accuracy", "student_val_loss"):
        values = [event.value for event in events.Scalars(name)]
        assert values == pytest.approx([epoch[name] for epoch in history])


def test_every_network_has_a_run_of_its_own(tmp_path):
    bench = Seed(tiny_task.task(0), 0, Settings.of(logger="reusing_logger:Reusing"), SeedFolder(tmp_path, 0))
    for role in ("student", "teacher"):
        bench.networks.pretrained(role)
    bench.networks.aligned("student")
    bench.student(Cell("regular", layer="1"))
    assert reusing_logger.opened == reusing_logger.ended == ["student", "teacher", "aligned", "distilled-regular-1"]


@pytest.mark.parametrize("name", ["tensorbord", "nowhere.at.all:Logger", "pathlib:Path"])
def test_unknown_loggers_are_refused_before_training(name):
    with pytest.raises(InputError, match="logger is"):
        Seed(tiny_task.task(0), 0, Settings.of(logger=name))


def test_a_kept_probe_of_other_student_layers_is_refused(tmp_path):
    task = tiny_task.task()
    Seed(task, 0, Settings(), SeedFolder(tmp_path, 0)).saliency("probe")
    several = dataclasses.replace(task, student_layer=["input", "1"])
    with pytest.raises(InputError, match="made from the student's layer 1, now it is input, 1"):
        Seed(several, 0, Settings(), SeedFolder(tmp_path, 0)).saliency("probe")
    made = Seed(several, 0, Settings(), SeedFolder(tmp_path / "other", 0)).saliency("probe")
    assert made.student_layer == "input, 1"


def test_scores_behind_a_focus_of_features_have_an_auroc(tmp_path):
    """The penultimate layer of the tiny teacher is the task's layer, under that name or as the end of a container."""
    task = dataclasses.replace(tiny_task.task(0), truth=np.arange(12) < 6)

    def nested():
        first, relu, last = tiny_task.teacher()
        return nn.Sequential(nn.Sequential(first, relu), last)

    for number, one in enumerate((task, dataclasses.replace(task, teacher=nested, layer="0"))):
        made = Seed(one, 0, Settings.of(epochs=1), SeedFolder(tmp_path / str(number), 0))
        (row,) = made.score_rows([Cell("no-kd"), Cell("fitnets+soft", "probe")])
        assert (row["metric"], row["split"], row["score"], row["layer"]) == ("auroc", "train", "probe", one.layer)
        assert row["value"] == made.auroc("probe")
        made.channel_weights(Cell("fitnets+soft", "probe"))
        assert len(list((tmp_path / str(number)).rglob("*saliency*.safetensors"))) == 1  # both use one
    other = Seed(dataclasses.replace(task, layer="0"), 0, Settings.of(epochs=1))  # the layer before
    assert other.score_rows([Cell("fitnets+soft", "probe")]) == []


def _measured_with(monkeypatch, cache, grid, **settings):
    """Rows of arms, and how many passes of a teacher over a split they took."""
    passes = []

    def counted(function):
        def passing(*arguments, **options):
            passes.append(function.__name__)
            return function(*arguments, **options)

        return passing

    with monkeypatch.context() as patch:
        patch.setattr(seeds, "masked_logits", counted(masks.masked_logits))
        patch.setattr(seeds, "teacher_features", counted(by_method.teacher_features))
        made = Seed(tiny_task.task(1), seed=1, settings=Settings.of(cache=cache, **settings))
        return [row for rows in made.measure(grid) for row in rows], len(passes)


def test_a_second_run_reads_teacher_outputs_from_the_cache_and_measures_the_same(monkeypatch, tmp_path):
    grid = cells(["kd", "general", "soft", "fitnets"], [0.5], ["distance"], ["1"])
    without, passes = _measured_with(monkeypatch, None, grid)
    first, first_passes = _measured_with(monkeypatch, tmp_path, grid)
    second, second_passes = _measured_with(monkeypatch, tmp_path, grid)
    assert without == first == second
    assert passes == first_passes > 0
    assert second_passes == 0


def test_another_teacher_has_outputs_of_its_own(monkeypatch, tmp_path):
    grid = cells(["kd"], [0.5], ["distance"], ["1"])
    _, first = _measured_with(monkeypatch, tmp_path, grid)
    rows, second = _measured_with(monkeypatch, tmp_path, grid, epochs=1)
    assert second == first
    assert rows == _measured_with(monkeypatch, None, grid, epochs=1)[0]


def test_a_cache_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="choose a folder"):
        Seed(tiny_task.task(1), seed=1, settings=Settings.of(cache=tmp_path / "file"))


@pytest.mark.parametrize("changed", ["weights", "means"])
def test_outputs_of_masks_that_differ_in_one_channel_of_many_are_told_apart(changed):
    mask = masks.ChannelMask("0", np.zeros(3000), np.zeros(3000), "fingerprint", kind="soft")
    values = np.zeros(3000)
    values[1500] = 1e-12
    digests = {seeds._mask_digest(each) for each in (mask, dataclasses.replace(mask, **{changed: values}))}
    assert len(digests) == 2
    assert seeds._mask_digest(dataclasses.replace(mask, kind="custom")) in digests
