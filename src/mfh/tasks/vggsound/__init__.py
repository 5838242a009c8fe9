"""VGGSound: hundreds of everyday events. The teacher hears them, the student sees them."""

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
        data: Folder made by `mfh prepare vggsound`, or an fsspec URL of one.
        preset: "paper" uses the published protocol: 50 epochs of AdamW, of which the last one counts, with learning
            rate 1e-3, divided by 10 every 25 epochs, weight decay 1e-5, batches of 32; plain magnitudes of the
            spectrogram; as score the L1 distance of networks trained without a joint step; half of the channels become
            zero; students learn from the teacher alone. None uses the same networks on logarithmic magnitudes and at
            most 50 epochs, which end early if validation does not improve for 10. It follows mfh's own protocol: joint
            step, mean squared error, removed channels become their mean, labels and teacher.
        augment: Draw training items from random windows of 8 of the 10 seconds, and mirror half of the videos.
        num_frames: Frames per item, evenly spaced (default: all that were prepared, usually 32). Fewer frames are read
            and trained faster.
        width: Channels of the networks' first stage (default: as published).
        num_workers: Processes that read data (default: the number of processors, at most 8).

    Returns:
        A task with samples (sound (160000,), video (32, 256, 256, 3) uint8, class). Its layer is "avgpool", the 512
        pooled channels before the classifier.

    Raises:
        InputError: There is no prepared folder, it cannot be used, the preset is unknown, or a number is out of range.
    """
    # Imported only now: worker processes of the preparation import this module too, and do not need torch.
    import torch
    from torch.optim.lr_scheduler import StepLR

    from mfh.problems.losses import KDLoss
    from mfh.tasks.splits import SPLITS
    from mfh.tasks.task import Protocol, Task
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
                f"Clips: {counts}; a tenth of the training videos is for validation."
            ),
        },
    )
