"""Pictures and sound from media files, decoded by PyAV. Files in archives are read without unpacking.

This module needs the extra `media`.
"""

import io
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from mfh.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

Reason = Literal["unreadable", "truncated", "silent", "too short", "no picture", "no sound"]

#: A recording whose peak amplitude is below this share of full scale counts as silent.
SILENCE = 1e-4

#: Larger members of an archive are not read: a clip has a few MB, a decompression bomb far more.
MOST_BYTES = 2 * 2**30


class MediaError(Exception):
    """A media file cannot be used.

    Args:
        reason: Kind of fault, one of `Reason`.
    """

    def __init__(self, reason: Reason) -> None:
        assert reason in get_args(Reason)
        super().__init__(reason)
        self.reason: Reason = reason


@dataclass(frozen=True, order=True)
class MediaFile:
    """A file on disk, or a member of a zip archive or of an uncompressed tar.

    Args:
        path: Path of the file or of the archive.
        member: Name inside the archive. Empty for a file on disk.
        stamp: Text that changes when the content does: size and time, or the archive's checksum.
        place: First byte and number of bytes of a member of a tar. None for a file on disk and in a zip archive.
    """

    path: Path
    member: str = ""
    stamp: str = ""
    place: tuple[int, int] | None = None

    @classmethod
    def of(cls, path: Path) -> "MediaFile":
        """A file on disk, stamped with its size and time.

        Args:
            path: Path of the file.
        """
        status = path.stat()
        return cls(path, stamp=f"{status.st_size} {status.st_mtime_ns}")

    @property
    def name(self) -> str:
        """The file's own name, without folders."""
        return (self.member or str(self.path)).replace("\\", "/").rpartition("/")[2]

    def __str__(self) -> str:
        return f"{self.path}/{self.member}" if self.member else str(self.path)

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """The content, as a file that can be read and searched.

        Raises:
            MediaError: The archive is damaged there, or encrypted.
        """
        if not self.member:
            with self.path.open("rb") as file:
                yield file
            return
        if self.place is not None:
            start, size = self.place
            if size > MOST_BYTES:
                raise MediaError("unreadable")
            with self.path.open("rb") as file:
                file.seek(start)
                content = file.read(size)
            if len(content) < size:
                raise MediaError("truncated")
            yield io.BytesIO(content)
            return
        try:
            with zipfile.ZipFile(self.path) as archive:
                if archive.getinfo(self.member).file_size > MOST_BYTES:
                    raise MediaError("unreadable")
                content = archive.read(self.member)
        except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError, KeyError, OSError, ValueError):
            raise MediaError("unreadable") from None
        except Exception as error:  # zlib and lzma raise errors of their own
            if type(error).__module__ not in ("zlib", "lzma", "_lzma"):
                raise
            raise MediaError("unreadable") from None
        yield io.BytesIO(content)


def require_media() -> None:
    """Check that the extra `media` is installed.

    Raises:
        InputError: A package is missing.
    """
    try:
        import av  # noqa: F401
        import librosa  # noqa: F401
        import PIL  # noqa: F401
        import soxr  # noqa: F401
    except ImportError as error:
        raise InputError(f"preparing media needs {error.name}; install the extra: '.[media]' in a clone") from None


def read_frames(file: BinaryIO, num_frames: int, fit: "Callable[[Image], Image]") -> NDArray[np.uint8]:
    """Evenly spaced frames of a video.

    Frame i of F is the frame at the share (i + 0.5) / F of the video, so a single frame is the middle one. Frames
    after the last chosen one are not decoded.

    Args:
        file: Content of the video file.
        num_frames: Number F of frames.
        fit: Brings a picture to its final size, for instance `cover`.

    Returns:
        The frames in RGB, (F, H, W, 3).

    Raises:
        MediaError: The file is unreadable or truncated, or has no picture.
    """
    with _opened(file) as container:
        streams = container.streams.video
        if not streams:
            raise MediaError("no picture")
        stream = streams[0]
        stream.codec_context.thread_count = 1  # several files at the same time use the cores better
        # Clips that were cut without encoding contain packets that are never shown.
        count = sum(1 for packet in container.demux(stream) if packet.size and not packet.is_discard)
        while count:
            container.seek(0)
            wanted = [int((i + 0.5) * count / num_frames) for i in range(num_frames)]
            chosen: list[NDArray[np.uint8]] = []
            shown = 0
            for frame in container.decode(stream):
                if shown == wanted[len(chosen)]:
                    picture = np.asarray(fit(frame.to_image()).convert("RGB"))
                    chosen += [picture] * wanted.count(shown)
                    if len(chosen) == num_frames:
                        return np.stack(chosen)
                shown += 1
            count = shown  # there are fewer frames than packets: choose again
    raise MediaError("no picture")


def read_picture(file: BinaryIO, fit: "Callable[[Image], Image]") -> NDArray[np.uint8]:
    """The picture of an image file (JPEG, PNG, ...).

    Args:
        file: Content of the image file.
        fit: Brings a picture to its final size, for instance `cover`.

    Returns:
        The picture in RGB, (H, W, 3).

    Raises:
        MediaError: The file is unreadable.
    """
    from PIL import Image

    try:
        with Image.open(file) as picture:
            return np.asarray(fit(picture.convert("RGB")))
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError):
        raise MediaError("unreadable") from None


def cover(height: int, width: int) -> "Callable[[Image], Image]":
    """A function that scales a picture until it just covers height x width, and crops the rest evenly.

    Args:
        height: Height of the result in pixels.
        width: Width of the result in pixels.
    """

    def fit(picture: "Image") -> "Image":
        from PIL import Image, ImageOps

        if picture.size == (width, height):
            return picture
        return ImageOps.fit(picture, (width, height), Image.Resampling.BILINEAR)

    return fit


def read_audio(file: BinaryIO, sample_rate: int, most_seconds: float | None = None) -> NDArray[np.float32]:
    """The sound of a media file: channels averaged, resampled, with full scale 1.

    Args:
        file: Content of a file with a sound stream.
        sample_rate: Sample rate of the result in Hz.
        most_seconds: Seconds to read, from the beginning (default: all).

    Returns:
        The samples, (T,).

    Raises:
        MediaError: The file is unreadable or truncated, or has no sound, or only silence.
    """
    import soxr

    with _opened(file) as container:
        streams = container.streams.audio
        if not streams:
            raise MediaError("no sound")
        rate = int(streams[0].rate or 0)
        blocks: list[NDArray[np.float32]] = []
        samples, enough = 0, float("inf") if most_seconds is None else most_seconds * rate
        for frame in container.decode(streams[0]):
            blocks.append(_mono(frame))
            samples += len(blocks[-1])
            if samples >= enough:
                break
    if not blocks or not rate:
        raise MediaError("no sound")
    sound = np.concatenate(blocks)
    if most_seconds is not None:
        sound = sound[: int(enough)]
    if not np.isfinite(sound).all():
        raise MediaError("unreadable")
    if np.abs(sound).max(initial=0.0) < SILENCE:
        raise MediaError("silent")
    resampled = soxr.resample(sound, rate, sample_rate, quality="HQ")
    return np.ascontiguousarray(resampled, dtype=np.float32)


def _mono(frame: Any) -> NDArray[np.float32]:
    """Mean over the channels of an audio frame, for any sample format."""
    samples = frame.to_ndarray()
    if not frame.format.is_planar:  # (1, T * channels)
        samples = samples.reshape(-1, len(frame.layout.channels)).T
    if samples.dtype == np.uint8:
        samples = (samples.astype(np.float32) - 128) / 128
    elif samples.dtype.kind == "i":
        samples = samples.astype(np.float32) / -float(np.iinfo(samples.dtype).min)
    return samples.mean(axis=0, dtype=np.float32)  # type: ignore[no-any-return]


@contextmanager
def _opened(file: BinaryIO) -> Iterator[Any]:
    import av

    if _is_truncated(file):
        raise MediaError("truncated")
    try:
        with av.open(file, metadata_errors="ignore") as container:
            yield container
    except (av.error.FFmpegError, ValueError, EOFError):
        raise MediaError("unreadable") from None


def _is_truncated(file: BinaryIO) -> bool:
    """Whether an MP4 or WAV file declares more bytes than it has.

    A decoder does not tell. For half a file with its index in front it reports the full length, and then stops early.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    try:
        head = file.read(12)
        if head[:4] == b"RIFF":
            declared = int.from_bytes(head[4:8], "little")
            return declared not in (0, 0xFFFFFFFF) and declared + 8 > size  # streaming recorders write both
        if head[4:8] != b"ftyp":
            return False
        position = 0
        while position < size:
            file.seek(position)
            head = file.read(16)
            length = int.from_bytes(head[:4], "big")
            if length == 1:
                length = int.from_bytes(head[8:16], "big")
            if length == 0:  # the last box, up to the end
                return False
            if length < 8:
                return True
            position += length
        return position > size
    finally:
        file.seek(0)
