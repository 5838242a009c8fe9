"""The two networks of the digits world: two convolutions, pooling, flatten, three fully connected layers.

They were chosen by the validation accuracy of teacher and student alone, never by a result of distillation.
"""

from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray
from torch import nn

LAYER = "flatten"
COLUMNS_PER_DIGIT = 4
TEACHER_FILTERS, TEACHER_ROWS = 8, 16
STUDENT_FILTERS, STUDENT_ROWS = 16, 4


def teacher(num_heard: int, num_classes: int = 2) -> nn.Sequential:
    """A new teacher: recording (N, 1, 65, T) -> logits (N, K).

    Both convolutions halve the frequencies. The pool leaves 16 frequencies and 4 time columns per key for any T. The
    channels of `flatten` are 8 filters x 16 frequencies x 4 A columns: 1024 for two keys.

    Args:
        num_heard: Number A of keys in the recording.
        num_classes: Number K of classes.
    """
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 8, (7, 3), stride=(2, 1), padding=(3, 1)),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(8, TEACHER_FILTERS, (5, 3), stride=(2, 1), padding=(2, 1)),
            relu2=nn.ReLU(),
            pool=nn.AdaptiveMaxPool2d((TEACHER_ROWS, COLUMNS_PER_DIGIT * num_heard)),
            flatten=nn.Flatten(),
            **_classifier(TEACHER_FILTERS * TEACHER_ROWS * COLUMNS_PER_DIGIT * num_heard, num_classes),
        )
    )


def student(num_seen: int, num_classes: int = 2) -> nn.Sequential:
    """A new student: picture (N, 1, 8, 8 B) -> logits (N, K).

    The channels of `flatten` are 16 filters x 4 rows x 4 B columns: 512 for two digits.

    Args:
        num_seen: Number B of digits in the picture.
        num_classes: Number K of classes.
    """
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 8, 3, padding=1),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(8, STUDENT_FILTERS, 3, padding=1),
            relu2=nn.ReLU(),
            pool=nn.AdaptiveMaxPool2d((STUDENT_ROWS, COLUMNS_PER_DIGIT * num_seen)),
            flatten=nn.Flatten(),
            **_classifier(STUDENT_FILTERS * STUDENT_ROWS * COLUMNS_PER_DIGIT * num_seen, num_classes),
        )
    )


def digit_of_channel(num_heard: int) -> NDArray[np.int64]:
    """Which digit of the recording lies under each channel of the teacher's `flatten`.

    A channel is one (filter, frequency, time column) cell. Column j of the 4 A columns pools the share
    [j / (4 A), (j + 1) / (4 A)] of the frames, so columns 4 i to 4 i + 3 lie over key i. Convolutions, pool and Fourier
    windows mix a little of the neighbouring key into the columns at a border. In trained teachers of two keys, 1 to 8 %
    of the change from a replaced digit lies under the other key (docs/digits.md).

    Args:
        num_heard: Number A of keys in the recording.

    Returns:
        Indices 0 to A - 1 in the order of the recording, (C,).

    Example:
        >>> digit_of_channel(2)[:9]
        array([0, 0, 0, 0, 1, 1, 1, 1, 0])
    """
    of_column = np.repeat(np.arange(num_heard), COLUMNS_PER_DIGIT)
    return np.tile(of_column, TEACHER_FILTERS * TEACHER_ROWS)


def _classifier(width: int, num_classes: int) -> dict[str, nn.Module]:
    return {
        "fc1": nn.Linear(width, 128),
        "relu3": nn.ReLU(),
        "fc2": nn.Linear(128, 64),
        "relu4": nn.ReLU(),
        "fc3": nn.Linear(64, num_classes),
    }
