"""Every method with networks of `transformers`: a teacher with named inputs, and outputs that hold logits."""

import pytest
import torch

import mfh
from foreign_networks import CLASSES, Sentences, bert, encoded, vit
from mfh.data.pairs import Collated
from mfh.methods.names import SHIPPED
from mfh.networks.calling import call

FAST = mfh.Recipe(epochs=1, batch_size=8, optimizer=torch.optim.AdamW)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_method_works_with_named_inputs(name):
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    data = Collated(Sentences(24), encoded)
    fit = mfh.distill(bert(), vit(), data, data, method=name, recipe=FAST, device="cpu")
    pictures = torch.stack([data[index][1] for index in range(4)])
    with torch.no_grad():
        logits = call(fit.student, pictures)
    logits = getattr(logits, "logits", logits)
    assert logits.shape == (4, CLASSES)
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", SHIPPED)
def test_a_method_works_where_the_student_has_named_inputs(name):
    pytest.importorskip("transformers")
    torch.manual_seed(0)

    def swapped(items):
        words, pictures, targets = encoded(items)
        return pictures, words, targets

    data = Collated(Sentences(24), swapped)
    fit = mfh.distill(vit(), bert(), data, data, method=name, recipe=FAST, device="cpu")
    words = encoded([data[index] for index in range(4)])[0]
    with torch.no_grad():
        logits = call(fit.student, words)
    logits = getattr(logits, "logits", logits)
    assert logits.shape == (4, CLASSES)
    assert logits.isfinite().all()


def test_a_study_keeps_and_exports_the_student_of_simkd(tmp_path):
    pytest.importorskip("transformers")
    task = mfh.Task(
        name="sentences",
        teacher=bert,
        student=vit,
        layer="bert.pooler.activation",
        train=Sentences(24, 0),
        val=Sentences(12, 1),
        test=Sentences(12, 2),
        collate=encoded,
        recipe=FAST,
    )
    result = mfh.study(task, arms=["no-kd", "simkd", "fitnets+soft"], num_seeds=1, processes=1, out=tmp_path / "run")
    chosen = result.students.of_arm("simkd")
    made = chosen.export(tmp_path / "student.pt2")
    pictures = torch.stack([task.test[index][1] for index in range(5)])
    with torch.no_grad():
        expected = chosen.student(pictures)
        found = torch.export.load(made.path).module()(pictures)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
