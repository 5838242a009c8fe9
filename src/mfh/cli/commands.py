"""The command line: parse, call, print. No logic lives here."""

import logging
import os
import shlex
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

import mfh
from mfh.cli import options as opt
from mfh.errors import InputError
from mfh.parallel.torchrun import is_first, launched
from mfh.tasks.sizes import RavdessFeatures, VggsoundSizes

if TYPE_CHECKING:
    from rich.console import Console

    from mfh.reporting.page import Table as PageTable
    from mfh.studies.folder import NetworkKey, Run
    from mfh.studies.networks import Role, Trained
    from mfh.studies.seed import Seed

_DESCRIPTION = """Cross-modal knowledge distillation: what in the teacher can cross, which teacher teaches best, and
whether it helped. Start with `mfh demo`; `mfh --version` prints the version."""


def main(args: Sequence[str] | None = None) -> None:
    """Run one command; errors a user can cause end in one line and exit code 2."""
    given = sys.argv[1:] if args is None else list(args)
    with _heard_once():
        if given == ["--version"]:
            print(f"mfh {mfh.__version__}")  # noqa: T201
            return
        options: Any = tyro.cli(opt.Command, prog="mfh", description=_DESCRIPTION, args=args)
        if launched() > 1 and type(options) not in _TOGETHER:
            sys.exit(_tell(InputError(_ALONE)))
    logging.basicConfig(format="mfh: %(message)s", level=logging.ERROR if options.quiet else logging.WARNING)
    if not options.quiet:
        logging.getLogger("mfh").setLevel(logging.INFO if is_first() else logging.ERROR)
    if any(word.split("=")[0] == "--modality" for word in given):
        logging.getLogger("mfh").warning("--modality is deprecated; use --role")
    try:
        with _working_together(options):
            run_command(options)
    except (InputError, OSError, KeyboardInterrupt) as error:
        sys.exit(_tell(error))


def run_command(options: Any) -> None:
    """Run the command that these options belong to."""
    _COMMANDS[type(options)](options)


def _tell(error: BaseException) -> int:
    """Say what went wrong, and return the exit code; what is no user's fault keeps its traceback."""
    if isinstance(error, InputError):
        message, code = str(error), 2
    elif isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        message = f"{error.strerror or error}{where}; what was finished is kept, and the same command resumes"
        code = 2
    elif isinstance(error, KeyboardInterrupt):
        message, code = "interrupted; the same command resumes", 130
    else:
        traceback.print_exception(error)
        return 1
    print(f"mfh: {' '.join(message.split())}", file=sys.stderr)  # noqa: T201
    return code


# --- several processes: under torchrun all do the work, the first one speaks ------------------------------------------

_TOGETHER = (opt.Pretrain, opt.Align, opt.Saliency, opt.Distill)
_ALONE = (
    "pretrain, align, saliency and distill share torchrun's processes, other commands run in one: leave torchrun out "
    "(a study runs its seeds in parallel by itself, --processes)"
)


@contextmanager
def _heard_once() -> Iterator[None]:
    """Only rank 0 reports a usage error; the other ranks exit silently with status 0."""
    if is_first():
        yield
        return
    try:
        with (
            Path(os.devnull).open("w", encoding="utf-8") as nowhere,
            redirect_stdout(nowhere),
            redirect_stderr(nowhere),
        ):
            yield
    except SystemExit:
        sys.exit(0)


def _working_together(options: Any) -> AbstractContextManager[None]:
    if launched() == 1:
        return nullcontext()
    from mfh.parallel.distributed import joined

    return joined(options.execution.device, _tell)


# --- the commands -----------------------------------------------------------------------------------------------------


def _console() -> "Console":
    from rich.console import Console

    # Where there is no terminal to fit into, tables keep their lines whole.
    width = None if sys.stdout.isatty() else 160
    return Console(highlight=False, soft_wrap=True, width=width, quiet=not is_first())


def _demo(options: opt.Demo) -> None:
    from mfh.studies.settings import Settings

    out = options.out or Path("runs/demo")
    settings = Settings.of(processes=options.processes)
    _run_study(out, options.quiet, task="digits", num_seeds=options.num_seeds, settings=settings)


def _study(options: opt.Study) -> None:
    _run_study(
        _out(options),
        options.quiet,
        task=options.task,
        arms=options.arms,
        ratios=[step / 10 for step in range(10)] if options.sweep else options.ratios,
        scores=options.scores,
        layers=options.layers,
        weights=options.weights,
        num_seeds=options.num_seeds,
        first_seed=options.seed,
        add_seeds=options.add_seeds,
        select=options.select,
        settings=options.settings(),
    )


def _run_study(out: Path, quiet: bool, **arguments: Any) -> None:
    from mfh.studies.running import study

    console = _console()

    def finish(run: "Run") -> None:
        page = _reported(run)
        _print_study(console, run)
        console.print(f"\nReport: {page}", markup=False)

    study(out=out, progress=not quiet, finish=finish, **arguments)


def _reported(run: "Run") -> Path:
    """Keep the command that repeats a run beside its results, and write the report."""
    from mfh.reporting import report

    _note_command(run)
    return report(run)


def _note_command(run: "Run") -> None:
    """Keep the command that repeats a run beside its results, unless one is noted already."""
    if "repeat" not in run.environment:
        run.write_environment(run.environment | {"repeat": _repeat_command(run.num_seeds)})


def _repeat_command(num_seeds: int) -> str:
    """The command line just given; seeds that were added count as if asked for at once."""
    words = sys.argv[1:]
    words = [part for word in words for part in (word.split("=", 1) if word.startswith("--") else [word])]
    if "--add-seeds" in words:
        for option in ("--add-seeds", "--num-seeds"):
            if option in words:
                place = words.index(option)
                words = words[:place] + words[place + 2 :]
        words += ["--num-seeds", str(num_seeds)]
    return shlex.join(["mfh", *words])


def _print_study(console: "Console", run: "Run") -> None:
    from mfh.reporting.summary import arms_table, finding, recommendation

    _print_table(console, arms_table(run.summary))
    console.print(f"\n{finding(run.summary)}", markup=False)
    if run.selection is not None:
        console.print(recommendation(run.selection, run.scale), markup=False)


def _print_table(console: "Console", content: "PageTable") -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(*map(escape, content.columns), title=escape(content.caption), title_justify="left")
    for row in content.rows:
        table.add_row(*map(escape, row))
    console.print(table)


def _pretrain(options: opt.Pretrain) -> None:
    with _opened(options) as made:
        _report_metric(made, made.networks.pretrained(options.role), options.role, options.role)


def _align(options: opt.Align) -> None:
    with _opened(options) as made:
        if not made.protocol.joint:
            _console().print(
                "this protocol has no joint step: the networks trained on labels stand for the aligned pair"
            )
        _report_metric(made, made.networks.aligned("teacher"), "teacher", "aligned-teacher")
        _report_metric(made, made.networks.aligned("student"), "student", "aligned-student")


def _report_metric(made: "Seed", trained: "Trained", role: "Role", key: "NetworkKey", note: str = "") -> None:
    scale = made.task.problem.metric.scale
    value = scale.show(made.evaluate(trained.network, "val", role))
    assert made.folder is not None
    path = made.folder.network_file(key)
    place = f", in {path}" if path.exists() else ""  # none was written of a network that was given
    _console().print(f"{path.stem}: validation {scale.words} {value}{note}{place}", markup=False)


def _saliency(options: opt.Saliency) -> None:
    with _opened(options) as made:
        saliency = made.saliency(options.score, options.layer or "")
        path, picture = made.saliency_files(options.score, options.layer or "")
        if is_first():
            saliency.plot(picture)
        how = "cross-fitted" if saliency.permutations is None else f"permutations: {saliency.permutations}"
        best = ", ".join(f"{c} ({saliency.scores[c]:.3g})" for c in saliency.ranking[:5])
        lines = [f"{len(saliency.scores)} channels of layer {saliency.layer}, {saliency.samples} pairs, {how}"]
        lines.append(f"most modality-general: {best}")
        auroc = None if options.layer else made.auroc(options.score)
        if auroc is not None:
            lines.append(f"AUROC against the known truth: {auroc:.3f}")
        _console().print("\n".join([*lines, f"in {path}, picture {picture}"]), markup=False)


def _distill(options: opt.Distill) -> None:
    from mfh.studies.grid import MASKED_BY_RATIO, cells

    with _opened(options, keep_students=True) as made:
        default = made.protocol.ratio if options.arm in MASKED_BY_RATIO else None
        ratio = default if options.ratio is None else options.ratio
        ratios = () if ratio is None else (ratio,)
        (cell,) = cells([options.arm], ratios, [options.score], [options.layer or made.task.layer])
        if cell.teacher is None:
            raise InputError(
                f"arm is {options.arm!r}, which distils from no teacher; use 'mfh pretrain' or 'mfh align'"
            )
        student = made.student(cell)
        _report_metric(made, student, "student", cell, f" (epoch {student.best_epoch})")


def _diagnose(options: opt.Diagnose) -> None:
    from mfh.reporting import report
    from mfh.reporting.diagnosis import diagnosis_tables, diagnosis_verdict
    from mfh.studies.diagnosis import diagnose

    out = _out(options)
    diagnosis = diagnose(
        options.task,
        layers=options.layers,
        seed=options.seed,
        out=out,
        settings=options.settings(),
        progress=_shows_progress(options),
    )
    console = _console()
    for content in diagnosis_tables(diagnosis):
        _print_table(console, content)
    console.print(diagnosis_verdict(diagnosis), markup=False)
    console.print(f"\nReport: {report(out)}", markup=False)


def _gauss(options: opt.Gauss) -> None:
    from dataclasses import asdict

    from mfh.gaussian import summary, table_2
    from mfh.gaussian.run import EXPERIMENTS, run
    from mfh.progress import bars
    from mfh.reporting.gaussian import gaussian_verdict
    from mfh.studies.settings import permutations_of

    experiments = EXPERIMENTS if options.experiment == "all" else (options.experiment,)
    out = options.out or Path("runs") / f"gauss-{options.experiment}"
    given = asdict(options)
    for name in ("out", "quiet", "experiment", "num_seeds", "first_seed", "device"):
        given.pop(name)
    if given["permutations"] is not None:
        given["permutations"] = permutations_of(given["permutations"])
    with bars(not options.quiet) as progress:
        frames = run(
            experiments,
            out=out,
            num_seeds=options.num_seeds,
            first_seed=options.first_seed,
            options=given,
            device=options.device,
            progress=progress,
            finish=_reported,
        )
    console = _console()
    for name, frame in frames.items():
        if name == "modify-gamma":
            console.print(table_2(frame), markup=False)
        else:
            console.print(summary(frame).to_string(index=False, float_format="%.2f"), markup=False)
        console.print()
    console.print(gaussian_verdict(frames), markup=False)
    console.print(f"\nReport: {out / 'report.html'}", markup=False)


def _prepare(options: opt.Prepare) -> None:
    given = dict(vars(options.dataset))
    if isinstance(options.dataset, opt.PrepareVggsound):
        from mfh.tasks.vggsound import prepare as vggsound

        settings = VggsoundSizes(**vars(given.pop("sizes")))
        given |= {"settings": settings, "shard": _part(options.dataset.shard)}
        _console().print(vggsound.prepare(**given), markup=False)
        return
    from mfh.tasks.ravdess.prepare import prepare

    made = prepare(**given | {"features": RavdessFeatures(**vars(given["features"]))})
    console = _console()
    counts = ", ".join(f"{count} {split}" for split, count in made.counts.items())
    console.print(
        f"{sum(made.counts.values())} clips ({counts}){'' if made.fresh else ', prepared before'}", markup=False
    )
    if made.skipped:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(made.skipped.items()))
        console.print(f"not used: {reasons}; see {made.folder / 'skipped.csv'}", markup=False)
    console.print(f"next: mfh study ravdess --data {made.folder}", markup=False)


def _part(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    part, slash, parts = text.partition("/")
    if not (slash and part.isdecimal() and parts.isdecimal()):
        raise InputError(f"shard is {text!r}; i/n was expected, for instance 0/4")
    return int(part), int(parts)


def _report(options: opt.Report) -> None:
    from mfh.reporting import report

    page = report(*options.runs, out=options.out, format=options.format, figures=options.figures, style=options.style)
    _console().print(f"Report: {page}")


def _opened(options: opt.TaskCommand, *, keep_students: bool = False) -> "AbstractContextManager[Seed]":
    """The seed that a step works on."""
    from mfh.studies.steps import open_seed

    layer = getattr(options, "layer", None)
    return open_seed(
        options.task,
        seed=options.seed,
        out=_out(options),
        settings=options.settings(),
        layers=[layer] if layer else (),
        progress=_shows_progress(options),
        keep_students=keep_students,
    )


def _shows_progress(options: opt.Quiet) -> bool:
    return not options.quiet and sys.stderr.isatty() and is_first()


def _out(options: opt.TaskCommand) -> Path:
    """The run folder: as given, or runs/ and the task's name."""
    task = options.task
    return options.out or Path("runs") / (Path(task).stem if task.endswith(".py") else task.replace(":", "."))


_COMMANDS: dict[type, Any] = {
    opt.Demo: _demo,
    opt.Pretrain: _pretrain,
    opt.Align: _align,
    opt.Saliency: _saliency,
    opt.Distill: _distill,
    opt.Study: _study,
    opt.Diagnose: _diagnose,
    opt.Gauss: _gauss,
    opt.Prepare: _prepare,
    opt.Report: _report,
}
