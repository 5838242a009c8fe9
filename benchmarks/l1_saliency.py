"""What the exact L1 saliency of 512 channels and 100 logits costs: compiled sums against sums in torch.

    python benchmarks/l1_saliency.py --report benchmarks/reports/l1-saliency-YYYY-MM-DD.md

Both ways score the same activations in processes of their own, because peaks of memory do not fall. The activations
cost nothing to compute. For 60,000 samples torch sums over 16 of the channels, and its times are scaled to 512: its cost
is proportional to the number of channels, which 6,000 samples check. Takes about five minutes on two cores, and half a
minute with `--only-compiled`.
"""

import argparse
import multiprocessing
import os
import resource
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from torch import nn

import mfh
from common import Report, seconds
from mfh.saliency import permutation

CHANNELS, LOGITS, PART = 512, 100, 16
KINDS = {
    "normal": lambda z: z,
    "ReLU": torch.relu,
    "log-normal, far values": lambda z: (3 * z).exp(),
}


def setting(count, channels):
    generator = torch.Generator().manual_seed(0)
    activations = torch.randn(count, channels, generator=generator)
    pairs = mfh.PairLoader(torch.utils.data.TensorDataset(activations, activations, torch.zeros(count)))
    torch.manual_seed(0)
    teacher, student = nn.Sequential(nn.Identity(), nn.Linear(channels, LOGITS)), nn.Linear(channels, LOGITS)
    with torch.no_grad():  # as if each were one of 512 channels
        for linear in (teacher[1], student):
            linear.weight *= (channels / CHANNELS) ** 0.5
    return teacher, student, pairs


def measure(compiled, threads, count, channels):
    """Wall-clock and processor seconds, megabytes beyond the start at the peak, scores."""
    torch.set_num_threads(threads)

    def score(*arguments):
        return mfh.channel_saliency(*arguments, layer="0", distance="l1", permutations="exact")

    permutation._COMPILED_FROM = 0 if compiled else float("inf")
    score(*setting(50, 16))  # loads what is loaded once
    given = setting(count, channels)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, cpu, saliency = seconds(score, *given)
    return wall, cpu, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1000, saliency.scores


def nanoseconds(compiled, kind, scale, count):
    """Processor time of the sums alone, for a sample, channel and logit. Logits differ by numbers of variance 1."""
    generator = torch.Generator().manual_seed(0)
    activations = KINDS[kind](torch.randn(count, PART, 1, generator=generator))
    residual = torch.randn(count, LOGITS, generator=generator).double()
    weights = (2 * torch.rand(LOGITS, PART, 1, generator=generator).double() - 1) / CHANNELS**0.5
    permutation._COMPILED_FROM = 0 if compiled else float("inf")
    rows = slice(0, 50)
    permutation._l1_totals(activations[rows], activations[rows], residual[rows], weights, iter)
    _, cpu, _ = seconds(permutation._l1_totals, activations, activations, residual, scale * weights, iter)
    return cpu / (count * PART * LOGITS) * 1e9


def alone(*arguments):
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, *arguments).result()


def whole(say, threads, few, many, ways):
    """The whole score, both ways or one."""
    say(f"{CHANNELS} channels, one position each, {LOGITS} logits, normal activations, weights as PyTorch draws them.")
    say()
    say(
        "| samples | way | channels run | wall clock, s | processor, s | of 512 channels: wall clock, processor, s | peak, MB |"
    )
    say("| ---: | --- | ---: | ---: | ---: | ---: | ---: |")
    scores = {}
    for count, compiled, channels in (
        (few, False, PART),
        (few, False, CHANNELS),
        (few, True, CHANNELS),
        (many, False, PART),
        (many, True, PART),
        (many, True, CHANNELS),
    ):
        if compiled not in ways:
            continue
        wall, cpu, peak, scores[count, compiled, channels] = alone(compiled, threads, count, channels)
        way, times = "compiled" if compiled else "torch", CHANNELS / channels
        say(
            f"| {count:,} | {way} | {channels} | {wall:.1f} | {cpu:.1f} | {wall * times:.0f}, {cpu * times:.0f} "
            f"| {peak:.0f} |"
        )
    say()
    if len(ways) == 2:
        differences = [
            abs(scores[count, True, channels] / scores[count, False, channels] - 1).max()
            for count, channels in ((few, CHANNELS), (many, PART))
        ]
        say(f"Largest relative difference of a score: {max(differences):.1e}.")
        say()
    say(
        "Times include one pass over the data with the check that the tail is affine. Peak: memory beyond the start, with"
    )
    say("the kept activations and differences of logits.")
    say()


def kinds(say, few, many, ways):
    """The sums alone, for activations and weights of several kinds."""
    say(f"Nanoseconds of processor time for a sample, channel and logit, the sums of {PART} channels alone:")
    say()
    columns = [column for column in ((False, few), (True, few), (True, many)) if column[0] in ways]
    heads = [f"{count:,} samples, {'compiled' if compiled else 'torch'}" for compiled, count in columns]
    say(f"| activations | weights times | {' | '.join(heads)} |")
    say("| --- | ---: |" + " ---: |" * len(heads))
    for kind in KINDS:
        for scale in (1, 10):
            cells = [nanoseconds(compiled, kind, scale, count) for compiled, count in columns]
            say(f"| {kind} | {scale} | {' | '.join(f'{cell:.0f}' for cell in cells)} |")
    say()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--report", type=Path, help="markdown file to write")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only-kinds", action="store_true", help="measure the sums of several kinds of activations")
    parser.add_argument("--only-compiled", action="store_true", help="leave out the sums in torch")
    parser.add_argument("--samples", type=int, nargs=2, default=(6_000, 60_000))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    say = Report("Exact L1 saliency: compiled against torch", "One run each, in turn.")
    ways = (True,) if options.only_compiled else (False, True)
    if not options.only_kinds:
        whole(say, options.threads, *options.samples, ways)
    kinds(say, *options.samples, ways)
    say(f"Load average at the end: {os.getloadavg()[0]:.1f}.")
    say.write(options.report)


if __name__ == "__main__":
    main()
