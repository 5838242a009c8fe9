"""Label budgets, pairs without labels, controls, and teachers that learn elsewhere, in studies."""

import csv
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Subset, TensorDataset

import mfh
import tiny_task
from mfh.data.epochs import all_targets
from mfh.data.pairs import AllPairs, Collated, groups_of
from mfh.errors import InputError
from mfh.reporting import report
from mfh.reporting.budgets import labels_that_equal
from mfh.reporting.summary import finding
from mfh.studies.folder import Run
from mfh.studies.grid import ARMS, PLAIN_CONTROLS, Cell
from mfh.studies.labels import with_label_fraction
from mfh.studies.seed import Seed
from mfh.studies.settings import Settings
from mfh.tasks.baseline import linear_baseline
from mfh.tasks.checks import check_task
from mfh.training.fitting import evaluate

TINY = str(Path(tiny_task.__file__))


def with_unlabelled(seed=0, labelled=40):
    tiny = tiny_task.task(seed)
    x, s, y = tiny.train.tensors
    train, more = TensorDataset(x[:labelled], s[:labelled], y[:labelled]), TensorDataset(x[labelled:], s[labelled:])
    return replace(tiny, train=train, unlabelled=more)


def weights(network):
    return torch.cat([value.flatten() for value in network.state_dict().values()])


# --- tasks ------------------------------------------------------------------------------------------------------------


def test_a_task_parts_its_pairs_by_their_labels():
    tiny = tiny_task.task(0)
    x, s, y = tiny.train.tensors
    marked = torch.where(torch.arange(120) % 3 == 0, y, -1)
    extra = TensorDataset(x[:7], s[:7])
    logits = torch.arange(127.0)[:, None].repeat(1, 2)
    made = replace(tiny, train=TensorDataset(x, s, marked), missing_target=-1, unlabelled=extra, teacher_logits=logits)
    assert (len(made.train), len(made.unlabelled), len(made.pairs)) == (40, 87, 127)
    assert (all_targets(made.train) >= 0).all()
    assert made.teacher_logits[:40, 0].tolist() == list(range(0, 120, 3))
    assert made.teacher_logits[-7:, 0].tolist() == list(range(120, 127))
    assert isinstance(made.pairs, AllPairs)
    assert tiny.pairs is tiny.train


def test_a_mark_that_was_not_announced_is_refused():
    tiny = tiny_task.task(0)
    x, s, y = tiny.train.tensors
    y = y.clone()
    y[70] = -1
    with pytest.raises(InputError, match="train split, sample 70: the target holds -1"):
        Seed(replace(tiny, train=TensorDataset(x, s, y)), 0).networks.pretrained("student")


# --- label fractions --------------------------------------------------------------------------------------------------


def kept_rows(task, fraction, seed=0):
    inputs = task.train.tensors[1]
    thinned = with_label_fraction(task, fraction, seed)
    rows = range(len(task.train)) if thinned is task else thinned.train.indices
    assert torch.equal(inputs[list(rows)], torch.stack([thinned.train[i][1] for i in range(len(rows))]))
    return set(rows)


def test_fractions_are_stratified_and_nested():
    tiny = tiny_task.task(3)
    few, some, all_ = (kept_rows(tiny, fraction) for fraction in (0.1, 0.3, 1.0))
    assert few < some < all_ == set(range(120))
    classes = tiny.train.tensors[2]
    for rows, fraction in ((few, 0.1), (some, 0.3)):
        for one in (0, 1):
            assert int((classes[list(rows)] == one).sum()) == int(fraction * int((classes == one).sum()) + 0.5)
    assert kept_rows(tiny, 0.3, seed=1) != some
    thinned = with_label_fraction(tiny, 0.3, 0)
    assert len(thinned.train) + len(thinned.unlabelled) == 120


def test_whole_groups_keep_their_labels():
    tiny = tiny_task.task(3)
    tiny.train.groups = np.repeat(np.arange(10), 12)
    few, some = kept_rows(tiny, 0.2), kept_rows(tiny, 0.5)
    assert few < some
    assert {len(rows) for rows in (few, some)} == {24, 60}
    assert len({tiny.train.groups[row] for row in few}) == 2
    tiny.train.groups = np.repeat([0, 1], 60)
    single = TensorDataset(*tiny.train.tensors[:2], torch.arange(120).div(60).long())
    single.groups = tiny.train.groups
    with pytest.raises(
        InputError, match=r"label fraction 0.5 of the 2 groups leaves class [01] without a labelled pair"
    ):
        with_label_fraction(replace(tiny, train=single), 0.5, 0)


def test_groups_of_one_class_each_keep_every_class():
    tiny = tiny_task.task(3)
    classes = torch.arange(120) // 12 % 5
    for seed in range(20):
        train = TensorDataset(*tiny.train.tensors[:2], classes)
        train.groups = np.arange(120) // 12  # ten recordings, two of each class
        few, more = (kept_rows(replace(tiny, train=train), fraction, seed=seed) for fraction in (0.5, 0.7))
        assert len(few) == 60
        assert few < more
        assert sorted({int(classes[row]) for row in few}) == [0, 1, 2, 3, 4]


def test_teacher_outputs_follow_their_pairs():
    tiny = tiny_task.task(0)
    given = replace(tiny, teacher_logits=torch.arange(120.0)[:, None].repeat(1, 2))
    thinned = with_label_fraction(given, 0.25, 0)
    order = [*thinned.train.indices, *thinned.unlabelled.indices]
    assert thinned.teacher_logits[:, 0].tolist() == order


FRACTIONS = {"label_fractions": [1.0, 0.25], "arms": ["no-kd", "longer", "regular", "soft"], "num_seeds": 2}


@pytest.fixture(scope="module")
def budgets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("budgets") / "run"
    return mfh.study(TINY, out=folder, processes=1, **FRACTIONS)


def test_a_study_of_label_fractions(budgets):
    with (budgets.folder / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[-1] == "label_fraction"
    assert {row["label_fraction"] for row in rows} == {"0.25", "1.0"}
    test = budgets.frame[(budgets.frame.metric == "accuracy") & (budgets.frame.split == "test")]
    assert len(test) == 2 * 2 * 4
    assert budgets.by_seed(label_fraction=0.25).shape == budgets.by_seed().shape == (2, 4)
    # All labels: `longer` has no further pairs, so it is no-kd.
    assert (budgets.by_seed()["longer"] == budgets.by_seed()["no-kd"]).all()
    kept = Run(budgets.folder).seed(0, 0.25)
    assert kept.read_history("student")["steps"][-1] == 2
    assert kept.read_history(Cell("longer"))["steps"][-1] == kept.read_history(Cell("regular"))["steps"][-1] == 4


def test_fractions_equal_studies_of_their_own(budgets):
    alone = mfh.study(_quarter, arms=FRACTIONS["arms"], num_seeds=2, processes=1)
    assert np.array_equal(alone.by_seed().to_numpy(), budgets.by_seed(label_fraction=0.25).to_numpy())


def _quarter(seed=0):
    return with_label_fraction(tiny_task.task(seed), 0.25, seed)


def test_processes_and_resumption_change_no_row(budgets, tmp_path):
    parallel = mfh.study(TINY, out=tmp_path / "p", processes=2, **FRACTIONS)
    assert (tmp_path / "p/results.csv").read_bytes() == (budgets.folder / "results.csv").read_bytes()
    assert parallel.frame.equals(budgets.frame)
    for cell in (tmp_path / "p").glob("seed-1/labels-0.25/cells/*"):
        cell.unlink()
    mfh.study(TINY, out=tmp_path / "p", processes=1, **FRACTIONS)
    assert (tmp_path / "p/results.csv").read_bytes() == (budgets.folder / "results.csv").read_bytes()
    with pytest.raises(InputError, match="label_fractions"):
        mfh.study(TINY, out=tmp_path / "p", processes=1, **FRACTIONS | {"label_fractions": [0.5, 1.0]})


def test_cells_of_another_fraction_are_refused(budgets, tmp_path):
    shutil.copytree(budgets.folder, tmp_path / "p")
    for cell in (tmp_path / "p/seed-0/labels-0.25/cells").glob("regular-*"):
        shutil.copy(cell, tmp_path / "p/seed-0/labels-1.0/cells" / cell.name)
    with pytest.raises(InputError, match="measurements of another arm, seed or label fraction"):
        mfh.study(TINY, out=tmp_path / "p", processes=1, **FRACTIONS)


def test_fractions_that_keep_the_same_pairs_are_one_budget(tmp_path):
    more = {"label_fractions": [0.25, 0.251, 1.0], "arms": ["no-kd", "regular"], "num_seeds": 1, "processes": 1}
    result = mfh.study(TINY, out=tmp_path / "run", epochs=1, **more)
    text = report(result.folder).read_text()
    assert text.count("30 labels (25") == 1
    assert "120 labels, the most of this study" in re.sub(r"\s+", " ", text)


def test_the_report_shows_metric_by_labels(budgets):
    page = report(budgets.folder)
    assert (page.parent / "figures/label-budgets.svg").is_file()
    text = re.sub(r"\s+", " ", page.read_text())
    assert "How many labels" in text
    assert "30 labels (25" in text
    assert "120 labels (100" in text


def test_how_many_labels_equal(budgets):
    summaries = {30: Run(budgets.folder).summary_at(0.25), 120: Run(budgets.folder).summary}

    def curve(arm):
        return [(n, next(v for v in s.variants if v.arm == arm)) for n, s in summaries.items()]

    def moved(curve, means, gains):
        found = []
        for (count, variant), mean, gain in zip(curve, means, gains, strict=True):
            base = (
                replace(variant.gain, mean_difference=1.5, low=1.0, high=2.0, standard_error=0.1)
                if gain
                else variant.gain
            )
            values = variant.student * 0 + mean
            found.append((count, replace(variant, student=values, gain=base, corrected_p=0.01)))
        return found

    best = summaries[120].chosen()
    assert best is not None
    curves = {
        "no-kd": moved(curve("no-kd"), (50.0, 90.0), (False, False)),
        best.arm: moved(curve(best.arm), (70.0, 95.0), (True, True)),
    }
    without = {
        count: replace(s, variants=[v for v in s.variants if v.arm != "longer"]) for count, s in summaries.items()
    }
    found = labels_that_equal(curves, without)
    # Half way between 30 and 120 on a logarithmic scale is 60.
    assert found[0].endswith("with 30 labels is as good as no-kd with about 60.")
    assert found[1].endswith("with 120 labels is as good as no-kd with more than 120.")
    # The control is as good as the arm, so the gain is not the teacher's.
    as_good = [replace(v, student=v.student * 0 + 70.0) if v.arm == "longer" else v for v in summaries[30].variants]
    controlled = labels_that_equal(curves, {**without, 30: replace(summaries[30], variants=as_good)})
    assert controlled == found[1:]
    # Nor does a gain count that is shown taken alone only.
    curves[best.arm][0] = (30, replace(curves[best.arm][0][1], corrected_p=0.2))
    assert labels_that_equal(curves, without) == found[1:]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"label_fractions": [0.0]}, "label fraction is 0.0; choose a share of the labels, above 0 and at most 1"),
        ({"label_fractions": [1.5]}, "label fraction is 1.5"),
        ({"label_fractions": [True]}, r"label_fractions is \(True,\)"),
        ({"label_fractions": [0.001]}, r"label fraction 0.001 leaves class 0 \(of \d+ training pairs\) without"),
        ({"label_fractions": [0.5], "select": True}, "give label_fractions or select, not both"),
    ],
)
def test_bad_fractions(tmp_path, changes, said):
    with pytest.raises(InputError, match=said):
        mfh.study(TINY, out=tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


# --- controls ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made():
    task = with_unlabelled()
    return Seed(replace(task, recipe=replace(task.recipe, keep="last")), 0)


def test_controls_are_what_they_say(made):
    task, recipe = made.task, made.recipe
    given = {"recipe": recipe, "seed": 0}
    fresh = {name: made.networks.new("student") for name in PLAIN_CONTROLS}
    longer = mfh.pretrain(fresh["longer"], task.train, task.val, role="student", epoch_size=120, **given)
    assert torch.equal(weights(made.student(Cell("longer")).network), weights(longer.network))
    assert made.student(Cell("longer")).history[-1]["steps"] == made.student(Cell("regular")).history[-1]["steps"] == 4

    smoothing = mfh.Problem.classification(label_loss=nn.CrossEntropyLoss(label_smoothing=0.1))
    slow = mfh.pretrain(
        fresh["label-smoothing"], task.train, task.val, role="student", epoch_size=120, problem=smoothing, **given
    )
    torch.testing.assert_close(weights(made.student(Cell("label-smoothing")).network), weights(slow.network))

    inputs = torch.cat([task.train.tensors[1], task.unlabelled.tensors[1]])
    alone = made.networks.pretrained("student").network.eval()
    with torch.no_grad():
        own = alone(inputs)
    trained = mfh.distill(
        None, fresh["self-training"], task.train, task.val, unlabelled=task.unlabelled, teacher_logits=own, **given
    )
    torch.testing.assert_close(weights(made.student(Cell("self-training")).network), weights(trained.student))

    (plain, mixed) = made._outputs([Cell("regular"), Cell("teacher-shuffled")], "train").values()
    assert not torch.equal(plain, mixed)
    assert torch.equal(plain.sort(0).values, mixed.sort(0).values)


def test_default_arms_depend_on_unlabelled_pairs():
    assert list(mfh.study(TINY, num_seeds=1, processes=1).frame["arm"].unique())[: len(ARMS)] == list(ARMS)
    more = mfh.study(with_unlabelled, num_seeds=1, processes=1).frame["arm"].unique()
    assert {"longer", "self-training"} <= set(more)
    assert "teacher-shuffled" not in more


def test_the_finding_names_the_best_control():
    result = mfh.study(with_unlabelled, arms=["no-kd", *PLAIN_CONTROLS, "regular"], num_seeds=3, processes=1)
    from mfh.studies.summary import summarise

    summary = summarise(result.frame)
    assert summary.chosen().arm == "regular"  # a control is never the best arm
    assert summary.control.arm in PLAIN_CONTROLS
    best = max(PLAIN_CONTROLS, key=lambda arm: summary.chosen(arm).validation)
    assert summary.control.arm == best
    assert f"over {best}, the best other control (" in finding(summary)


def test_a_control_is_not_selected_and_the_choice_is_compared_with_one(tmp_path):
    arms = ["no-kd", "longer", "self-training", "regular"]
    result = mfh.study(with_unlabelled, arms=arms, num_seeds=2, processes=1, select=True, out=tmp_path / "run")
    choice = Run(tmp_path / "run").selection
    assert (choice["arm"], choice["candidates"]) == ("regular", 1)
    tested = set(result.frame[result.frame["split"] == "test"]["arm"])
    assert {"no-kd", "regular"} < tested
    assert len(tested & set(PLAIN_CONTROLS)) == 1
    with pytest.raises(InputError, match="at least one other arm that is no control"):
        mfh.study(with_unlabelled, arms=["no-kd", "longer"], select=True)


def test_items_of_the_test_split_among_the_unlabelled_are_said(caplog):
    task = with_unlabelled()
    x, s, _ = task.test.tensors
    check_task(replace(task, unlabelled=TensorDataset(x[:5], s[:5])))
    assert "5 of the 60 items of test are in unlabelled too" in caplog.text
    check_task(replace(task, teacher_train=TensorDataset(x[:3], torch.zeros(3).long())))
    assert "3 of the 60 items of test are in teacher_train too" in caplog.text


def test_a_loss_that_needs_labels_is_refused_before_training(tmp_path):
    def mine(student_logits, teacher_logits, target):
        return F.cross_entropy(student_logits, target) + F.mse_loss(student_logits, teacher_logits)

    with pytest.raises(InputError, match="loss mine needs the labels of all pairs"):
        mfh.study(with_unlabelled, loss=mine, arms=["no-kd", "regular"], out=tmp_path / "run", processes=1)
    assert not (tmp_path / "run").exists()


def test_the_linear_model_stands_beside_tasks_made_from_arrays(tmp_path):
    generator = np.random.default_rng(0)
    shared = generator.normal(size=(200, 3))
    target = np.where(np.arange(200) < 120, (shared.sum(1) > 0).astype(int), -1)
    arrays = {"teacher": generator.normal(size=(200, 4)) + shared[:, :1], "student": shared, "target": target}
    task = mfh.Task.from_arrays(**arrays, recipe=mfh.Recipe(epochs=1))
    result = mfh.study(task, num_seeds=2, processes=1, out=tmp_path / "run")
    assert result.by_seed()["linear"].tolist() == [linear_baseline(task.resplit(seed), seed) for seed in (0, 1)]
    assert result.by_seed()["linear"].min() > 0.8
    summary = Run(tmp_path / "run").summary
    assert summary.chosen().arm != "linear"
    assert summary.control.arm in PLAIN_CONTROLS
    with pytest.raises(InputError, match="leaves no network"):
        Seed(task, 0).student(Cell("linear"))


def test_smoothing_needs_classes():
    tiny = tiny_task.task(0)
    numbers = [
        TensorDataset(*getattr(tiny, s).tensors[:2], torch.zeros(len(getattr(tiny, s)), 2))
        for s in ("train", "val", "test")
    ]
    task = replace(tiny, train=numbers[0], val=numbers[1], test=numbers[2], problem=mfh.Problem.regression())
    with pytest.raises(InputError, match="label smoothing needs classes, which regression has not"):
        Seed(task, 0).student(Cell("label-smoothing"))


def test_all_pairs_are_scored(made):
    assert made.saliency("probe").samples == made.saliency("distance").samples == 120


# --- teachers that learn elsewhere ------------------------------------------------------------------------------------


def test_a_teacher_learns_from_data_of_its_own():
    tiny, other = tiny_task.task(0), tiny_task.task(7)
    task = replace(tiny, teacher_train=TensorDataset(other.train.tensors[0], other.train.tensors[2]))
    made = Seed(task, 0)
    direct = mfh.pretrain(
        made.networks.new("teacher"), other.train, tiny.val, role="teacher", recipe=tiny.recipe, seed=0
    )
    assert torch.equal(weights(made.networks.pretrained("teacher").network), weights(direct.network))
    plain = Seed(tiny, 0).networks.pretrained("teacher").network
    assert not torch.equal(weights(plain), weights(direct.network))
    items = [(x, y) for x, y in zip(other.train.tensors[0], other.train.tensors[2], strict=True)]
    again = Seed(replace(tiny, teacher_train=items), 0).networks.pretrained("teacher").network
    torch.testing.assert_close(weights(again), weights(direct.network))


@pytest.mark.parametrize("kind", ["tensor", "array", "npy"])
def test_embeddings_make_a_linear_teacher(tmp_path, kind):
    task = with_unlabelled()
    embeddings = {}
    for split in ("train", "unlabelled", "val", "test"):
        rows = torch.cat([F.pad(getattr(task, split).tensors[0], (0, 2)), torch.ones(len(getattr(task, split)), 1)], 1)
        embeddings[split] = rows if kind == "tensor" else rows.numpy()
        if kind == "npy":
            np.save(tmp_path / f"{split}.npy", rows.numpy())
            embeddings[split] = tmp_path / f"{split}.npy"
    given = replace(task, teacher=None, layer="embedding", student_layer=None, teacher_embeddings=embeddings)
    made = Seed(given, 0)
    teacher = made.networks.pretrained("teacher").network
    from sklearn.linear_model import LogisticRegression

    x, y = task.train.tensors[0].double().numpy(), task.train.tensors[2].numpy()
    z = (x - x.mean(0)) / x.std(0)
    val = (task.val.tensors[0].double().numpy() - x.mean(0)) / x.std(0)
    best = max(
        (LogisticRegression(C=1 / (s * len(x)), max_iter=1000).fit(z, y) for s in 10.0 ** np.arange(-4, 5)),
        key=lambda model: model.score(val, task.val.tensors[2].numpy()),
    )
    accuracy = best.score(val, task.val.tensors[2].numpy())
    assert accuracy > 0.8
    assert evaluate(teacher, given.val, "teacher") == pytest.approx(accuracy)
    assert made.saliency("probe").scores.shape == (11,)
    student = made.student(Cell("soft", "probe", layer="embedding"))
    assert student.history[-1]["steps"] == 4


def test_a_task_with_embeddings_can_be_copied():
    tiny = tiny_task.task(0)
    rows = {split: torch.zeros(len(getattr(tiny, split)), 3) for split in ("train", "val", "test")}
    task = replace(tiny, teacher=None, teacher_embeddings=rows)
    copied = replace(task, name="copied")
    assert (copied.train, copied.teacher) == (task.train, task.teacher)
    with pytest.raises(InputError, match="has teacher_train= and teacher_embeddings="):
        replace(tiny, teacher=None, teacher_embeddings=rows, teacher_train=tiny.train)


def test_a_check_reads_unlabelled_pairs_and_what_the_teacher_learns_from():
    task = with_unlabelled()
    x, s = task.unlabelled.tensors
    items = [(a, b) for a, b in zip(x, s, strict=True)]
    check_task(replace(task, unlabelled=items, teacher_train=TensorDataset(x, torch.zeros(len(x)).long())))
    with pytest.raises(InputError, match=r"^unlabelled split: .*"):
        check_task(replace(task, unlabelled=[*items, (x[0], "text")]))
    with pytest.raises(InputError, match=r"^teacher_train split: the target holds 9"):
        check_task(replace(task, teacher_train=TensorDataset(x, torch.full((len(x),), 9))))


def test_labels_of_a_fraction_may_have_different_lengths():
    def pad(items):
        longest = max(len(item[2]) for item in items)
        targets = [F.pad(item[2], (0, longest - len(item[2])), value=-100) for item in items]
        return torch.stack([item[0] for item in items]), torch.stack([item[1] for item in items]), torch.stack(targets)

    items = [(torch.ones(3), torch.ones(3), torch.ones(9 if n == 0 else 1).long()) for n in range(600)]
    task = replace(tiny_task.task(0), train=Collated(items, pad), problem=mfh.Problem.dense())
    assert len(with_label_fraction(task, 0.5, 0).train) == 300


def test_embeddings_that_do_not_fit():
    tiny = tiny_task.task(0)
    good = {split: torch.zeros(len(getattr(tiny, split)), 3) for split in ("train", "val", "test")}

    def refused(said, **changes):
        with pytest.raises(InputError, match=said):
            replace(tiny, **{"teacher": None, "teacher_embeddings": good, **changes})

    refused(
        r"teacher_embeddings\['val'\] has 5 rows for 60 samples", teacher_embeddings=good | {"val": torch.zeros(5, 3)}
    )
    refused(
        "teacher_embeddings .* are for train, val; an entry for each of train, val, test",
        teacher_embeddings={k: good[k] for k in ("train", "val")},
    )
    refused("has teacher= and teacher_embeddings=", teacher=tiny_task.teacher)
    refused("vectors of one length were expected", teacher_embeddings=good | {"val": torch.zeros(60, 4)})
    refused(
        "has 60 rows for 60 samples .*int64.*floating point", teacher_embeddings=good | {"val": np.zeros((60, 3), int)}
    )


def test_an_augmented_student_and_a_shuffled_teacher():
    class Augmented(TensorDataset):
        def __getitem__(self, index):
            x, s, y = super().__getitem__(index)
            return x + torch.randn(()), s, y

    tiny = tiny_task.task(0)
    task = replace(tiny, train=Augmented(*tiny.train.tensors))
    with pytest.raises(InputError, match="arm 'teacher-shuffled' needs outputs that are computed once"):
        Seed(task, 0).student(Cell("teacher-shuffled"))
    assert Seed(task, 0, Settings()).student(Cell("self-training")).history


def test_subsets_carry_their_groups():
    data = TensorDataset(torch.zeros(6, 1))
    data.groups = ["a", "a", "b", "b", "c", "c"]
    assert groups_of(Subset(data, [5, 0])).tolist() == ["c", "a"]
    assert groups_of(TensorDataset(torch.zeros(2, 1))) is None
