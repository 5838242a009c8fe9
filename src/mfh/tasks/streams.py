"""One stretch of time of a media file: which streams to read, when they begin and end, and whether any is cut short.

Containers count time in several ways. Here every moment is a number of seconds on the file's own clock, and the picture
and the sound of a clip are read over one window of it. This module needs the extra `media`.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Literal, get_args

Reason = Literal["unreadable", "truncated", "too large", "silent", "too short", "no picture", "no sound"]

#: Moments that are closer than this, in seconds, are one moment: some containers round times, and encoders pad sound.
SAME = 0.05

#: Picture and sound of one recording end at slightly different times, in seconds.
SLACK = 0.1

#: No more than this is read of a clip, in seconds.
MOST_SECONDS = 600.0

#: Larger pictures are not decoded. A picture of 8K video has half as many pixels.
MOST_PIXELS = 2**26

#: No more than this is read of a clip, in bytes: a clip has a few MB, a decompression bomb far more.
MOST_BYTES = 2 * 2**30

# A time stamp that lies further back than this, in seconds, begins a new count.
_RESET = 1.0

# A stream that ends this much before its declared end, in seconds, was cut short.
_MISSING = 0.25

# Containers that declare how long each stream is, and those that declare only the longest. Of others, the length is
# an estimate from the number of bytes.
_DECLARE_EACH = {"mov", "avi", "wav", "mp3", "flac"}
_DECLARE_LONGEST = {"matroska", "flv", "asf"}


class MediaError(Exception):
    """A media file cannot be used.

    Args:
        reason: Kind of fault, one of `Reason`.
    """

    def __init__(self, reason: Reason) -> None:
        assert reason in get_args(Reason)
        super().__init__(reason)
        self.reason: Reason = reason


class _Clock:
    """Time that never runs back, whatever time stamps say."""

    def __init__(self) -> None:
        self.now, self.shift = float("-inf"), 0.0

    def read(self, stamp: float) -> float:
        """The time of a stamp. After a reset, time goes on from where it was."""
        if stamp + self.shift < self.now - _RESET:
            self.shift = self.now - stamp
        self.now = max(self.now, stamp + self.shift)
        return self.now


@dataclass
class Track:
    """A stream with the packets of the window.

    Args:
        stream: The stream, of PyAV.
        packets: Packets to decode, in order.
        start: When its first frame is shown or heard, in seconds. Infinite if there is none.
        end: When its last frame ends, in seconds.
        last: When its last packet ends, in seconds, also if no frame comes of it.
        count: Number of packets in the file.
    """

    stream: Any
    packets: list[Any] = field(default_factory=list)
    start: float = float("inf")
    end: float = float("-inf")
    last: float = float("-inf")
    count: int = 0
    _clock: _Clock = field(default_factory=_Clock)

    def add(self, packet: Any, seconds: float) -> int:
        """Note when a packet is due, and keep it if it may belong to the window.

        Args:
            packet: The packet.
            seconds: Length of the window.

        Returns:
            Number of bytes kept.
        """
        self.count += 1
        base = float(packet.time_base)
        if packet.dts is not None:
            self._clock.read(packet.dts * base)
        stamp = packet.dts if packet.pts is None else packet.pts
        time = max(self.last, 0.0) if stamp is None else stamp * base + self._clock.shift
        end = time + ((packet.duration or 0) * base or self.step)
        self.last = max(self.last, end)
        if not packet.is_discard:
            if self.stream.start_time is not None and not self.packets:
                time = max(time, self.stream.start_time * base)  # an encoder's lead-in comes before it
            self.start, self.end = min(self.start, time), max(self.end, end)
        if self._clock.now > self.start + seconds + _RESET:
            return 0
        self.packets.append(packet)
        return int(packet.size)

    @property
    def step(self) -> float:
        """Usual time from one picture to the next, in seconds. 0 for sound."""
        rate = getattr(self.stream, "average_rate", None)
        return 1 / float(rate) if rate else 0.0

    def decoded(self) -> Iterator[tuple[float, Any]]:
        """Time and frame, in the order of presentation."""
        clock, previous, base = _Clock(), self.start, float(self.stream.time_base)
        for packet in (*self.packets, None):
            for frame in self.stream.decode(packet):
                # The time base of the frame itself is another one for the last frames of a decoder.
                time = previous if frame.pts is None else clock.read(frame.pts * base)
                yield time, frame
                length = frame.samples / frame.sample_rate if hasattr(frame, "samples") else self.step
                previous = time + length


@dataclass(frozen=True)
class Recording:
    """The streams of a file that can be used.

    Args:
        pictures: Video streams, the best one first, without cover pictures.
        sounds: Audio streams, the default one first.
        seconds: Length of the window, at most.
    """

    pictures: list[Track]
    sounds: list[Track]
    seconds: float

    def window(self, track: Track) -> tuple[float, float]:
        """Begin and end of the window on the clock of a track. Both are the same moments for every track.

        Where picture and sound begin or end at nearly the same time, a track's own begin and end are taken.

        Args:
            track: A track of this recording.
        """
        both = [tracks[0] for tracks in (self.pictures, self.sounds) if tracks]
        begin = min(one.start for one in both)
        begin = track.start if track.start - begin < SAME else begin
        end = min(max(one.end for one in both), begin + self.seconds)
        return begin, track.end if abs(end - track.end) < SLACK else end


@contextmanager
def opened(file: BinaryIO, seconds: float | None = None) -> Iterator[Recording]:
    """The streams of a media file, with the packets of the window, which begins where the file's time begins.

    Args:
        file: Content of the file.
        seconds: Length of the window (default, and at most, `MOST_SECONDS`).

    Raises:
        MediaError: The file is unreadable, too large or truncated. Whatever the body raises means unreadable, too.
    """
    import av

    # Only the file itself is read: a playlist could name others, also on the network.
    options = {"protocol_whitelist": "none"}
    try:
        if _lacks_bytes(file):
            raise MediaError("truncated")
        with av.open(file, metadata_errors="ignore", options=options) as container:
            yield _recording(container, min(MOST_SECONDS, seconds or MOST_SECONDS))
    except MediaError:
        raise
    except Exception:  # a damaged file makes FFmpeg, PyAV, numpy and the file's own methods raise all kinds of errors
        raise MediaError("unreadable") from None


def _recording(container: Any, seconds: float) -> Recording:
    tracks = {stream.index: Track(stream) for stream in container.streams}
    kept, broken = 0, False
    for packet in container.demux():
        track = tracks.get(packet.stream.index)
        if track is not None and packet.size:
            kept += track.add(packet, seconds)
            broken = packet.is_corrupt
        if kept > MOST_BYTES:
            raise MediaError("too large")
    pictures = [tracks[stream.index] for stream in container.streams.video if not _is_cover(stream)]
    sounds = [tracks[stream.index] for stream in container.streams.audio]
    if broken or _ends_early(container, [*pictures, *sounds], list(tracks.values())):
        raise MediaError("truncated")
    for track in pictures:
        context = track.stream.codec_context
        if context is None:  # there is no decoder; another track may have one
            continue
        context.thread_count = 1  # several files at the same time use the cores better
        context.options = {"max_pixels": str(MOST_PIXELS)}
        if context.width * context.height > MOST_PIXELS:
            raise MediaError("too large")
    return Recording(
        sorted((track for track in pictures if track.start < float("inf")), key=_rank),
        sorted((track for track in sounds if track.start < float("inf")), key=_rank),
        seconds,
    )


def _is_cover(stream: Any) -> bool:
    from av.stream import Disposition

    return bool(stream.disposition & (Disposition.attached_pic | Disposition.timed_thumbnails))


def _rank(track: Track) -> tuple[bool, int]:
    """Sorts the default first, and then the largest picture."""
    from av.stream import Disposition

    context = track.stream.codec_context
    return not track.stream.disposition & Disposition.default, -getattr(context, "width", 0) * getattr(
        context, "height", 0
    )


def _ends_early(container: Any, streams: list[Track], everything: list[Track]) -> bool:
    """Whether the packets end before the time that the container declares.

    Only half a file with its index in front, for instance, is read without an error.

    Args:
        container: The container.
        streams: Picture and sound.
        everything: Also subtitles and the like, which may be the longest.
    """
    formats = set(container.format.name.split(","))
    if formats & _DECLARE_EACH:
        counts = "avi" in formats  # FFmpeg halves the duration of half an AVI file, but not its number of frames
        return any(_declared(track, counts) > track.last + max(_MISSING, 1.5 * track.step) for track in streams)
    if formats & _DECLARE_LONGEST and container.duration:
        counted = [track for track in everything if track.count]
        last = max((track.last for track in counted), default=0.0)
        first = min((track.start for track in counted), default=0.0)
        step = max((track.step for track in streams), default=0.0)
        return bool(container.duration / 1e6 > max(last, last - first) + max(_MISSING, 1.5 * step))
    return False


def _declared(track: Track, counts: bool) -> float:
    """Declared end of a stream in seconds, by its duration or, if that is more, by its number of frames."""
    base = float(track.stream.time_base or 0)
    length = (track.stream.duration or 0) * base
    if counts:
        length = max(length, track.stream.frames * track.step)
    return float((track.stream.start_time or 0) * base + length)


# --- what a file says about its own size ----------------------------------------------------------------------------


def _lacks_bytes(file: BinaryIO) -> bool:
    """Whether an MP4, RIFF (WAV, AVI) or Matroska (WebM) file declares more bytes than it has."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    try:
        head = file.read(64)
        if head[:4] == b"RIFF":
            declared = int.from_bytes(head[4:8], "little")
            return declared not in (0, 0xFFFFFFFF) and declared + 8 > size  # streaming recorders write both
        if head[:4] == b"\x1a\x45\xdf\xa3":
            return _matroska_end(head) > size
        if head[4:8] == b"ftyp":
            return _mp4_end(file, size) > size
        return False
    finally:
        file.seek(0)


def _mp4_end(file: BinaryIO, size: int) -> int:
    """Where the last of an MP4 file's boxes ends. One that has no proper size never ends."""
    position = 0
    while position < size:
        file.seek(position)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if length == 0:  # the last box, up to the end
            return size
        if length < 8:
            return size + 1
        position += length
    return position


def _matroska_end(head: bytes) -> int:
    """Where the segment of a Matroska file ends, or 0 if its first bytes do not say."""
    length, begin = _element(head, 4)
    segment = begin + length
    if head[segment : segment + 4] != b"\x18\x53\x80\x67":
        return 0
    length, begin = _element(head, segment + 4)
    return begin + length


def _element(head: bytes, place: int) -> tuple[int, int]:
    """Size of a Matroska element (0 if unknown, as a live recording has it), and where its content begins."""
    first = head[place] if place < len(head) else 0
    width = 9 - first.bit_length()
    value = int.from_bytes(head[place : place + width], "big") & ((1 << 7 * width) - 1)
    return (0 if value == (1 << 7 * width) - 1 else value), place + width
