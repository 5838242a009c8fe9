"""Data sets of a prepared RAVDESS folder, read from memory maps."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from mfh import files
from mfh.errors import InputError
from mfh.tasks import preparing
from mfh.tasks.ravdess import splits
from mfh.tasks.ravdess.names import EMOTIONS
from mfh.tasks.ravdess.prepare import KIND, MANIFEST, TYPES
from mfh.tasks.splits import SPLITS


class Clips(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """The clips of one split: (MFCC (1, M, T) float32, frame (3, H, W) uint8, emotion).

    Frames are stored as (H, W, 3) and returned as views, so convolutions get the memory format that suits them. The
    networks' first layer normalises.

    Args:
        folder: Folder made by `mfh prepare ravdess`.
        rows: Positions of the clips in the folder's arrays.
        targets: Classes of these clips.
        augment: Draw one of the frames, mirror it half of the time, and shift it by up to a sixteenth of its size. The
            teacher's inputs do not vary, so that its outputs can be computed once.
    """

    def __init__(self, folder: Path, rows: NDArray[np.int64], targets: NDArray[np.int64], *, augment: bool) -> None:
        self.folder, self.rows, self.augment = folder, rows, augment
        self.targets = torch.from_numpy(targets)
        self._open()

    def _open(self) -> None:
        self.mfcc = files.map_array(self.folder / "mfcc.npy")
        self.frames = files.map_array(self.folder / "frames.npy")

    def __getstate__(self) -> dict[str, Any]:
        """The state for another process, without the memory maps: pickle would copy all their content."""
        return {name: value for name, value in vars(self).items() if name not in ("mfcc", "frames")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        row = int(self.rows[index])
        mfcc = torch.from_numpy(self.mfcc[row].copy())[None]
        stored = self.frames[row]
        frame = stored[int(torch.randint(len(stored), ())) if self.augment else len(stored) // 2]
        picture = torch.from_numpy(frame.copy()).permute(2, 0, 1)
        return mfcc, _varied(picture) if self.augment else picture, self.targets[index]


def _varied(picture: Tensor) -> Tensor:
    """The picture, mirrored half of the time and shifted at random. Its border is repeated."""
    if torch.rand(()) < 0.5:
        picture = picture.flip(2)
    for dim in (1, 2):
        size = picture.shape[dim]
        most = size // 16
        shift = int(torch.randint(-most, most + 1, ()))
        picture = picture.index_select(dim, (torch.arange(size) + shift).clamp(0, size - 1))
    return picture


def load_splits(folder: str | Path, *, augment: bool = False) -> tuple[dict[str, Clips], dict[str, Any]]:
    """The three splits of a prepared folder, and its meta.json.

    Args:
        folder: Folder made by `mfh prepare ravdess`.
        augment: Vary the pictures of the training split at random.

    Raises:
        InputError: The folder is incomplete, damaged or of another version, or its splits share clips or actors.
    """
    folder = Path(folder)
    meta = preparing.read_meta(folder, KIND)
    manifest = files.read_table(folder / "manifest.csv", MANIFEST, "prepare the data again into another folder")
    _check_facts(meta, str(folder))
    splits.check_leaks(manifest, meta["options"]["split"])
    _check_arrays(folder, meta, len(manifest))
    classes = {emotion: place for place, emotion in enumerate(EMOTIONS)}
    strange = next((row for row in manifest if row["emotion"] not in classes), None)
    if strange is not None:
        raise InputError(
            f"clip {strange['id']} has emotion {strange['emotion']!r}; {', '.join(EMOTIONS)} were expected"
        )
    targets = np.array([classes[row["emotion"]] for row in manifest], dtype=np.int64)
    parts: dict[str, Clips] = {}
    for name in SPLITS:
        rows = np.flatnonzero([row["split"] == name for row in manifest])
        parts[name] = Clips(folder, rows, targets[rows], augment=augment and name == "train")
    return parts, meta


def _check_facts(meta: Mapping[str, Any], place: str) -> None:
    """Refuse a meta.json that lacks values."""
    for name in ("split", "layout"):
        preparing.fact(meta["options"], name, str, place)
    for name in ("mfcc_mean", "mfcc_std"):
        if not math.isfinite(preparing.fact(preparing.fact(meta, "statistics", dict, place), name, float, place)):
            raise InputError(f"{place}/meta.json has {name} that is no number; prepare the data again")
    arrays = preparing.fact(meta, "arrays", dict, place)
    for name in TYPES:
        preparing.fact(arrays, name, dict, place)


def _check_arrays(folder: Path, meta: Mapping[str, Any], num_clips: int) -> None:
    """Refuse arrays that are not those that meta.json and the manifest describe."""
    for name, kind in TYPES.items():
        facts = meta["arrays"][name]
        try:
            array = files.map_array(folder / f"{name}.npy")
        except InputError as error:
            raise InputError(
                f"{folder / name}.npy cannot be read ({error}); prepare the data again into another folder"
            ) from None
        found = list(array.shape)
        if found != facts.get("shape") or array.dtype != kind or len(found) < 3 or found[0] != num_clips:
            raise InputError(
                f"{folder / name}.npy has shape {found} and type {array.dtype}; {facts.get('shape')} and "
                f"{np.dtype(kind).name} were prepared for {num_clips} clips in manifest.csv: the folder was changed; "
                "prepare the data again into another folder"
            )
