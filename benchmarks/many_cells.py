"""A study of 2,000 cells: what the process that runs it needs, and what its report costs to write and to open.

    python benchmarks/many_cells.py FOLDER --report benchmarks/reports/many-cells-YYYY-MM-DD.md

Networks are tiny and trained for an epoch, so that what is measured is everything else. Each part runs in a process of
its own, because peaks of memory do not fall. A folder that holds the study is measured without making it again. The page
is opened in headless Chromium, where that is installed with its driver.
"""

import argparse
import io
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from torch import nn
from torch.utils.data import TensorDataset

import mfh
from common import Report, seconds

RATIOS = tuple(round(0.05 + 0.075 * step, 3) for step in range(12))
#: Four arms without a ratio and three with twelve: 40 cells for each seed.
STUDY = {"arms": ["no-kd", "regular", "aligned", "soft", "random", "specific", "general"], "ratios": RATIOS}
CELLS_OF_A_SEED = 4 + 3 * len(RATIOS)


def teacher():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))


def student():
    return nn.Sequential(nn.Linear(7, 8), nn.ReLU(), nn.Linear(8, 2))


def task(seed=0):
    """120 pairs that share 3 inputs."""
    generator = torch.Generator().manual_seed(seed)

    def split(count):
        shared = torch.randn(count, 3, generator=generator)
        seen = [torch.cat([shared, torch.randn(count, more, generator=generator)], 1) for more in (5, 4)]
        return TensorDataset(*seen, (seen[0][:, :4].sum(1) > 0).long())

    parts = {"train": split(60), "val": split(30), "test": split(30)}
    return mfh.Task("tiny", teacher, student, layer="1", student_layer="1", recipe=mfh.Recipe(epochs=1), **parts)


def run_study(folder, num_seeds):
    """The study, or only its start and its end where all is measured."""
    wall, cpu, _ = seconds(mfh.study, task, num_seeds=num_seeds, out=folder, processes=1, progress=False, **STUDY)
    return {"seconds": wall, "processor seconds": cpu}


def refresh(folder, num_seeds):
    """One redrawing of the display when all is measured; the first one reads all cells."""
    from mfh.progress import progress_bar
    from mfh.studies.pool import _Reporter

    reporter = _Reporter(_plan(folder, num_seeds), progress=False)
    console = Console(file=io.StringIO(), force_terminal=True)
    reporter.bar = progress_bar(console)
    reporter.line = reporter.bar.add_task("students", total=1)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        reporter.done()
        console.print(reporter.table())
        times.append(time.perf_counter() - start)
    return {"seconds of the first": times[0], "seconds of a later one": times[-1]}


def _plan(folder, num_seeds):
    from mfh.studies.grid import cells
    from mfh.studies.pool import Plan
    from mfh.studies.settings import Settings

    first = task()
    grid = tuple(cells(STUDY["arms"], RATIOS, ("distance",), ["1"]))
    return Plan(task, Settings(), grid, ("val", "test"), folder, range(num_seeds), first.problem.metric.scale, False)


def write_report(folder, _):
    wall, cpu, _ = seconds(mfh.report, folder)
    return {"seconds": wall, "processor seconds": cpu, "MB of the page": (folder / "report.html").stat().st_size / 1e6}


def open_page(folder, _):
    """Load the page in Chromium until it is drawn."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests/helpers"))
    from browser import Browser

    with tempfile.TemporaryDirectory() as place:
        browser = Browser(Path(place))
        try:
            start = time.perf_counter()
            browser.driver.get((folder / "report.html").resolve().as_uri())
            wall = time.perf_counter() - start
            nodes = browser.driver.execute_script("return document.getElementsByTagName('*').length")
        finally:
            browser.driver.quit()
    return {"seconds": wall, "elements": nodes}


PARTS = {
    "study": run_study,
    "same command again": run_study,
    "redrawing the display": refresh,
    "report": write_report,
    "opening the page": open_page,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="where studies are kept")
    parser.add_argument("--report", type=Path, help="Markdown file for the table")
    parser.add_argument("--num-seeds", type=int, nargs="*", default=[5, 50], help="40 cells each")
    parser.add_argument("--part", choices=PARTS, help="what this process measures; prints JSON")
    options = parser.parse_args()
    if options.part:
        found = PARTS[options.part](options.folder, options.num_seeds[0])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(found | {"peak MB": peak}))
        return
    report = Report("Studies of many cells", "Each part in a process of its own.")
    report("| cells | part | measured |")
    report("|---|---|---|")
    for num_seeds in options.num_seeds:
        folder = options.folder / f"{num_seeds}-seeds"
        for part in PARTS:
            command = [sys.executable, __file__, folder, "--part", part, "--num-seeds", num_seeds]
            done = subprocess.run([*map(str, command)], stdout=subprocess.PIPE, text=True, check=False)
            if done.returncode:
                report(f"| {num_seeds * CELLS_OF_A_SEED} | {part} | failed |")
                continue
            found = json.loads(done.stdout.splitlines()[-1])
            text = ", ".join(f"{name} {value:.3g}" for name, value in found.items())
            report(f"| {num_seeds * CELLS_OF_A_SEED} | {part} | {text} |")
    report.write(options.report)


if __name__ == "__main__":
    main()
