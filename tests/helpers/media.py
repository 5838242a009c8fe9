"""Real media files for tests: H.264 pictures and AAC sound in MP4, 16-bit WAV, JPEG."""

import io
import struct
import wave
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
from numpy.typing import NDArray


def write_mp4(
    path: str | Path,
    frames: NDArray[np.uint8] | None,
    sound: NDArray[np.float32] | None,
    *,
    frame_rate: int = 30,
    sample_rate: int = 48_000,
    fast_start: bool = False,
) -> None:
    """An MP4 with pictures (F, H, W, 3), or sound (T,) or (channels, T) in [-1, 1], or both."""
    options = {"movflags": "+faststart"} if fast_start else {}
    with av.open(str(path), "w", format="mp4", options=options) as container:
        video = audio = None
        if frames is not None:
            video = container.add_stream("libx264", rate=frame_rate, options={"preset": "ultrafast", "crf": "18"})
            video.width, video.height, video.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
            video.codec_context.thread_count = 1
        if sound is not None:
            sound = np.atleast_2d(sound)
            layout = "mono" if len(sound) == 1 else "stereo"
            audio = container.add_stream("aac", rate=sample_rate, layout=layout)
        if video is not None:
            for picture in frames:
                container.mux(video.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
            container.mux(video.encode())
        if audio is not None:
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound, dtype=np.float32), "fltp", layout)
            frame.sample_rate = sample_rate
            container.mux(audio.encode(frame))
            container.mux(audio.encode())


def write_wav(path: str | Path, sound: NDArray[np.float32], sample_rate: int = 48_000) -> None:
    """A 16-bit WAV of sound (T,) or (channels, T) in [-1, 1]."""
    sound = np.atleast_2d(sound)
    samples = np.clip(np.round(sound * 32767), -32768, 32767).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(len(samples))
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes(samples.T.tobytes())


def jpeg(picture: NDArray[np.uint8], quality: int = 95) -> bytes:
    """The JPEG of a picture (H, W, 3)."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def tone(
    frequencies: Sequence[float], seconds: float, rng: np.random.Generator, noise: float = 0.05
) -> NDArray[np.float32]:
    """Sinusoids of random phase in white noise, 48 kHz, peak below 1."""
    times = np.arange(int(seconds * 48_000)) / 48_000
    sound = sum(np.sin(2 * np.pi * f * times + rng.uniform(0, 2 * np.pi)) for f in frequencies)
    sound = 0.3 * sound + noise * rng.standard_normal(len(times))
    return np.clip(sound, -0.99, 0.99).astype(np.float32)


def write_clip(
    file: BinaryIO,
    kind: str,
    *,
    pictures: tuple[Sequence[float], Sequence[NDArray[np.uint8]]] | None,
    sounds: Sequence[Sequence[tuple[float, NDArray[np.float32]]]],
    picture_codec: str = "libx264",
    sound_codec: str = "aac",
    sound_rate: int | None = None,
    default: int = 0,
    matrix: tuple[int, int, int, int] | None = None,
    aspect: tuple[int, int] | None = None,
    cover: bytes | None = None,
    options: dict[str, str] | None = None,
) -> None:
    """A clip in any container, with its own times.

    Args:
        file: file to write, which is left at its beginning.
        kind: name of the container.
        pictures: times in seconds, and pictures (H, W, 3).
        sounds: tracks; each is made of samples (T,) at 48 kHz and when they begin, in seconds.
        picture_codec: encoder of the pictures.
        sound_codec: encoder of the sounds.
        sound_rate: sample rate in the file (default: 44 100 Hz for MP3, else 48 000 Hz).
        default: number of the default sound.
        matrix: how an MP4's pictures are to be turned: where steps to the right (x, y) and down (x, y) lead.
        aspect: width and height of a pixel.
        cover: a JPEG to show for an MP4 file.
        options: options of the container.
    """
    from av.stream import Disposition

    rate = sound_rate or (44_100 if sound_codec == "libmp3lame" else 48_000)
    with av.open(file, "w", format=kind, options=options or {}) as container:
        video = None
        if pictures is not None:
            base = Fraction(1, 1000) if kind == "matroska" else Fraction(1, 30)
            video = container.add_stream(picture_codec, rate=30, options={"g": "10"})
            video.height, video.width, video.pix_fmt = *pictures[1][0].shape[:2], "yuv420p"
            video.codec_context.thread_count = 1
            if picture_codec in ("flv1", "mpeg4", "libvpx"):
                video.bit_rate = 1_000_000
            if any(abs(time * 30 - round(time * 30)) > 1e-6 for time in pictures[0]):
                base = Fraction(1, 1000)
            video.codec_context.time_base = base
            if aspect is not None:
                video.codec_context.sample_aspect_ratio = Fraction(*aspect)
        tracks = [container.add_stream(sound_codec, rate=rate, layout="mono") for _ in sounds]
        for number, track in enumerate(tracks):
            track.disposition = Disposition.default if number == default else Disposition(0)
        if cover is not None:
            shown = container.add_stream("mjpeg", rate=1)
            shown.height, shown.width, shown.pix_fmt = 480, 640, "yuvj420p"
            shown.disposition = Disposition.attached_pic
        packets = []
        if video is not None:
            for time, picture in zip(*pictures, strict=True):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
                frame.pts, frame.time_base = round(time / base), base
                packets += video.encode(frame)
            packets += video.encode()
        for track, pieces in zip(tracks, sounds, strict=True):
            packets += _encoded(track, pieces, rate)
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            container.mux(packet)
        if cover is not None:
            packet = av.Packet(cover)
            packet.stream, packet.pts, packet.dts, packet.time_base = shown, 0, 0, Fraction(1, 1)
            container.mux(packet)
    if matrix is not None:
        _turn(file, matrix)
    file.seek(0)


def _encoded(track: Any, pieces: Sequence[tuple[float, NDArray[np.float32]]], rate: int) -> list[Any]:
    """Packets of a sound whose pieces begin at given times."""
    to_codec = av.AudioResampler(format=track.codec_context.format, layout="mono", rate=rate)
    to_codec_frames = []
    for begin, samples in pieces:
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples)[None], "fltp", "mono")
        frame.sample_rate, frame.pts, frame.time_base = 48_000, 0, Fraction(1, 48_000)
        to_codec_frames.append((begin, [*to_codec.resample(frame)]))
    packets = []
    for begin, frames in to_codec_frames:
        size, place = track.codec_context.frame_size or 1024, round(begin * rate)
        fifo = av.AudioFifo()
        for frame in frames:
            frame.pts = None
            fifo.write(frame)
        while (block := fifo.read(size, partial=True)) is not None:
            block.pts, block.time_base = place, Fraction(1, rate)
            place += block.samples
            if block.samples < size and (begin, frames) != to_codec_frames[-1]:
                break  # only the last block of an encoder may be short
            packets += track.encode(block)
    return [*packets, *track.encode()]


def _turn(file: BinaryIO, matrix: tuple[int, int, int, int]) -> None:
    """Write a display matrix into the header of an MP4 file's first track."""
    file.seek(0)
    content = file.read()
    identity = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    place = content.index(identity, content.index(b"tkhd"))
    right_x, right_y, down_x, down_y = (value << 16 for value in matrix)
    file.seek(place)
    file.write(struct.pack(">9i", right_x, right_y, 0, down_x, down_y, 0, 0, 0, 1 << 30))
