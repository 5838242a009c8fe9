"""Clips by time: frames whose shade tells the time and sound whose pitch does, in every container and out of order."""

import io
import itertools

import av
import numpy as np
import pytest

from media import jpeg, write_clip, write_mp4
from mfh.tasks import media, streams
from mfh.tasks.media import MediaError, cover, read_audio, read_clip, read_frames

RATE = 16_000
FIT = cover(48, 64)

#: container -> codecs of picture and sound
CONTAINERS = {
    "mp4": ("libx264", "aac"),
    "mov": ("libx264", "aac"),
    "matroska": ("libx264", "aac"),
    "webm": ("libvpx", "libopus"),
    "avi": ("mpeg4", "libmp3lame"),
    "flv": ("flv1", "libmp3lame"),
    "mpegts": ("libx264", "aac"),
}


def shades(times):
    """Frames that show their time: 20 at 0 s, 40 more every second."""
    return [np.full((48, 64, 3), round(20 + 40 * time), np.uint8) for time in times]


def seen(frames):
    """Times that frames show, in seconds."""
    return (frames.mean((1, 2, 3)) - 20) / 40


def beeps(seconds, begin, end, frequency=440.0, rate=48_000):
    """Silence with a tone from `begin` to `end`."""
    times = np.arange(int(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * frequency * times) * ((times >= begin) & (times < end))).astype(np.float32)


def heard(sound, least=0.1):
    """Begin and end of what can be heard, in seconds."""
    loud = np.flatnonzero(np.abs(sound) > least)
    return loud[0] / RATE, loud[-1] / RATE


def made(container="mp4", seconds=2.0, **options):
    """A clip of a container, 30 pictures a second, with a tone from 0.5 to 1.5 s."""
    codecs = dict(zip(("picture_codec", "sound_codec"), CONTAINERS[container], strict=True))
    times = np.arange(round(30 * seconds)) / 30
    file = io.BytesIO()
    sounds = [[(0.0, beeps(seconds, 0.5, 1.5))]]
    write_clip(file, container, **{"pictures": (times, shades(times)), "sounds": sounds, **codecs, **options})
    return file


def refused(file, *, sound=True):
    with pytest.raises(MediaError) as caught:
        read_audio(file, RATE) if sound else read_frames(file, 2, FIT)
    return caught.value.reason


@pytest.mark.parametrize("container", CONTAINERS)
def test_every_container_opens_and_shows_what_it_sounds(container):
    file = made(container)
    clip = read_clip(file, 4, FIT, RATE, 10.0)
    np.testing.assert_allclose(seen(clip.frames), [0.25, 0.75, 1.25, 1.75], atol=0.1)
    np.testing.assert_allclose(heard(clip.sound), [0.5, 1.5], atol=0.06)
    assert clip.seconds == pytest.approx(2.0, abs=0.11)


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("share", [0.75, 0.5, 0.3])
def test_half_a_file_is_truncated_in_every_container(container, share):
    whole = made(container).getvalue()
    if container == "mpegts":  # it declares nothing; what is there is right
        np.testing.assert_allclose(seen(read_frames(io.BytesIO(whole[: len(whole) // 2]), 1, FIT)), 0.5, atol=0.15)
        return
    for sound in (True, False):
        assert refused(io.BytesIO(whole[: int(share * len(whole))]), sound=sound) == "truncated"


def test_an_index_in_front_does_not_hide_missing_bytes(tmp_path):
    times, path = np.arange(60) / 30, tmp_path / "clip.mp4"
    write_mp4(path, np.stack(shades(times)), beeps(2.0, 0.5, 1.5), fast_start=True)
    whole = path.read_bytes()
    half = len(whole) // 2
    for missing in (b"", bytes(len(whole) - half)):  # cut off, or never downloaded
        assert refused(io.BytesIO(whole[:half] + missing)) in ("truncated", "unreadable")


def test_a_long_file_under_a_short_name_shows_the_stretch_that_is_heard():
    clip = read_clip(made(seconds=4.0), 4, FIT, RATE, 2.0)
    np.testing.assert_allclose(seen(clip.frames), [0.25, 0.75, 1.25, 1.75], atol=0.05)
    assert (len(clip.sound), clip.seconds) == (2 * RATE, 2.0)
    np.testing.assert_array_equal(clip.frames, read_frames(made(seconds=4.0), 4, FIT, 2.0))
    np.testing.assert_array_equal(clip.sound, read_audio(made(seconds=4.0), RATE, 2.0))


def test_frames_are_chosen_by_time_where_their_rate_varies():
    times = [*np.arange(0, 1, 1 / 30), 1.0, 1.5, 2.0, 3.0]  # most frames are in the first second
    for container in ("mp4", "matroska"):
        frames = read_frames(made(container, pictures=(times, shades(times)), sounds=[]), 3, FIT, 3.0)
        np.testing.assert_allclose(seen(frames), [0.5, 1.5, 2.0], atol=0.05)


@pytest.mark.parametrize("container", ["mp4", "matroska", "webm"])
def test_late_sound_and_late_pictures_stay_late(container):
    late = made(container, sounds=[[(0.8, beeps(1.2, 0.0, 0.5))]])
    np.testing.assert_allclose(heard(read_audio(late, RATE)), [0.8, 1.3], atol=0.06)
    times = np.arange(30, 60) / 30
    late = read_clip(made(container, pictures=(times, shades(times))), 4, FIT, RATE, 10.0)
    np.testing.assert_allclose(seen(late.frames), [1.0, 1.0, 1.25, 1.75], atol=0.06)
    np.testing.assert_allclose(heard(late.sound), [0.5, 1.5], atol=0.06)


@pytest.mark.parametrize("container", ["mp4", "matroska", "webm", "flv"])
def test_gaps_in_the_sound_are_silence(container):
    pieces = [(0.0, beeps(0.4, 0.0, 0.4)), (1.4, beeps(0.4, 0.0, 0.4))]
    sound = read_audio(made(container, sounds=[pieces]), RATE)
    np.testing.assert_allclose(heard(sound), [0.0, 1.8], atol=0.08)
    assert np.abs(sound[int(0.55 * RATE) : int(1.3 * RATE)]).max() < 0.01


def test_time_stamps_that_begin_again_go_on():
    part = made("mpegts").getvalue()
    clip = read_clip(io.BytesIO(part + part), 4, FIT, RATE, 10.0)
    np.testing.assert_allclose(seen(clip.frames), [0.5, 1.5, 0.5, 1.5], atol=0.1)
    assert np.abs(clip.sound[int(0.6 * RATE) : int(1.4 * RATE)]).max() > 0.3
    assert np.abs(clip.sound[int(1.7 * RATE) : int(2.3 * RATE)]).max() < 0.1
    np.testing.assert_allclose(heard(clip.sound), [0.5, 3.5], atol=0.15)


def test_a_new_sample_rate_keeps_pitch_and_time():
    """A FLV whose MP3 sound changes from 44.1 to 22.05 kHz."""
    first = made("flv", sounds=[[(0.0, beeps(2.0, 0.0, 2.0))]]).getvalue()
    second = made("flv", sounds=[[(0.0, beeps(2.0, 0.0, 2.0))]], sound_rate=22_050).getvalue()
    with av.open(io.BytesIO(first + second[13:])) as container:
        assert {frame.sample_rate for frame in container.decode(audio=0)} == {44_100, 22_050}
    sound = read_audio(io.BytesIO(first + second[13:]), RATE)
    assert len(sound) == pytest.approx(4 * RATE, rel=0.03)
    for part in (sound[RATE // 2 : RATE], sound[3 * RATE : 7 * RATE // 2]):
        assert np.abs(np.fft.rfft(part)).argmax() * 2 == 440


def test_pictures_are_turned_upright_and_have_square_pixels(tmp_path):
    stored = np.zeros((64, 64, 3), np.uint8)
    stored[:32, :32], stored[:32, 32:], stored[32:, :32] = 80, 160, 240

    def corners(**options):
        file = made(pictures=([0.0, 0.1], [stored, stored]), sounds=[], **options)
        picture = read_frames(file, 1, lambda picture: picture)[0]
        high, wide = picture.shape[0] // 4, picture.shape[1] // 4
        return picture.shape[:2], [round(int(picture[y, x, 0]) / 80) for y in (high, -high) for x in (wide, -wide)]

    assert corners() == ((64, 64), [1, 2, 3, 0])
    assert corners(matrix=(0, 1, -1, 0)) == ((64, 64), [3, 1, 0, 2])  # clockwise
    assert corners(matrix=(-1, 0, 0, -1)) == ((64, 64), [0, 3, 2, 1])
    assert corners(matrix=(0, -1, 1, 0)) == ((64, 64), [2, 0, 1, 3])
    assert corners(matrix=(-1, 0, 0, 1)) == ((64, 64), [2, 1, 0, 3])  # a mirror
    assert corners(aspect=(2, 1)) == ((64, 128), [1, 2, 3, 0])
    assert corners(aspect=(1, 2)) == ((128, 64), [1, 2, 3, 0])
    assert corners(aspect=(2, 1), matrix=(0, 1, -1, 0)) == ((128, 64), [3, 1, 0, 2])
    assert corners(aspect=(1000, 1)) == ((64, 64), [1, 2, 3, 0])  # nobody means that


def test_the_default_sound_is_taken_or_else_the_first_that_is_not_silent():
    low, high, silent = ([(0.0, beeps(2.0, 0.0, 2.0, pitch))] for pitch in (440.0, 2000.0, 0.0))

    def pitch(sounds, default):
        sound = read_audio(made("matroska", sounds=sounds, default=default), RATE)
        return np.abs(np.fft.rfft(sound[:RATE])).argmax()

    assert pitch([low, high], 0) == 440
    assert pitch([low, high], 1) == 2000
    assert pitch([silent, low, high], 0) == 440
    assert pitch([silent, low, high], 2) == 2000
    assert refused(made("matroska", sounds=[silent, silent])) == "silent"


def test_a_cover_picture_is_no_video():
    def clip(pictures):
        return made(pictures=pictures, cover=jpeg(np.full((480, 640, 3), 250, np.uint8)))

    times = np.arange(60) / 30
    with av.open(clip((times, shades(times)))) as container:
        assert sorted(stream.codec_context.width for stream in container.streams.video) == [64, 640]
    np.testing.assert_allclose(seen(read_frames(clip((times, shades(times))), 1, FIT)), 1.0, atol=0.05)
    alone = clip(None)
    assert refused(alone, sound=False) == "no picture"
    assert len(read_audio(alone, RATE))


class Failing(io.BytesIO):
    """A file that fails after some reads."""

    def __init__(self, content, error, reads):
        super().__init__(content)
        self.error, self.left = error, itertools.count(reads, -1)

    def read(self, size=-1):
        if next(self.left) <= 0:
            raise self.error
        return super().read(size)


@pytest.mark.parametrize("error", [OSError(22, "Invalid argument"), ValueError("seek"), IndexError(), MemoryError()])
def test_whatever_decoding_raises_is_the_clips_own_fault(error):
    content = made(seconds=4.0).getvalue()
    for reads in range(4):
        assert refused(Failing(content, error, reads)) == "unreadable"
        assert refused(Failing(content, error, reads), sound=False) == "unreadable"


def test_absurd_sizes_are_refused(monkeypatch):
    file = made()
    with monkeypatch.context() as patch:
        patch.setattr(streams, "MOST_PIXELS", 64 * 48 - 1)
        assert refused(file) == "too large"
    with monkeypatch.context() as patch:
        patch.setattr(streams, "MOST_BYTES", 1000)
        assert refused(file) == "too large"
    monkeypatch.setattr(media, "MOST_PIXELS", 64 * 64)
    assert refused(made(aspect=(3, 1)), sound=False) == "too large"


def test_a_playlist_opens_no_other_file(tmp_path):
    (tmp_path / "secret.ts").write_bytes(made("mpegts").getvalue())
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{tmp_path}/secret.ts\n#EXT-X-ENDLIST\n"
    assert len(read_audio(io.BytesIO((tmp_path / "secret.ts").read_bytes()), RATE))
    assert refused(io.BytesIO(playlist.encode())) in ("unreadable", "no sound")


def test_a_gap_of_hours_takes_no_memory():
    times = [0.0, 0.1, 40_000.0]
    file = made(
        "matroska",
        pictures=(times, shades([0, 0.1, 5])),
        sounds=[[(0.0, beeps(1.0, 0, 1.0)), (40_000.0, beeps(0.5, 0, 0.5))]],
    )
    clip = read_clip(file, 2, FIT, RATE, 2.0)
    assert (round(len(clip.sound) / RATE, 1), clip.seconds) == (1.0, 2.0)
    np.testing.assert_allclose(seen(clip.frames), [0.1, 0.1], atol=0.05)
    assert len(read_audio(file, RATE)) <= streams.MOST_SECONDS * RATE
