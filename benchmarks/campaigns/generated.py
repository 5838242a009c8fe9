"""Generated options and task files, most of them absurd, through the real command line; what becomes of them is counted.

    python benchmarks/campaigns/generated.py --count 2000 --report benchmarks/reports/generated-YYYY-MM-DD.md

Options and their types are read from the dataclasses of the command line. A task file is a right one with one to three
things changed: a field is missing or of another type, something raises or calls sys.exit, a data set is endless, a
name is strange. Every case runs in a process of its own with limits on memory, time and number of processes. Case
`--only N` of the same seed is the same case again, with all that it prints.
"""

import argparse
import collections
import contextlib
import dataclasses
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tyro.conf import Positional, Suppress

from mfh.cli import main as mfh_main
from mfh.cli import options as opt

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import Report

SECONDS = 60.0
MEMORY = 8 * 2**30
PROCESSES = 40
BAD = ("traceback", "hang", "crash", "wrong exit", "NaN results", "control characters", "processes without bound")

# --- what is given ----------------------------------------------------------------------------------------------------

NUMBERS = ["0", "-1", "1", "2", "3", "1e20", "100000000000000000000", "nan", "inf", "-inf", "1e-320", "1e308", "99999"]
WORDS = [
    "",
    " ",
    "x",
    "None",
    "../../x",
    "[red]x[/red]",
    "a[/b]",
    "\x1b[31mred",
    "a\nb",
    "a\u202eb",
    "é",
    "x" * 5000,
    "=",
]
PATHS = ["", "missing", "folder", "text.txt", "[/x].py", "\x1b]0;t\x07.npy", "x" * 300, "."]
VALUES = [
    "None",
    "0",
    "-1",
    "1",
    "2",
    "10**20",
    "1e20",
    "0.5",
    'float("nan")',
    'float("inf")',
    '-float("inf")',
    "True",
    '""',
    '"x"',
    '"../../x"',
    '"[/b]"',
    '"\\x1b[31m"',
    '"x"*5000',
    'b"x"',
    "[]",
    "{}",
    "()",
    "[1]",
    '{"a":1}',
    "object()",
    "int",
    "lambda:1",
    "lambda*a:a",
    "torch.zeros(0)",
    "torch.zeros(3)",
    "torch.tensor(2)",
    "np.int64(2)",
    "np.float32(0.5)",
    "np.array([1,2])",
    'np.float64("nan")',
    "1j",
    "range(10**9)",
    "endless()",
    "nn.Linear(8,2)",
    "slice(None)",
    'Path("x")',
    "set()",
    "Ellipsis",
]
RAISED = [
    'ValueError("bad")',
    'KeyError("k")',
    "SystemExit(0)",
    'SystemExit("bye")',
    "SystemExit(3)",
    "MemoryError()",
    'RecursionError("deep")',
    'OSError(28,"No_space_left_on_device")',
    "StopIteration()",
    "GeneratorExit()",
    "Unspeakable()",
    "AssertionError()",
    'RuntimeError("[/b]\\x1b[31m")',
    "KeyboardInterrupt()",
    "NotImplementedError()",
    'UnicodeDecodeError("utf-8",b"x",0,1,"r")',
    'BaseException("base")',
]

TASK = '''import itertools, sys
from pathlib import Path
import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset
import mfh

class Unspeakable(Exception):
    def __str__(self):
        raise RuntimeError("cannot be told")

def endless():
    return itertools.count()

def fail(error):
    raise error

class Pairs(torch.utils.data.Dataset):
    """Forty pairs; what is raised or returned otherwise is given by name."""
    def __init__(self, seed, length=None, item=None, broken=None, at=0):
        g = torch.Generator().manual_seed(seed)
        self.x, self.s = torch.randn(40, 8, generator=g), torch.randn(40, 7, generator=g)
        self.x[:, :3] = self.s[:, :3]
        self.y = (self.x[:, :3].sum(1) > 0).long()
        self.length, self.item, self.broken, self.at = length, item, broken, at
    def __len__(self):
        return 40 if self.length is None else self.length()
    def __getitem__(self, i):
        if self.broken is not None and i >= self.at:
            self.broken()
        if self.item is not None:
            return self.item(i, self)
        return self.x[i], self.s[i], self.y[i]

class Net(nn.Module):
    def __init__(self, width, broken=None):
        super().__init__()
        self.first, self.last, self.broken = nn.Linear(width, 6), nn.Linear(6, 2), broken
    def forward(self, x):
        out = self.last(torch.relu(self.first(x)))
        return out if self.broken is None else self.broken(out)

def task(seed=0):
    recipe = dict(epochs=1, batch_size=16)
    protocol = dict()
    loss = dict()
    fields = dict(name="tiny", teacher=lambda: Net(8), student=lambda: Net(7), layer="first", train=Pairs(1),
                  val=Pairs(2), test=Pairs(3))
{changes}
    if loss:
        protocol["loss"] = mfh.KDLoss(**loss)
    if recipe:
        fields.setdefault("recipe", mfh.Recipe(**recipe))
    if protocol:
        fields.setdefault("protocol", mfh.Protocol(**protocol))
    return mfh.Task(**fields)
{outside}
'''


@dataclass
class Case:
    """One command, and the files that lie in its folder."""

    arguments: list[str]
    files: dict[str, str] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)


_POSITIONAL = Positional[int].__metadata__[0]


def leaf_options(kind):
    """Option or positional -> its annotation, of a command's dataclass and the groups in it."""
    found = {}
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        if name.startswith("_") or name not in {item.name for item in dataclasses.fields(kind)}:
            continue
        metadata = getattr(hint, "__metadata__", ())
        bare = hint.__origin__ if metadata else hint
        if Suppress in metadata:
            continue
        if dataclasses.is_dataclass(bare):
            found.update(leaf_options(bare))
        else:
            found[name] = (bare, _POSITIONAL in metadata)
    return found


def value_of(hint, chance):
    """Words for an option of this type: right ones half of the time."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return value_of(chance.choice([part for part in inner if part is not type(None)]), chance)
    if origin is typing.Annotated:
        return value_of(inner[0], chance)
    absurd = chance.random() < 0.5
    if origin is tuple:
        parts = inner if inner[-1] is not Ellipsis else inner[:1] * chance.choice([0, 1, 2, 5])
        return [word for part in parts for word in value_of(part, chance)]
    if hint is bool:
        return [] if not absurd else [chance.choice(WORDS)]
    if origin is typing.Literal:
        return [chance.choice(WORDS if absurd else inner)]
    if hint is int:
        return [chance.choice(NUMBERS) if absurd else chance.choice(["1", "2", "3", "4", "8"])]
    if hint is float:
        return [chance.choice(NUMBERS) if absurd else chance.choice(["0.5", "0", "1", "2.5"])]
    return [chance.choice(PATHS if hint is Path else WORDS + NUMBERS)]


SMALL = {
    "study": {"--num-seeds": ["2"], "--epochs": ["1"], "--processes": ["1"], "--arms": ["no-kd", "regular", "general"]},
    "gauss": {
        "--num-seeds": ["2"], "--steps": ["5"], "--num-train": ["20"], "--num-test": ["20"], "--permutations": ["2"],
    },
    "demo": {"--num-seeds": ["0"]},
}  # fmt: skip
KINDS = {
    "demo": opt.Demo, "pretrain": opt.Pretrain, "align": opt.Align, "saliency": opt.Saliency, "distill": opt.Distill,
    "study": opt.Study, "diagnose": opt.Diagnose, "gauss": opt.Gauss, "report": opt.Report,
    "prepare ravdess": opt.PrepareRavdess, "prepare vggsound": opt.PrepareVggsound,
}  # fmt: skip


def option_case(chance):
    """A command with one to three options of its own, from right to absurd."""
    name = chance.choice([*KINDS, "study", "gauss", "distill"])
    options = leaf_options(KINDS[name])
    given = {option: list(words) for option, words in SMALL.get(name, {}).items()}
    if "epochs" in options and name != "study":
        given["--epochs"] = ["1"]
    changed, words = [], name.split()
    for key, (hint, positional) in options.items():
        if not positional:
            continue
        if key == "task":
            words.append("tiny.py" if chance.random() < 0.95 else chance.choice(PATHS))
        elif key == "experiment":
            words.append(chance.choice(["vary-gamma", "vary-alpha", "modify-gamma", "all"]))
        else:
            words += value_of(hint, chance)
    own = [key for key, (_, positional) in options.items() if not positional and key != "out"]
    for key in chance.sample(own, min(len(own), chance.choice([1, 1, 2, 3]))):
        given["--" + key.replace("_", "-")] = value_of(options[key][0], chance)
        changed.append(key)
    # A real demonstration takes minutes, and so does compiling: right values of these two are left out.
    if name == "demo" and given["--num-seeds"][0].isdecimal() and len(given["--num-seeds"][0]) == 1:
        given["--num-seeds"] = ["0"]
    given.pop("--compile", None)
    if "out" in options and not options["out"][1]:
        given["--out"] = ["run"]
    for option, value in given.items():
        words += [option, *value]
    return Case(words, {"tiny.py": TASK.format(changes="    pass", outside="")}, changed)


def task_changes(chance):
    """One change of a task file: (lines in task(), lines after it, what it is called)."""
    raised = chance.choice(RAISED).replace("_", " ")
    value = chance.choice(VALUES)
    split, role = chance.choice(["train", "val", "test"]), chance.choice(["teacher", "student"])
    width = 8 if role == "teacher" else 7
    kind = chance.choice(
        ["drop", "type", "type", "type", "recipe", "recipe", "protocol", "loss", "raise", "raise", "data", "net"]
    )
    if kind == "drop":
        return (
            f'    fields.pop("{chance.choice(["name", "teacher", "student", "layer", "train", "val", "test"])}", None)',
            "",
            kind,
        )
    if kind == "type":
        from mfh import Task

        name = chance.choice([item.name for item in dataclasses.fields(Task)])
        return f'    fields["{name}"] = {value}', "", f"type of {name}"
    if kind in ("recipe", "protocol", "loss"):
        import mfh

        owner = {"recipe": mfh.Recipe, "protocol": mfh.Protocol, "loss": mfh.KDLoss}[kind]
        name = chance.choice([item.name for item in dataclasses.fields(owner)])
        if name == "optimizer" and chance.random() < 0.6:
            value = f"lambda p: torch.optim.{chance.choice(['SGD', 'Adam'])}(p, lr={chance.choice(['1e308', 'float(chr(105)+chr(110)+chr(102))', '0.0', '-1.0', '1e30', 'float(chr(110)+chr(97)+chr(110))', '1e20'])})"
        return f'    {kind}["{name}"] = {value}', "", f"{kind}.{name}"
    if kind == "raise":
        place = chance.choice(
            ["module", "task", "teacher", "forward", "item", "len", "optimizer", "collate", "metric", "generator"]
        )
        if place == "module":
            return "    pass", f"raise {raised}", f"{place} raises"
        line = {
            "task": f"raise {raised}",
            "teacher": f'fields["{role}"] = lambda: fail({raised})',
            "forward": f'fields["{role}"] = lambda: Net({width}, lambda out: fail({raised}))',
            "item": f'fields["{split}"] = Pairs(1, broken=lambda: fail({raised}), at={chance.choice([0, 7])})',
            "len": f'fields["{split}"] = Pairs(1, length=lambda: fail({raised}))',
            "optimizer": f'recipe["{chance.choice(["optimizer", "scheduler"])}"] = lambda p: fail({raised})',
            "collate": f'fields["collate"] = lambda items: fail({raised})',
            "metric": f'fields["problem"] = mfh.Problem.classification(label_loss=lambda logits, target: fail({raised}))',
            "generator": "yield 1",
        }[place]
        return "    " + line, "", f"{place} raises"
    if kind == "data":
        item = chance.choice(
            [
                value,
                f"(self.x[i], self.s[i], {value})",
                f"({value}, self.s[i], self.y[i])",
                "(self.x[i], self.s[i])",
                "(self.x[i] * float(chr(110)+chr(97)+chr(110)), self.s[i], self.y[i])",
                "endless()",
                "(self.x[i], self.s[i], self.y[i] * 10**6)",
            ]
        )
        if chance.random() < 0.3:
            return f'    fields["{split}"] = Pairs(1, length=lambda: {value})', "", "length"
        return f'    fields["{split}"] = Pairs(1, item=lambda i, self: {item})', "", "item"
    out = chance.choice(
        [
            value,
            "out * float(chr(110)+chr(97)+chr(110))",
            "out[:1]",
            "out.sum()",
            "out[:, :0]",
            "[out]",
            "{'logits': out}",
            "out.long()",
            "out.detach()",
        ]
    )
    return f'    fields["{role}"] = lambda: Net({width}, lambda out: {out})', "", "logits"


def task_case(chance):
    """A step or a small study on a task file that something is wrong with."""
    made = [task_changes(chance) for _ in range(chance.choice([1, 1, 1, 2, 3]))]
    content = TASK.format(changes="\n".join(m[0] for m in made), outside="\n".join(m[1] for m in made))
    command = chance.choice([
        ["pretrain", "bad.py"], ["pretrain", "bad.py", "--role", "student"], ["align", "bad.py"], ["saliency", "bad.py"],
        ["saliency", "bad.py", "--score", "probe"], ["distill", "bad.py"], ["diagnose", "bad.py"],
        ["study", "bad.py", "--num-seeds", "2", "--processes", "1", "--arms", "no-kd", "regular", "general"],
    ])  # fmt: skip
    return Case([*command, "--out", "run"], {"bad.py": content}, [m[2] for m in made])


CONTENTS = ["right", "NaN", "one NaN", "integers", "integer keys", "empty", "list", "text", "of one row", "complex",
            "nested", "huge", "half", "objects"]  # fmt: skip


def file_case(chance):
    """A command that is given a file of weights or scores with something wrong in it."""
    option = chance.choice(
        ["--teacher-checkpoint", "--student-checkpoint", "--aligned-teacher-checkpoint", "--saliency"]
    )
    command = "distill" if option in ("--aligned-teacher-checkpoint", "--saliency") else chance.choice(
        ["pretrain", "distill", "saliency", "diagnose", "study"]
    )  # fmt: skip
    content, name = chance.choice(CONTENTS), chance.choice(["weights.pt", "weights.safetensors"])
    words = [command, "tiny.py", option, name, "--out", "run", "--epochs", "1"]
    words += ["--role", option[2:9]] if command == "pretrain" else []
    words += ["--num-seeds", "2", "--processes", "1", "--arms", "no-kd", "regular"] if command == "study" else []
    files = {"tiny.py": TASK.format(changes="    pass", outside=""), name: content}
    return Case(words, files, [option, name, content])


def write_weights(path, content, inputs):
    """A checkpoint of the task's network with `inputs` inputs, or something like one."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    first, last = torch.nn.Linear(inputs, 6), torch.nn.Linear(6, 2)
    weights = {f"{name}.{key}": value.detach().clone() for name, layer in (("first", first), ("last", last))
               for key, value in layer.state_dict().items()}  # fmt: skip
    made = {
        "NaN": {name: value * float("nan") for name, value in weights.items()},
        "integers": {name: value.long() for name, value in weights.items()},
        "integer keys": dict(enumerate(weights.values())),
        "empty": {},
        "list": list(weights.values()),
        "text": dict.fromkeys(weights, "text"),
        "of one row": {name: value[:1] for name, value in weights.items()},
        "complex": {name: value.to(torch.complex64) for name, value in weights.items()},
        "nested": {"state_dict": {"state_dict": weights}},
        "huge": {name: value * 3e38 for name, value in weights.items()},
        "half": {name: value.half() for name, value in weights.items()},
        "objects": dict.fromkeys(weights, object),
    }.get(content, weights)
    if content == "one NaN":
        made["last.bias"][0] = float("nan")
    if path.suffix == ".pt":
        torch.save(made, path)
    elif content in ("text", "list", "objects", "integer keys"):
        facts = "[" * 100_000 if content == "list" else '{"a": 1e999}' if content == "objects" else "{}"
        save_file(weights, path, metadata={"mfh": "saliency" if content != "text" else "\x1b[31mred", "facts": facts})
    else:
        save_file(made if content != "nested" else weights, path)


def case_of(seed, number):
    """The case of this number, the same on every machine."""
    chance = random.Random(f"{seed}-{number}")
    return chance.choice([option_case] * 5 + [task_case] * 5 + [file_case])(chance)


# --- what becomes of it -----------------------------------------------------------------------------------------------


def start(case, folder):
    """Run a case in a forked process, in a session of its own; the parent has imported what takes long."""
    for name, text in case.files.items():
        if name.startswith("weights."):
            write_weights(folder / name, text, 7 if "--student-checkpoint" in case.arguments else 8)
        else:
            (folder / name).write_text(text, encoding="utf-8")
    (folder / "folder").mkdir()
    (folder / "text.txt").write_text("words\n", encoding="utf-8")
    child = os.fork()
    if child:
        return child
    try:
        os.setsid()
        os.chdir(folder)
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**30, 2**30))
        sys.argv = ["mfh", *case.arguments]
        code = 1
        try:
            mfh_main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        except BaseException:
            import traceback

            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def members(session):
    """Process ids of a session."""
    found = []
    for entry in os.listdir("/proc"):  # noqa: PTH208
        if entry.isdecimal():
            with contextlib.suppress(OSError):
                if int(Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[3]) == session:
                    found.append(int(entry))
    return found


def kill(session):
    """End all processes of a session."""
    for _ in range(20):
        alive = [process for process in members(session) if process != session]
        for process in [session, *alive]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        if not alive:
            return


def verdict(status, folder, case):
    """What became of a case that has ended: "ok", "refused", or one of `BAD`, and the line that says so."""
    said = (folder / "stderr").read_text("utf-8", "replace")
    printed = (folder / "stdout").read_text("utf-8", "replace") + said
    last = said.strip().splitlines()[-1][:200] if said.strip() else ""
    if os.WIFSIGNALED(status):
        return "crash", f"signal {os.WTERMSIG(status)} {last}"
    if "Traceback (most recent" in said:
        return "traceback", last
    if any((ord(sign) < 32 and sign not in "\n") or 127 <= ord(sign) < 160 or sign == "\u202e" for sign in printed):
        return "control characters", ascii(last)
    code = os.WEXITSTATUS(status)
    if code == 0 and any(word in ("nan", "inf", "-inf") for word in case.arguments):
        return "NaN results", "exit 0 with an option that is no finite number"
    if code == 0:
        return not_a_number(folder / "run") or ("ok", "") if printed else ("wrong exit", "exit 0, and nothing was said")
    if code == 130 and "interrupted" in last:
        return "refused", last
    if code == 2 and (last.startswith(("mfh: ", "╰"))):
        return "refused", last
    return "wrong exit", f"exit {code}: {last}"


def not_a_number(run):
    """Tables and networks of a run folder that hold NaN, as a verdict."""
    from safetensors.torch import load_file

    for path in sorted(run.rglob("*.safetensors")):
        if any(not torch.isfinite(value).all() for value in load_file(path).values() if value.is_floating_point()):
            return "NaN results", path.name
    for path in [run / "results.csv", *run.glob("vary-*.csv"), *run.glob("modify-*.csv")]:
        if not path.exists():
            continue
        for line in path.read_text("utf-8", "replace").splitlines()[1:]:
            if line.rpartition(",")[2].strip().lower() in ("nan", "inf", "-inf", ""):
                return "NaN results", f"{path.name}: {line}"[:200]
    return None


def campaign(numbers, seed, jobs, seconds=SECONDS, show=None):
    """Run cases side by side; yields (number, case, verdict, line, seconds)."""
    waiting, running = collections.deque(numbers), {}
    with tempfile.TemporaryDirectory(prefix="generated-") as top:
        while waiting or running:
            while waiting and len(running) < jobs:
                number = waiting.popleft()
                folder, case = Path(top) / str(number), case_of(seed, number)
                folder.mkdir()
                running[start(case, folder)] = (number, case, folder, time.monotonic())
            time.sleep(0.02)
            for process, (number, case, folder, began) in list(running.items()):
                done, status = os.waitpid(process, os.WNOHANG)
                taken = time.monotonic() - began
                found = None
                if done:
                    found = verdict(status, folder, case)
                elif taken > seconds:
                    found = ("hang", f"more than {seconds:.0f} s")
                elif taken > 1 and len(members(process)) > PROCESSES:
                    found = ("processes without bound", f"more than {PROCESSES}")
                if found is None:
                    continue
                kill(process)
                if not done:
                    os.waitpid(process, 0)
                if show is not None:
                    show(folder)
                shutil.rmtree(folder, ignore_errors=True)
                del running[process]
                yield number, case, *found, taken


def warm():
    """Import once what every case needs, so that it is not imported two thousand times."""
    import mfh.cli.commands
    import mfh.gaussian.run
    import mfh.reporting
    import mfh.reporting.diagnosis
    import mfh.reporting.gaussian
    import mfh.studies.diagnosis
    import mfh.studies.running
    import mfh.studies.steps  # noqa: F401

    torch.set_num_threads(1)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="limit for one case")
    parser.add_argument("--only", type=int, help="run this one case and print what it says")
    parser.add_argument("--report", type=Path, help="markdown file to write")
    options = parser.parse_args()
    warm()
    if options.only is not None:
        case = case_of(options.seed, options.only)
        print(case.arguments, case.changed, sep="\n")
        print(next((line for line in case.files.get("bad.py", "").split("def task(")[-1:]), ""))
        show = lambda folder: print((folder / "stdout").read_text(), (folder / "stderr").read_text())  # noqa: E731
        for result in campaign([options.only], options.seed, 1, options.seconds, show):
            print(result[2:])
        return
    say = Report("Generated options and task files", f"Seed {options.seed}, {options.count} cases.")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it may be ignored
    totals, bad = collections.Counter(), []
    began = time.monotonic()
    with contextlib.suppress(KeyboardInterrupt):  # what was found until then is reported
        for number, case, found, line, _taken in campaign(
            range(options.count), options.seed, options.jobs, options.seconds
        ):
            totals[found] += 1
            if found in BAD:
                bad.append((number, case, found, line))
                print(number, case.arguments[0], case.changed, found, ascii(line), file=sys.stderr, flush=True)
    say("| verdict | cases |\n| --- | ---: |")
    for name in ("ok", "refused", *BAD):
        say(f"| {name} | {totals[name]} |")
    say(f"\n{totals.total()} cases in {time.monotonic() - began:.0f} s; {sum(totals[name] for name in BAD)} bad.")
    for number, case, found, line in sorted(bad, key=lambda found: found[0]):
        say(f"- {number}: {found}; {case.arguments[0]}, {', '.join(case.changed)}: `{ascii(line)[1:-1][:120]}`")
    say.write(options.report)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
