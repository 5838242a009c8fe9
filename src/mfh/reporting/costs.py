"""What the students of each arm cost to train."""

from collections.abc import Sequence

import numpy as np

from mfh.reporting.curves import history_key
from mfh.reporting.page import Section, Table
from mfh.studies.folder import SeedFolder
from mfh.studies.summary import Summary


def costs_section(folders: Sequence[SeedFolder], summary: Summary) -> Section:
    """Seconds, networks trained at once, further parameters and memory of each arm, where the run folder holds them.

    Args:
        folders: Folders of the seeds.
        summary: Summary of the study.
    """
    section = Section("What each arm costs")
    rows = []
    for arm in dict.fromkeys(variant.arm for variant in summary.variants):
        variant = summary.chosen(arm)
        found = [] if variant is None else [folder.read_cost(history_key(variant.cell)) for folder in folders]
        costs = [cost for cost in found if cost is not None]
        if variant is None or not costs:
            continue
        seconds = float(np.mean([cost["seconds"] for cost in costs]))
        together = sorted({cost.get("together", 1) for cost in costs})
        parameters, size = (max(cost[name] for cost in costs) for name in ("extra_parameters", "extra_bytes"))
        at_once = str(together[0]) if len(together) == 1 else f"{together[0]} to {together[-1]}"
        rows.append([variant.label, f"{seconds:.3g}", at_once, f"{parameters:,}" if parameters else "", _bytes(size)])
    if rows:
        caption = (
            "Cost of one student, mean over seeds. Seconds are those of the training, the pass of the teacher for its "
            "features included, on a machine that may have had other work. Students that were trained together share "
            "their seconds equally: compare seconds only between arms with about as many networks at once. Further "
            "parameters are those that the method trains beside the student; further memory is what its modules and "
            "the teacher's features take."
        )
        columns = ["Arm", "Seconds", "Networks at once", "Further parameters", "Further memory"]
        section.blocks.append(Table(columns, rows, caption).without_empty_columns())
    return section


def _bytes(size: int) -> str:
    """A number of bytes as text; empty for none."""
    if not size:
        return ""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024  # type: ignore[assignment]
    return f"{size:.3g} GiB"
