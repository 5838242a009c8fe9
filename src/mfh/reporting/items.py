"""What `mfh check TASK` says of the items of a task: the bad ones, the classes, and totals."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mfh.reporting.page import Table

if TYPE_CHECKING:
    from mfh.tasks.items import Findings

# The terminal shows so many bad items and classes; a file has room for all.
_SHOWN = 20


def item_table(found: "Findings") -> Table | None:
    """The first bad items; None if all are good."""
    if not found.bad:
        return None
    rows = [[split, str(index), reason] for (split, index), reason in list(found.bad.items())[:_SHOWN]]
    rest = len(found.bad) - len(rows)
    caption = "Bad items" if not rest else f"The first {len(rows)} bad items of {len(found.bad)}; --out FILE lists all"
    return Table(["split", "index", "reason"], rows, caption)


def class_table(found: "Findings", names: Sequence[str] = ()) -> Table | None:
    """How often each class occurs in each split, for a few classes; smallest and largest count for many.

    Args:
        found: What was found.
        names: Names of the classes, in order.
    """
    splits = list(found.classes)
    if not splits:
        return None
    width = len(found.classes[splits[0]])
    if width > _SHOWN:
        rows = [
            [split, str(sum(count > 0 for count in counts)), str(min(counts)), str(max(counts))]
            for split, counts in found.classes.items()
        ]
        return Table(["split", "classes", "rarest", "most frequent"], rows, f"Good items of each of {width} classes")
    rows = [
        [
            names[number] if number < len(names) else str(number),
            *(str(found.classes[split][number]) for split in splits),
        ]
        for number in range(width)
    ]
    return Table(["class", *splits], rows, "Good items of each class")


def totals(found: "Findings") -> str:
    """How many items were read and how many are bad, in one line."""
    items = ", ".join(f"{count} {split}" for split, count in found.items.items())
    bad = f"{len(found.bad)} bad" if found.bad else "none is bad"
    return f"{sum(found.items.values())} items read ({items}): {bad}"
