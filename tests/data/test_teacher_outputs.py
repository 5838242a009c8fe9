import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import mfh
import tiny_task
from mfh.data.teacher_outputs import check_finite, teacher_outputs
from mfh.errors import InputError
from mfh.networks.modes import fingerprint
from networks import randn, seeded

LOGITS = randn(120, 2, seed=4)


def write(path, logits=LOGITS):
    if path.suffix == ".npy":
        np.save(path, logits.numpy())
    else:
        save_file({"anything": logits}, path)
    return path


@pytest.mark.parametrize("name", ["logits.npy", "logits.safetensors"])
def test_a_file_teaches_what_the_tensor_does(name, tmp_path):
    path = write(tmp_path / name)
    before = path.read_bytes()
    assert torch.equal(teacher_outputs(path, 120), LOGITS)
    task, recipe = tiny_task.task(), mfh.Recipe(epochs=1)
    fits = [
        mfh.distill(None, seeded(tiny_task.student), task.train, task.val, teacher_logits=given, recipe=recipe)
        for given in (LOGITS, path, str(path))
    ]
    assert len({fingerprint(fit.student) for fit in fits}) == 1
    studied = dataclasses.replace(task, teacher=None, teacher_logits=str(path))
    result = mfh.study(studied, arms=["no-kd", "regular"], num_seeds=1, processes=1)
    assert list(result.by_seed().columns) == ["no-kd", "regular"]
    assert path.read_bytes() == before


def test_half_precision_outputs_teach_in_single(tmp_path):
    path = tmp_path / "half.npy"
    np.save(path, LOGITS.numpy().astype(np.float16))
    task, recipe = tiny_task.task(), mfh.Recipe(epochs=1)
    ours, theirs = (
        mfh.distill(None, seeded(tiny_task.student), task.train, task.val, teacher_logits=given, recipe=recipe)
        for given in (path, LOGITS.half().float())
    )
    assert fingerprint(ours.student) == fingerprint(theirs.student)


def test_a_file_is_mapped_not_read(tmp_path):
    path = write(tmp_path / "logits.npy")
    mapped = teacher_outputs(path, 120)
    changed = LOGITS.clone()
    changed[100] = 7.0
    with path.open("r+b") as file:  # what is read only now is what is there now
        file.seek(path.stat().st_size - LOGITS.nbytes)
        file.write(changed.numpy().tobytes())
    assert torch.equal(mapped[100], changed[100])


def test_outputs_too_large_for_the_device_are_looked_up_where_they_are(monkeypatch):
    task, recipe = tiny_task.task(), mfh.Recipe(epochs=2)
    fits = []
    for limit in (10**9, 10):
        monkeypatch.setattr("mfh.training.objectives.IN_MEMORY_BYTES", limit)
        student = seeded(tiny_task.student)
        fits.append(mfh.distill(None, student, task.train, task.val, teacher_logits=LOGITS, recipe=recipe))
    assert fingerprint(fits[0].student) == fingerprint(fits[1].student)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("nowhere.npy", None, "there is no such file"),
        ("text.npy", b"nothing of that kind", "cannot be read"),
        ("text.safetensors", b"nothing of that kind", "cannot be read"),
        ("short.npy", LOGITS[:50], r"has 50 rows for 120 samples \(shape \(50, 2\)"),
        ("whole.npy", torch.zeros(120, 2).long(), "int64"),
        ("flat.npy", torch.zeros(120), r"shape \(120,\)"),
    ],
)
def test_files_that_hold_no_logits_are_named(name, content, said, tmp_path):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        write(path, content)
    with pytest.raises(InputError, match=said) as error:
        teacher_outputs(path, 120)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_objects_in_a_file_are_not_unpickled(tmp_path):
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}] * 120, dtype=object))
    with pytest.raises(InputError, match=r"objects.npy\) cannot be read"):
        teacher_outputs(tmp_path / "objects.npy", 120)


def test_several_tensors_need_one_called_logits(tmp_path):
    save_file({"logits": LOGITS, "other": LOGITS * 2}, tmp_path / "two.safetensors")
    assert torch.equal(teacher_outputs(tmp_path / "two.safetensors", 120), LOGITS)
    save_file({"a": LOGITS, "b": LOGITS * 2}, tmp_path / "ab.safetensors")
    with pytest.raises(InputError, match="holds 2 tensors; one, or one called 'logits'"):
        teacher_outputs(tmp_path / "ab.safetensors", 120)


def test_the_sample_that_is_not_finite_is_named():
    wrong = torch.zeros(9000, 2)
    wrong[5000, 1] = float("inf")
    with pytest.raises(InputError, match=r"NaN or infinite \(training sample 5000\)"):
        check_finite(wrong)


def test_a_teacher_of_both_modalities_teaches_one(tmp_path):
    """Both inputs lie in teacher_input; every arm runs."""
    task = tiny_task.task()

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.joined = nn.Sequential(nn.Linear(15, 12), nn.ReLU())
            self.out = nn.Linear(12, 2)

        def forward(self, inputs):
            return self.out(self.joined(torch.cat([inputs["sound"], inputs["look"]], dim=1)))

    def pairs(split):
        return [({"sound": t, "look": s}, s, int(y)) for t, s, y in split]

    splits = {name: pairs(getattr(task, name)) for name in ("train", "val", "test")}
    both = dataclasses.replace(task, teacher=Both, layer="joined", **splits)
    result = mfh.study(both, num_seeds=1, epochs=1, processes=1)
    assert result.by_seed().shape == (1, 8)


@pytest.mark.parametrize(
    "array",
    [
        LOGITS.numpy().astype(">f4"),
        LOGITS.numpy().astype(np.longdouble),
        LOGITS.numpy()[::-1][::-1],
        LOGITS.numpy().copy()[::-1, ::-1][::-1, ::-1],
        np.ascontiguousarray(LOGITS.numpy()[::-1])[::-1],
    ],
)
def test_arrays_of_every_layout(array, tmp_path):
    assert torch.equal(teacher_outputs(array, 120).float(), LOGITS)
    np.save(tmp_path / "saved.npy", array)
    assert torch.equal(teacher_outputs(tmp_path / "saved.npy", 120).float(), LOGITS)


def test_what_is_no_array_is_refused():
    for wrong in (LOGITS.tolist(), 5):
        with pytest.raises(InputError, match="a tensor, an array or the path of a file was expected"):
            teacher_outputs(wrong, 120)
