"""The authors' pre-processed layout: frames in one tall JPEG, sound as .npy or .wav, train and test apart.

    TRAIN/label.json                       label -> index
    TRAIN/video_jpg/<id>_<label>_<n>.jpg   32 frames, one below the other
    TRAIN/audio_npy/<id>_<label>_<n>.npy   mono sound at 16 kHz, or TRAIN/audio/<id>_<label>_<n>.wav
    TEST/...                               the same

Ids and labels may contain underscores, because `label.json` lists the labels.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mfh import files
from mfh.errors import InputError
from mfh.tasks.media import SILENCE, MediaError, MediaFile, cover, read_audio
from mfh.tasks.streams import MOST_PIXELS
from mfh.tasks.vggsound.annotations import Clip, is_validation, read_labels
from mfh.values import whole

#: Number of frames in a strip.
STRIP_FRAMES = 32


@dataclass(frozen=True)
class Strip:
    """Files of one clip.

    Args:
        video: JPEG of frames, one below the other.
        audio: Sound as .npy or .wav. The file may be missing.
    """

    video: Path
    audio: Path

    def __str__(self) -> str:
        return str(self.video)


def find_strips(train: Path, test: Path | None) -> tuple[dict[Clip, Strip], list[str]]:
    """The clips of the authors' layout and their labels, in the order of `label.json`.

    Args:
        train: The training root. Without `test`, a folder that holds both `Train` and `Test`.
        test: The test root.

    Raises:
        InputError: A folder or label.json is missing, a name has no known label, or there are no clips.
    """
    if test is None:
        train, test = train / "Train", train / "Test"
    labels_path = next((path for path in (train / "label.json", train.parent / "label.json") if path.is_file()), None)
    if labels_path is None:
        raise InputError(f"{train} has no label.json; a file from label to index was expected there or beside it")
    labels = read_labels(labels_path)
    ends = {label.replace("/", "_"): label for label in labels}
    found: dict[Clip, Strip] = {}
    keys: set[str] = set()
    for root, split in ((train, "train"), (test, "test")):
        folder = root / "video_jpg"
        if not folder.is_dir():
            raise InputError(f"there is no folder {folder}; strips <id>_<label>_<n>.jpg were expected there")
        for path in sorted(folder.glob("*.jpg")):
            clip = _clip(path, ends, split)
            if clip.key in keys:
                raise InputError(f"{path} is a second strip of clip {clip.key}; keep one of them")
            keys.add(clip.key)
            found[clip] = Strip(path, _audio(root, path.stem))
    if not found:
        raise InputError(f"there are no strips in {train / 'video_jpg'} and {test / 'video_jpg'}")
    return found, labels


def _clip(path: Path, ends: dict[str, str], split: str) -> Clip:
    rest, _, number = path.stem.rpartition("_")
    fitting = [end for end in ends if rest.endswith(f"_{end}") and len(rest) > len(end) + 1]
    second = whole(number)
    if not fitting or second is None:
        raise InputError(f"{path} is not named <id>_<label>_<n>.jpg with a label of label.json")
    end = max(fitting, key=len)
    video = rest[: -len(end) - 1]
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", video):
        raise InputError(f"{path} has the id {video!r}; letters, digits, '-' and '_' were expected")
    return Clip(video, second, ends[end], "val" if split == "train" and is_validation(video) else split)


def _audio(root: Path, stem: str) -> Path:
    array = root / "audio_npy" / f"{stem}.npy"
    return array if array.exists() else root / "audio" / f"{stem}.wav"


def read_strip(path: Path, num_frames: int, size: int) -> NDArray[np.uint8]:
    """Evenly spaced frames of a strip, (F, size, size, 3).

    Args:
        path: Path of the strip.
        num_frames: Number F of frames.
        size: Height and width of the frames in pixels.

    Raises:
        MediaError: The file is no picture of 32 frames, or too large.
    """
    from PIL import Image

    try:
        files.regular_size(path)
        with Image.open(path, formats=["JPEG"]) as picture:
            width, height = picture.size
            if width * height > MOST_PIXELS:
                raise MediaError("too large")
            if height % STRIP_FRAMES:
                raise MediaError("unreadable")
            strip = picture.convert("RGB")
    except MediaError:
        raise
    except Image.DecompressionBombError:
        raise MediaError("too large") from None
    except Exception:  # damaged files make Pillow raise all kinds of errors
        raise MediaError("unreadable") from None
    each, fit = height // STRIP_FRAMES, cover(size, size)
    chosen = [int((i + 0.5) * STRIP_FRAMES / num_frames) for i in range(num_frames)]
    return np.stack([np.asarray(fit(strip.crop((0, n * each, width, (n + 1) * each)))) for n in chosen])


def read_sound(path: Path, sample_rate: int, seconds: float) -> NDArray[np.float32]:
    """The first seconds of a strip's sound, (T,).

    Args:
        path: Path of the sound.
        sample_rate: Sample rate of the result in Hz. A .npy file must have it already.
        seconds: Seconds to read.

    Raises:
        MediaError: There is no sound, it is silent, or the file holds something else.
    """
    if not path.is_file():
        raise MediaError("no sound")
    if path.suffix != ".npy":
        with MediaFile(path).open() as file:
            return read_audio(file, sample_rate, seconds)
    try:
        sound = files.load_array(path)
    except InputError:
        raise MediaError("unreadable") from None
    if sound.ndim != 1 or sound.dtype.kind not in "fi":
        raise MediaError("unreadable")
    if sound.dtype.kind == "i":
        sound = sound / -float(np.iinfo(sound.dtype).min)
    start: NDArray[np.float32] = sound[: int(seconds * sample_rate)].astype(np.float32)
    if not np.isfinite(start).all():
        raise MediaError("unreadable")
    if np.abs(start).max(initial=0.0) < SILENCE:
        raise MediaError("silent")
    return start
