"""What steps, studies and diagnoses share: checks, the lock of the run folder, and what is made once."""

import dataclasses
import json
from collections import Counter

import pytest
from torch import nn

import mfh
import tiny_task
from mfh import files
from mfh.cli import main
from mfh.errors import InputError
from mfh.networks import cut, frozen
from mfh.reporting import report
from mfh.saliency.scores import ChannelSaliency
from mfh.studies import networks
from mfh.studies.folder import Run
from mfh.studies.settings import Settings
from mfh.studies.steps import open_seed

TINY = tiny_task.__file__


def test_a_teacher_with_other_classes_is_refused_before_anything_is_trained(monkeypatch, tmp_path):
    def three_classes():
        return nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3))

    task = dataclasses.replace(tiny_task.task(), teacher=three_classes)
    monkeypatch.setattr(networks, "pretrain", lambda *_, **__: pytest.fail("a network was trained"))
    for call in (mfh.diagnose, mfh.study):
        with pytest.raises(InputError, match="both must have the same classes"):
            call(task, device="cpu", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["pretrain", TINY],
        ["align", TINY],
        ["saliency", TINY],
        ["distill", TINY, "--arm", "regular"],
        ["diagnose", TINY],
        ["study", TINY, "--num-seeds", "1"],
        ["gauss", "vary-gamma", "--num-seeds", "1"],
    ],
    ids=lambda words: words[0],
)
def test_a_run_folder_in_use_is_refused_and_left_alone(tmp_path, capsys, words):
    run = Run(tmp_path / "run")
    with run.locked():
        run.write_config({"command": "study", "task": "tiny"})
        before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
        if words[0] == "gauss":
            (run.folder / "config.json").unlink()
            before = {path: content for path, content in before.items() if path.name != "config.json"}
        with pytest.raises(SystemExit) as stop:
            main([*words, "--out", str(run.folder), "--quiet"])
        assert stop.value.code == 2
        assert "is in use by another process" in capsys.readouterr().err
        assert before == {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}


def test_a_step_of_another_task_is_refused(tmp_path):
    with open_seed(TINY, out=tmp_path / "run"):
        pass
    other = dataclasses.replace(tiny_task.task(), name="other")
    with (
        pytest.raises(InputError, match=r'\(single steps\) was made with task "tiny", now it is "other"'),
        open_seed(other, out=tmp_path / "run"),
    ):
        pytest.fail("another task was opened")


def test_settings_by_name_and_in_groups_are_one():
    assert Settings.of(epochs=3, threads=2, temperature=2.0).loss.changes() == {"temperature": 2.0}
    assert Settings.of(epochs=3).changed(epochs=None, device="cpu") == Settings.of(epochs=3, device="cpu")
    assert Settings.of(loss={"label_weight": 0.5}) == Settings.of(label_weight=0.5)
    assert Settings.of(epochs=0).training.changes() == {"epochs": 0}  # refused by the recipe, not taken for unset
    assert Settings.of(loss={"reduction": "mean"}).loss.changes() == {"reduction": "mean"}
    assert Settings.of(channels_last=False).training.changes() == {"channels_last": False}
    assert Settings.of(channels_last=False).changed(channels_last=True).training.changes() == {"channels_last": True}
    with pytest.raises(InputError, match="loss has no field 'epochs'"):
        Settings.of(loss={"epochs": 3})
    with pytest.raises(InputError, match="no setting 'epoch'; close names: 'epochs'"):
        Settings.of(epoch=3)
    with pytest.raises(InputError, match="processes is 0"):
        Settings.of(processes=0)
    with pytest.raises(InputError, match="permutations is 'some'"):
        Settings.of(permutations="some")


def test_one_seed_of_the_default_arms_hashes_each_network_once_and_cuts_each_teacher_once(monkeypatch, tmp_path):
    hashed, cuts = Counter(), Counter()
    digest, split = frozen.fingerprint, cut.split

    def hashing(model):
        hashed[id(model)] += 1
        kept.append(model)  # so that no id is used twice
        return digest(model)

    def cutting(model, layer, inputs):
        cuts[id(model), layer] += 1
        return split(model, layer, inputs)

    kept = []
    monkeypatch.setattr(frozen, "fingerprint", hashing)
    monkeypatch.setattr(frozen, "split", cutting)
    mfh.study(tiny_task.task, num_seeds=1, processes=1, out=tmp_path / "run")
    # Initial teacher and student, both trained on labels, and the aligned pair.
    assert sorted(hashed.values()) == [1] * 6
    # The aligned teacher (Algorithm 1 and its masks), and the pretrained one (the soft mask).
    assert sorted(cuts.values()) == [1, 1]


def test_two_layers_shade_both_masks_each_at_its_own_ratio(tmp_path):
    """The layer and the score of a saliency come from the file's content, and each layer has a ratio of its own."""
    run = Run(tmp_path / "run")
    arms = ["no-kd", "aligned", "general"]
    mfh.study(TINY, arms=arms, layers=["0", "1"], ratios=[0.25, 0.5], num_seeds=1, processes=1, out=run.folder)
    rows = files.read_table(run.folder / "results.csv", None, "")
    for row in rows:  # so that each layer has its own best ratio
        if row["arm"] == "general" and row["split"] == "val" and row["metric"] == "accuracy":
            row["value"] = "0.9" if (row["layer"], row["ratio"]) in (("0", "0.25"), ("1", "0.5")) else "0.1"
    run.write_results(list(rows[0]), rows)
    content = report(run.folder, format="md").read_text()
    kept = {(s.layer, s.score) for s in run.seed(0).saliencies()}
    assert kept == {("0", "distance"), ("1", "distance")}
    for layer, ratio, channels in (("0", "0.25", 9), ("1", "0.5", 6)):
        shown = f"at layer {layer}, seed 0. High scores are modality-general. The general mask at ratio {ratio} removes"
        assert shown in content.replace("\\", "")
        assert f"{channels} channels are kept" in content
    assert isinstance(run.seed(0).saliencies()[0], ChannelSaliency)
    assert json.loads((run.folder / "config.json").read_text())["layers"] == ["0", "1"]


def test_a_study_of_another_version_makes_its_report_but_is_not_continued(tmp_path):
    run = Run(tmp_path / "run")
    options = {"arms": ["no-kd", "regular"], "num_seeds": 1, "processes": 1, "epochs": 1, "out": run.folder}
    mfh.study(TINY, **options)
    config = json.loads((run.folder / "config.json").read_text())
    del config["identity"]["format"]
    run.write_config(config)
    with pytest.raises(InputError, match="made by another version of mfh, which this one cannot continue"):
        mfh.study(TINY, **options)
    assert report(run.folder).is_file()


def test_a_folder_that_another_process_changed_meanwhile_is_looked_at_again(tmp_path):
    options = {"arms": ["no-kd"], "processes": 1, "epochs": 1, "out": tmp_path / "run"}
    stale = Run(tmp_path / "run")
    assert stale.config == {}
    mfh.study(TINY, num_seeds=1, **options)
    with pytest.raises(InputError, match="was made with arms"):
        stale.claim(Run(stale.folder).config | {"arms": ["regular"]})


def test_names_of_the_first_version_are_found():
    from mfh.arms import Scale
    from mfh.pairs import PairLoader

    from mfh.studies import StudyResult, study

    assert (study, StudyResult) == (mfh.study, mfh.StudyResult)
    assert PairLoader is mfh.PairLoader
    assert Scale().name == "accuracy"
