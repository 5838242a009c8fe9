"""What torchrun said to this process when it started it; answered without torch, before there is any group."""

import os


def launched() -> int:
    """How many processes torchrun started together; 1 without torchrun.

    The variables it sets count only beside its own mark: cluster managers leave WORLD_SIZE and RANK as well.
    """
    return int(os.environ.get("WORLD_SIZE", "1")) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def is_first() -> bool:
    """Whether this is the process that speaks and writes for all."""
    return launched() == 1 or os.environ["RANK"] == "0"
