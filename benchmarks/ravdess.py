"""An epoch of RAVDESS distillation as published (JPEG decoded and teacher run at every step) against ours.

    python benchmarks/ravdess.py --report benchmarks/reports/ravdess-YYYY-MM-DD.md

Generated features of the real shapes, in the authors' layout. Published: every step opens 64 arrays and 64 JPEGs,
normalises them on the CPU and runs the teacher. Ours: `mfh prepare ravdess`, then `mfh.distill`, which computes the
teacher's outputs once. Both train the same student from the same weights on the same batches; their losses are
compared. What is not the student's own step is shown apart, since that step is most of the time on a CPU.
Besides, what preparing a clip of the official size costs.
"""

import argparse
import csv
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from common import Report, fresh
from mfh.data.epochs import EpochShuffle, PairLoader
from mfh.problems.losses import KDLoss
from mfh.tasks.ravdess import task
from mfh.tasks.ravdess.clips import find_clips
from mfh.tasks.ravdess.networks import IMAGENET_MEAN, IMAGENET_STD, PUBLISHED_MFCC_MEAN, PUBLISHED_MFCC_STD
from mfh.tasks.ravdess.prepare import Features, Work, prepare
from mfh.training.fitting import distill, pretrain
from mfh.training.recipe import Recipe

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from media import write_mp4
from ravdess_clips import sound_of

BATCH = 64
LOSS = KDLoss(label_weight=0, reduction="mean")


def write_features(folder, clips):
    rng = np.random.default_rng(0)
    for part in ("aud_features", "vid_features", "data_file"):
        (folder / part).mkdir(parents=True)
    for table, count in (("spa_dl", clips), ("spa_val", 8), ("spa_test", 8)):
        rows = []
        for number in range(count):
            name = f"{table}-{number:04}"
            np.save(folder / "aud_features" / f"{name}.npy", rng.normal(-10, 85, (40, 256)).astype(np.float32))
            coarse = Image.fromarray(rng.integers(0, 256, (32, 64, 3), dtype=np.uint8))
            coarse.resize((512, 256), Image.Resampling.BICUBIC).save(
                folder / "vid_features" / f"{name}.jpg", quality=95
            )
            rows.append([f"{name}.npy", f"{name}.jpg", number % 8])
        with (folder / "data_file" / f"{table}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)


class Published(Dataset):
    """One clip read, decoded and normalised at every access."""

    def __init__(self, folder):
        self.folder = folder
        with (folder / "data_file" / "spa_dl.csv").open(newline="") as file:
            self.rows = sorted(csv.reader(file))
        self.mean, self.std = (torch.tensor(v).reshape(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        audio, image, label = self.rows[index]
        sound = torch.from_numpy(np.load(self.folder / "aud_features" / audio))[None]
        with Image.open(self.folder / "vid_features" / image) as picture:
            frame = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).float() / 255
        return (sound - PUBLISHED_MFCC_MEAN) / PUBLISHED_MFCC_STD, (frame - self.mean) / self.std, int(label)


def published_epoch(teacher, student, dataset, optimizer):
    """The mean loss. Networks get normalised inputs: their own normalisation is taken out."""
    total = 0.0
    loader = DataLoader(dataset, batch_size=BATCH, sampler=EpochShuffle(len(dataset), 0))
    for sound, frame, target in loader:
        with torch.no_grad():
            wanted = teacher[1:](sound)
        loss = LOSS(student[1:](frame), wanted, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += float(loss.detach()) * len(target)
    return total / len(dataset)


def seconds(function, *arguments, **options):
    """Processor seconds, which other work on the machine disturbs least, and what the function returned."""
    start = time.process_time()
    value = function(*arguments, **options)
    return time.process_time() - start, value


def prepare_clips(folder, count):
    """Processor seconds per clip of 3.7 s at 1280 x 720 and 30 frames per second, H.264 and AAC, and its bytes."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (18, 32, 3), dtype=np.uint8))
    picture = np.asarray(coarse.resize((1280, 720), Image.Resampling.BICUBIC)).astype(np.int16)
    noise = rng.integers(-3, 4, (8, 720, 1280, 1), dtype=np.int16)
    for number in range(count):
        frames = [np.clip(np.roll(picture, 2 * i, axis=1) + noise[i % 8], 0, 255).astype(np.uint8) for i in range(111)]
        path = folder / f"01-01-0{number + 1}-01-01-01-01.mp4"
        write_mp4(path, np.stack(frames), np.stack([sound_of(number, 1, 3.7, rng)] * 2), frame_rate=30)
    clips, work = find_clips(folder).clips, Work(Features())
    work(clips[0], folder / "piece.npz")  # compiles
    size = sum(path.stat().st_size for path in folder.glob("*.mp4")) / count
    return seconds(lambda: [work(clip, folder / "piece.npz") for clip in clips])[0] / count, size


def read_all(dataset):
    for _ in DataLoader(dataset, batch_size=BATCH):
        pass


def read_prepared(dataset):
    for _ in PairLoader(dataset, batch_size=BATCH):
        pass


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--report", type=Path, help="markdown file to write")
    parser.add_argument("--clips", type=int, default=128)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)  # so that processor time is time
    say = Report("RAVDESS: an epoch of distillation", f"Processor seconds, least of {options.runs} runs.")
    with tempfile.TemporaryDirectory() as folder:
        features, data = Path(folder) / "features", Path(folder) / "data"
        write_features(features, options.clips)
        prepared, _ = seconds(prepare, features, data, layout="features")
        ours, theirs = task(data, preset="paper"), Published(features)
        recipe = Recipe(epochs=1, batch_size=BATCH, optimizer=ours.recipe.optimizer)
        teacher = fresh(ours.teacher, 0).eval()
        common = {"recipe": recipe, "device": "cpu"}
        small = torch.utils.data.Subset(ours.train, range(1))
        pretrain(fresh(ours.student, 1), small, small, role="student", **common)  # warm up
        once, logits = seconds(lambda: torch.cat([teacher(batch.teacher_input) for batch in PairLoader(ours.train)]))
        logits = logits.detach()
        times = {name: [] for name in ("published", "ours", "alone", "published reading", "our reading", "teacher")}
        for _ in range(options.runs):
            student = fresh(ours.student, 1)
            optimizer = recipe.optimizer(student.parameters())
            wall, loss = seconds(published_epoch, teacher, student, theirs, optimizer)
            times["published"].append(wall)
            given = {"teacher_logits": logits, "loss": LOSS, **common}
            wall, fit = seconds(distill, None, fresh(ours.student, 1), ours.train, small, **given)
            times["ours"].append(wall)
            times["published reading"].append(seconds(read_all, theirs)[0])
            times["our reading"].append(seconds(read_prepared, ours.train)[0])
            times["teacher"].append(
                seconds(lambda: [teacher(batch.teacher_input) for batch in PairLoader(ours.train)])[0]
            )
        (Path(folder) / "clips").mkdir()
        per_clip, size = prepare_clips(Path(folder) / "clips", 4)
    best = {name: min(values) for name, values in times.items() if values}
    say(f"{options.clips} clips, batches of {BATCH}, frames 256 x 512, MFCC 40 x 256.")
    say()
    say("| what | published, s | ours, s | ratio |")
    say("| --- | ---: | ---: | ---: |")
    say(f"| an epoch | {best['published']:.2f} | {best['ours']:.2f} | {best['published'] / best['ours']:.2f} |")
    reading = best["published reading"] / best["our reading"]
    say(f"| reading and decoding | {best['published reading']:.3f} | {best['our reading']:.3f} | {reading:.1f} |")
    say(f"| the teacher, per epoch | {best['teacher']:.3f} | 0 (once: {once:.3f}) | |")
    say()
    say(f"Preparing raw clips: {per_clip:.2f} processor seconds per clip (1280 x 720, 30 per second, 3.7 s,")
    say(f"{size / 1e6:.1f} MB), so about {2452 * per_clip / 2 / 60:.0f} minutes for 2452 on two idle cores.")
    say()
    say(f"Preparing these features took {prepared:.1f} s, once. Mean training loss of the epoch: published")
    say(f"{loss:.6f}, ours {fit.history[0]['train_loss']:.6f}.")
    say.write(options.report)


if __name__ == "__main__":
    main()
