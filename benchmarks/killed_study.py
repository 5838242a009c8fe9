"""Kill a study at random moments, resume it, and compare its results with one that was never killed.

    python benchmarks/killed_study.py --kills 10

The whole process group gets SIGKILL, workers included; nothing can clean up.
"""

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TASK = Path(__file__).parent.parent / "tests" / "helpers" / "tiny_task.py"


def command(out: Path) -> list[str]:
    options = ["--num-seeds", "4", "--ratios", "0.25", "0.5", "--epochs", "20", "--processes", "2", "--quiet"]
    return [sys.executable, "-m", "mfh", "study", str(TASK), *options, "--out", str(out)]


def kill_and_resume(kills: int, seed: int = 0) -> None:
    """Raise AssertionError if the killed study ends with other rows."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        whole, broken = Path(folder) / "whole", Path(folder) / "broken"
        started = time.monotonic()
        subprocess.run(command(whole), check=True, stdout=subprocess.DEVNULL)
        duration = time.monotonic() - started
        print(f"uninterrupted: {duration:.1f} s, {len((whole / 'results.csv').read_text().splitlines()) - 1} rows")
        for number in range(kills):
            process = subprocess.Popen(
                command(broken), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
            )
            moment = chance.uniform(0.2, 0.45) * duration
            try:
                process.wait(moment)
                how = "had finished"
            except subprocess.TimeoutExpired:
                how = f"killed after {moment:.1f} s"
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            print(f"run {number + 1}: {how}, {len(list(broken.glob('seed-*/cells/*.csv')))} cells kept")
        subprocess.run(command(broken), check=True, stdout=subprocess.DEVNULL)
        assert (broken / "results.csv").read_bytes() == (whole / "results.csv").read_bytes()
        parts = list(broken.rglob("*.part"))
        print(f"same results.csv, byte for byte; {len(parts)} unfinished temporary files left behind")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    kill_and_resume(arguments.kills, arguments.seed)
