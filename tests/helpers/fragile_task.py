"""The tiny task, with a training split that kills one of several processes once.

MFH_TEST_ACCIDENT is the file that says that it has happened.
"""

import os
import signal
from dataclasses import replace
from pathlib import Path

from torch.utils.data import Dataset

import mfh
import tiny_task


class Fragile(Dataset):
    """Process 1 is killed after 170 samples, in its third epoch."""

    def __init__(self, data):
        self.data, self.read = data, 0

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        self.read += 1
        happened = Path(os.environ.get("MFH_TEST_ACCIDENT", os.devnull))
        if os.environ.get("RANK") == "1" and self.read > 170 and not happened.exists():
            happened.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.data[index]


def task() -> mfh.Task:
    tiny = tiny_task.task(0)
    return replace(tiny, name="fragile", train=Fragile(tiny.train), recipe=mfh.Recipe(epochs=5, batch_size=16))
