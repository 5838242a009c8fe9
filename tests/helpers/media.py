"""Real media files for tests: H.264 pictures and AAC sound in MP4, 16-bit WAV, JPEG."""

import io
import wave
from collections.abc import Sequence
from pathlib import Path

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
