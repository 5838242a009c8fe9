"""What exact saliency costs, against one forward pass of both networks and against permuting with whole forwards.

    python benchmarks/saliency.py --report benchmarks/reports/saliency-YYYY-MM-DD.md

Three pairs of convolutional networks, all tapped where the rest of the teacher is affine: the pair published for
RAVDESS (12544-1024-128-8, the 128 channels after the second fully connected layer), a smaller pair of the same make,
and a small pair tapped at its last convolution (128 channels of 20 positions, average-pooled and classified). Batches
are in memory, so that only networks and statistics are timed. Takes a few minutes.

    python benchmarks/saliency.py --only-probe --report benchmarks/reports/probe-memory-YYYY-MM-DD.md

measures the peak memory of the probe instead, at 5,000 and 50,000 samples.
"""

import argparse
import multiprocessing
import resource
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from torch import nn

import mfh
from common import Report, seconds

FLOOR = 1.1
PERMUTATIONS = 10


def fully_connected(inputs, widths):
    layers = []
    for width in widths:
        layers += [nn.Linear(inputs, width), nn.ReLU()]
        inputs = width
    return [*layers, nn.Linear(inputs, 8)]


def ravdess(channels, kernels, filters=(32, 64, 128), pooled=(7, 14), widths=(1024, 128)):
    """Three blocks of convolution and ReLU, max pools after two of them, an adaptive one, fully connected layers."""
    layers, before = [], channels
    for i, (kernel, count) in enumerate(zip(kernels, filters, strict=True)):
        layers += [nn.Conv2d(before, count, kernel, padding=1), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if i < 2 else [nn.AdaptiveMaxPool2d(pooled), nn.Flatten()]
        before = count
    return nn.Sequential(*layers, *fully_connected(filters[-1] * pooled[0] * pooled[1], widths))


def pooled_classifier(channels):
    return nn.Sequential(
        nn.Conv2d(channels, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, 128, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(128, 128, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(128, 8),
    )


# name -> (teacher, student, teacher input, student input, layer, samples, batch size)
CASES = {
    "RAVDESS": (
        lambda: ravdess(1, (7, 5, 5)),
        lambda: ravdess(3, (3, 3, 3)),
        (1, 40, 256),
        (3, 256, 512),
        "13",
        64,
        32,
    ),
    "RAVDESS, a quarter": (
        lambda: ravdess(1, (7, 5, 5), (8, 16, 32), (4, 4), (256, 128)),
        lambda: ravdess(3, (3, 3, 3), (8, 16, 32), (4, 4), (256, 128)),
        (1, 40, 64),
        (3, 64, 64),
        "13",
        2048,
        64,
    ),
    "last convolution": (
        lambda: pooled_classifier(1),
        lambda: pooled_classifier(3),
        (1, 32, 40),
        (3, 48, 48),
        "5",
        2048,
        64,
    ),
}


def forward(teacher, student, pairs):
    with torch.no_grad():
        for x, s, _ in pairs:
            teacher(x)
            student(s)


def whole_forwards(teacher, pairs, layer, permutations, channels):
    """Algorithm 1 as first written: the whole teacher for every channel and permutation, by a hook."""
    activations = []
    handle = teacher.get_submodule(layer).register_forward_hook(lambda _m, _a, z: activations.append(z.clone()))
    forward(teacher, nn.Identity(), pairs)
    handle.remove()
    activation = torch.cat(activations)
    for permutation in permutations:
        for c in channels:
            start = 0

            def hook(_module, _args, z, c=c, permutation=permutation):
                z = z.clone()
                z[:, c] = activation[permutation[start : start + len(z)], c]  # noqa: B023
                return z

            handle = teacher.get_submodule(layer).register_forward_hook(hook)
            with torch.no_grad():
                for x, _, _ in pairs:
                    teacher(x)
                    start += len(x)
            handle.remove()


def measure(name, runs):
    make_teacher, make_student, teacher_shape, student_shape, layer, count, size = CASES[name]
    torch.manual_seed(0)
    teacher, student = make_teacher().eval(), make_student().eval()
    pairs = [
        (torch.randn(size, *teacher_shape), torch.randn(size, *student_shape), torch.zeros(size))
        for _ in range(count // size)
    ]
    times = {"forward": [], "exact": [], "sampled": []}
    forward(teacher, student, pairs[:1])  # what is loaded and compiled once is not meant
    mfh.channel_saliency(teacher, student, pairs[:1], layer=layer)
    for _ in range(runs):  # in turn, so that all meet the same other work
        times["forward"].append(seconds(forward, teacher, student, pairs))
        saliency = mfh.channel_saliency
        times["exact"].append(seconds(saliency, teacher, student, pairs, layer=layer, permutations="exact"))
        times["sampled"].append(seconds(saliency, teacher, student, pairs, layer=layer, permutations=PERMUTATIONS))
    best = {kind: min(wall for wall, *_ in values) for kind, values in times.items()}
    best["cpu"] = min(cpu for _, cpu, _ in times["exact"]) / min(cpu for _, cpu, _ in times["forward"])
    # All 128 channels by whole forwards would take hours: a few, and the rest by proportion.
    few = [torch.randperm(count)]
    width = 128
    alone = min(seconds(whole_forwards, teacher, pairs, layer, few, range(4))[0] for _ in range(2)) / 4
    best["whole"] = alone * width * PERMUTATIONS
    return best


class Drawn:
    """Batches of random pairs that are drawn when they are read, so that they take no memory."""

    def __init__(self, samples, width, channels, batch=250):
        self.sizes, self.width, self.batch = [batch] * (samples // batch), width, batch
        self.dataset, self.mix = range(samples), torch.randn(width, channels) / width**0.5

    def __iter__(self):
        for number, size in enumerate(self.sizes):
            generator = torch.Generator().manual_seed(number)
            x = torch.randn(size, self.width, generator=generator)
            yield x @ self.mix + torch.randn(size, self.mix.shape[1], generator=generator), x, torch.zeros(size)


def probe_run(samples, width, channels, threads):
    """Peak memory in bytes over what the process had before, seconds, and the mean score."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    teacher, student = nn.Sequential(nn.Identity(), nn.Linear(channels, 2)).eval(), nn.Linear(width, 2).eval()
    probe = {"layer": "0", "score": "probe", "student_layer": "input"}
    mfh.channel_saliency(teacher, student, Drawn(500, width, channels), **probe)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, _, saliency = seconds(mfh.channel_saliency, teacher, student, Drawn(samples, width, channels), **probe)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024, wall, float(saliency.scores.mean())


def probe_memory(say, threads, channels=512):
    """Each size in a process of its own, because peaks of memory do not fall."""
    say(f"| samples | student features | peak memory beyond the start, MB | s | mean R² of {channels} channels |")
    say("| ---: | ---: | ---: | ---: | ---: |")
    for samples in (5_000, 50_000):
        for width in (128, 512):
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                peak, wall, score = pool.submit(probe_run, samples, width, channels, threads).result()
            say(f"| {samples:,} | {width} | {peak / 1e6:.0f} | {wall:.1f} | {score:.12f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--report", type=Path, help="markdown file to write")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1, help="one is disturbed least by other work on the machine")
    parser.add_argument("--only-probe", action="store_true", help="measure the memory of the probe, and nothing else")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.only_probe:
        say = Report("Saliency: memory of the probe")
        probe_memory(say, options.threads)
        say.write(options.report)
        return
    say = Report("Saliency: speed", f"Least of {options.runs} runs each.")
    say("| networks | forward pass of both, s | exact, s | ratio | of CPU time | sampled, s | whole forwards, s |")
    say("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    verdicts = []
    for name in CASES:
        best = measure(name, options.runs)
        ratio = best["exact"] / best["forward"]
        say(
            f"| {name} | {best['forward']:.3f} | {best['exact']:.3f} | **{ratio:.3f}** | {best['cpu']:.3f} "
            f"| {best['sampled']:.3f} | {best['whole']:.0f} |"
        )
        verdicts.append(
            f"- {name}: the floor of {FLOOR} {'holds' if ratio <= FLOOR else 'is MISSED'}; exact is "
            f"{best['whole'] / best['exact']:,.0f} times faster than whole forwards, sampled "
            f"{best['whole'] / best['sampled']:,.0f} times."
        )
    say()
    for verdict in verdicts:
        say(verdict)
    say()
    say("Sampled and whole forwards: 128 channels, 10 permutations; the latter of the teacher only, extrapolated from")
    say(
        "four channels and one permutation. Exact includes cutting the network, the tail's matrix, and the check on every"
    )
    say("batch that the tail is affine.")
    say.write(options.report)


if __name__ == "__main__":
    main()
