"""Options of the command line: one dataclass for each command. Imports nothing heavy.

Options that `mfh.study` and `mfh.diagnose` take as well come from `mfh.studies.settings`; no option is written twice.
"""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, OmitSubcommandPrefixes, Positional, Suppress, arg, subcommand

from mfh.studies.settings import (
    Count,
    Device,
    Execution,
    File,
    Flag,
    Folder,
    GivenFiles,
    Keeping,
    Loss,
    Number,
    Pretrained,
    Processes,
    Scoring,
    Settings,
    Text,
    Training,
)
from mfh.tasks.finding import TaskArguments
from mfh.tasks.sizes import RavdessOptions, VggsoundOptions
from mfh.values import AddSeeds, Bounds, NumSeeds, RandomSeed


@dataclass(frozen=True, kw_only=True)
class Quiet:
    """Options of every command."""

    quiet: Annotated[bool, FlagCreatePairsOff, arg(name="quiet", aliases=("-q",), help_behavior_hint="")] = False
    """Print results only."""


@dataclass(frozen=True, kw_only=True)
class RunCommand(Quiet):
    """Options of every command that has a run folder."""

    out: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """Run folder (default: runs/ and the name of the task or command)."""


@dataclass(frozen=True, kw_only=True)
class OnTask(Quiet):
    """Options of every command that reads a task."""

    task: Annotated[Positional[str], arg(metavar="TASK", help_behavior_hint="")]
    """Shipped task (digits, htad, ...), file.py[:function], module:function, or .npz, .parquet or .csv file."""
    seed: RandomSeed = 0
    """Random seed of data, weights, order and permutations."""
    dataset: OmitArgPrefixes[TaskArguments] = field(default_factory=TaskArguments)


@dataclass(frozen=True, kw_only=True)
class TaskCommand(RunCommand, OnTask):
    """Options of every command that works on a task."""

    training: OmitArgPrefixes[Training] = field(default_factory=Training)
    files: OmitArgPrefixes[Pretrained] = field(default_factory=Pretrained)
    execution: OmitArgPrefixes[Device] = field(default_factory=Device)
    given: Annotated[frozenset[str], Suppress] = frozenset()
    """Names of the options that the command line gives. Beside a study file they count, whatever their value."""

    def asked(self, name: str) -> Any:
        """The value of an option; None where it has its default because nobody gave it."""
        value = getattr(self, name)
        default = next(item.default for item in fields(self) if item.name == name)
        return value if name in self.given or value != default else None

    def settings(self) -> Settings:
        """The settings object that `mfh.study`, `mfh.diagnose` and the steps take."""
        settings = Settings(
            task=self.dataset,
            training=self.training,
            loss=getattr(self, "loss", Loss()),
            scoring=getattr(self, "scoring", Scoring()),
            files=GivenFiles(**vars(self.files)),
            execution=Execution(**vars(self.execution)),
            keeping=getattr(self, "keeping", Keeping()),
        )
        groups = [vars(getattr(settings, group.name)) for group in fields(settings)]
        values = {name: value for group in groups for name, value in group.items() if name in self.given}
        return settings.changed(**values)


@dataclass(frozen=True, kw_only=True)
class Demo(Processes, RunCommand):
    """Let two sensors of one room teach each other on real data. Takes a minute."""

    digits: Annotated[Flag, FlagCreatePairsOff] = False
    """Study digits instead, where the truth is known. Takes two minutes."""
    num_seeds: Annotated[Count, Bounds(1, 10_000)] = None
    """Random seeds, each with another split of the data (default: 8, with --digits 6)."""


@dataclass(frozen=True, kw_only=True)
class Pretrain(TaskCommand):
    """Train one network on labels alone."""

    role: Annotated[Literal["teacher", "student"], arg(aliases=("--modality",))] = "teacher"
    """Network to train (--modality is the old name)."""


@dataclass(frozen=True, kw_only=True)
class Align(TaskCommand):
    """Train teacher and student jointly (Algorithm 1, step 1)."""


@dataclass(frozen=True, kw_only=True)
class Saliency(TaskCommand):
    """Score how modality-general each teacher channel is (Algorithm 1, step 2)."""

    score: Literal["distance", "agreement", "probe"] = "distance"
    """Score: distance (Algorithm 1), agreement (its student part) or probe (cross-fitted R^2)."""
    layer: Text = None
    """Teacher layer to score (default: the task's)."""
    scoring: OmitArgPrefixes[Scoring] = field(default_factory=Scoring)


@dataclass(frozen=True, kw_only=True)
class Distill(TaskCommand):
    """Train one student from one kind of teacher."""

    arm: str = "general"
    """Arm: regular, general, soft, ..., METHOD, METHOD+FOCUS or file.py:MyMethod."""
    ratio: Number = None
    """Fraction of channels that random, specific and general remove (default: the task's, usually 0.5)."""
    score: Literal["distance", "agreement"] = "distance"
    """Score behind the masks of specific and general."""
    layer: Text = None
    """Teacher layer to mask (default: the task's)."""
    loss: OmitArgPrefixes[Loss] = field(default_factory=Loss)
    scoring: OmitArgPrefixes[Scoring] = field(default_factory=Scoring)
    files: OmitArgPrefixes[GivenFiles] = field(default_factory=GivenFiles)


@dataclass(frozen=True, kw_only=True)
class Study(TaskCommand):
    """Compare ways to make a student, with statistics and a report. TASK may be another run's study.toml."""

    arms: Annotated[tuple[str, ...], arg(metavar="ARM ...", help_behavior_hint="")] = ()
    """Arms: the paper's, METHOD, METHOD+FOCUS or file.py:MyMethod (default: the paper's, and controls)."""
    ratios: Annotated[tuple[float, ...], arg(metavar="X ...", help_behavior_hint="")] = ()
    """Fractions of channels that random, specific and general remove (default: the task's, usually 0.5)."""
    sweep: Flag = False
    """Compare the ratios 0, 0.1, ..., 0.9."""
    scores: Annotated[tuple[str, ...], arg(metavar="SCORE ...")] = ("distance",)
    """Scores of specific and general: distance, agreement or both."""
    layers: Annotated[tuple[str, ...], arg(metavar="NAME ...", help_behavior_hint="")] = ()
    """Teacher layers to mask (default: the task's)."""
    weights: Annotated[tuple[tuple[float, float], ...], arg(metavar="X X ...", help_behavior_hint="")] = ()
    """Pairs of label and teacher weight, for instance 1 1 0 1 (default: the loss's pair)."""
    label_fractions: Annotated[tuple[float, ...], arg(metavar="X ...", help_behavior_hint="")] = ()
    """Shares of the training labels, for instance 0.05 0.2 1 (default: 1)."""
    num_seeds: NumSeeds = 5
    """Random seeds, from --seed on."""
    add_seeds: AddSeeds = 0
    """Seeds to add to those in the run folder."""
    select: Flag = False
    """Choose arm and variant on validation data, and test only what is chosen."""
    loss: OmitArgPrefixes[Loss] = field(default_factory=Loss)
    scoring: OmitArgPrefixes[Scoring] = field(default_factory=Scoring)
    files: OmitArgPrefixes[GivenFiles] = field(default_factory=GivenFiles)
    execution: OmitArgPrefixes[Execution] = field(default_factory=Execution)
    keeping: OmitArgPrefixes[Keeping] = field(default_factory=Keeping)


@dataclass(frozen=True, kw_only=True)
class Diagnose(TaskCommand):
    """Predict whether distillation is likely to help."""

    layers: Annotated[tuple[str, ...], arg(metavar="NAME ...", help_behavior_hint="")] = ()
    """Teacher layers to examine (default: the task's)."""
    loss: OmitArgPrefixes[Loss] = field(default_factory=Loss)


@dataclass(frozen=True, kw_only=True)
class Check(OnTask):
    """Read every item of a task and list bad ones. Exit code 1 if there are any."""

    out: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """CSV file for bad items: split, index, reason (default: none)."""
    workers: Annotated[int | None, arg(metavar="N", aliases=("--num-workers",), help_behavior_hint="")] = None
    """Processes that read items; 0 reads without others (default: the task's, usually 0)."""


@dataclass(frozen=True, kw_only=True)
class Cache(Quiet):
    """Show or remove the teacher outputs in a folder of --cache."""

    folder: Annotated[Positional[Path], arg(metavar="DIR")]
    """Folder given as --cache."""
    clear: Annotated[Flag, FlagCreatePairsOff] = False
    """Remove the outputs; other files stay."""


@dataclass(frozen=True, kw_only=True)
class PrepareRavdess(Processes, Quiet):
    """Prepare RAVDESS for --data, from the official archives or the authors' features."""

    source: Annotated[Positional[Path], arg(metavar="SOURCE")]
    """Folder with the official zip files or their content; or the authors' data folder."""
    out: Annotated[Positional[Path], arg(metavar="OUT")]
    """Folder for the prepared RAVDESS."""
    layout: Literal["archives", "features"] = "archives"
    """Layout of SOURCE: archives (official files) or features (the authors')."""
    split: str = "actors"
    """Split: actors (none in two splits), random, or a CSV file (id,split or actor,split)."""
    seed: RandomSeed = 0
    """Random seed of the random split."""
    features: OmitArgPrefixes[RavdessOptions] = field(default_factory=RavdessOptions)


@dataclass(frozen=True, kw_only=True)
class PrepareVggsound(Processes, Quiet):
    """Prepare VGGSound for --data, from clips or the authors' strips."""

    clips: Annotated[Positional[Path], arg(metavar="CLIPS")]
    """Folder or uncompressed tar file with clips; or the authors' folder."""
    out: Annotated[Positional[Path], arg(metavar="OUT")]
    """Folder for the prepared VGGSound."""
    csv: File = None
    """Official vggsound.csv; the layout clips needs it."""
    also: Annotated[tuple[Path, ...], arg(metavar="PATH ...", help_behavior_hint="")] = ()
    """More folders and tar files."""
    layout: Literal["clips", "strips"] = "clips"
    """Layout of CLIPS: clips (<id>_<start>.mp4) or strips (the authors')."""
    test: Folder = None
    """Folder with test strips, where it is separate."""
    classes: Annotated[Text, arg(metavar="N|FILE")] = None
    """Classes to keep: the N with most training clips, or those in a file (default: all)."""
    shard: Annotated[Text, arg(metavar="I/N")] = None
    """Part to prepare, I from 0, where several machines share the work (default: all)."""
    merge: Annotated[Flag, FlagCreatePairsOff] = False
    """Verify the parts in OUT and join them."""
    sizes: OmitArgPrefixes[VggsoundOptions] = field(default_factory=VggsoundOptions)


@dataclass(frozen=True)
class Prepare:
    """Prepare a data set for training."""

    dataset: OmitSubcommandPrefixes[
        OmitArgPrefixes[
            Annotated[PrepareRavdess, subcommand("ravdess")] | Annotated[PrepareVggsound, subcommand("vggsound")]
        ]
    ]
    """Data set to prepare."""

    @property
    def quiet(self) -> bool:
        """Whether to print results only."""
        return self.dataset.quiet


@dataclass(frozen=True, kw_only=True)
class Report(Quiet):
    """Write the report of one run or several."""

    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN ...", help_behavior_hint="")] = ()
    """Run folders."""
    out: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """Folder of the page (default: the run folder; for several runs, the folder that holds them)."""
    format: Literal["html", "md"] = "html"
    """Page format: html (self-contained) or md (shows the files in figures/)."""
    figures: tuple[Literal["svg", "png", "pdf"], ...] = ("svg", "png")
    """File types of the figures beside the page."""
    style: Literal["screen", "paper"] = "screen"
    """Figure style: screen, or paper (for LaTeX)."""


@dataclass(frozen=True, kw_only=True)
class Export(Quiet):
    """Write a study's student as a file to deploy, with a model card."""

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """Run folder of the student."""
    arm: Text = None
    """Arm to export, at its best variant by validation (default: the recommended arm)."""
    format: Annotated[
        Literal["pt2", "onnx", "safetensors"] | None, arg(metavar="pt2|onnx|safetensors", help_behavior_hint="")
    ] = None
    """File format; safetensors holds weights alone (default: that of --out, or pt2)."""
    out: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """File to write (default: student.FORMAT in the run folder)."""
    fraction: Number = None
    """Label fraction of the student (default: the largest)."""
    int8: Annotated[Flag, FlagCreatePairsOff] = False
    """Write 8-bit weights beside an .onnx file, and report their agreement."""
    task: Text = None
    """Task of the run, where its stored name does not find it."""


@dataclass(frozen=True, kw_only=True)
class Gauss(RunCommand):
    """Run the paper's synthetic Gaussian experiments. Defaults are as published, except for --permutations."""

    experiment: Positional[Literal["vary-gamma", "vary-alpha", "modify-gamma", "all"]]
    """Experiment: Figure 2, Figure 3 or Table 2, or all."""
    num_seeds: NumSeeds = 10
    """Data sets in each setting."""
    first_seed: Count = None
    """First random seed (default: 0, for modify-gamma 42)."""
    num_train: Count = None
    """Training pairs (default: 200)."""
    num_test: Count = None
    """Test pairs (default: 1000)."""
    teacher_dim: Count = None
    """Width of the teacher's input (default: 50, for vary-gamma 25)."""
    student_dim: Count = None
    """Width of the student's input (default: 50)."""
    steps: Count = None
    """Full-batch gradient steps (default: 1000)."""
    learning_rate: Number = None
    """Learning rate (default: 0.1)."""
    label_weight: Number = None
    """Weight of the label loss (default: 1)."""
    teacher_weight: Number = None
    """Weight of the divergence (default: 1)."""
    reduction: Annotated[Literal["batchmean", "mean"] | None, arg(metavar="batchmean|mean", help_behavior_hint="")] = (
        None
    )
    """Reduction of the divergence; mean also divides by the number of classes (default: mean)."""
    decisive: Count = None
    """vary-gamma: decisive inputs of each modality (default: 10)."""
    overlaps: Annotated[tuple[int, ...] | None, arg(metavar="N ...", help_behavior_hint="")] = None
    """vary-gamma: shared decisive inputs (default: 0 2 4 6 8 10)."""
    general: Count = None
    """vary-alpha: shared decisive inputs (default: 10)."""
    teacher_only: Annotated[tuple[int, ...] | None, arg(metavar="N ...", help_behavior_hint="")] = None
    """vary-alpha: teacher-only decisive inputs (default: 0 10 20 30 40)."""
    num_decisive: Count = None
    """vary-alpha: decisive inputs in all (default: 50)."""
    counts: Annotated[tuple[tuple[int, int], ...] | None, arg(metavar="N N ...", help_behavior_hint="")] = None
    """modify-gamma: pairs of teacher-only and shared inputs (default: 15 5 10 5 10 10 10 20 10 30)."""
    permutations: Annotated[Text, arg(metavar="exact|N")] = None
    """modify-gamma: random permutations (default: exact; published: 100)."""
    device: str = "auto"
    """Device of the linear models: auto, cpu or cuda."""


Command = (
    Annotated[Demo, subcommand("demo")]
    | Annotated[Pretrain, subcommand("pretrain")]
    | Annotated[Align, subcommand("align")]
    | Annotated[Saliency, subcommand("saliency")]
    | Annotated[Distill, subcommand("distill")]
    | Annotated[Study, subcommand("study")]
    | Annotated[Diagnose, subcommand("diagnose")]
    | Annotated[Check, subcommand("check")]
    | Annotated[Gauss, subcommand("gauss")]
    | Annotated[Prepare, subcommand("prepare")]
    | Annotated[Report, subcommand("report")]
    | Annotated[Export, subcommand("export")]
    | Annotated[Cache, subcommand("cache")]
)

#: Commands by name.
COMMANDS: dict[str, Any] = {kind.__metadata__[0].name: kind.__origin__ for kind in get_args(Command)}
