"""Networks as other libraries make them: small, with random weights, and paired data for them."""

import torch
from torch import nn
from torch.utils.data import Dataset

import mfh

FAST = mfh.Recipe(epochs=1, batch_size=8, optimizer=torch.optim.AdamW)
COUNT, CLASSES, WORDS = 24, 3, 20


def bert():
    """A teacher of `transformers`: tokens with a padding mask, by name; an output with `.logits`."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=WORDS,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=16,
        num_labels=CLASSES,
    )
    return BertForSequenceClassification(config)


def vit():
    """A student of `transformers`: pictures; an output with `.logits`."""
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(
        ViTConfig(
            image_size=8,
            patch_size=4,
            num_channels=1,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=24,
            num_labels=CLASSES,
        )
    )


class Backbone(nn.Module):
    """What a backbone of timm offers: `forward_features`, `forward_head`, `num_classes`, a norm and a head by name."""

    def __init__(self, width=12, num_classes=CLASSES):
        super().__init__()
        self.num_classes = self.num_features = num_classes
        self.stem = nn.Conv2d(1, width, 3, stride=2)
        self.blocks = nn.Sequential(nn.Sequential(nn.Conv2d(width, width, 1), nn.GELU()))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)

    def forward_features(self, x):
        return self.norm(self.blocks(self.stem(x)).flatten(2).transpose(1, 2))

    def forward_head(self, x, pre_logits: bool = False):
        pooled = x.mean(1)
        return pooled if pre_logits else self.head(pooled)

    def forward(self, x):
        return self.forward_head(self.forward_features(x))


class Sentences(Dataset):
    """Sentences of 3 to 6 words, pictures of 8 x 8 and the class; both show the class."""

    def __init__(self, count=COUNT, seed=0):
        draws = torch.Generator().manual_seed(seed)
        self.target = torch.arange(count) % CLASSES
        lengths = torch.randint(3, 7, (count,), generator=draws)
        self.words = [torch.randint(1, WORDS, (int(n),), generator=draws) for n in lengths]
        for words, target in zip(self.words, self.target, strict=True):
            words[0] = int(target) + 1
        self.pictures = torch.randn(count, 1, 8, 8, generator=draws) + self.target[:, None, None, None]

    def __len__(self):
        return len(self.target)

    def __getitem__(self, index):
        return {"input_ids": self.words[index]}, self.pictures[index], int(self.target[index])


def padded(items, mapping=dict):
    """A batch of sentences: padded to its longest, with an attention mask, in a mapping of some kind."""
    words = nn.utils.rnn.pad_sequence([item[0]["input_ids"] for item in items], batch_first=True)
    read = mapping({"input_ids": words, "attention_mask": (words > 0).long()})
    return read, torch.stack([item[1] for item in items]), torch.tensor([item[2] for item in items])


def encoded(items):
    """The same batch as a tokenizer of `transformers` returns it."""
    from transformers import BatchEncoding

    return padded(items, BatchEncoding)


def sentences_task(collate):
    """A task of `transformers` networks alone, whose batches `collate` makes."""
    return mfh.Task(
        name="sentences",
        teacher=bert,
        student=vit,
        layer="bert.pooler.activation",
        train=Sentences(24, 0),
        val=Sentences(12, 1),
        test=Sentences(12, 2),
        collate=collate,
        recipe=FAST,
    )
