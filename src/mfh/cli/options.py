"""Options of the command line: one source for defaults, help and validation. Imports nothing heavy."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import OmitArgPrefixes, OmitSubcommandPrefixes, Positional, arg, subcommand

from mfh.studies.grid import ARMS

Role = Literal["teacher", "student"]


@dataclass(frozen=True)
class RunOptions:
    """Options of every command."""

    out: Path | None = None
    """Run folder; default: runs/ and the name of the task or command."""
    quiet: Annotated[bool, arg(name="quiet", aliases=("-q",))] = False
    """Print results only: no progress."""


@dataclass(frozen=True)
class TaskOptions:
    """Options of every command that works on a task."""

    task: Positional[str]
    """digits, ravdess, vggsound, path/to/file.py with a function task(), or package.module:function."""
    data: str | None = None
    """A prepared folder (for vggsound also a URL that fsspec knows), handed to the task."""
    preset: Literal["paper"] | None = None
    """Handed to the task: the published protocol."""
    augment: bool = False
    """Handed to the task: vary the training inputs at random."""
    seed: int = 0
    """Of data, initial weights, order of data and permutations; a study's first."""
    device: str | None = None
    """For instance cpu or cuda:1; default: a GPU if there is one."""
    epochs: int | None = None
    """Instead of the task's."""
    batch_size: int | None = None
    """Instead of the task's."""
    teacher_checkpoint: Path | None = None
    """Weights of a pretrained teacher (safetensors or a torch state_dict), instead of training one."""
    student_checkpoint: Path | None = None
    """Weights of a student trained on labels, instead of training one: the arm no-kd, and the probe's features."""


@dataclass(frozen=True)
class TrainingOptions:
    """Options of every command that trains."""

    accumulate: int | None = None
    """Batches per step, instead of the task's (1); with several processes, of each."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] | None = None
    """Of training, instead of the task's (32-true); 16-mixed needs a GPU."""
    num_workers: int | None = None
    """Processes that read the data, per training process, instead of the task's (0)."""
    channels_last: bool = False
    """Keep weights of convolutions channels-last: often faster on a GPU with mixed precision."""
    compile: bool = False
    """Compile networks with torch.compile: pays for long training of large networks."""
    logger: str | None = None
    """Follow training in tensorboard, csv, mlflow, wandb, ...: a Lightning logger by name, or package.module:Class."""


@dataclass(frozen=True)
class LossOptions:
    """The distillation loss: label_weight * CE + teacher_weight * T^2 KL."""

    temperature: float | None = None
    """T; default: the task's, usually 1."""
    label_weight: float | None = None
    """Of the label loss; default: the task's, usually 1."""
    teacher_weight: float | None = None
    """Of the divergence from the teacher; default: the task's, usually 1."""


@dataclass(frozen=True)
class GivenOptions:
    """What Algorithm 1 left elsewhere, instead of running it."""

    aligned_teacher_checkpoint: Path | None = None
    """Weights of a jointly trained teacher."""
    saliency: Path | None = None
    """Scores of that teacher's channels: a saliency saved by mfh, or a .npy of one number per channel."""


@dataclass(frozen=True)
class Demo(RunOptions):
    """Run the main job on the embedded digits world: all arms, several seeds, table, finding and report."""

    num_seeds: int = 6
    """Paired seeds, each with its own data."""
    processes: int | None = None
    """Seeds at a time; default: the number of processors."""


@dataclass(frozen=True)
class Pretrain(TrainingOptions, RunOptions, TaskOptions):
    """Train one network of a task on labels alone."""

    modality: Role = "teacher"
    """Which of the two."""


@dataclass(frozen=True)
class Align(TrainingOptions, RunOptions, TaskOptions):
    """Train teacher and student jointly (Algorithm 1, step 1)."""


@dataclass(frozen=True)
class Saliency(TrainingOptions, RunOptions, TaskOptions):
    """Score every channel of the teacher for how modality-general it is (Algorithm 1, step 2, and the probe)."""

    score: Literal["distance", "agreement", "probe"] = "distance"
    """distance: Algorithm 1; agreement: its part that involves the student; probe: cross-fitted R^2."""
    layer: str | None = None
    """Instead of the task's."""
    permutations: str = "auto"
    """exact, a number, or auto: exact where the rest of the network is affine."""


@dataclass(frozen=True)
class Distill(GivenOptions, LossOptions, TrainingOptions, RunOptions, TaskOptions):
    """Train one student from one kind of teacher."""

    arm: str = "general"
    """Kind of teacher: regular, aligned, random, specific, general, soft, soft-shuffled or tempered."""
    ratio: float | None = None
    """Fraction of channels removed, for random, specific and general; default: the task's, usually 0.5."""
    score: Literal["distance", "agreement"] = "distance"
    """Of the saliency, for specific and general."""
    layer: str | None = None
    """Instead of the task's."""
    permutations: str = "auto"
    """Of the saliency, where it is still to be computed."""


@dataclass(frozen=True)
class Study(GivenOptions, LossOptions, TrainingOptions, RunOptions, TaskOptions):
    """Compare all ways to make a student, paired by seed, with statistics and a report."""

    arms: tuple[str, ...] = ARMS
    """Ways to make a student."""
    ratios: tuple[float, ...] = ()
    """Fractions of channels removed, for random, specific and general; default: the task's, usually 0.5."""
    scores: tuple[str, ...] = ("distance",)
    """distance and/or agreement, for specific and general."""
    sweep: bool = False
    """Ratios 0 to 0.9 in steps of 0.1: how gain rises and falls with the fraction removed."""
    layers: tuple[str, ...] = ()
    """Of the teacher, to mask; default: the task's."""
    weights: tuple[tuple[float, float], ...] = ()
    """Pairs of label weight and teacher weight to compare, for instance 1 1 0 1 1 3; default: only the task's."""
    num_seeds: int = 5
    """How many seeds, from --seed on."""
    add_seeds: int = 0
    """So many more than the run folder holds already."""
    select: bool = False
    """Choose arm, ratio, layer, score and weights on validation data; read the test split only for the chosen one."""
    permutations: str = "auto"
    """exact, a number, or auto."""
    processes: int | None = None
    """Processes at a time; default: the number of processors, on a GPU 1."""
    threads: int = 1
    """Per process, on the CPU."""


@dataclass(frozen=True)
class Diagnose(LossOptions, TrainingOptions, RunOptions, TaskOptions):
    """Say beforehand whether distillation is likely to help, from two networks trained on labels."""

    layers: tuple[str, ...] = ()
    """Of the teacher, to look into; default: the task's."""


@dataclass(frozen=True)
class PrepareRavdess:
    """Prepare RAVDESS: from the official archives, or the authors' features, to a folder for --data."""

    source: Annotated[Positional[Path], arg(metavar="SOURCE")]
    """Folder with the official zip files and/or what was in them; or the authors' data folder."""
    out: Annotated[Positional[Path], arg(metavar="OUT")]
    """The prepared folder."""
    layout: Literal["archives", "features"] = "archives"
    """archives: official files; features: the authors' aud_features, vid_features and data_file."""
    split: str = "actors"
    """actors: no actor in two splits; random: speakers mixed, as in some papers; or a CSV: id,split or actor,split."""
    seed: int = 0
    """Of the split random."""
    num_frames: int = 1
    """RGB frames per clip, evenly spaced; with more than one, --augment draws among them."""
    height: int = 256
    """Of a frame."""
    width: int = 512
    """Of a frame."""
    sample_rate: int = 22_050
    """That the sound is resampled to, in Hz."""
    num_mfcc: int = 40
    """Mel-frequency cepstral coefficients."""
    mfcc_frames: int = 256
    """Time steps of the coefficients."""
    fft_size: int = 2048
    """Of their short-time Fourier transform, in samples."""
    hop: int = 512
    """Of their short-time Fourier transform, in samples."""
    processes: int | None = None
    """At a time; default: the number of processors."""
    quiet: Annotated[bool, arg(name="quiet", aliases=("-q",))] = False
    """Print results only: no progress."""


@dataclass(frozen=True)
class PrepareVggsound:
    """Prepare VGGSound: from clips and the official annotations, or the authors' strips, to a folder for --data."""

    clips: Annotated[Positional[Path], arg(metavar="CLIPS")]
    """Folder, or uncompressed tar, with the clips; or the authors' training root (or a folder with Train and Test)."""
    out: Annotated[Positional[Path], arg(metavar="OUT")]
    """The prepared folder."""
    csv: Path | None = None
    """The official vggsound.csv; needed for the layout clips."""
    also: tuple[Path, ...] = ()
    """More folders and tar files with clips."""
    layout: Literal["clips", "strips"] = "clips"
    """clips: <id>_<start>.mp4; strips: the authors' video_jpg, audio_npy or audio, and label.json."""
    test: Path | None = None
    """For the layout strips: the test root, where it is apart."""
    classes: str | None = None
    """A number: those with the most annotated training clips; or a file of labels. Default: all."""
    num_frames: int = 32
    """RGB frames per clip, evenly spaced."""
    size: int = 256
    """Frames are scaled and centre-cropped to this width and height."""
    quality: int = 90
    """Of the frames' JPEGs, 1 to 95."""
    seconds: float = 10.0
    """Of sound, at 16 kHz: longer ones are cut, shorter ones padded."""
    clips_per_shard: int = 128
    """Annotated clips per tar."""
    shard: str | None = None
    """i/n: make part i of n only (i from 0), so that several machines share the work."""
    merge: bool = False
    """Verify the parts in OUT and put them together."""
    processes: int | None = None
    """At a time; default: the number of processors."""
    quiet: Annotated[bool, arg(name="quiet", aliases=("-q",))] = False
    """Print results only: no progress."""


@dataclass(frozen=True)
class Prepare:
    """Prepare a data set for training."""

    dataset: OmitSubcommandPrefixes[
        OmitArgPrefixes[
            Annotated[PrepareRavdess, subcommand("ravdess")] | Annotated[PrepareVggsound, subcommand("vggsound")]
        ]
    ]
    """Which."""

    @property
    def quiet(self) -> bool:
        """Print results only: no progress."""
        return self.dataset.quiet


@dataclass(frozen=True)
class Report(RunOptions):
    """Write the report of a run, or one page that compares several."""

    runs: Positional[tuple[Path, ...]] = ()
    """Run folders."""
    format: Literal["html", "md"] = "html"
    """html: one self-contained page; md: Markdown that shows the files in figures/."""
    figures: tuple[Literal["svg", "png", "pdf"], ...] = ("svg", "png")
    """Files to write the figures as."""
    style: Literal["screen", "paper"] = "screen"
    """paper: serif figures, one or two text columns wide, for LaTeX."""


@dataclass(frozen=True)
class ExperimentOptions:
    """Which Gaussian experiment."""

    experiment: Positional[Literal["vary-gamma", "vary-alpha", "modify-gamma", "all"]]
    """Figure 2, Figure 3 or Table 2 of the paper, or all three."""


@dataclass(frozen=True)
class Gauss(RunOptions, ExperimentOptions):
    """Run the paper's synthetic Gaussian experiments. Options left out are as published."""

    num_seeds: int = 10
    """Data sets per setting."""
    first_seed: int | None = None
    """Of consecutive ones; published: 0, for modify-gamma 42."""
    num_train: int | None = None
    """Training pairs; published: 200."""
    num_test: int | None = None
    """Test pairs; published: 1000."""
    teacher_dim: int | None = None
    """Width of the teacher's input; published: 25 for vary-gamma, otherwise 50."""
    student_dim: int | None = None
    """Width of the student's input; published: 50."""
    steps: int | None = None
    """Full-batch gradient steps; published: 1000."""
    learning_rate: float | None = None
    """Published: 0.1."""
    label_weight: float | None = None
    """Of the label loss; published: 1."""
    teacher_weight: float | None = None
    """Of the divergence from the teacher; published: 1."""
    reduction: Literal["batchmean", "mean"] | None = None
    """Of the divergence; published: mean, which divides by the number of classes."""
    decisive: int | None = None
    """vary-gamma: decisive inputs each modality carries; published: 10."""
    overlaps: tuple[int, ...] | None = None
    """vary-gamma: how many of them are shared; published: 0 2 4 6 8 10."""
    general: int | None = None
    """vary-alpha: decisive inputs both carry; published: 10."""
    teacher_only: tuple[int, ...] | None = None
    """vary-alpha: further decisive inputs of the teacher; published: 0 10 20 30 40."""
    num_decisive: int | None = None
    """vary-alpha: decisive inputs in all; published: 50."""
    counts: tuple[tuple[int, int], ...] | None = None
    """modify-gamma: pairs of teacher-only and general inputs; published: 15 5 10 5 10 10 10 20 10 30."""
    permutations: str | None = None
    """modify-gamma: exact (default), or a number (published: 100)."""
    device: str = "auto"
    """auto, cpu or cuda."""


Command = (
    Annotated[Demo, subcommand("demo")]
    | Annotated[Pretrain, subcommand("pretrain")]
    | Annotated[Align, subcommand("align")]
    | Annotated[Saliency, subcommand("saliency")]
    | Annotated[Distill, subcommand("distill")]
    | Annotated[Study, subcommand("study")]
    | Annotated[Diagnose, subcommand("diagnose")]
    | Annotated[Gauss, subcommand("gauss")]
    | Annotated[Prepare, subcommand("prepare")]
    | Annotated[Report, subcommand("report")]
)
