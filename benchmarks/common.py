"""What benchmarks share: a report that is printed as it grows, networks that start alike, two clocks, and steps against
the matrix rate."""

import datetime
import os
import platform
import sys
import time

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from mfh.studies.provenance import cpu


class Report:
    """Calling it adds a line; it begins with what was run, and where.

    Args:
        title: of the page.
        note: on how times were taken.
    """

    def __init__(self, title, note=""):
        self.lines = []
        self(f"# {title}, {datetime.date.today().isoformat()}")
        self()
        self(f"Command: `python {' '.join(sys.argv)}`. {cpu()};")
        gpu = f"{torch.cuda.get_device_name()}; " if torch.cuda.is_available() else ""
        self(f"{gpu}Python {platform.python_version()}, torch {torch.__version__}, threads: {torch.get_num_threads()}.")
        self(f"Load average at the start, from other work: {os.getloadavg()[0]:.1f}. {note}".rstrip())
        self()

    def __call__(self, text=""):
        print(text, flush=True)
        self.lines.append(text)

    def write(self, path):
        """Keep it as a Markdown file; None keeps nothing."""
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(self.lines) + "\n", encoding="utf-8")


def seconds(function, *arguments, **options):
    """Wall time, processor time of all threads, and what the function returned."""
    start, cpu_start = time.perf_counter(), time.process_time()
    value = function(*arguments, **options)
    return time.perf_counter() - start, time.process_time() - cpu_start, value


def fresh(factory, seed=0):
    """A network with initial weights of its own seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return factory()


def best(function, runs):
    """Least wall-clock seconds and least processor seconds of this process, of several runs."""
    walls, processors = [], []
    for _ in range(runs):
        wall, processor = time.perf_counter(), time.process_time()
        function()
        walls.append(time.perf_counter() - wall)
        processors.append(time.process_time() - processor)
    return min(walls), min(processors)


class Step:
    """One training step of a network on one batch."""

    def __init__(self, network, device, precision):
        self.network = network.to(device).train()
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-3)
        self.device, self.precision = device, precision

    def __call__(self, inputs, target):
        with torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16"):
            loss = F.cross_entropy(self.network(inputs.to(self.device, non_blocking=True)), target.to(self.device))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if self.device == "cuda":
            torch.cuda.synchronize()


def matrix_rate(device, precision, size=None):
    """Floating-point operations per second of a large matrix product, by wall clock and by processor time."""
    size = size or (8192 if device == "cuda" else 2048)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a = torch.randn(size, size, device=device, dtype=dtype)

    def multiply():
        a @ a
        if device == "cuda":
            torch.cuda.synchronize()

    multiply()
    return tuple(2 * size**3 / seconds for seconds in best(multiply, 5))


def flops_per_clip(network, inputs):
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        meta = network.to("meta")
        meta(torch.empty(inputs.shape, dtype=inputs.dtype, device="meta")).sum().backward()
    return counter.get_total_flops() / len(inputs)
