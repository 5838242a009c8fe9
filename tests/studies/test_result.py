"""How a study's result shows itself: table, finding, figure, notebook; and what a study says while it runs."""

import json
import math
import re
from html import escape

import pytest
from matplotlib.figure import Figure

import mfh
import tiny_task
from mfh import progress
from mfh.errors import InputError
from mfh.studies import running
from mfh.studies.folder import Run

FEW = mfh.Settings.of(epochs=1, processes=1)
COLUMNS = ["arm", "mean", "gain", "low", "high", "p", "over_control", "over_control_low", "over_control_high"]


@pytest.fixture(scope="module")
def result():
    """A study that keeps nothing."""
    arms = ["no-kd", "regular", "soft", "label-smoothing"]
    return mfh.study(tiny_task.task, arms=arms, num_seeds=3, settings=FEW)


def test_the_table_holds_what_the_summary_says(result):
    table = result.table
    assert list(table) == COLUMNS
    assert list(table["arm"]) == ["no-kd", "regular", "soft", "label-smoothing"]
    by_seed, rows = result.by_seed(), table.set_index("arm")
    for arm, row in rows.iterrows():
        name = next(name for name in by_seed if name.startswith(arm))
        assert row["mean"] == pytest.approx(100 * by_seed[name].mean())
        if arm != "no-kd":
            gains = 100 * (by_seed[name] - by_seed["no-kd"])
            assert row["gain"] == pytest.approx(gains.mean(), abs=1e-9)
            assert row["low"] <= row["gain"] <= row["high"]
            assert 0 <= row["p"] <= 1
    assert math.isnan(rows.loc["no-kd", "gain"])
    assert math.isnan(rows.loc["no-kd", "p"])
    over = rows.loc["soft", "mean"] - rows.loc["label-smoothing", "mean"]
    assert rows.loc["soft", "over_control"] == pytest.approx(over)
    assert math.isnan(rows.loc["label-smoothing", "over_control"])  # it is the control


def test_a_notebook_shows_finding_and_table(result):
    shown = result._repr_html_()
    assert all(escape(line) in shown for line in result.finding.splitlines())
    assert shown.count("<tr") == 1 + len(result.table)
    assert "NaN" not in shown
    assert repr(result) == "StudyResult(3 seeds of no-kd, regular, soft, label-smoothing)"


def test_the_figure_shows_every_gain(result):
    figure = result.plot()
    assert isinstance(figure, Figure)
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["regular", "soft", "label-smoothing"]
    assert figure._repr_png_().startswith(b"\x89PNG")  # pyplot does not know it, and a notebook shows it


def test_without_gains_there_is_no_figure():
    alone = mfh.study(tiny_task.task, arms=["regular"], num_seeds=1, settings=FEW)
    with pytest.raises(InputError, match="no gain to draw: the study needs no-kd and at least one other arm"):
        alone.plot()
    assert "cannot tell whether distillation helps" in alone.finding
    assert alone.table["gain"].isna().all()


def test_the_finding_is_that_of_the_report(tmp_path):
    how = {"arms": ["no-kd", "regular"], "label_fractions": (0.5, 1.0), "num_seeds": 1, "settings": FEW}
    found = mfh.study(tiny_task.task, out=tmp_path / "run", **how)
    assert found.finding.endswith(" labels, the most of this study.")
    mfh.report(found.folder)
    assert found.finding.splitlines()[0] in (tmp_path / "run/report.html").read_text()
    assert list(found.table) == [*COLUMNS, "label_fraction"]
    assert sorted(set(found.table["label_fraction"])) == [0.5, 1.0]
    assert len(found.table) == 4
    assert str(found.folder) in repr(found)


def test_a_notebook_gets_progress_and_finding_by_default(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(running, "in_notebook", lambda: True)
    monkeypatch.setattr(running, "Crew", lambda *given, progress, whole=running.Crew: (asked.append(progress), whole(*given, progress=False))[1])  # fmt: skip  # noqa: E501
    found = mfh.study(tiny_task.task, arms=["no-kd", "regular"], num_seeds=1, settings=FEW)
    assert asked == [True]
    assert found.finding in capsys.readouterr().out
    mfh.study(tiny_task.task, arms=["no-kd", "regular"], num_seeds=1, settings=FEW, progress=False)
    assert asked == [True, False]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("processes", [1, 2])
def test_a_study_says_at_once_what_it_is_doing(processes, tmp_path, capsys):
    settings = FEW.changed(processes=processes)
    mfh.study(tiny_task.task, arms=["no-kd", "regular"], num_seeds=2, settings=settings, progress=True)
    first, *rest = capsys.readouterr().err.splitlines()
    assert first.startswith("0 of 4 students; ")
    assert ", seed 1 of 2" in first or ", seed 2 of 2" in first
    assert [line.partition(" done")[0] for line in sorted(rest)] == ["seed 1 of 2", "seed 2 of 2"]


def test_what_trainings_say_and_who_listens():
    heard = []
    with progress.listening(heard.append):
        progress.doing("training teacher")
        progress.done_of(1, 2, "epoch")
    progress.doing("nobody listens")
    assert heard == ["training teacher", "training teacher, epoch 1 of 2"]
    heard.clear()
    with progress.listening(heard.append):
        mfh.study(tiny_task.task, arms=["no-kd", "general"], num_seeds=1, settings=FEW)
    words = (
        "training teacher and student together, epoch 1 of 1",
        "training student no-kd",
        "scoring channels of layer",
    )
    for word in words:
        assert any(line.startswith(word) for line in heard), word


def test_a_live_display_shows_work_and_progress(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    mfh.study(tiny_task.task, arms=["no-kd", "regular"], num_seeds=1, settings=FEW, progress=True)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err)
    assert "training teacher, seed 1 of 1" in shown
    assert "starting worker processes" in shown
    assert "2/2 students" in shown
    assert max(len(line.rpartition("\r")[2]) for line in shown.splitlines()) <= 80


def test_short_reprs():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    made = tiny_task.task(0)
    fit = mfh.pretrain(made.teacher(), made.train, made.val, role="teacher", recipe=mfh.Recipe(epochs=2))
    assert repr(fit).startswith("Fit(teacher Sequential of ")
    assert f"epoch {fit.best_epoch} of 0 to 1: teacher_val_accuracy 0." in repr(fit)
    pair = mfh.align(made.teacher(), made.student(), made.train, made.val, recipe=mfh.Recipe(epochs=1))
    assert repr(pair).startswith("AlignedPair(teacher Sequential of ")
    saliency = mfh.channel_saliency(pair.teacher, pair.student, mfh.PairLoader(made.train), layer="1")
    assert repr(saliency).startswith(f"ChannelSaliency(distance, {len(saliency.scores)} channels of layer ")
    assert f"most general: {saliency.ranking[0]}" in repr(saliency)
    mask = saliency.mask("general", ratio=0.5)
    kept = int(mask.weights.sum())
    assert repr(mask) == f"ChannelMask(general, keeps {kept} of {len(mask.weights)} channels of layer '1', by distance)"
    for thing in (fit, pair, saliency, mask):
        assert len(repr(thing)) < 180


def test_a_saliency_is_drawn_with_or_without_a_file(tmp_path):
    made = tiny_task.task(0)
    saliency = mfh.channel_saliency(
        made.teacher(), made.student(), mfh.PairLoader(made.train), layer=made.layer, seed=0
    )
    assert isinstance(saliency.plot(), Figure)
    assert isinstance(saliency.plot(tmp_path / "saliency.svg", ratio=0.5), Figure)
    assert (tmp_path / "saliency.svg").read_text().startswith("<?xml")


def test_a_run_keeps_the_words_for_its_result(tmp_path):
    found = mfh.study(tiny_task.task, arms=["no-kd", "regular"], num_seeds=2, out=tmp_path / "run", settings=FEW)
    assert found.repeats == Run(tmp_path / "run").repeats
    assert json.loads((tmp_path / "run/config.json").read_text())["arms"] == ["no-kd", "regular"]
