"""VGGSound: hundreds of everyday events, a teacher that hears them, a student that sees them."""

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING

from mfh.errors import InputError

if TYPE_CHECKING:
    from mfh.tasks.task import Task

__all__ = ["task"]

_MOST_WORKERS = 8


def task(
    data: str | Path | None = None,
    preset: str | None = None,
    augment: bool = False,
    *,
    num_frames: int | None = None,
    width: int = 64,
    num_workers: int | None = None,
) -> "Task":
    """VGGSound as a task: prepared clips and the published networks.

    Args:
        data: a folder made by `mfh prepare vggsound`, or an fsspec URL of one.
        preset: "paper" for the published protocol: 50 epochs of AdamW with learning rate 1e-3, a tenth of it after
            every 25, weight decay 1e-5, batches of 32; magnitudes of the spectrogram as they are; the score is the L1
            distance, of networks trained without a joint step; half of the channels become zero; students learn from
            the teacher alone. Default: the same networks on logarithmic magnitudes, at most 50 epochs that end early
            if validation does not improve for 10; and mfh's own protocol: joint step, mean squared error, removed
            channels become their mean, labels and teacher.
        augment: draw training items from random windows of 8 of the 10 seconds, and mirror half of the videos.
        num_frames: per item, evenly spaced; default: all that were prepared (32). Fewer are read and trained faster.
        width: channels of the networks' first stage; default: as published.
        num_workers: processes that read data; default: the number of processors, at most 8.

    Returns:
        A task with samples (sound (160000,), video (32, 256, 256, 3) uint8, class) and layer "avgpool", the 512 pooled
        channels before the classifier.

    Raises:
        InputError: there is no prepared folder, or it cannot be used; the preset is unknown; a number is out of range.
    """
    # Imported only now: worker processes of the preparation come by here too, and do not need torch.
    import torch
    from torch.optim.lr_scheduler import StepLR

    from mfh.problems.losses import KDLoss
    from mfh.tasks.task import Protocol, Task
    from mfh.tasks.vggsound.annotations import SPLITS
    from mfh.tasks.vggsound.networks import LAYER, audio_network, video_network
    from mfh.tasks.vggsound.shards import Clips, open_prepared
    from mfh.training.recipe import Recipe

    if data is None:
        raise InputError("task vggsound needs --data FOLDER, made by: mfh prepare vggsound CLIPS FOLDER --csv FILE")
    if preset not in (None, "paper"):
        raise InputError(f"preset is {preset!r}; task vggsound knows 'paper'")
    prepared = open_prepared(data)
    labels, options = prepared.labels, prepared.meta["options"]
    parts = {s: Clips(prepared, s, num_frames=num_frames, augment=augment and s == "train") for s in SPLITS}
    published = preset == "paper"
    audio = functools.partial(audio_network, len(labels), int(options["samples"]), width=width, log=not published)
    if num_workers is None:
        num_workers = min(os.cpu_count() or 1, _MOST_WORKERS)
    recipe = Recipe(
        epochs=50,
        batch_size=32,
        optimizer=functools.partial(torch.optim.AdamW, lr=1e-3, weight_decay=1e-5),
        scheduler=functools.partial(StepLR, step_size=25, gamma=0.1),
        patience=None if published else 10,
        keep="last" if published else "best-metric",
        num_workers=num_workers,
    )
    protocol = Protocol(loss=KDLoss(label_weight=0), ratio=0.5, fill="zero", distance="l1", joint=False)
    counts = ", ".join(f"{len(part)} {split}" for split, part in parts.items())
    return Task(
        name="vggsound",
        teacher=audio,
        student=functools.partial(video_network, len(labels), width=width),
        layer=LAYER,
        student_layer=LAYER,
        train=parts["train"],
        val=parts["val"],
        test=parts["test"],
        recipe=recipe,
        protocol=protocol if published else Protocol(),
        facts={
            "classes": list(labels),
            "description": (
                f"VGGSound, {len(labels)} classes of events. The teacher hears {options['seconds']:g} seconds, the "
                f"student sees {parts['train'].num_frames} frames of {options['size']} x {options['size']} pixels. "
                f"Clips: {counts}; a tenth of the training videos are for validation."
            ),
        },
    )
