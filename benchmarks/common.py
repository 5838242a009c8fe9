"""What benchmarks share: a report that is printed as it grows, networks that start alike, and two clocks."""

import datetime
import os
import platform
import sys
import time

import torch

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
