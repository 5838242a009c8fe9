"""Writing prepared clips into tar shards.

A shard has the layout of WebDataset: consecutive members with one key are one sample, with `<key>.00.jpg`,
`<key>.01.jpg`, ... (frames), `<key>.wav` (sound) and `<key>.json` (facts). Nothing here needs torch, so worker
processes of the preparation start fast.
"""

import io
import json
import tarfile
import wave
from collections.abc import Iterable
from dataclasses import asdict
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from mfh.tasks.vggsound.annotations import Clip

#: Kind of the prepared folders.
KIND = "vggsound"

#: Columns of index.csv. Offset and size are in bytes of the shard.
INDEX = ("key", "id", "start", "label", "class", "split", "shard", "offset", "size")


class ShardWriter:
    """Writes clips into one tar. The same clips give the same bytes.

    Args:
        file: File opened for writing.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._tar = tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115  closed by close
        self.rows: list[dict[str, Any]] = []

    def add(self, clip: Clip, label_index: int, frames: Iterable[bytes], sound: bytes, seconds: float) -> None:
        """Append a clip.

        Args:
            clip: The clip.
            label_index: Index of its label.
            frames: Frames as JPEGs, in order.
            sound: Sound as a WAV.
            seconds: Stretch of time that the frames cover. The sound may go on in silence.
        """
        facts = {**asdict(clip), "class": label_index}
        first = self._tar.offset
        for number, frame in enumerate(frames):
            self._member(f"{clip.key}.{number:02d}.jpg", frame)
        self._member(f"{clip.key}.wav", sound)
        self._member(f"{clip.key}.json", json.dumps({**facts, "seconds": round(seconds, 3)}).encode())
        self.rows.append({"key": clip.key, **facts, "offset": first, "size": self._tar.offset - first})

    def _member(self, name: str, content: bytes) -> None:
        entry = tarfile.TarInfo(name)  # no times and owners: the bytes depend on the content alone
        entry.size = len(content)
        self._tar.addfile(entry, io.BytesIO(content))

    def close(self) -> None:
        """Write the end of the tar. The file stays open."""
        self._tar.close()


def wav(sound: NDArray[np.float32], sample_rate: int) -> bytes:
    """A mono 16-bit WAV.

    Args:
        sound: Samples in [-1, 1], (T,).
        sample_rate: Sample rate in Hz.
    """
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes(np.round(sound * 32767).astype(np.int16).tobytes())
    return buffer.getvalue()


def jpeg(picture: NDArray[np.uint8], quality: int) -> bytes:
    """A JPEG.

    Args:
        picture: Picture in RGB, (H, W, 3).
        quality: Quality of the JPEG, 1 to 95.
    """
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
