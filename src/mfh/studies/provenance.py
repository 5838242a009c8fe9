"""What results were computed with, for run folders."""

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "torchmetrics", "numpy", "scipy", "scikit-learn", "numba", "pandas")


def environment(**more: Any) -> dict[str, Any]:
    """Versions and hardware.

    Args:
        **more: further facts, for instance the seconds it took.
    """
    import torch

    import mfh

    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {
        "mfh": mfh.__version__,
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu(),
        **gpu,
        **more,
    }


def cpu() -> str:
    """Number of cores and model of the processor."""
    model = platform.processor() or platform.machine()
    described = Path("/proc/cpuinfo")
    if described.exists():
        lines = [line for line in described.read_text(encoding="utf-8").splitlines() if line.startswith("model name")]
        model = lines[0].partition(":")[2].strip() if lines else model
    return f"{os.cpu_count()} cores, {model}"
