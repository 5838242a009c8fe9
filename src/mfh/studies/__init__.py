"""Studies, diagnoses, and what one seed of a task needs."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mfh.studies.running import StudyResult as StudyResult
    from mfh.studies.running import study as study


def __getattr__(name: str) -> Any:
    # Loaded on first use: settings and the grid are needed without torch.
    if name not in ("study", "StudyResult"):
        raise AttributeError(f"module 'mfh.studies' has no attribute {name!r}")
    from mfh.studies import running

    return getattr(running, name)
