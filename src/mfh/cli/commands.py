"""The command line: parse, call, print. No logic lives here."""

import logging
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stderr, redirect_stdout, suppress
from dataclasses import replace
from functools import partial
from io import StringIO
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import tyro

import mfh
from mfh.cli import demo
from mfh.cli import options as opt
from mfh.errors import InputError, close_names, in_a_line, plain, shown
from mfh.files import OwnFileError
from mfh.parallel.torchrun import is_first, launched
from mfh.progress import status
from mfh.tasks.finding import ARRAY_FILES, TaskArguments
from mfh.tasks.sizes import RavdessFeatures, VggsoundSizes
from mfh.values import whole

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable

    from mfh.reporting.page import Table as PageTable
    from mfh.studies.folder import NetworkKey, Run
    from mfh.studies.networks import Role, Trained
    from mfh.studies.seed import Seed

_DESCRIPTION = """Cross-modal knowledge distillation: what can cross, and whether it helped. Start with `mfh demo`;
`mfh --version` prints the version."""


def main(args: Sequence[str] | None = None) -> None:
    """Run one command; errors a user can cause end in one line and exit code 2."""
    given = sys.argv[1:] if args is None else list(args)
    with _heard_once():
        strange = next((word for word in given if _is_strange(word)), None)
        if strange is not None:
            sys.exit(_tell(InputError(f"an argument is {shown(strange)}; leave the control characters out")))
        if given == ["--version"]:
            print(f"mfh {mfh.__version__}")  # noqa: T201
            return
        options: Any = _parsed(given)
        if isinstance(options, opt.TaskCommand):
            options = replace(options, given=_given(given))
        if launched() > 1 and type(options) not in _TOGETHER:
            sys.exit(_tell(InputError(_ALONE)))
    handler = logging.StreamHandler()
    handler.setFormatter(_Plain("mfh: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.ERROR if options.quiet else logging.WARNING)
    if not options.quiet:
        logging.getLogger("mfh").setLevel(logging.INFO if is_first() else logging.ERROR)
    if any(word.split("=")[0] == "--modality" for word in given):
        logging.getLogger("mfh").warning("--modality is deprecated; use --role")
    try:
        with _working_together(options):
            code = run_command(options)
    except BaseException as error:
        if isinstance(error, Exception) and not isinstance(error, _TOLD):
            raise  # a bug of mfh, with its traceback
        sys.exit(_tell(error, resumes=not isinstance(options, opt.Check)))
    if code:
        sys.exit(code)


def _parsed(given: Sequence[str]) -> Any:
    """The options of the command that is given first."""
    first = given[0] if given else "--help"
    if first.startswith("-"):
        return _read(opt.Command, "mfh", given or [first], description=_DESCRIPTION)
    kind = opt.COMMANDS.get(first)
    if kind is None:
        hint = close_names(first, [*opt.COMMANDS], limit=len(opt.COMMANDS))
        sys.exit(_tell(InputError(f"there is no command {shown(first)}; {hint}; mfh --help describes them")))
    # A parser of this command alone: hints at misspelt options do not come from other commands.
    return _read(kind, f"mfh {first}", given[1:])


def _read(kind: Any, program: str, words: Sequence[str], **more: Any) -> Any:
    """The options that words stand for. What the parser says in a box of many lines is said in one."""
    parse = partial(tyro.cli, kind, prog=program, args=words, **more)
    try:
        with redirect_stderr(StringIO()) as said:
            return parse()
    except SystemExit as end:
        if end.code != 2 or not said.getvalue():
            raise
    # Parsed again for its words: lines without end break no value. Help alone is as wide as the terminal.
    with redirect_stderr(StringIO()) as said, _endless_lines(), suppress(SystemExit):
        parse()
    if kind is opt.Prepare and words[:1] in (["ravdess"], ["vggsound"]):
        program += f" {words[0]}"
    sys.exit(_tell(InputError(_unboxed(said.getvalue(), program))))


@contextmanager
def _endless_lines() -> Iterator[None]:
    """The parser takes the terminal to be wider than anything it says."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100000"
    try:
        yield
    finally:
        os.environ.pop("COLUMNS")
        if before is not None:
            os.environ["COLUMNS"] = before


def _choices(found: re.Match[str]) -> str:
    """A choice that there is not, and those that there are, in one order; None is nothing to type."""
    names = sorted({*re.findall(r"'([^']+)'", found[3])} - {"None"})
    return f"{found[1]} for {found[2]}; expected one of {', '.join(names)}"


#: Words of the parser and of Python, and what is said instead. Option names are a tuple in tyro 1.0.0.
_CLEARER: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"invalid literal for int\(\) with base 10:", "expected a whole number, got"),
    (r"could not convert string to float:", "expected a number, got"),
    (r"(?i)no type matching \{None\}\|(.*?) could be instantiated from \[(.*?)\]\..*", r"expected \1, got \2"),
    (r"expected INT, got", "expected a whole number, got"),
    (r"expected FLOAT, got", "expected a number, got"),
    (r"expected \{\[INT \[INT \.\.\.\]\]\}, got", "expected whole numbers, got"),
    (r"expected \{\[INT INT \[INT INT \.\.\.\]\]\}, got", "expected pairs of whole numbers, got"),
    (r"Could not find valid parse for arguments: \[(.*)\]", r"cannot use \1"),
    (r"argument '\('([^']+)'[^)]*\)'", r"argument '\1'"),
    (r"(invalid choice .*?) for argument ('.+?')\. Expected one of \((.*)\)$", _choices),
    (r"Missing value for argument '(\S+)'\. Expected \d+ values", r"\1 has no value"),
)


def _unboxed(box: str, program: str) -> str:
    """The message in a box: what stands above its first rule, and the names of options that were perhaps meant."""
    rows = [line[1:-1].rstrip() for line in box.splitlines()[1:-1]]
    parts = "\n".join("\f" if row and not row.strip(" \u2500-") else row for row in rows).split("\f")
    part = next(part for part in [*parts, box] if part.strip())
    if part.lstrip().startswith("Missing from"):
        names = re.findall(r"(?m)^ {5}(\S+)", part)  # their help is set in further
        part = f"missing from {program}: {', '.join(names)}"
    message = " ".join(part.split()).rstrip(".")
    for before, after in _CLEARER:
        message = re.sub(before, after, message).rstrip(".")
    if re.search("Perhaps you meant|Arguments similar to", box):
        close = sorted({name for row in rows if re.match(r" {5}-", row) for name in re.findall(r"--[\w-]+", row)[:1]})
        message += f"; did you mean {' or '.join(close)}?"
    return f"{message[0].lower()}{message[1:]}; {program} --help describes the options"


class _Plain(logging.Formatter):
    """Log lines that may quote what others wrote."""

    def format(self, record: logging.LogRecord) -> str:
        return plain(super().format(record))


def _given(words: Sequence[str]) -> frozenset[str]:
    """Names of the options among the words of a command line, as fields have them."""
    names = [word.partition("=")[0][2:].replace("-", "_") for word in words if word.startswith("--")]
    return frozenset([*names, *(name.removeprefix("no_") for name in names)])


def _is_strange(word: str) -> bool:
    """Whether the terminal would obey an argument where it is repeated; file names in other encodings may be."""
    return plain(word) != word and not any("\ud800" <= sign <= "\udfff" for sign in word)


def run_command(options: Any) -> int | None:
    """Run the command that these options belong to; returns its exit code, or None for 0."""
    code: int | None = _COMMANDS[type(options)](options)
    return code


#: Exceptions that are told in one line.
_TOLD = (InputError, OSError, MemoryError)


def _tell(error: BaseException, resumes: bool = True) -> int:
    """Say what went wrong, and return the exit code; what is no user's fault keeps its traceback.

    Args:
        error: What ended the command.
        resumes: Whether the command keeps what it has finished, so that it can go on later.
    """
    if isinstance(error, InputError):
        message, code = str(error), 2
    elif isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        message = f"{error.strerror or error}{where}"
        if resumes and isinstance(error, OwnFileError):
            message += "; what was finished is kept, and the same command resumes"
        code = 2
    elif isinstance(error, KeyboardInterrupt):
        message, code = "interrupted" + "; the same command resumes" * resumes, 130
    elif isinstance(error, MemoryError):
        message, code = "there is not enough memory for this; choose smaller sizes or fewer processes", 2
    elif not isinstance(error, Exception):  # no command ends by itself, so SystemExit and the like are the user's code
        message, code = f"the task's code ended the program ({in_a_line(error)}); let it raise an error", 2
    else:
        traceback.print_exception(error)
        return 1
    print(f"mfh: {' '.join(plain(message).split())}", file=sys.stderr)  # noqa: T201
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


def _console(width: int = 160) -> "Console":
    """The terminal; without one, tables are so many columns wide."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else width  # type: ignore[assignment]
    return Console(highlight=False, soft_wrap=True, width=width, quiet=not is_first())


def _say(text: object) -> None:
    """Print text that may quote what others wrote: no markup, and no control characters."""
    console = _console()
    for line in plain(str(text)).split("\n"):
        # A path that is longer than a line stays in one piece, to be copied.
        whole = not console.is_terminal or any(len(word) > console.width for word in line.split(" "))
        console.print(line, markup=False, soft_wrap=whole)


def _demo(options: opt.Demo) -> None:
    from mfh.studies.settings import Settings

    if options.digits:
        settings = Settings.of(processes=options.processes)
        seeds = options.num_seeds or 6
        _run_study(
            options.out or Path("runs/demo-digits"), options.quiet, task="digits", num_seeds=seeds, settings=settings
        )
        return
    with status("loading PyTorch", not options.quiet):
        from mfh.reporting import report
        from mfh.reporting.summary import arms_table
        from mfh.studies.folder import Run
        from mfh.studies.running import study
    out = options.out or Path("runs/demo")
    runs: dict[demo.Direction, Run] = {}
    for direction in demo.DIRECTIONS:
        _say(f"\n{direction.heading}")
        settings = Settings.of(processes=options.processes, set=direction.arguments, **demo.TRAINING)
        study(
            "htad",
            arms=demo.ARMS,
            num_seeds=options.num_seeds or demo.NUM_SEEDS,
            out=out / direction.folder,
            settings=settings,
            progress=not options.quiet,
            finish=_note_command,
        )
        runs[direction] = Run.open(out / direction.folder)
        _print_table(replace(arms_table(runs[direction].summary), caption=""))
    _say("")
    _print_list(demo.findings(runs))
    with status("exporting the student", not options.quiet):
        lines = demo.export(runs[demo.DIRECTIONS[0]])
    with status("writing the report", not options.quiet):
        page = report(*runs.values(), out=out)
    _say(f"\nReport: {page}\n")
    _say("\n".join(lines))


def _study(options: opt.Study) -> None:
    _run_study(
        _out(options),
        options.quiet,
        task=options.task,
        arms=options.arms,
        ratios=[step / 10 for step in range(10)] if options.sweep else options.ratios,
        scores=options.asked("scores"),
        layers=options.layers,
        weights=options.weights,
        label_fractions=options.label_fractions,
        num_seeds=options.asked("num_seeds"),
        first_seed=options.asked("seed"),
        add_seeds=options.add_seeds,
        select=options.asked("select"),
        settings=options.settings(),
    )


def _run_study(out: Path, quiet: bool, **arguments: Any) -> None:
    with status("loading PyTorch", not quiet):
        from mfh.reporting import report
        from mfh.reporting.student import student_lines
        from mfh.studies.running import study
        from mfh.studies.study_file import is_study_file, read_study

    def finish(run: "Run") -> None:
        task, given = arguments["task"], arguments["settings"].task
        _note_command(run, given.or_else(read_study(task)["settings"].task.facts()) if is_study_file(task) else given)
        page = report(run)
        _print_study(run)
        _say(f"\nReport: {page}")
        for line in student_lines(run):
            _say(line)

    study(out=out, progress=not quiet, finish=finish, **arguments)


def _reported(run: "Run") -> Path:
    """Keep the command that repeats a run beside its results, and write the report."""
    from mfh.reporting import report

    _note_command(run)
    return report(run)


def _note_command(run: "Run", given: TaskArguments | None = None) -> None:
    """Keep the command that repeats a run beside its results, unless one is noted already.

    Args:
        run: The run.
        given: Arguments of the task that the command line or a study file gives. Others, which the run folder had from
            an earlier step, are added to the command.
    """
    if "repeat" not in run.environment:
        more = [] if given is None else _task_words(given.lacking(run.config))
        run.write_environment(run.environment | {"repeat": _repeat_command(run.num_seeds, more)})


def _repeat_command(num_seeds: int, more: Sequence[str] = ()) -> str:
    """The command line just given, with `more`; seeds that were added count as if asked for at once."""
    words = sys.argv[1:]
    words = [part for word in words for part in (word.split("=", 1) if word.startswith("--") else [word])]
    if "--add-seeds" in words:
        for option in ("--add-seeds", "--num-seeds"):
            if option in words:
                place = words.index(option)
                words = words[:place] + words[place + 2 :]
        words += ["--num-seeds", str(num_seeds)]
    return shlex.join(["mfh", *words, *more])


def _task_words(arguments: TaskArguments) -> list[str]:
    """Arguments of a task as words of a command line."""
    words = ["--data", arguments.data] if arguments.data else []
    words += ["--preset", arguments.preset] if arguments.preset else []
    words += ["--augment"] if arguments.augment else []
    words += ["--set", *arguments.set] if arguments.set else []
    return [str(word) for word in words]


def _print_study(run: "Run") -> None:
    from mfh.reporting.summary import arms_table, recommendation
    from mfh.studies.findings import study_finding

    _print_table(arms_table(run.summary))
    headline, *lines = study_finding(run).split("\n")
    _say(f"\n{headline}")
    _print_list(lines)
    if run.selection is not None:
        _say(recommendation(run.selection, run.scale, tested_all=not run.config.get("select")))


def _print_list(lines: Sequence[str]) -> None:
    """Print lines with a mark before each, set in as a whole."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 1))
    for line in lines:
        table.add_row("*", Text(plain(line)))
    _console().print(table)


def _print_table(content: "PageTable", width: int = 160) -> None:
    console = _console(width)
    # The widest table that fits: headings in one line; folded; intervals below their numbers, columns close together.
    numbers = [kind == "number" for kind in content.alignments]
    rows = [
        [cell.replace(" (", "\n(") if number else cell for cell, number in zip(row, numbers, strict=True)]
        for row in content.rows
    ]
    narrowest = _drawn(replace(content, rows=rows), content.alignments, gap=0)
    wide = [_drawn(content, fold=False), _drawn(content)]
    endless = console.options.update(width=1000)
    fits = [table for table in wide if console.measure(table, options=endless).maximum <= console.width]
    table = [*fits, narrowest][0]
    if content.caption:
        _say(content.caption)
    console.print(table)


def _drawn(content: "PageTable", alignments: Sequence[str] = (), gap: int = 1, *, fold: bool = True) -> "RichTable":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    def cells(texts: Sequence[str]) -> list[Text]:
        return [Text(plain(text)) for text in texts]

    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, gap, 0, 0))
    for place, kind in enumerate(alignments or content.alignments):
        # Headings are folded to the width of their column, which would otherwise fold the numbers.
        lines = [line for row in content.rows for line in row[place].split("\n")]
        longest = max(map(len, lines), default=0)
        width = max(longest, 9) if fold else 1000
        heading = "\n".join(wrap(plain(content.columns[place]), width, break_long_words=False))
        table.add_column(Text(heading), justify="right" if kind == "number" else "left", no_wrap=not place)
    for row in content.rows:
        table.add_row(*cells(row))
    return table


def _say_next(options: opt.TaskCommand, command: str, *words: str) -> None:
    """The last line of a single step: a command that goes on with what it left."""
    words += (*_task_words(options.dataset),)
    words += ("--seed", str(options.seed)) if options.seed else ()
    words += ("--out", str(options.out)) if options.out is not None else ()
    _say(f"next: {shlex.join(['mfh', command, options.task, *words])}")


def _pretrain(options: opt.Pretrain) -> None:
    with _opened(options) as made:
        _report_metric(made, made.networks.pretrained(options.role), options.role, options.role)
        if made.protocol.joint:
            _say_next(options, "align")
        else:
            _say_next(options, "distill", "--arm", "regular")


def _align(options: opt.Align) -> None:
    with _opened(options) as made:
        if not made.protocol.joint:
            _say("this protocol has no joint step: the networks trained on labels stand for the aligned pair")
        _report_metric(made, made.networks.aligned("teacher"), "teacher", "aligned-teacher")
        _report_metric(made, made.networks.aligned("student"), "student", "aligned-student")
        _say_next(options, "saliency")


def _report_metric(made: "Seed", trained: "Trained", role: "Role", key: "NetworkKey", note: str = "") -> None:
    scale = made.task.problem.metric.scale
    value = scale.show(made.evaluate(trained.network, "val", role))
    assert made.folder is not None
    path = made.folder.network_file(key)
    place = f", in {path}" if path.exists() else ""  # none was written of a network that was given
    _say(f"{path.stem}: validation {scale.words} {value}{note}{place}")


def _saliency(options: opt.Saliency) -> None:
    with _opened(options) as made:
        saliency = made.saliency(options.score, options.layer or "")
        path, picture = made.saliency_files(options.score, options.layer or "")
        if is_first():
            saliency.plot(picture, truth=None if options.layer else made.task.truth)
        how = "cross-fitted" if saliency.permutations is None else f"permutations: {saliency.permutations}"
        best = ", ".join(f"{c} ({saliency.scores[c]:.3g})" for c in saliency.ranking[:5])
        lines = [f"{len(saliency.scores)} channels of layer {saliency.layer}, {saliency.samples} pairs, {how}"]
        lines.append(f"most modality-general: {best}")
        auroc = None if options.layer else made.auroc(options.score)
        if auroc is not None:
            lines.append(f"AUROC against the known truth: {auroc:.3f}")
        _say("\n".join([*lines, f"in {path}, picture {picture}"]))
        layer = ("--layer", options.layer) if options.layer else ()
        if options.score == "probe":
            _say_next(options, "distill", "--arm", "soft", *layer)
        else:
            score = () if options.score == "distance" else ("--score", options.score)
            _say_next(options, "distill", "--arm", "general", *score, *layer)


def _distill(options: opt.Distill) -> None:
    from mfh.studies.arms import find_arms
    from mfh.studies.grid import MASKED_BY_RATIO, Cell, cells

    arms = find_arms([options.arm])
    with _opened(options, keep_students=True, methods=arms.methods) as made:
        default = made.protocol.ratio if Cell(arms.names[0]).focus in MASKED_BY_RATIO else None
        ratio = default if options.ratio is None else options.ratio
        ratios = () if ratio is None else (ratio,)
        layers = [options.layer or made.task.layer]
        (cell,) = cells(arms.names, ratios, [options.score], layers, methods=arms.methods)
        if cell.teacher is None:
            raise InputError(
                f"arm is {options.arm!r}, which distils from no teacher; use 'mfh pretrain' or 'mfh align'"
            )
        made.networks.warn_of_unused([cell])
        student = made.student(cell)
        _report_metric(made, student, "student", cell, f" (epoch {student.best_epoch})")
        _say_next(options, "study")


def _diagnose(options: opt.Diagnose) -> None:
    from mfh.reporting import report
    from mfh.reporting.diagnosis import diagnosis_tables
    from mfh.studies.diagnosis import diagnose
    from mfh.studies.diagnosis_text import diagnosis_verdict

    out = _out(options)
    diagnosis = diagnose(
        options.task,
        layers=options.layers,
        seed=options.seed,
        out=out,
        settings=options.settings(),
        progress=_shows_progress(options),
    )
    for content in diagnosis_tables(diagnosis):
        _print_table(content)
    headline, *lines = diagnosis_verdict(diagnosis)
    _say(headline)
    _print_list(lines)
    _say(f"\nReport: {report(out)}")
    _say_next(options, "study")


def _check(options: opt.Check) -> int:
    from mfh.files import write_table
    from mfh.reporting.items import class_table, item_table, totals
    from mfh.studies.criteria import FEWEST
    from mfh.tasks.finding import find_task
    from mfh.tasks.items import find

    task = find_task(options.task, options.dataset).make(options.seed)
    found = find(task, seed=options.seed, num_workers=options.workers, progress=not options.quiet)
    for content in (item_table(found), class_table(found, task.class_names)):
        if content is not None:
            _print_table(content, width=80)
    for sentence in found.odd:
        _say(f"odd: {sentence}")
    _say(totals(found))
    if options.out is not None:
        rows = [{"split": split, "index": index, "reason": reason} for (split, index), reason in found.bad.items()]
        write_table(options.out, ("split", "index", "reason"), rows)
        _say(f"Table: {options.out}")
    if not found.bad:
        command = "diagnose" if len(task.val) >= FEWEST and task.teacher is not None else "study"
        _say(f"next: {shlex.join(['mfh', command, options.task, *_task_words(options.dataset)])}")
    return 1 if found.bad else 0


def _gauss(options: opt.Gauss) -> None:
    from dataclasses import asdict

    from mfh.gaussian.run import EXPERIMENTS, run
    from mfh.progress import bars
    from mfh.reporting.gaussian import gaussian_tables, gaussian_verdict
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
    for name, frame in frames.items():
        for table in gaussian_tables(frame):
            _print_table(replace(table, caption=f"{name}. {table.caption}"))
            _say("")
    _print_list(gaussian_verdict(frames))
    _say(f"\nReport: {out / 'report.html'}")


def _prepare(options: opt.Prepare) -> None:
    given = dict(vars(options.dataset))
    if isinstance(options.dataset, opt.PrepareVggsound):
        from mfh.tasks.vggsound import prepare as vggsound

        settings = VggsoundSizes(**vars(given.pop("sizes")))
        given |= {"settings": settings, "shard": _part(options.dataset.shard)}
        _say(vggsound.prepare(**given))
        return
    from mfh.tasks.ravdess.prepare import prepare

    made = prepare(**given | {"features": RavdessFeatures(**vars(given["features"]))})
    counts = ", ".join(f"{count} {split}" for split, count in made.counts.items())
    _say(f"{sum(made.counts.values())} clips ({counts}){'' if made.fresh else ', prepared before'}")
    if made.skipped:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(made.skipped.items()))
        _say(f"not used: {reasons}; see {made.folder / 'skipped.csv'}")
    _say(f"next: mfh study ravdess --data {made.folder}")


def _part(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    part, _, parts = text.partition("/")
    numbers = whole(part), whole(parts)
    if numbers[0] is None or numbers[1] is None:
        raise InputError(f"shard is {text!r}; i/n was expected, for instance 0/4")
    return numbers[0], numbers[1]


def _report(options: opt.Report) -> None:
    from mfh.reporting import report

    page = report(*options.runs, out=options.out, format=options.format, figures=options.figures, style=options.style)
    _say(f"Report: {page}")


def _export(options: opt.Export) -> None:
    from mfh.reporting import report
    from mfh.studies.recommended import Students

    students = Students.of(options.run, options.task)
    chosen = students.best(options.fraction) if options.arm is None else students.of_arm(options.arm, options.fraction)
    made = chosen.export(options.out, format=options.format, int8=options.int8)
    _say(chosen.report())
    for line in made.lines:
        _say(line)
    with status("writing the report", not options.quiet):  # its last section names the student
        page = report(students.run)
    _say(f"Report: {page}")


def _opened(
    options: opt.TaskCommand, *, keep_students: bool = False, methods: Mapping[str, Any] | None = None
) -> "AbstractContextManager[Seed]":
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
        methods=methods,
    )


def _shows_progress(options: opt.Quiet) -> bool:
    return not options.quiet and sys.stderr.isatty() and is_first()


def _out(options: opt.TaskCommand) -> Path:
    """The run folder: as given, or runs/ and the task's name."""
    if options.out is not None:
        return options.out
    file, colon, name = options.task.rpartition(":")
    path = Path(file if colon and file.endswith(".py") else options.task)
    if path.suffix in (".py", ".toml", *ARRAY_FILES):
        return Path("runs") / (f"{path.stem}.{name}" if path.name != Path(options.task).name else path.stem)
    return Path("runs") / options.task.replace(":", ".")


def _cache(options: opt.Cache) -> None:
    from mfh.data.cache import OutputCache

    cache = OutputCache(options.folder)
    held = [path.stat().st_size for path in cache.files() if path.suffix == ".rows"]
    if options.clear:
        cache.clear()
    _say(f"{options.folder}: {len(held)} outputs, {sum(held) / 1e6:.1f} MB{', removed' if options.clear else ''}")


_COMMANDS: dict[type, Any] = {
    opt.Demo: _demo,
    opt.Pretrain: _pretrain,
    opt.Align: _align,
    opt.Saliency: _saliency,
    opt.Distill: _distill,
    opt.Study: _study,
    opt.Diagnose: _diagnose,
    opt.Check: _check,
    opt.Gauss: _gauss,
    opt.Prepare: _prepare,
    opt.Report: _report,
    opt.Export: _export,
    opt.Cache: _cache,
}
