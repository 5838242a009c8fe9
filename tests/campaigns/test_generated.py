"""A short form of benchmarks/campaigns/generated.py: no case ends in a traceback, a hang, a crash or NaN."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "campaigns" / "generated.py"


def test_no_generated_case_ends_badly():
    command = [sys.executable, str(SCRIPT), "--count", "24", "--seed", "71", "--jobs", "2"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "24 cases" in done.stdout
