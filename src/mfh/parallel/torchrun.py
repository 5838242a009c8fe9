"""How torchrun started this process, read from the environment: no torch and no process group are needed."""

import os


def launched() -> int:
    """Number of processes that torchrun started together; 1 without torchrun.

    WORLD_SIZE alone proves nothing, because cluster managers set it as well; TORCHELASTIC_RUN_ID comes from torchrun.
    """
    return int(os.environ.get("WORLD_SIZE", "1")) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def is_first() -> bool:
    """Whether this process is rank 0, which prints and writes files for all processes."""
    return launched() == 1 or os.environ["RANK"] == "0"
