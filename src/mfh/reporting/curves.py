"""Training curves: metric and loss on the validation split by epoch."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mfh.figures.style import arm_colour, hover, is_narrow, legend, new_figure, style
from mfh.reporting.page import Picture, Section
from mfh.studies.folder import HistoryKey, SeedFolder
from mfh.studies.grid import Cell
from mfh.studies.summary import Summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: One line: label, colour's arm, role, epochs, metric and loss by epoch (means over seeds).
_Line = tuple[str, str, str, NDArray[np.float64], NDArray[np.float64]]


def training_section(folders: Sequence[SeedFolder], summary: Summary) -> Section:
    """Curves of metric and label loss on the validation split.

    Args:
        folders: Folders of the seeds.
        summary: Summary of the study.

    Returns:
        The section, empty if the run folder holds no histories.
    """
    section = Section("How training went")
    trained: list[tuple[str, str, str, HistoryKey]] = [
        ("pretrained", "regular", "teacher", "teacher"),
        ("aligned", "aligned", "teacher", "aligned"),
    ]
    trained += [
        (variant.label, variant.arm, "student", history_key(variant.cell))
        for arm in dict.fromkeys(variant.arm for variant in summary.variants)
        if (variant := summary.chosen(arm)) is not None
    ]
    lines = [line for who in trained if (line := _line(folders, summary, *who)) is not None]
    if lines:
        section.blocks.append(_picture(lines, summary, len(folders)))
    return section


def history_key(cell: Cell) -> HistoryKey:
    """The training that an arm's student comes from."""
    return "student" if cell.arm == "no-kd" else "aligned" if cell.arm == "aligned-student" else cell


def _line(
    folders: Sequence[SeedFolder], summary: Summary, label: str, arm: str, role: str, key: HistoryKey
) -> _Line | None:
    """Means over the seeds that have a history, up to the last epoch that all of them reached."""
    columns = (f"{role}_val_{summary.scale.name}", f"{role}_val_loss")
    kept: list[Mapping[str, Any]] = [history for folder in folders if (history := folder.read_history(key))]
    kept = [history for history in kept if all(column in history for column in columns)]
    if not kept or len(kept) < len(folders):
        return None  # a mean over some of the seeds would stand beside means over all
    length = min(len(history[columns[0]]) for history in kept)
    metric, loss = (np.mean([history[column][:length] for history in kept], axis=0) for column in columns)
    return label, arm, role, summary.scale.factor * metric, loss


def _draw(lines: Sequence[_Line], summary: Summary) -> "Figure":
    roles = [role for role in ("teacher", "student") if any(line[2] == role for line in lines)]
    with style():
        if is_narrow():
            figure, column = new_figure(6.5, 4.4 * len(roles) + 0.1 * len(lines), rows=2 * len(roles))
            grid = column.reshape(len(roles), 2).T
        else:
            height = max(4.4, 0.5 + 0.2 * len(lines))  # room for the legend
            figure, grid = new_figure(6.5, height, rows=2, columns=len(roles), sharex="col", squeeze=False)
        for column, role in enumerate(roles):
            for label, arm, of_role, *values in lines:
                if of_role != role:
                    continue
                for axes, curve, kind in zip(grid[:, column], values, (summary.scale.words, "loss"), strict=True):
                    dashed = {"linestyle": (0, (4, 2))} if arm in ("no-kd", "aligned-student") else {}
                    marker = {"marker": "o"} if len(curve) == 1 else {}
                    epochs = np.arange(1, len(curve) + 1)
                    drawn = axes.plot(
                        epochs, curve, color=arm_colour(arm), label=label, linewidth=1.5, **dashed, **marker
                    )
                    hover(drawn, f"{role}, {label}: {kind} {curve[-1]:.3g} in the last epoch")
            top, bottom = grid[:, column]
            top.set_title(f"{role.capitalize()}s")
            bottom.set_xlabel("epoch")
            bottom.xaxis.get_major_locator().set_params(integer=True)
            for axes in (top, bottom):
                axes.grid(axis="y")
        grid[0, 0].set_ylabel(summary.scale.title)
        grid[1, 0].set_ylabel("label loss")
        if len(roles) > 1:
            grid[0, 0].legend(loc="lower right")
        legend(figure, *grid[0, -1].get_legend_handles_labels())
    return figure


def _picture(lines: Sequence[_Line], summary: Summary, num_seeds: int) -> Picture:
    ends = "; ".join(
        f"{role} {label}: {summary.scale.words} {metric.max():.{summary.digits}f} at best, "
        f"{metric[-1]:.{summary.digits}f} in the last epoch"
        for label, _, role, metric, _ in lines
    )
    seeds = f"means over {num_seeds} seeds" if num_seeds > 1 else "one seed"
    return Picture(
        partial(_draw, lines, summary),
        "training",
        f"Metric and label loss on the validation split, {seeds}, up to the last epoch that all seeds reached. Each "
        "arm is shown by its variant best on validation. Overfitting shows as a loss that rises again.",
        f"Curves of {summary.scale.words} and label loss by epoch. {ends}.",
    )
