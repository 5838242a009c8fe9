"""Shoulder exercises recorded by a smart watch, read from the package `seglearn`."""

import io
from functools import cache

import numpy as np
from numpy.typing import NDArray

from mfh.tasks.packages import installed_file
from mfh.tasks.views import Views

RATE = 50  # Hz

#: The file is a pickle, so it is read from the installed package only, and only if it is this very file.
_DIGEST = "eb122f23cdf06ef6bd6c6c5312958ec5cf9d038e2e6d457b8081662c75a42537"


@cache
def load(window: int = 128) -> Views:
    """Windows of 140 recordings of 10 people: acceleration (N, 3, T) and rotation (N, 3, T), grouped by person.

    Args:
        window: Length T of a window in samples at 50 Hz. Windows do not overlap; the rest of a recording is left out.

    Raises:
        InputError: The package is not installed.
    """
    content = installed_file("smartwatch", "seglearn", "1.2.5", "data/watch_dataset.npy", _DIGEST)
    data = np.load(io.BytesIO(content), allow_pickle=True).item()
    windows = [_windows(recording, window) for recording in data["X"]]
    counts = [len(part) for part in windows]
    series = np.concatenate(windows)
    people = np.unique(data["subject"], return_inverse=True)[1]
    return Views(
        {"accelerometer": series[:, :3], "gyroscope": series[:, 3:]},
        target=np.repeat(np.asarray(data["y"], dtype=np.int64), counts),
        classes=tuple(map(str, data["y_labels"])),
        groups=np.repeat(people, counts).astype(np.int64),
        unit="people",
    )


def _windows(recording: NDArray[np.float64], length: int) -> NDArray[np.float32]:
    """Windows of one recording (T, 6), as (N, 6, length)."""
    number = len(recording) // length
    cut = recording[: number * length].reshape(number, length, -1)
    return np.ascontiguousarray(cut.transpose(0, 2, 1), dtype=np.float32)
