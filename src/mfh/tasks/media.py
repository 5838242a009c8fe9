"""Pictures and sound from media files, decoded by PyAV. Files in archives are read without unpacking.

This module needs the extra `media`.
"""

import io
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray

from mfh.errors import InputError
from mfh.tasks.streams import MOST_BYTES, MOST_PIXELS, SAME, MediaError, Reason, Recording, Track, opened

if TYPE_CHECKING:
    from PIL.Image import Image, Transpose

Content = TypeVar("Content")

__all__ = [
    "SILENCE",
    "Decoded",
    "MediaError",
    "MediaFile",
    "cover",
    "read_audio",
    "read_clip",
    "read_frames",
    "read_picture",
    "require_media",
]

#: A recording whose peak amplitude is below this share of full scale counts as silent.
SILENCE = 1e-4

# Sound with another number of samples per second is no sound for ears.
_RATES = range(1_000, 768_001)


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
            MediaError: The file cannot be opened, or the archive is damaged there, or encrypted.
        """
        if not self.member:
            try:
                file = self.path.open("rb")
            except OSError:
                raise MediaError("unreadable") from None
            with file:
                yield file
            return
        if self.place is not None:
            start, size = self.place
            if size > MOST_BYTES:
                raise MediaError("too large")
            try:
                with self.path.open("rb") as archive:
                    archive.seek(start)
                    content = archive.read(size)
            except (OSError, ValueError):
                raise MediaError("unreadable") from None
            if len(content) < size:
                raise MediaError("truncated")
            yield io.BytesIO(content)
            return
        try:
            with zipfile.ZipFile(self.path) as packed:
                if packed.getinfo(self.member).file_size > MOST_BYTES:
                    raise MediaError("too large")
                content = packed.read(self.member)
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


@dataclass(frozen=True)
class Decoded:
    """Picture and sound over one window of time.

    Args:
        frames: Evenly spaced frames in RGB, (F, H, W, 3).
        sound: Samples, (T,). It is shorter than the window if the sound ends before it.
        seconds: Length of the window: as asked for, or the clip's own if that is shorter.
    """

    frames: NDArray[np.uint8]
    sound: NDArray[np.float32]
    seconds: float


def read_clip(
    file: BinaryIO, num_frames: int, fit: "Callable[[Image], Image]", sample_rate: int, seconds: float
) -> Decoded:
    """Picture and sound of a media file, as `read_frames` and `read_audio` read them.

    Args:
        file: Content of the media file.
        num_frames: Number F of frames.
        fit: Brings a picture to its final size, for instance `cover`.
        sample_rate: Sample rate of the sound in Hz.
        seconds: Seconds to read, from the beginning.

    Raises:
        MediaError: Picture or sound cannot be used.
    """
    with opened(file, seconds) as recording:
        # Sound first: it decodes faster, so a useless clip is found sooner.
        sound = _sound(recording, sample_rate)
        frames = _frames(recording, num_frames, fit)
        begin, end = recording.window(recording.pictures[0])
        return Decoded(frames, sound, min(end - begin, seconds))


def read_frames(
    file: BinaryIO, num_frames: int, fit: "Callable[[Image], Image]", seconds: float | None = None
) -> NDArray[np.uint8]:
    """Evenly spaced frames of a video.

    Frame i of F is the one that is shown at the share (i + 0.5) / F of the window, so a single frame is the middle one.
    The window begins where picture or sound begins, whichever is first, and so is that of `read_audio`. Before the
    first frame, the first one is taken, and after the last frame the last one. Frames after the last chosen one are
    not decoded. Pictures are turned upright, and have square pixels before they are fitted.

    Args:
        file: Content of the video file.
        num_frames: Number F of frames.
        fit: Brings a picture to its final size, for instance `cover`.
        seconds: Seconds to read, from the beginning (default: all, up to 10 minutes).

    Returns:
        The frames in RGB, (F, H, W, 3).

    Raises:
        MediaError: The file is unreadable, too large or truncated, or has no picture.
    """
    with opened(file, seconds) as recording:
        return _frames(recording, num_frames, fit)


def _frames(recording: Recording, num_frames: int, fit: "Callable[[Image], Image]") -> NDArray[np.uint8]:
    def read(track: Track) -> NDArray[np.uint8]:
        begin, end = recording.window(track)
        times = [begin + (i + 0.5) / num_frames * (end - begin) for i in range(num_frames)]
        tick = float(track.stream.time_base)
        early = tick / 2 + 1e-6 if tick <= 0.001 else 1e-6  # time stamps are rounded to a tick
        chosen: list[NDArray[np.uint8]] = []
        shown = None
        for time, frame in track.decoded():
            passed = sum(moment < time - early for moment in times[len(chosen) :])
            if passed and shown is not None:
                chosen += [_upright(shown, track, fit)] * passed
            if len(chosen) == num_frames:
                break
            shown = frame
        if shown is None:
            raise MediaError("no picture")
        if len(chosen) < num_frames:
            chosen += [_upright(shown, track, fit)] * (num_frames - len(chosen))
        return np.stack(chosen)

    return _first_good(recording.pictures, read, "no picture")


def _first_good(tracks: list[Track], read: Callable[[Track], Content], otherwise: Reason) -> Content:
    """The content of the first track that can be used. If there is none, the fault is that of the first."""
    faults: list[Exception] = []
    for track in tracks:
        try:
            return read(track)
        except Exception as error:  # another track may be whole; `opened` says what all kinds of errors mean
            faults.append(error)
    raise faults[0] if faults else MediaError(otherwise)


def _upright(frame: Any, track: Track, fit: "Callable[[Image], Image]") -> NDArray[np.uint8]:
    """A frame as it is meant to be seen."""
    from PIL import Image

    if frame.width * frame.height > MOST_PIXELS:
        raise MediaError("too large")
    picture = frame.to_image()
    aspect = float(track.stream.sample_aspect_ratio or 1)
    if abs(aspect - 1) > 0.01 and 1 / 16 < aspect < 16:  # scaling that keeps the shape leaves 1280:1281 and the like
        wide, high = picture.size
        size = (round(wide * aspect), high) if aspect > 1 else (wide, round(high / aspect))
        if size[0] * size[1] > MOST_PIXELS:
            raise MediaError("too large")
        picture = picture.resize(size, Image.Resampling.BILINEAR)
    for turn in _turns(frame):
        picture = picture.transpose(turn)
    return np.asarray(fit(picture).convert("RGB"))


def _turns(frame: Any) -> "list[Transpose]":
    """What the display matrix of a frame asks for, to the nearest quarter turn."""
    from PIL.Image import Transpose

    side_data = frame.side_data.get("DISPLAYMATRIX")
    if side_data is None:
        return []
    right, down = np.frombuffer(bytes(side_data), "<i4")[:9].reshape(3, 3)[:2, :2].astype(float)
    # A step to the right in the stored picture is the step `right` (x, y) on the screen, a step down is `down`.
    across = abs(right[1]) + abs(down[0]) > abs(right[0]) + abs(down[1])
    x, y = (down[0], right[1]) if across else (right[0], down[1])
    turns = [Transpose.TRANSPOSE] if across else []
    turns += [Transpose.FLIP_LEFT_RIGHT] if x < 0 else []
    return turns + ([Transpose.FLIP_TOP_BOTTOM] if y < 0 else [])


def read_picture(file: BinaryIO, fit: "Callable[[Image], Image]") -> NDArray[np.uint8]:
    """The picture of an image file (JPEG, PNG, ...).

    Args:
        file: Content of the image file.
        fit: Brings a picture to its final size, for instance `cover`.

    Returns:
        The picture in RGB, (H, W, 3).

    Raises:
        MediaError: The file is unreadable or too large.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise MediaError("too large")
            return np.asarray(fit(ImageOps.exif_transpose(picture).convert("RGB")))
    except MediaError:
        raise
    except Image.DecompressionBombError:
        raise MediaError("too large") from None
    except Exception:  # damaged files make Pillow raise all kinds of errors
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


def read_audio(file: BinaryIO, sample_rate: int, seconds: float | None = None) -> NDArray[np.float32]:
    """The sound of a media file: channels averaged, resampled, with full scale 1.

    Sample t is heard t / sample_rate seconds after the window begins, see `read_frames`. So sound that starts late, or
    has a gap, has silence there. The default sound of several is taken, or the first one that is not silent.

    Args:
        file: Content of a file with a sound stream.
        sample_rate: Sample rate of the result in Hz.
        seconds: Seconds to read, from the beginning (default: all, up to 10 minutes).

    Returns:
        The samples, (T,).

    Raises:
        MediaError: The file is unreadable, too large or truncated, or has no sound, or only silence.
    """
    with opened(file, seconds) as recording:
        return _sound(recording, sample_rate)


def _sound(recording: Recording, sample_rate: int) -> NDArray[np.float32]:
    def read(track: Track) -> NDArray[np.float32]:
        import soxr

        sound = []
        for rate, samples in _pieces(track, recording.window(track)[0], recording.seconds):
            if not np.isfinite(samples).all():
                raise MediaError("unreadable")
            sound.append((rate, samples))
        if not sound:
            raise MediaError("no sound")
        if max(np.abs(samples).max(initial=0.0) for _, samples in sound) < SILENCE:
            raise MediaError("silent")
        resampled = [soxr.resample(samples, rate, sample_rate, quality="HQ") for rate, samples in sound]
        return np.ascontiguousarray(np.concatenate(resampled), dtype=np.float32)

    return _first_good(recording.sounds, read, "no sound")


def _pieces(track: Track, begin: float, seconds: float) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Sample rate and samples, without gaps from the beginning on, until the sound ends or the window does.

    A new piece begins where the sample rate changes.
    """
    blocks: list[NDArray[np.float32]] = []
    rate = count = 0
    for time, frame in track.decoded():
        if frame.sample_rate not in _RATES:
            raise MediaError("unreadable")
        if frame.sample_rate != rate:
            if blocks:
                yield rate, np.concatenate(blocks)
                begin, seconds = begin + count / rate, seconds - count / rate
            rate, count, blocks = int(frame.sample_rate), 0, []
        room = max(0, int(seconds * rate + 1e-6) - count)
        block = _mono(frame)
        late = round((time - begin) * rate) - count
        if late > SAME * rate:
            block = np.concatenate([np.zeros(min(late, room), np.float32), block])
        elif late < -SAME * rate:  # what was heard already
            block = block[-late:]
        blocks.append(block[:room])
        count += len(blocks[-1])
        if len(block) >= room:
            break
    if count:
        yield rate, np.concatenate(blocks)


def _mono(frame: Any) -> NDArray[np.float32]:
    """Mean over the channels of an audio frame, for any sample format."""
    samples = frame.to_ndarray()
    if not frame.format.is_planar:  # (1, T * channels)
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    if samples.dtype == np.uint8:
        samples = (samples.astype(np.float32) - 128) / 128
    elif samples.dtype.kind == "i":
        samples = samples.astype(np.float32) / -float(np.iinfo(samples.dtype).min)
    return samples.mean(axis=0, dtype=np.float32)  # type: ignore[no-any-return]
