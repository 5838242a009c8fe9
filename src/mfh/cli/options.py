"""Options of the command line: one dataclass for each command. Imports nothing heavy.

Options that `mfh.study` and `mfh.diagnose` take as well come from `mfh.studies.settings`; no option is written twice.
"""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from tyro.conf import OmitArgPrefixes, OmitSubcommandPrefixes, Positional, Suppress, arg, subcommand

from mfh.studies.settings import (
    Count,
    Device,
    Execution,
    File,
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
    Unset,
)
from mfh.tasks.finding import TaskArguments
from mfh.tasks.sizes import RavdessOptions, VggsoundOptions
from mfh.values import AddSeeds, Bounds, NumSeeds, RandomSeed


@dataclass(frozen=True, kw_only=True)
class Quiet:
    """Options of every command."""

    quiet: Annotated[bool, arg(name="quiet", aliases=("-q",))] = False
    """Print results only, without progress."""


@dataclass(frozen=True, kw_only=True)
class RunCommand(Quiet):
    """Options of every command that has a run folder."""

    out: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """Run folder (default: runs/ followed by the name of the task or command)."""


@dataclass(frozen=True, kw_only=True)
class TaskCommand(RunCommand):
    """Options of every command that works on a task."""

    task: Annotated[Positional[str], arg(metavar="TASK")]
    """Task: a shipped one (digits, htad, ...), file.py, file.py:function, module:function, .npz, .parquet or .csv."""
    seed: RandomSeed = 0
    """Random seed of data, initial weights, order of data and permutations; a study's first seed."""
    dataset: OmitArgPrefixes[TaskArguments] = field(default_factory=TaskArguments)
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
    """Run the main job on real data: two sensors of one room teach each other with few labels. Takes a minute."""

    digits: bool = False
    """Use the shipped task digits instead, where the truth about every channel is known: all arms, two minutes."""
    num_seeds: Annotated[Count, Bounds(1, 10_000)] = None
    """Number of random seeds, each with another split of the data (default: 8, with --digits 6)."""


@dataclass(frozen=True, kw_only=True)
class Pretrain(TaskCommand):
    """Train one network of a task on labels alone."""

    role: Annotated[Literal["teacher", "student"], arg(aliases=("--modality",))] = "teacher"
    """Network to train: the teacher or the student (--modality is the old name of this option)."""


@dataclass(frozen=True, kw_only=True)
class Align(TaskCommand):
    """Train teacher and student jointly (Algorithm 1, step 1)."""


@dataclass(frozen=True, kw_only=True)
class Saliency(TaskCommand):
    """Score how modality-general each channel of the teacher is (Algorithm 1, step 2, or the probe)."""

    score: Literal["distance", "agreement", "probe"] = "distance"
    """Score: distance (Algorithm 1), agreement (its part that involves the student), probe (cross-fitted R^2)."""
    layer: Text = None
    """Layer of the teacher to score (default: the task's)."""
    scoring: OmitArgPrefixes[Scoring] = field(default_factory=Scoring)


@dataclass(frozen=True, kw_only=True)
class Distill(TaskCommand):
    """Train one student from one kind of teacher."""

    arm: str = "general"
    """Arm: regular, aligned, random, specific, general, soft, ..., METHOD, METHOD+FOCUS, or file.py:MyMethod."""
    ratio: Number = None
    """Fraction of channels to remove, for random, specific and general (default: the task's, usually 0.5)."""
    score: Literal["distance", "agreement"] = "distance"
    """Score behind the mask, for specific and general."""
    layer: Text = None
    """Layer of the teacher to mask (default: the task's)."""
    loss: OmitArgPrefixes[Loss] = field(default_factory=Loss)
    scoring: OmitArgPrefixes[Scoring] = field(default_factory=Scoring)
    files: OmitArgPrefixes[GivenFiles] = field(default_factory=GivenFiles)


@dataclass(frozen=True, kw_only=True)
class Study(TaskCommand):
    """Compare all ways to make a student, paired by seed, with statistics and a report.

    TASK may also be a .toml file that holds a whole study, for instance the study.toml of a run folder.
    """

    arms: Annotated[tuple[str, ...], Unset] = ()
    """Arms to compare: the paper's, METHOD, METHOD+FOCUS or file.py:MyMethod (default: the paper's, and controls)."""
    ratios: Annotated[tuple[float, ...], Unset] = ()
    """Fractions of channels to remove, for random, specific and general (default: the task's, usually 0.5)."""
    sweep: bool = False
    """Compare the ratios 0 to 0.9 in steps of 0.1."""
    scores: tuple[str, ...] = ("distance",)
    """Scores behind the masks of specific and general: distance, agreement or both."""
    layers: Annotated[tuple[str, ...], Unset] = ()
    """Layers of the teacher to mask (default: the task's)."""
    weights: Annotated[tuple[tuple[float, float], ...], Unset] = ()
    """Pairs of label weight and teacher weight to compare, for instance 1 1 0 1 1 3 (default: the loss's own pair)."""
    label_fractions: Annotated[tuple[float, ...], Unset] = ()
    """Shares of the training labels to compare, for instance 0.05 0.2 1 (default: all labels)."""
    num_seeds: NumSeeds = 5
    """Number of random seeds, from --seed on."""
    add_seeds: AddSeeds = 0
    """Add this many seeds to those already in the run folder."""
    select: bool = False
    """Choose arm, ratio, layer, score and weights on validation data; read the test split only for the chosen ones."""
    loss: OmitArgPrefixes[Loss] = field(default_factory=Loss)
    scoring: OmitArgPrefixes[Scoring] = field(default_factory=Scoring)
    files: OmitArgPrefixes[GivenFiles] = field(default_factory=GivenFiles)
    execution: OmitArgPrefixes[Execution] = field(default_factory=Execution)
    keeping: OmitArgPrefixes[Keeping] = field(default_factory=Keeping)


@dataclass(frozen=True, kw_only=True)
class Diagnose(TaskCommand):
    """Predict whether distillation is likely to help, from two networks trained on labels."""

    layers: Annotated[tuple[str, ...], Unset] = ()
    """Layers of the teacher to look into (default: the task's)."""
    loss: OmitArgPrefixes[Loss] = field(default_factory=Loss)


@dataclass(frozen=True, kw_only=True)
class Check(Quiet):
    """Read every item of a task once and list the bad ones. Exit code 1 if there are any."""

    task: Annotated[Positional[str], arg(metavar="TASK")]
    """Task to check: a shipped one, file.py, file.py:function, module:function, or a .npz, .parquet or .csv file."""
    seed: RandomSeed = 0
    """Random seed of the task's data."""
    out: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """CSV file for all bad items: split, index and reason (default: none is written)."""
    workers: Annotated[int | None, arg(metavar="N", aliases=("--num-workers",), help_behavior_hint="")] = None
    """Number of processes that read items; 0 reads in the command's own process (default: the task's, usually 0)."""
    dataset: OmitArgPrefixes[TaskArguments] = field(default_factory=TaskArguments)


@dataclass(frozen=True, kw_only=True)
class Cache(Quiet):
    """Show how many outputs of teachers a folder of --cache holds, or remove them."""

    folder: Annotated[Positional[Path], arg(metavar="DIR")]
    """Folder that was given as --cache."""
    clear: bool = False
    """Remove the outputs; other files in the folder stay."""


@dataclass(frozen=True, kw_only=True)
class PrepareRavdess(Processes, Quiet):
    """Prepare RAVDESS: from the official archives, or the authors' features, to a folder for --data."""

    source: Annotated[Positional[Path], arg(metavar="SOURCE")]
    """Folder with the official zip files, what was in them, or both; or the authors' data folder."""
    out: Annotated[Positional[Path], arg(metavar="OUT")]
    """Folder to write the prepared RAVDESS to."""
    layout: Literal["archives", "features"] = "archives"
    """Layout of SOURCE: archives (official files) or features (the authors' aud_features, vid_features, data_file)."""
    split: str = "actors"
    """Split: actors (no actor in two splits), random (actors mixed), or a CSV file (id,split or actor,split)."""
    seed: RandomSeed = 0
    """Random seed of the split random."""
    features: OmitArgPrefixes[RavdessOptions] = field(default_factory=RavdessOptions)


@dataclass(frozen=True, kw_only=True)
class PrepareVggsound(Processes, Quiet):
    """Prepare VGGSound: from clips and the official annotations, or the authors' strips, to a folder for --data."""

    clips: Annotated[Positional[Path], arg(metavar="CLIPS")]
    """Folder or uncompressed tar file with the clips; or the authors' training folder (or one with Train and Test)."""
    out: Annotated[Positional[Path], arg(metavar="OUT")]
    """Folder to write the prepared VGGSound to."""
    csv: File = None
    """Official annotations, vggsound.csv; required for the layout clips."""
    also: Annotated[tuple[Path, ...], Unset] = ()
    """More folders and tar files with clips."""
    layout: Literal["clips", "strips"] = "clips"
    """Layout of CLIPS: clips (<id>_<start>.mp4) or strips (the authors' video_jpg, audio_npy or audio, label.json)."""
    test: File = None
    """Folder with the test clips of the layout strips, where it is separate."""
    classes: Text = None
    """Number of classes to keep, those with the most annotated training clips; or a file of labels (default: all)."""
    shard: Text = None
    """Part to prepare, as i/n with i from 0, so that several machines can share the work (default: everything)."""
    merge: bool = False
    """Verify the parts in OUT and put them together."""
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
class Report(RunCommand):
    """Write the report of a run, or one page that compares several."""

    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN")] = ()
    """Run folders to report on."""
    format: Literal["html", "md"] = "html"
    """Page format: html (one self-contained page) or md (Markdown that shows the files in figures/)."""
    figures: tuple[Literal["svg", "png", "pdf"], ...] = ("svg", "png")
    """File types of the figures that stand beside the page."""
    style: Literal["screen", "paper"] = "screen"
    """Figure style: screen, or paper (serif, one or two text columns wide, for LaTeX)."""


@dataclass(frozen=True, kw_only=True)
class Export(Quiet):
    """Write the student that a study recommends, or that of an arm, as a file to deploy, with a model card."""

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """Run folder whose student to export."""
    arm: Text = None
    """Arm whose student to export, at its best variant by validation (default: the arm that the study recommends)."""
    format: Annotated[Literal["pt2", "onnx", "safetensors"] | None, Unset] = None
    """File format: pt2 (torch.export), onnx or safetensors, weights alone (default: that of --out's name, or pt2)."""
    out: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """File to write (default: student.pt2, .onnx or .safetensors in the run folder)."""
    fraction: Number = None
    """Label fraction of the student, in a study of several (default: the largest)."""
    int8: bool = False
    """Write a second file with 8-bit weights beside an .onnx file, and report its agreement with the student."""
    task: Text = None
    """Task of the run, where it cannot be found by the name that the run keeps."""


@dataclass(frozen=True, kw_only=True)
class Gauss(RunCommand):
    """Run the paper's synthetic Gaussian experiments. Options that are not given are as published."""

    experiment: Positional[Literal["vary-gamma", "vary-alpha", "modify-gamma", "all"]]
    """Experiment to run: Figure 2, Figure 3 or Table 2 of the paper, or all three."""
    num_seeds: NumSeeds = 10
    """Number of data sets in each setting."""
    first_seed: Count = None
    """First of the consecutive random seeds (published: 0, for modify-gamma 42)."""
    num_train: Count = None
    """Number of training pairs (published: 200)."""
    num_test: Count = None
    """Number of test pairs (published: 1000)."""
    teacher_dim: Count = None
    """Dimension of the teacher's input (published: 25 for vary-gamma, otherwise 50)."""
    student_dim: Count = None
    """Dimension of the student's input (published: 50)."""
    steps: Count = None
    """Number of full-batch gradient steps (published: 1000)."""
    learning_rate: Number = None
    """Learning rate of gradient descent (published: 0.1)."""
    label_weight: Number = None
    """Label loss weight in the synthetic experiments (published: 1)."""
    teacher_weight: Number = None
    """Divergence weight in the synthetic experiments (published: 1)."""
    reduction: Annotated[Literal["batchmean", "mean"] | None, Unset] = None
    """Reduction of the divergence; mean also divides by the number of classes (published: mean)."""
    decisive: Count = None
    """vary-gamma: number of decisive inputs that each modality has (published: 10)."""
    overlaps: Annotated[tuple[int, ...] | None, Unset] = None
    """vary-gamma: numbers of decisive inputs that both modalities share (published: 0 2 4 6 8 10)."""
    general: Count = None
    """vary-alpha: number of decisive inputs that both modalities have (published: 10)."""
    teacher_only: Annotated[tuple[int, ...] | None, Unset] = None
    """vary-alpha: numbers of further decisive inputs that only the teacher has (published: 0 10 20 30 40)."""
    num_decisive: Count = None
    """vary-alpha: number of all decisive inputs (published: 50)."""
    counts: Annotated[tuple[tuple[int, int], ...] | None, Unset] = None
    """modify-gamma: pairs of teacher-only and general inputs (published: 15 5 10 5 10 10 10 20 10 30)."""
    permutations: Text = None
    """modify-gamma: exact, or a number of random permutations (default: exact; published: 100)."""
    device: str = "auto"
    """Device to train the linear models on: auto, cpu or cuda."""


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
