"""Two processes against one, on a CPU; what a GPU does differently is not tried here."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import fragile_task
import training_together
from mfh import files
from mfh.cli.commands import main
from mfh.errors import InputError
from mfh.parallel.distributed import (
    average_buffers,
    exists,
    gather,
    joined,
    part,
    rank,
    share_rows,
    total,
    world_size,
)
from mfh.training.fitting import pretrain
from networks import randn, seeded
from processes import torchrun

HERE = Path(training_together.__file__).parent


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    folder = tmp_path_factory.mktemp("together")
    code, said = torchrun(HERE / "training_together.py", folder, folder=folder)
    assert code == 1, said
    # The last thing that happens is an error in one process. It ends the job at once, and is told in one line.
    ours = [line for line in said.splitlines() if line.startswith("mfh: ")]
    assert ours == ["mfh: this process has had enough"], said
    found = [json.loads((folder / f"{process}.json").read_text()) for process in range(2)]
    return folder, *found


def test_all_processes_get_the_same(together):
    _, first, second = together
    assert first["world"] == 2
    assert first == second
    assert len(set(first["normalised"])) == 1


def test_two_processes_train_as_one_that_accumulates_two_batches(together):
    found, alone = together[1]["trainings"], training_together.trainings(2)
    assert found["best_epochs"] == alone["best_epochs"]
    for ours, theirs in zip(found["histories"], alone["histories"], strict=True):
        assert [entry["steps"] for entry in ours] == [4, 8, 12]  # one process and no accumulation takes 8, 16, 24
        assert theirs[-1]["train_loss"] < theirs[0]["train_loss"]
        for mine, other in zip(ours, theirs, strict=True):
            assert mine == pytest.approx(other, rel=1e-5, abs=1e-6)
    for ours, theirs in zip(found["weights"], alone["weights"], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_two_processes_measure_as_one(together):
    found, alone = together[1]["measurements"], training_together.measurements()
    assert found.pop("accuracies") == alone.pop("accuracies")
    for name, (samples, scores, means) in alone.items():
        assert found[name][0] == samples == 117
        assert np.ptp(scores) > 1e-3, name
        np.testing.assert_allclose(found[name][1], scores, rtol=1e-5, atol=1e-5, err_msg=name)
        np.testing.assert_allclose(found[name][2], means, rtol=1e-5, atol=1e-5, err_msg=name)


def test_one_process_goes_on_with_what_two_have_made(together, tmp_path):
    folder, found, _ = together
    shutil.copytree(folder / "run", tmp_path / "run")
    names = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert names == [
        "aligned-best-student.safetensors",
        "aligned-student.safetensors",
        "aligned-teacher.safetensors",
        "distilled-general-distance-0.5-1.safetensors",
        "histories",
        "mask-general-distance-0.5-1.safetensors",
        "saliency-distance.safetensors",
    ]
    facts = files.load_tensors(tmp_path / "run/aligned-teacher.safetensors", "network")[1]
    assert facts["processes"] == 2
    (tmp_path / "run/saliency-distance.safetensors").unlink()
    alone = training_together.kept(tmp_path / "run")
    np.testing.assert_allclose(alone.pop("saliency"), found["kept"].pop("saliency"), rtol=1e-5, atol=1e-5)
    assert alone == found["kept"]


def test_what_several_processes_cannot_do(together):
    said = together[1]["refusals"]
    assert said["train"] == "the train split has 1 samples for 2 processes; start fewer"
    assert said["val"] == "the val split has 1 samples for 2 processes; start fewer"
    assert said["part"] == "1 sample cannot be shared by 2 processes; start fewer"
    assert "take no part in the loss" in said["unused"]
    assert "task 'tiny' has other data in process" in said["data"]
    assert "process 1 of 2 does not see" in said["disk"]


def test_a_job_survives_a_killed_process(tmp_path):
    code, said = torchrun(
        *("--max-restarts", "1", "-m", "mfh", "pretrain", HERE / "fragile_task.py", "--role", "student"),
        folder=tmp_path,
        MFH_TEST_ACCIDENT=str(tmp_path / "happened"),
    )
    assert code == 0, said
    assert "terminate called" not in said  # the interpreters ended in order
    assert (tmp_path / "happened").exists()
    ours = [line for line in said.splitlines() if line.startswith("mfh: ")]
    lost = "mfh: another process of this job has ended; the same command resumes"  # unless torchrun was faster
    assert [line for line in ours if line != lost] == ["mfh: training on 2 processes (Gloo)"] * 2
    assert ours.count(lost) <= 1
    assert "Traceback" not in said
    assert said.count("student: validation accuracy") == 1
    path = tmp_path / "runs/fragile_task/seed-0/student.safetensors"
    assert {path.name, "histories"} == {item.name for item in path.parent.iterdir()}
    tensors, facts = files.load_tensors(path, "network")

    task, network = fragile_task.task(), seeded(fragile_task.tiny_task.student, 0)
    recipe = training_together.replace(task.recipe, accumulate=2)
    alone = pretrain(network, task.train, task.val, role="student", recipe=recipe)
    assert facts["best_epoch"] == alone.best_epoch
    assert [entry["steps"] for entry in facts["history"]] == [4, 8, 12, 16, 20]
    for mine, other in zip(facts["history"], alone.history, strict=True):
        assert mine == pytest.approx(other, rel=1e-5, abs=1e-6)
    for name, tensor in alone.network.state_dict().items():
        torch.testing.assert_close(tensors[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("process", "code", "heard"), [("0", 2, 1), ("1", 0, 0)])
@pytest.mark.parametrize("words", [["study", "digits"], ["demo"], ["pretrain"], ["pretrain", "digits", "--no"]])
def test_what_all_processes_refuse_is_said_once(words, process, code, heard, monkeypatch, capsys):
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "RANK": process}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == code
    printed = capsys.readouterr()
    assert bool(printed.err) == heard
    if heard and words[0] in ("study", "demo"):
        assert printed.err.startswith("mfh: pretrain, align, saliency and distill share torchrun's processes")
        assert printed.err.count("\n") == 1


def test_one_process(tmp_path):
    values = randn(3, 2)
    assert share_rows(values) is values
    assert total(values) is values
    assert part(values) is values
    assert gather("x") == ["x"]
    assert (rank(), world_size()) == (0, 1)
    assert exists(tmp_path)
    assert not exists(tmp_path / "nothing")
    average_buffers(torch.nn.BatchNorm1d(2))
    with pytest.raises(InputError, match="as it is"), joined(None, lambda _: 3):
        raise InputError("as it is")
