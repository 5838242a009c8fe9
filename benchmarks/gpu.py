"""What a GPU makes of mfh: steps of the VGGSound networks, ensembles, saliency, distillation, NCCL, determinism.

    python benchmarks/gpu.py --report benchmarks/reports/gpu-YYYY-MM-DD.md
    python benchmarks/gpu.py --smoke

Written to take under 8 minutes on one GPU, with random data and no downloads. A section that fails says why in one line,
and the others go on. `--smoke` runs every section tiny on the CPU, where its figures mean nothing.
"""

import argparse
import resource
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

import mfh
from common import Report, Step, best, flops_per_clip, fresh, matrix_rate
from mfh.errors import in_a_line
from mfh.networks.modes import fingerprint
from mfh.tasks.vggsound.networks import audio_network, video_network
from mfh.training.acceleration import prepared
from mfh.training.fitting import distill
from mfh.training.together import together

CLASSES = 10


class Bench:
    """Sizes and the device of all sections.

    Args:
        smoke: Whether everything is tiny and on the CPU.
    """

    def __init__(self, smoke):
        self.smoke, self.device = smoke, "cpu" if smoke else "cuda"
        self.runs = 1 if smoke else 10

    def size(self, full, tiny):
        return tiny if self.smoke else full

    def seconds(self, function, runs=1):
        """Least wall-clock seconds until the device has finished, after one run that warms up."""

        def finished():
            function()
            self.wait()

        finished()
        return best(finished, runs)[0]

    def wait(self):
        if self.device == "cuda":
            torch.cuda.synchronize()

    def pairs(self, rows, width):
        """Random pairs of vectors with labels, on the CPU as a task's are."""
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(rows, 2, width, generator=generator)
        return TensorDataset(inputs[:, 0], inputs[:, 1], torch.randint(0, CLASSES, (rows,), generator=generator))


def mlp(width, hidden=64):
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, CLASSES))


def vggsound(bench, say):
    """Steps of the VGGSound networks."""
    size = bench.size(8192, 128)
    rates = {kind: matrix_rate(bench.device, kind, size)[0] for kind in ("fp32", "bf16")}
    say(f"Matrix rate: fp32 {rates['fp32'] / 1e12:.3g}, bf16 {rates['bf16'] / 1e12:.3g} tera-operations a second.")
    say()
    say("| network | precision | layout | compiled | batch | clips per second | of the matrix rate |")
    say("| --- | --- | --- | --- | ---: | ---: | ---: |")
    width = bench.size(64, 4)
    sound, video = torch.randn(bench.size(64, 2), 160_000), torch.zeros(bench.size(32, 1), 32, 256, 256, 3).byte()
    if bench.smoke:
        sound, video = sound[:, :16_000], video[:, :4, ::4, ::4]
    networks = {
        "teacher, sound": (lambda: audio_network(309, sound.shape[1], width=width), sound),
        "student, video": (lambda: video_network(309, width=width), video),
    }
    kinds = [("fp32", False, False), ("bf16", False, False), ("bf16", True, False), ("bf16", True, True)]
    for name, (factory, inputs) in networks.items():
        operations = flops_per_clip(factory(), inputs)
        for precision, last, compiled in kinds:
            if compiled and bench.smoke:
                continue  # minutes on a CPU; the section of compile compiles a small network
            network, device = factory().to(bench.device), torch.device(bench.device)
            recipe = mfh.Recipe(channels_last=last, compile=compiled)
            here, target = inputs.to(device), torch.zeros(len(inputs), dtype=torch.long, device=device)
            with prepared(nn.ModuleDict({"network": network}), recipe, device):  # as mfh trains it
                step = Step(network, bench.device, precision)
                clips = len(inputs) / bench.seconds(lambda s=step, i=here, t=target: s(i, t), bench.runs)
            share = 100 * operations * clips / rates[precision]
            say(
                f"| {name} | {precision} | {'channels last' if last else 'contiguous'} | {'yes' if compiled else 'no'} | "
                f"{len(inputs)} | {clips:.4g} | {share:.0f} % |"
            )


def _students(bench, count, **recipe):
    """Functions that distil students from cached logits."""
    width, rows = bench.size(64, 8), bench.size(4096, 64)
    train, val = bench.pairs(rows, width), bench.pairs(64, width)
    logits = torch.randn(rows, CLASSES, generator=torch.Generator().manual_seed(1))
    chosen = mfh.Recipe(**{"epochs": bench.size(10, 1), "batch_size": 32, **recipe})

    def student(seed):
        return distill(
            None,
            fresh(lambda: mlp(width), seed),
            train,
            val,
            teacher_logits=logits,
            recipe=chosen,
            seed=seed,
            device=bench.device,
        )

    return [lambda seed=seed: student(seed) for seed in range(count)]


def ensembles(bench, say):
    """Small students one by one and together."""
    count = bench.size(32, 2)
    jobs = _students(bench, count)
    alone = bench.seconds(jobs[0])
    at_once = bench.seconds(lambda: together(jobs, strict=True))
    say(f"{count} students: {1e3 * alone:.0f} ms alone, {1e3 * at_once / count:.1f} ms each together.")


def saliency(bench, say):
    """Exact and sampled saliency."""
    width, rows = bench.size(512, 8), bench.size(20_000, 64)
    pairs = mfh.PairLoader(bench.pairs(rows, width), batch_size=bench.size(512, 16))
    teacher, student = fresh(lambda: mlp(width, width)), fresh(lambda: mlp(width, width), 1)

    def forward():
        networks = [network.to(bench.device) for network in (teacher, student)]
        with torch.no_grad():
            for batch in pairs:
                networks[0](batch.teacher_input.to(bench.device))
                networks[1](batch.student_input.to(bench.device))

    passing = bench.seconds(forward)
    for distance, permutations in (("mse", "exact"), ("l1", "exact"), ("mse", 3)):

        def score(distance=distance, permutations=permutations):
            mfh.channel_saliency(
                teacher,
                student,
                pairs,
                layer="1",
                distance=distance,
                permutations=permutations,
                device=bench.device,
            )

        taken = bench.seconds(score)
        say(
            f"- {distance}, permutations {permutations}, {width} channels, {rows} pairs: {taken:.3g} s, {taken / passing:.2f} "
            "times a forward of both networks"
        )


def distillation(bench, say):
    """Distillation from cached outputs against a lean loop."""
    ours = bench.seconds(_students(bench, 1)[0])
    epochs, width, rows = bench.size(10, 1), bench.size(64, 8), bench.size(4096, 64)

    train = bench.pairs(rows, width)
    logits = torch.randn(rows, CLASSES, device=bench.device)

    def lean():
        inputs, target = train.tensors[1].to(bench.device), train.tensors[2].to(bench.device)
        student, loss = mlp(width).to(bench.device), mfh.KDLoss()
        optimizer = torch.optim.Adam(student.parameters(), lr=1e-3)
        for _ in range(epochs):
            for chosen in torch.randperm(rows, device=bench.device).split(32):
                loss(student(inputs[chosen]), logits[chosen], target[chosen]).backward()
                optimizer.step()
                optimizer.zero_grad()

    floor = bench.seconds(lean)
    say(
        f"{epochs} epochs of {rows} pairs, with validation: {ours:.3g} s; lean loop without: {floor:.3g} s; {ours / floor:.2f} times."
    )


def compiling(bench, say):
    """The same students compiled."""
    plain, compiled = (bench.seconds(_students(bench, 1, compile=on)[0]) for on in (False, True))
    say(f"One student: {plain:.3g} s, compiled {compiled:.3g} s (after the first compilation).")


def processes(bench, say):
    """A process group of one process."""
    backend = "gloo" if bench.smoke else "nccl"
    torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        gradients = torch.ones(bench.size(32 * 2**20, 1024), device=bench.device)
        taken = bench.seconds(lambda: torch.distributed.all_reduce(gradients), bench.runs)
        say(f"{backend}: all-reduce of {gradients.numel() * 4 / 2**20:.3g} MiB over one process, {1e3 * taken:.3g} ms.")
        wrapped = nn.parallel.DistributedDataParallel(mlp(8).to(bench.device))
        wrapped(torch.randn(4, 8, device=bench.device)).sum().backward()
        bench.wait()
        say("DistributedDataParallel took a step.")
    finally:
        torch.distributed.destroy_process_group()


def determinism(bench, say):
    """The same student twice."""
    (job,) = _students(bench, 1)
    first, second = (fingerprint(job().student) for _ in range(2))
    say(f"The same seed twice gives {'the same weights, bit for bit' if first == second else 'other weights'}.")


SECTIONS = (vggsound, ensembles, saliency, distillation, compiling, processes, determinism)


def run(bench, say, sections=SECTIONS):
    """Run the sections one after the other; returns the names of those that failed."""
    failed = []
    for section in sections:
        say(f"## {section.__doc__.rstrip('.')}")
        say()
        if bench.device == "cuda" and torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        try:
            section(bench, say)
        except Exception as error:  # the other sections still have something to say
            failed.append(section.__name__)
            say(f"Failed: {in_a_line(error)}")
        say()
        say(f"{time.perf_counter() - start:.1f} s; peak memory {peak(bench)}.")
        say()
    return failed


def peak(bench):
    if bench.device == "cuda" and torch.cuda.is_available():
        return f"{torch.cuda.max_memory_allocated() / 2**20:.0f} MiB on the GPU"
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10:.0f} MiB of the process so far"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--report", type=Path, help="markdown file to write")
    parser.add_argument("--smoke", action="store_true", help="run every section tiny on the CPU")
    options = parser.parse_args(arguments)
    if not options.smoke and not torch.cuda.is_available():
        parser.error("there is no GPU here; choose --smoke to try every section on the CPU")
    say = Report("mfh on a GPU" if not options.smoke else "Smoke run of the GPU benchmark on a CPU")
    failed = run(Bench(options.smoke), say)
    say.write(options.report)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
