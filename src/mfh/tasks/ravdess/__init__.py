"""RAVDESS: eight emotions. The teacher hears the speaker, the student sees one frame."""

import functools
from pathlib import Path

import torch

from mfh.errors import InputError
from mfh.problems.losses import KDLoss
from mfh.tasks.ravdess.data import load_splits
from mfh.tasks.ravdess.names import EMOTIONS
from mfh.tasks.ravdess.networks import (
    LAYER,
    PUBLISHED_MFCC_MEAN,
    PUBLISHED_MFCC_STD,
    audio_network,
    image_network,
)
from mfh.tasks.task import Protocol, Task
from mfh.training.recipe import Recipe

__all__ = ["task"]


def task(data: str | Path | None = None, preset: str | None = None, augment: bool = False) -> Task:
    """RAVDESS as a task: prepared data and the published networks.

    Args:
        data: Folder made by `mfh prepare ravdess`.
        preset: "paper" uses the published protocol: SGD with learning rate 0.01 and momentum 0.9, batches of 64, 100
            epochs, of which the last one counts; students learn from the teacher alone, by a divergence averaged over
            classes; three in four channels are removed; the authors' features get their normalisation. None uses Adam
            with learning rate 1e-3, 30 epochs, labels and teacher, and removes half of the channels.
        augment: Draw, mirror and shift the training frames at random.

    Returns:
        A task with samples (MFCC (1, 40, 256), frame (3, 256, 512), emotion). Its layer is "relu5", the 128 channels
        after the second fully connected layer. "relu4" has the 1024 channels before them.

    Raises:
        InputError: There is no prepared folder, it cannot be used, or the preset is unknown.
    """
    if data is None:
        raise InputError("task ravdess needs --data FOLDER, made by: mfh prepare ravdess SOURCE FOLDER")
    if preset not in (None, "paper"):
        raise InputError(f"preset is {preset!r}; task ravdess knows 'paper'")
    parts, meta = load_splits(data, augment=augment)
    mean, std = meta["statistics"]["mfcc_mean"], meta["statistics"]["mfcc_std"]
    if preset == "paper" and meta["options"]["layout"] == "features":
        mean, std = PUBLISHED_MFCC_MEAN, PUBLISHED_MFCC_STD
    sgd = functools.partial(torch.optim.SGD, lr=0.01, momentum=0.9)
    published = preset == "paper"
    counts = ", ".join(f"{len(part)} {name}" for name, part in parts.items())
    return Task(
        name="ravdess",
        teacher=functools.partial(audio_network, mean, std),
        student=image_network,
        layer=LAYER,
        train=parts["train"],
        val=parts["val"],
        test=parts["test"],
        recipe=Recipe(epochs=100, optimizer=sgd, keep="last") if published else Recipe(epochs=30),
        protocol=Protocol(loss=KDLoss(label_weight=0, reduction="mean"), ratio=0.75) if published else Protocol(),
        facts={
            "classes": list(EMOTIONS),
            "description": (
                f"RAVDESS, eight emotions. The teacher reads 40 mel-frequency cepstral coefficients of the voice over "
                f"time, the student reads one RGB frame. Clips: {counts}; split by {meta['options']['split']}."
            ),
        },
    )
