"""The short form of a campaign of `benchmarks/campaigns`, as continuous integration runs it."""

import subprocess
import sys
from pathlib import Path

CAMPAIGNS = Path(__file__).parents[2] / "benchmarks" / "campaigns"


def short_form(name, *words):
    """Run a campaign in a process of its own; nothing may go wrong in it. Returns the rows of its table of totals."""
    command = [sys.executable, str(CAMPAIGNS / f"{name}.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("|")]
    heading, _, *rest = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: dict(zip(heading[1:], map(int, row[1:]), strict=True)) for row in rest}
