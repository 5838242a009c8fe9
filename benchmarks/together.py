"""What training small networks together saves, beside training them one by one.

    python benchmarks/together.py --report benchmarks/reports/together-YYYY-MM-DD.md

The floor: hand-written steps of R stacked networks. Training: R students distilled from cached logits, by `distill` one
by one and at once, which must end alike in double precision. Studies: whole studies with `ensemble="off"` and `"on"`,
each in a process of its own, whose rows are compared. With `--version src-folder-of-another-version`: the same study by
that version and by this one. Takes about half an hour on two busy cores.
"""

import argparse
import functools
import gc
import importlib
import itertools
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

import mfh
from common import Report, fresh, seconds
from mfh.studies.summary import summarise
from mfh.training.fitting import distill
from mfh.training.together import together

TASKS = ("htad", "numerals", "synthetic", "digits")


def synthetic(seed=0, num_train=300, noise=0.3, distractors=4):
    """Small networks on features that decide by their absolute values: two in both modalities, two in the teacher's."""
    drawn = torch.Generator().manual_seed(seed)

    def split(count):
        features = torch.randn(count, 4, generator=drawn)
        target = ((features.abs() - (2 / torch.pi) ** 0.5).sum(1) > 0).long()
        inputs = [
            torch.cat([seen + noise * torch.randn(seen.shape, generator=drawn), others], 1)
            for seen in (features, features[:, :2])
            for others in (torch.randn(count, distractors, generator=drawn),)
        ]
        return TensorDataset(*inputs, target)

    def network(inputs):
        return nn.Sequential(nn.Linear(inputs, 24), nn.ReLU(), nn.Linear(24, 4), nn.ReLU(), nn.Linear(4, 2))

    return mfh.Task(
        name="synthetic",
        teacher=functools.partial(network, 4 + distractors),
        student=functools.partial(network, 2 + distractors),
        layer="1",
        train=split(num_train),
        val=split(300),
        test=split(1000),
        recipe=mfh.Recipe(epochs=20, batch_size=32, optimizer=functools.partial(torch.optim.Adam, lr=0.02)),
    )


def made(name):
    """The function that makes a task of a seed."""
    return synthetic if name == "synthetic" else importlib.import_module(f"mfh.tasks.{name}").task


def floor(num_networks, widths, batch_size=32, steps=100):
    """Processor milliseconds of a lean step of stacked networks, for each network."""
    weights = []
    for before, after in itertools.pairwise(widths):
        weights += [torch.randn(num_networks, before, after) / before**0.5, torch.zeros(num_networks, 1, after)]
    for weight in weights:
        weight.requires_grad_()
    optimizer = torch.optim.AdamW(weights, lr=3e-3, weight_decay=0.1, fused=True)
    rows = num_networks * 900
    inputs, target = torch.randn(rows, widths[0]), torch.randint(0, widths[-1], (rows,))
    taught = torch.randn(rows, widths[-1]).log_softmax(1)

    def step():
        chosen = torch.randint(0, rows, (num_networks * batch_size,))
        hidden = inputs[chosen].view(num_networks, batch_size, -1)
        for layer in range(0, len(weights), 2):
            hidden = torch.baddbmm(weights[layer + 1], hidden, weights[layer])
            hidden = hidden.relu() if layer + 2 < len(weights) else hidden
        logs = hidden.flatten(0, 1).log_softmax(1)
        loss = F.nll_loss(logs, target[chosen], reduction="sum") + F.kl_div(
            logs, taught[chosen], log_target=True, reduction="sum"
        )
        optimizer.zero_grad()
        (loss / batch_size).backward()
        optimizer.step()

    for _ in range(5):
        step()
    _, cpu, _ = seconds(lambda: [step() for _ in range(steps)])
    return 1000 * cpu / steps / num_networks


def in_double(dataset):
    """The same pairs in double precision; None stays None."""
    if dataset is None:
        return None
    return TensorDataset(*(part.double() if part.is_floating_point() else part for part in dataset.tensors))


def job(task, seed, recipe, precise=False):
    """A function that distils one student, with its own weights, order and teacher outputs."""
    parts = (task.train, task.val, task.unlabelled)
    train, val, unlabelled = map(in_double, parts) if precise else parts
    count = len(train) + (0 if unlabelled is None else len(unlabelled))
    num_classes = int(max(task.train.tensors[2].max(), task.val.tensors[2].max())) + 1
    logits = 2 * torch.randn(count, num_classes, generator=torch.Generator().manual_seed(seed))
    logits = logits.double() if precise else logits
    options = {"teacher_logits": logits, "recipe": recipe, "seed": seed, "unlabelled": unlabelled, "device": "cpu"}

    def run():
        student = fresh(task.student, seed)
        return distill(None, student.double() if precise else student, train, val, **options)

    return run


class Peak:
    """The largest memory of this process while the block runs, above what it had before, in MB."""

    def __enter__(self):
        gc.collect()
        self.before, self.peak, self.ended = self._now(), 0.0, False
        self.watcher = threading.Thread(target=self._watch, daemon=True)
        self.watcher.start()
        return self

    def __exit__(self, *_):
        self.ended = True
        self.watcher.join()

    def _watch(self):
        while not self.ended:
            self.peak = max(self.peak, self._now() - self.before)
            time.sleep(0.01)

    @staticmethod
    def _now():
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize() / 2**20


def trainings(say, name, sizes, epochs):
    """One row for each number of networks."""
    tasks = [made(name)(seed=seed) for seed in range(5)]
    recipe = replace(tasks[0].recipe, epochs=epochs)
    parameters = sum(parameter.numel() for parameter in tasks[0].student().parameters())
    short = replace(recipe, epochs=2)
    jobs = [job(tasks[seed], seed, short, precise=True) for seed in range(3)]
    for one, other in zip(together(jobs, strict=True), [each() for each in jobs], strict=True):
        ends = [torch.cat([value.flatten() for value in fit.student.state_dict().values()]) for fit in (one, other)]
        torch.testing.assert_close(*ends, rtol=1e-7, atol=1e-9)
    job(tasks[0], 0, short)()  # warms up
    times = []
    for size in sizes:
        many = [job(tasks[seed % 5], seed, recipe) for seed in range(size)]
        # The two in turn, so that both meet the same other work.
        first, later = many[: min(2, size)], many[-min(2, size) :]
        alone = [seconds(each)[1] for each in first]
        with Peak() as memory:
            _, cpu, _ = seconds(together, many, strict=True)
        alone += [seconds(each)[1] for each in later]
        times.append((sum(alone) / len(alone), cpu / size, memory.peak))
    for size, (alone, each, memory) in zip(sizes, times, strict=True):
        say(
            f"| `{name}` | {parameters:,} | {size} | {alone:.3f} | {each:.3f} | **{alone / each:.1f}** | {memory:.0f} |"
        )


def outcome(frame):
    """What a study says: for each arm the mean gain over no-kd, and whether its interval excludes zero."""
    found = {}
    for variant in summarise(frame).variants:
        gain = variant.gain
        if gain is not None:
            found[variant.label] = gain.mean_difference, gain.low > 0 or gain.high < 0
    return found


def measured_study(name, num_seeds, ensemble):
    """Processor seconds of this process from its start to the end of a study, MB at its peak, and the rows."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        result = mfh.study(
            synthetic if name == "synthetic" else name,
            num_seeds=num_seeds,
            processes=1,
            device="cpu",
            ensemble=ensemble,
            out=f"{folder}/run",
        )
    return time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000, result.frame


def alone(function, *arguments):
    """What a function returns in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def studies(say, name, num_seeds):
    """A whole study, one by one and together."""
    found = {ensemble: alone(measured_study, name, num_seeds, ensemble) for ensemble in ("on", "off")}
    tables = [found[ensemble][2] for ensemble in ("on", "off")]
    accuracies = [table[(table["metric"] == "accuracy") & (table["split"] == "test")] for table in tables]
    cells = len(accuracies[0])
    apart = (accuracies[0]["value"] - accuracies[1]["value"]).abs()
    ours, theirs = map(outcome, tables)
    means = max(abs(ours[arm][0] - theirs[arm][0]) for arm in ours)
    other = [
        arm for arm in ours if ours[arm][1] != theirs[arm][1] or (ours[arm][1] and ours[arm][0] * theirs[arm][0] < 0)
    ]
    best = [max(each, key=lambda arm: each[arm][0]) for each in (ours, theirs)]
    one, all_ = (found[ensemble][0] / cells for ensemble in ("off", "on"))
    say(
        f"| `{name}` | {num_seeds} | {cells} | {one:.2f} | {all_:.2f} | **{one / all_:.1f}** "
        f"| {found['off'][1]:.0f}, {found['on'][1]:.0f} | {100 * (apart == 0).mean():.0f} % "
        f"| {100 * apart.max():.1f} | {means:.2f} | {', '.join(other) or 'none'} | {best[0]}, {best[1]} |"
    )


#: A study that every version can make: all pairs of `htad` with labels, and plain networks. It prints what it cost.
SAME_STUDY = """
import functools, json, sys, tempfile, time
import torch
from torch import nn
from torch.utils.data import TensorDataset
import mfh
torch.set_num_threads(1)
held = torch.load(sys.argv[1])
def net(count):
    return nn.Sequential(nn.Linear(count, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 7))
def task(seed=0):
    parts = {split: TensorDataset(*held[split]) for split in ("train", "val", "test")}
    optimizer = functools.partial(torch.optim.AdamW, lr=0.003, weight_decay=0.1)
    return mfh.Task(
        name="same", teacher=lambda: net(36), student=lambda: net(16), layer="3", student_layer="3", **parts,
        recipe=mfh.Recipe(epochs=60, batch_size=32, optimizer=optimizer),
    )
with tempfile.TemporaryDirectory() as folder:
    options = json.loads(sys.argv[3])
    result = mfh.study(
        task, num_seeds=int(sys.argv[2]), processes=1, device="cpu", arms=json.loads(sys.argv[4]),
        out=folder + "/run", **options,
    )
table = result.frame
table = table[(table["metric"] == "accuracy") & (table["split"] == "test")]
print(json.dumps([time.process_time(), len(table)]))
"""
SAME_ARMS = ("no-kd", "regular", "aligned", "aligned-student", "random", "specific", "general", "soft")


def versions(say, sources, num_seeds):
    """The same study by other versions, and by this one, together and one by one."""
    from mfh.tasks import htad

    task = htad.task(seed=0, labels="all")
    here = str(Path(mfh.__file__).parents[1])
    with tempfile.TemporaryDirectory() as folder:
        torch.save({split: getattr(task, split).tensors for split in ("train", "val", "test")}, f"{folder}/held.pt")
        for source, seeds, options in (
            *((source, 1, {}) for source in sources),
            (here, 1, {"ensemble": "off"}),
            (here, num_seeds, {"ensemble": "on"}),
        ):
            done = subprocess.run(
                [
                    sys.executable,
                    "-c",
                    SAME_STUDY,
                    f"{folder}/held.pt",
                    str(seeds),
                    json.dumps(options),
                    json.dumps(SAME_ARMS),
                ],
                env={**os.environ, "PYTHONPATH": source},
                capture_output=True,
                text=True,
                check=True,
            )
            cpu, cells = json.loads(done.stdout.strip().split("\n")[-1])
            say(
                f"| {'this' if options else 'other'} | {options.get('ensemble', '')} | {seeds} | {cells} | {cpu / cells:.2f} |"
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--report", type=Path, help="markdown file to write")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 10, 40, 120], help="numbers of networks")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--tasks", nargs="*", default=TASKS)
    parser.add_argument(
        "--studies", nargs="*", default=["htad", "numerals", "synthetic"], help="tasks to make whole studies of"
    )
    parser.add_argument("--seeds", type=int, default=5, help="seeds of each study")
    parser.add_argument("--version", type=Path, action="append", default=[], help="src folder of another version")
    options = parser.parse_args()
    torch.set_num_threads(1)
    say = Report("Small networks together and one by one", "One thread; times are processor seconds of this process.")
    say("## The floor")
    say()
    say("A hand-written step of R stacked networks (three layers, batches of 32, AdamW), for each network.")
    say()
    say("| widths | R | ms per step and network |")
    say("| --- | ---: | ---: |")
    for widths in ((36, 64, 64, 7), (240, 64, 64, 10)):
        for size in options.sizes:
            say(f"| {' '.join(map(str, widths))} | {size} | {floor(size, widths):.3f} |")
    say()
    say("## Trainings")
    say()
    say(
        f"R students distilled from cached logits, {options.epochs} epochs, with validation and the kept epoch. In double"
    )
    say("precision the two end with the same weights (checked in each case to 1e-7).")
    say()
    say("| task | parameters | R | one by one, s each | together, s each | ratio | memory, MB more |")
    say("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name in options.tasks:
        sizes = options.sizes if name != "digits" else [size for size in options.sizes if size <= 10]
        trainings(say, name, sizes, options.epochs if name != "digits" else 3)
    if options.version:
        say()
        say("## Another version")
        say()
        say("All 886 training pairs of `htad` with labels, 60 epochs, the first version's eight arms, start included.")
        say()
        say("| version | ensemble | seeds | cells | processor seconds per cell |")
        say("| --- | --- | ---: | ---: | ---: |")
        versions(say, map(str, options.version), options.seeds)
    if options.studies:
        say()
        say("## Studies")
        say()
        say(
            "All default arms, everything counted, also the start of the process: teachers, alignment, saliencies, the "
            "probe, the linear model, measuring."
        )
        say(
            "In single precision the trained networks drift apart, so single rows differ. An outcome of an arm is whether"
        )
        say("the interval of its gain over no-kd excludes zero, and on which side.")
        say()
        say(
            "| task | seeds | cells | one by one, s per cell | together, s per cell | ratio | peak, MB, one by one and together | test rows equal | largest "
            "difference of a row, points | of a mean gain, points | arms with another outcome | best arm, together and "
            "one by one |"
        )
        say("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- | --- |")
        for name in options.studies:
            studies(say, name, options.seeds)
    say.write(options.report)


if __name__ == "__main__":
    main()
