"""VGGSound: preparation, loader alone, model step alone, both together; seconds per clip, clips per second and core.

    python benchmarks/vggsound.py --report benchmarks/reports/vggsound-YYYY-MM-DD.md

Generated clips of the real kind: 10 s, 340 x 256 pixels, 25 frames per second, H.264 and AAC. On a GPU, also the step in
bf16 against what the card's measured matrix rate allows.
"""

import argparse
import csv
import math
import os
import tempfile
import time
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image
from torch import nn

import mfh
from common import Report, Step, best, flops_per_clip, matrix_rate
from mfh.data.epochs import indexed_loader
from mfh.data.pairs import only_role
from mfh.tasks.media import MediaFile
from mfh.tasks.vggsound import task
from mfh.tasks.vggsound.annotations import is_validation
from mfh.tasks.vggsound.prepare import Settings, decode, prepare
from mfh.tasks.vggsound.writing import jpeg

SECONDS, RATE, FRAMES_PER_SECOND = 10, 44_100, 25


def write_clip(path, rng):
    """A drifting picture with detail at all scales, and noise of falling spectrum."""
    size = (340 + 2 * SECONDS * FRAMES_PER_SECOND // 5, 256)
    scene = np.zeros((256, size[0], 3))
    for scale in (4, 16, 64, 256):
        coarse = rng.integers(0, 256, (max(2, scale * 256 // 340), scale, 3), dtype=np.uint8)
        scene += np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC), dtype=float) / scale**0.5
    scene = ((scene - scene.min()) / (scene.max() - scene.min()) * 255).astype(np.uint8)
    noise = rng.standard_normal(SECONDS * RATE)
    sound = np.fft.irfft(np.fft.rfft(noise) / np.sqrt(1 + np.arange(len(noise) // 2 + 1)), len(noise))
    sound = (0.5 * sound / np.abs(sound).max()).astype(np.float32)
    with av.open(str(path), "w", format="mp4") as container:
        video = container.add_stream("libx264", rate=FRAMES_PER_SECOND, options={"preset": "veryfast"})
        video.width, video.height, video.pix_fmt = 340, 256, "yuv420p"
        audio = container.add_stream("aac", rate=RATE, layout="mono")
        for number in range(SECONDS * FRAMES_PER_SECOND):
            left = 2 * number // 5
            frame = np.ascontiguousarray(scene[:, left : left + 340])
            container.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(video.encode())
        block = av.AudioFrame.from_ndarray(sound[None], "fltp", "mono")
        block.sample_rate = RATE
        container.mux(audio.encode(block))
        container.mux(audio.encode())


def write_clips(folder, count):
    """Clips and annotations: two classes, a few clips for validation and test."""
    rng, rows = np.random.default_rng(0), []
    (folder / "clips").mkdir()
    for number in range(count):
        split = ("test", "test", "val", "val")[number] if number < 4 else "train"
        video = ""
        while not video or (split != "test" and is_validation(video) != (split == "val")):
            video = f"{rng.integers(10**11):011d}"
        rows.append((video, 0, "ab"[number % 2], "test" if split == "test" else "train"))
        write_clip(folder / "clips" / f"{video}_000000.mp4", rng)
    with (folder / "vggsound.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def read_all(dataset, batch_size, workers=0):
    for _ in indexed_loader(dataset, batch_size, num_workers=workers):
        pass


def exact_l1(count):
    """Seconds of the exact L1 score of 512 channels and 100 classes, on activations that cost nothing."""
    generator = torch.Generator().manual_seed(0)
    activations = torch.randn(count, 512, generator=generator)
    pairs = mfh.PairLoader(torch.utils.data.TensorDataset(activations, activations, torch.zeros(count)))
    teacher, student = nn.Sequential(nn.Identity(), nn.Linear(512, 100)), nn.Linear(512, 100)
    start = time.process_time()
    saliency = mfh.channel_saliency(teacher, student, pairs, layer="0", distance="l1")
    assert saliency.permutations == "exact"
    return time.process_time() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--report", type=Path, help="markdown file to write")
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="one is disturbed least by other work on the machine")
    parser.add_argument("--batch-size", type=int, help="default: 32 on a GPU, 2 on a CPU")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    batch_size = options.batch_size or (32 if device == "cuda" else 2)
    torch.set_num_threads(options.threads)
    say = Report("VGGSound: preparation, loader, model", f"Least of {options.runs} runs each.")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_clips(folder, options.clips)
        files = sorted((folder / "clips").iterdir())
        wall, processor = best(lambda: decode(MediaFile(files[0]), Settings()), options.runs)
        prepare(folder / "clips", folder / "out", csv=folder / "vggsound.csv", processes=1, quiet=True)
        prepared = sum(path.stat().st_size for path in (folder / "out").glob("*.tar")) / len(files)
        jpegs = [jpeg(frame, 90) for frame in decode(MediaFile(files[0]), Settings())[0]]
        frames = decode(MediaFile(files[0]), Settings())[0]
        encoding = best(lambda: [jpeg(frame, 90) for frame in frames], options.runs)
        say("| preparation, per clip | wall clock | processor time | clips per second and core |")
        say("| --- | ---: | ---: | ---: |")
        say(f"| decoding sound and 32 frames | {wall:.2f} s | {processor:.2f} s | {1 / processor:.1f} |")
        say(f"| writing 32 JPEGs | {encoding[0]:.2f} s | {encoding[1]:.2f} s | {1 / encoding[1]:.1f} |")
        say(
            f"| both | {wall + encoding[0]:.2f} s | {processor + encoding[1]:.2f} s | {1 / (processor + encoding[1]):.1f} |"
        )
        say()
        say(
            f"A prepared clip has {prepared / 1e6:.2f} MB: 32 JPEGs of {sum(map(len, jpegs)) / 32e3:.1f} kB, 0.32 MB of sound, 0.03 MB of tar."
        )
        say()
        data = task(data=folder / "out").train
        kinds = {
            "sound and 32 frames": data,
            "32 frames": only_role(data, "student"),
            "8 frames": only_role(task(data=folder / "out", num_frames=8).train, "student"),
            "sound": only_role(data, "teacher"),
        }
        say("| loader alone, batches of 8 | clips per second, wall clock | clips per second and core, processor time |")
        say("| --- | ---: | ---: |")
        for kind, dataset in kinds.items():
            read_all(dataset, 8)
            wall, processor = best(lambda d=dataset: read_all(d, 8), options.runs)
            say(f"| {kind} | {len(dataset) / wall:.1f} | {len(dataset) / processor:.1f} |")
        say()
        precisions = ("fp32", "bf16") if device == "cuda" else ("fp32",)
        clock = 0 if device == "cuda" else 1
        say(
            "| training step, 32 frames of 256 x 256, 10 s | operations per clip | step alone | of the matrix rate | loader and step |"
        )
        say("| --- | ---: | ---: | ---: | ---: |")
        for role in ("teacher", "student"):
            dataset = only_role(data, role)
            if device == "cpu":
                dataset = torch.utils.data.Subset(dataset, range(2 * batch_size))
            batch, _ = next(iter(indexed_loader(dataset, batch_size)))
            inputs = batch.teacher_input if role == "teacher" else batch.student_input
            factory = getattr(task(data=folder / "out"), role)
            operations = flops_per_clip(factory(), inputs)
            for precision in precisions:
                step = Step(factory(), device, precision)
                step(inputs, batch.target)
                seconds = best(lambda s=step, i=inputs, b=batch: s(i, b.target), options.runs)[clock]
                rate = operations * len(inputs) / seconds / matrix_rate(device, precision)[clock]

                def together(step=step, role=role, dataset=dataset):
                    workers = 0 if device == "cpu" else len(os.sched_getaffinity(0))
                    for part, _ in indexed_loader(dataset, batch_size, num_workers=workers):
                        step(part.teacher_input if role == "teacher" else part.student_input, part.target)

                both = best(together, 1 if device == "cpu" else options.runs)[clock] / len(dataset)
                say(
                    f"| {role}, {precision}, batch {len(inputs)} | {operations / 1e9:.0f} G | {seconds / len(inputs):.3g} s "
                    f"per clip | {100 * rate:.0f} % | {both:.3g} s per clip |"
                )
        say()
        kind = "wall clock, on the GPU" if device == "cuda" else "processor time of one thread"
        say(f"Steps: forward, backward and AdamW, {kind}. The matrix rate is that of a large product in the same run.")
        say()
    count = 4000
    seconds = exact_l1(count)
    scaled = seconds * 60_000 * math.log(60_000) / (count * math.log(count))
    say(
        f"Exact L1 saliency, 512 channels, 100 classes, {count} clips, on activations that are there: {seconds:.1f} s; by N log N"
    )
    say(f"{scaled / 60:.0f} minutes for 60 000 clips, of processor time.")
    say.write(options.report)


if __name__ == "__main__":
    main()
