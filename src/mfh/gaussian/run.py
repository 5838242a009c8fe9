"""Run the Gaussian experiments and keep their results, tables and settings in a run folder."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mfh.errors import InputError, close_names, refuse_difference
from mfh.files import atomic_write, read_frame
from mfh.gaussian import experiments as gaussian_experiments
from mfh.gaussian.settings import ModifyGamma, VaryAlpha, VaryGamma
from mfh.studies.folder import Run
from mfh.studies.provenance import environment
from mfh.values import NumSeeds, RandomSeed, checked

if TYPE_CHECKING:
    import pandas as pd

EXPERIMENTS = ("vary-gamma", "vary-alpha", "modify-gamma")

#: File of the experiment modify-gamma that says how many general inputs Algorithm 1 found.
FOUND = "algorithm-1-found.csv"

#: Shows how far a run is. Called as progress(experiment, seeds_done, num_seeds).
RunProgress = Callable[[str, int, int], None]

_SETTINGS: dict[str, type[VaryGamma] | type[VaryAlpha] | type[ModifyGamma]] = {
    "vary-gamma": VaryGamma,
    "vary-alpha": VaryAlpha,
    "modify-gamma": ModifyGamma,
}
_FIRST_SEED = {"vary-gamma": 0, "vary-alpha": 0, "modify-gamma": 42}


def run(
    experiments: Sequence[str] = EXPERIMENTS,
    *,
    out: str | Path,
    num_seeds: int = 10,
    first_seed: int | None = None,
    options: Mapping[str, Any] | None = None,
    device: str = "auto",
    progress: RunProgress | None = None,
    finish: Callable[[Run], object] | None = None,
) -> dict[str, "pd.DataFrame"]:
    """Run experiments and keep results.csv, config.json and environment.json in a folder, for `mfh.report`.

    modify-gamma also leaves algorithm-1-found.csv and Table 2 as table-2.{txt,csv,md,tex}. If the folder holds finished
    results of the same configuration, they are read and nothing is computed. A folder of another configuration is
    refused. The device and the progress display do not belong to the configuration.

    Args:
        experiments: Any of "vary-gamma", "vary-alpha", "modify-gamma".
        out: The run folder. It is made if it is missing.
        num_seeds: Number of seeds for each experiment. Each seed draws all data anew.
        first_seed: First of the consecutive seeds (default: the published 0 for the sweeps, 42 for modify-gamma).
        options: Fields of `VaryGamma`, `VaryAlpha` and `ModifyGamma` to change. Each goes to every chosen experiment
            that has it. None values are ignored.
        device: Device to train on, see `mfh.gaussian.fit`.
        progress: Called as progress(experiment, seeds_done, num_seeds).
        finish: Called with the run folder when everything is computed and before the folder is released, for instance
            `mfh.report`.

    Returns:
        The tidy results by experiment.

    Raises:
        InputError: An experiment or option is unknown or out of range, or the folder cannot be used.
    """
    config = resolve(experiments, num_seeds=num_seeds, first_seed=first_seed, options=options)
    run_folder = Run(out)
    _same_configuration(run_folder, config)  # before a folder is made
    with run_folder.locked():
        run_folder.refresh()
        if _same_configuration(run_folder, config) and run_folder.holds_results:
            frames = read_frames(run_folder)
            if finish is not None:
                finish(run_folder)
            return frames
        run_folder.write_config(config)
        run_folder.write_environment(environment(device=device))
        frames, started = {}, time.monotonic()
        for name, chosen in config["experiments"].items():
            frames[name] = _experiment(name, chosen, num_seeds, device, progress)
        _write_tables(frames, run_folder)
        rows: list[Any] = [row for frame in frames.values() for row in frame.to_dict("records")]
        run_folder.write_results(gaussian_experiments.COLUMNS, rows)  # last: it says that the run is finished
        run_folder.write_environment(environment(device=device, seconds=round(time.monotonic() - started, 1)))
        if finish is not None:
            finish(run_folder)
    return frames


def read_frames(run: Run) -> dict[str, "pd.DataFrame"]:
    """The tidy results that a run folder holds, by experiment.

    Args:
        run: The run folder of Gaussian experiments.

    Raises:
        InputError: Its files cannot be read.
    """
    table = run.table(gaussian_experiments.COLUMNS)
    frames = {str(name): part.reset_index(drop=True) for name, part in table.groupby("experiment", sort=False)}
    if "modify-gamma" in frames and run.holds(FOUND):
        found = read_frame(run.checked(FOUND), ("alpha", "gamma", "general", "found"))
        frames["modify-gamma"].attrs["general_found"] = found.to_dict(orient="records")
    return frames


def resolve(
    experiments: Sequence[str],
    *,
    num_seeds: int,
    first_seed: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The configuration of a run with every default filled in, as config.json holds it.

    Args:
        experiments: The chosen experiments.
        num_seeds: Number of seeds for each experiment.
        first_seed: First seed, or None for the published ones.
        options: Settings to change, see `run`.

    Raises:
        InputError: An experiment or option is unknown, fits none of the experiments, or is out of range.
    """
    if isinstance(experiments, str) or not experiments:
        raise InputError(f"experiments is {experiments!r}; a list of {', '.join(EXPERIMENTS)} was expected")
    checked("num_seeds", num_seeds, NumSeeds)
    checked("first_seed", first_seed, RandomSeed | None)
    given = {name: value for name, value in (options or {}).items() if value is not None}
    unused = set(given)
    resolved: dict[str, Any] = {}
    for name in experiments:
        if name not in _SETTINGS:
            raise InputError(f"there is no experiment {name!r}; {close_names(name, list(EXPERIMENTS))}")
        kind = _SETTINGS[name]
        known = {field.name for field in fields(kind)}
        unused -= known
        settings = kind(**{key: value for key, value in given.items() if key in known})
        start = _FIRST_SEED[name] if first_seed is None else first_seed
        resolved[name] = {"first_seed": start, **asdict(settings)}
    if unused:
        known = {field.name for name in experiments for field in fields(_SETTINGS[name])}
        wrong = min(unused)
        raise InputError(f"{wrong} is no option of {', '.join(experiments)}; {close_names(wrong, sorted(known))}")
    # JSON turns tuples into lists, so that a stored configuration compares equal.
    plain: dict[str, Any] = json.loads(
        json.dumps({"command": "gauss", "num_seeds": num_seeds, "experiments": resolved})
    )
    return plain


def _same_configuration(run: Run, config: dict[str, Any]) -> bool:
    """Whether the folder holds this configuration. False if it holds none; another one raises InputError."""
    out = run.folder
    try:
        if out.exists() and not out.is_dir():
            raise InputError(f"out is {str(out)!r}, which is a file; a folder was expected")
        if not run.holds_config:
            if run.holds_results:
                raise InputError(
                    f"{out} holds results without a configuration, so its options are unknown; give another --out"
                )
            return False
    except OSError as error:
        raise InputError(f"out is {str(out)!r}, which cannot be read ({error.strerror}); give another folder") from None
    if run.command != "gauss":
        raise InputError(f"{run.described} holds no Gaussian experiments; give another --out")
    held, way_out = run.config, "give another --out or the same options"
    names = [list(settings.get("experiments", {})) for settings in (held, config)]
    refuse_difference(run.described, {"experiments": names[0]}, {"experiments": names[1]}, way_out)
    refuse_difference(run.described, held, config, way_out)
    return True


def _experiment(
    name: str, chosen: Mapping[str, Any], num_seeds: int, device: str, progress: RunProgress | None
) -> "pd.DataFrame":
    functions: dict[str, Callable[..., pd.DataFrame]] = {
        "vary-gamma": gaussian_experiments.vary_gamma,
        "vary-alpha": gaussian_experiments.vary_alpha,
        "modify-gamma": gaussian_experiments.modify_gamma,
    }
    values = {key: value for key, value in chosen.items() if key != "first_seed"}
    # JSON turned the tuples into lists.
    for key, value in values.items():
        if isinstance(value, list):
            values[key] = tuple(tuple(item) if isinstance(item, list) else item for item in value)
    return functions[name](
        num_seeds,
        first_seed=chosen["first_seed"],
        settings=_SETTINGS[name](**values),
        device=device,
        progress=(lambda done, total: progress(name, done, total)) if progress else None,
    )


def _write_tables(frames: Mapping[str, "pd.DataFrame"], run: Run) -> None:
    """Write Table 2 and what Algorithm 1 found, if modify-gamma was run."""
    import pandas as pd

    from mfh.gaussian.tables import table_2

    if (frame := frames.get("modify-gamma")) is None:
        return
    run.write_checked(FOUND, pd.DataFrame(frame.attrs["general_found"]).to_csv(index=False, lineterminator="\n"))
    for form, suffix in (("text", "txt"), ("csv", "csv"), ("markdown", "md"), ("latex", "tex")):
        with atomic_write(run.folder / f"table-2.{suffix}") as file:
            file.write(table_2(frame, form))  # type: ignore[arg-type]
