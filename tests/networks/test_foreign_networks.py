"""Networks of transformers and timm, without a wrapper of the user's."""

import logging

import pytest
import torch
from torch import nn

import mfh
from foreign_networks import CLASSES, FAST, Backbone, Sentences, bert, encoded, padded, sentences_task, vit
from mfh.data.epochs import PairLoader
from mfh.data.pairs import Collated
from mfh.errors import InputError
from mfh.networks.calling import call, takes_by_name
from mfh.networks.modes import fingerprint
from mfh.networks.precision import relative_tolerance


class ByName(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, CLASSES)

    def forward(self, input_ids, attention_mask=None, **_more):
        return self.inner(input_ids * (1 if attention_mask is None else attention_mask))


class OneArgument(nn.Module):
    def forward(self, inputs):
        return inputs["inputs"]


class ByTwoNames(nn.Module):
    def forward(self, left, right):
        return left - right


class Anything(nn.Module):
    """As focused teachers and DistributedDataParallel hand everything on."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


def test_a_mapping_is_given_by_name_where_the_network_takes_its_keys():
    left, right = torch.randn(2, 4), torch.randn(2, 4)
    assert torch.equal(call(ByTwoNames(), {"right": right, "left": left}), left - right)
    assert torch.equal(call(Anything(ByTwoNames()), {"right": right, "left": left}), left - right)
    assert torch.equal(call(torch.compile(ByTwoNames(), backend="eager"), {"right": right, "left": left}), left - right)
    assert call(OneArgument(), {"inputs": left}) is left  # it asks for the mapping itself
    assert not takes_by_name(ByTwoNames(), {"left": left, "middle": right})
    assert not takes_by_name(nn.Linear(2, 2), left)
    assert takes_by_name(ByName(), {"input_ids": left, "pixel_values": right})  # it takes any other name


@pytest.mark.parametrize("collate", [padded, encoded], ids=["dict", "BatchEncoding"])
def test_a_study_of_transformers_without_a_wrapper(collate):
    pytest.importorskip("transformers")
    result = mfh.study(
        sentences_task(collate), arms=["no-kd", "regular", "aligned-student", "soft", "general"], num_seeds=1
    )
    assert len(result.table) == 5
    assert result.table["mean"].between(0, 100).all()


def test_saliency_and_distillation_of_transformers_agree_with_their_own_forward():
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    teacher, student = bert().eval(), vit().eval()
    data = Collated(Sentences(), encoded)
    pairs = PairLoader(data, batch_size=6)
    saliency = mfh.channel_saliency(teacher, student, pairs, layer="bert.pooler.activation", permutations=3)
    assert saliency.scores.shape == (16,)
    focused = mfh.mask_channels(teacher, saliency.mask("general", ratio=0.5))
    read, pictures, _ = encoded([data[index] for index in range(6)])
    with torch.no_grad():
        activation = teacher.bert.pooler(teacher.bert(**read).last_hidden_state)
        kept = torch.tensor(saliency.mask("general", ratio=0.5).weights, dtype=torch.float32)
        means = torch.tensor(saliency.means, dtype=torch.float32)
        by_hand = teacher.classifier(means + kept * (activation - means))
        logits = focused(**read).logits
    assert not torch.allclose(logits, teacher(**read).logits)
    assert (logits - by_hand).abs().max() <= relative_tolerance(torch.float32) * by_hand.abs().max()
    # A sentence reads the same alone as beside a longer one: its padding is masked in both.
    alone = encoded([data[0]])[0]
    with torch.no_grad():
        assert torch.allclose(call(teacher, alone).logits[0], call(teacher, read).logits[0], atol=1e-5)
    fit = mfh.distill(focused, vit(), data, data, recipe=FAST)
    with torch.no_grad():
        assert fit.student(pictures).logits.shape == (6, CLASSES)


def test_a_backbone_of_timm_can_teach_and_learn(caplog):
    torch.manual_seed(0)
    data = [(picture.repeat(1, 2, 2), picture, target) for _, picture, target in Sentences()]
    made = mfh.Task(
        name="backbones",
        teacher=Backbone,
        student=lambda: Backbone(8),
        layer="norm",
        channel_dim=2,
        train=data[:16],
        val=data[16:20],
        test=data[20:],
        recipe=FAST,
    )
    result = mfh.study(made, arms=["no-kd", "regular", "soft"], num_seeds=1)
    assert list(result.table["arm"]) == ["no-kd", "regular", "soft"]
    assert "channel_dim" not in caplog.text


@pytest.mark.parametrize("layer", ["norm", "dropout"])
def test_tokens_that_would_be_scored_as_channels_are_told(layer, caplog):
    teacher = Backbone()
    teacher.dropout = nn.Dropout()
    if layer == "dropout":
        teacher.forward_features, plain = lambda x: teacher.dropout(plain(x)), teacher.forward_features
    student, draws = Backbone(8), torch.Generator().manual_seed(0)
    pairs = [(torch.randn(8, 1, 9, 9, generator=draws), torch.randn(8, 1, 8, 8, generator=draws), torch.zeros(8))]
    with caplog.at_level(logging.WARNING, "mfh"):
        saliency = mfh.channel_saliency(teacher, student, pairs, layer=layer, permutations=1)
    assert saliency.scores.shape == (16,)
    told = [record.getMessage() for record in caplog.records if "tokens" in record.getMessage()]
    assert told == [
        f"layer '{layer}' returns shape (N, 16, 12), and channel_dim=1 takes the 16 tokens for its channels; "
        "channel_dim=2 takes the 12 units of its width"
    ]
    caplog.clear()
    mfh.channel_saliency(teacher, student, pairs, layer=layer, channel_dim=2, permutations=1)
    assert "tokens" not in caplog.text


def test_a_convolution_over_time_is_no_token(caplog):
    teacher = nn.Sequential(nn.Conv1d(2, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, CLASSES))
    student = nn.Sequential(nn.Flatten(), nn.Linear(20, CLASSES))
    pairs = [(torch.randn(8, 2, 10), torch.randn(8, 20), torch.zeros(8))]
    for layer in ("0", "1"):
        mfh.channel_saliency(teacher, student, pairs, layer=layer)
    assert "tokens" not in caplog.text


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_focused_teacher_can_be_compiled(backend):
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).eval()
    mask = mfh.ChannelMask(layer="1", weights=[0, 1, 0.5, 1, 0, 1], means=[0.1] * 6, fingerprint=fingerprint(teacher))
    focused, inputs = mfh.mask_channels(teacher, mask), torch.randn(8, 5)
    compiled = torch.compile(focused, backend=backend, fullgraph=True)
    for size in (8, 3, 8):
        logits = compiled(inputs[:size])
        assert torch.allclose(logits, focused(inputs[:size]), atol=1e-6)
        assert not torch.allclose(logits, teacher(inputs[:size]), atol=1e-3)


def test_a_key_that_a_network_does_not_take_is_named():
    class Strict(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, CLASSES)

        def forward(self, input_ids, attention_mask=None):
            return self.inner(input_ids)

    row = {"input_ids": torch.randn(4), "token_type_ids": torch.zeros(4)}
    data = [(row, row, 0), (row, row, 1)]
    with pytest.raises(InputError, match=r"Strict does not take 'token_type_ids' by name; leave it out of the data"):
        mfh.pretrain(Strict(), data, data, role="student", recipe=FAST)
