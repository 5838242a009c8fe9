"""What a folder of teacher outputs saves: studies with a large teacher, without it, with an empty one, and with a full one.

    python benchmarks/cache.py --report benchmarks/reports/cache-YYYY-MM-DD.md

Every study is a process of its own, with the same data, two seeds, and a teacher whose weights are given. The results of
all studies are compared.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

import mfh
from common import Report, fresh
from mfh.data.cache import OutputCache

WIDTH, CLASSES = 128, 100


def teacher(hidden):
    layers = [nn.Linear(WIDTH, hidden), nn.ReLU()]
    for _ in range(3):
        layers += [nn.Linear(hidden, hidden), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(hidden, CLASSES))


def task(hidden, rows):
    generator = torch.Generator().manual_seed(0)

    def split(count):
        inputs = torch.randn(count, 2, WIDTH, generator=generator)
        return TensorDataset(inputs[:, 0], inputs[:, 1], torch.arange(count) % CLASSES)

    return mfh.Task(
        name="large-teacher",
        teacher=lambda: teacher(hidden),
        student=lambda: nn.Sequential(nn.Linear(WIDTH, 64), nn.ReLU(), nn.Linear(64, CLASSES)),
        layer="7",
        student_layer="1",
        train=split(rows),
        val=split(200),
        test=split(200),
        recipe=mfh.Recipe(epochs=1),
        seeds="fixed",
    )


def measured(options):
    """One study, in the process of its own; prints what it took."""
    known = task(options.hidden, options.rows)
    start, processor = time.perf_counter(), time.process_time()
    run = mfh.study(
        known,
        arms=["kd", "fitnets"],
        num_seeds=2,
        out=options.out,
        processes=1,
        device="cpu",
        teacher_checkpoint=options.weights,
        cache=options.cache,
    )
    print(
        json.dumps(
            {
                "wall": time.perf_counter() - start,
                "processor": time.process_time() - processor,
                "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
                "results": (options.out / "results.csv").read_text(encoding="utf-8") if run else "",
            }
        )
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--report", type=Path, help="markdown file to write")
    parser.add_argument("--hidden", type=int, default=3072, help="units in each of the teacher's four hidden layers")
    parser.add_argument("--rows", type=int, default=8000, help="training pairs")
    for name in ("out", "weights", "cache"):
        parser.add_argument(f"--{name}", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.out:
        measured(options)
        return
    parameters = sum(parameter.numel() for parameter in teacher(options.hidden).parameters())
    say = Report("The cache of teacher outputs", "Each study is a process of its own, one after the other.")
    say(
        f"Teacher: {parameters / 1e6:.0f} million parameters; {options.rows} training pairs; arms kd and fitnets, two seeds."
    )
    say()
    say("| study | wall clock | processor time | peak memory |")
    say("| --- | ---: | ---: | ---: |")
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.save(fresh(lambda: teacher(options.hidden)).state_dict(), folder / "teacher.pt")
        for number, (words, cache) in enumerate(
            [("without a cache", []), ("empty cache", [folder / "cache"]), ("full cache", [folder / "cache"])]
        ):
            given = ["--out", folder / str(number), "--weights", folder / "teacher.pt"]
            given += [
                "--hidden",
                options.hidden,
                "--rows",
                options.rows,
                *[x for path in cache for x in ("--cache", path)],
            ]
            done = subprocess.run(
                [sys.executable, __file__, *map(str, given)], check=True, stdout=subprocess.PIPE, text=True
            )
            took = json.loads(done.stdout.splitlines()[-1])
            say(f"| {words} | {took['wall']:.1f} s | {took['processor']:.1f} s | {took['peak']:.0f} MiB |")
            results.append(took["results"])
        held = [path.stat().st_size for path in OutputCache(folder / "cache").files()]
    say()
    same = "equal, byte for byte" if len(set(results)) == 1 else "NOT equal"
    say(f"The cache holds {sum(held) / 2**20:.1f} MiB. The three `results.csv` are {same}.")
    say.write(options.report)


if __name__ == "__main__":
    main()
