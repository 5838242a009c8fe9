"""The model card: what a network is, and how to run it without `mfh`."""

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

from torch import nn

from mfh.data.pairs import Nested, tensors
from mfh.errors import plain
from mfh.export.formats import Exporter, input_names, kind
from mfh.networks.calling import call
from mfh.networks.layers import as_logits
from mfh.networks.standardise import Standardise

#: Headings of the card whose texts the file holds too. The command of the study has paths of the machine it ran on.
_IN_THE_FILE = ("Task", "Data", "Arm", "Seed", "Metric", "mfh version")


def card_text(
    name: str,
    exporter: Exporter,
    network: nn.Module,
    one: Nested,
    about: Mapping[str, str],
    classes: Sequence[str],
    costs: Sequence[str],
    *,
    categorical: bool,
) -> str:
    """A model card in Markdown.

    Args:
        name: Name of the exported file.
        exporter: Its format.
        network: The network, in eval mode.
        one: Inputs of one sample.
        about: What the network is: heading -> text.
        classes: Names of the classes, in the order of outputs.
        costs: Sentences on size and time.
        categorical: Whether the largest output is the predicted class.
    """
    facts = [f"* **{heading}:** {text}" for heading, text in about.items()]
    inputs = [
        f"* `{name}`: {kind(tensor)}, ({', '.join(['N', *map(str, tensor.shape[1:])])})"
        for name, tensor in zip(input_names(one), tensors(one), strict=True)
    ]
    shape = ", ".join(["N", *map(str, as_logits(call(network, one)).shape[1:])])
    lines = [
        f"# {name}",
        "",
        *facts,
        *(f"* **Cost:** {text}" for text in costs),
        "",
        "## Load it",
        "",
        "```python",
        loading_code(name, exporter, network, one, classes, categorical=categorical),
        "```",
        "",
        _needs(exporter, network),
        "",
        "## Inputs and outputs",
        "",
        *inputs,
        f"* Output: logits, ({shape}). N is any number of samples from 1.",
        "",
        _preprocessing(network),
    ]
    if classes:
        lines += ["", "Classes, in the order of the outputs:", ""]
        lines += [f"{index}. {label}" for index, label in enumerate(classes)]
    return plain("\n".join(lines) + "\n")


def facts_text(about: Mapping[str, str], classes: Sequence[str]) -> str:
    """What the card says of a network, in short, as JSON for programs, which the file itself holds.

    Args:
        about: What the network is: heading -> text. "mfh version" becomes the key "mfh_version".
        classes: Names of the classes, in the order of outputs: a list "classes". Without names, there is no such key.
    """
    facts: dict[str, object] = {
        heading.lower().replace(" ", "_"): about[heading] for heading in _IN_THE_FILE if heading in about
    }
    return json.dumps(facts | ({"classes": list(classes)} if classes else {}))


def loading_code(
    name: str, exporter: Exporter, network: nn.Module, one: Nested, classes: Sequence[str], *, categorical: bool
) -> str:
    """Python code that loads a file without `mfh`, runs it on inputs `x`, and names the class of the first sample.

    Args:
        name: Name of the file.
        exporter: Its format.
        network: The network, in eval mode.
        one: Inputs of one sample.
        classes: Names of the classes, in the order of outputs.
        categorical: Whether the largest output is the predicted class; otherwise each positive output is a label.
    """
    code = exporter.loading(name, network, one)
    if not classes or as_logits(call(network, one)).ndim != 2:
        return code
    if categorical:
        return f'{code}\nprint(facts["classes"][logits[0].argmax()])'
    return f'{code}\nprint([name for name, logit in zip(facts["classes"], logits[0]) if logit > 0])'


def _needs(exporter: Exporter, network: nn.Module) -> str:
    """What a program needs to run the file."""
    if exporter.suffix == "pt2":
        return f"This needs PyTorch alone, {_at('torch')} or newer."
    if exporter.suffix == "onnx":
        return f"This needs onnxruntime ({_at('onnxruntime')} was tested) or another ONNX runtime."
    own, others = _class(network), dict.fromkeys(map(_class, network.modules()))
    layers = [f"`{name}`" for name in others if not name.startswith("torch.")]
    among = f", with layers of {', '.join(layers)}" if layers and own.startswith("torch.") else ""
    return (
        f"The file holds weights alone: `make_student` must make the same network, of the class `{own}`{among}. The "
        "formats .pt2 and .onnx need no class."
    )


def _class(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _at(package: str) -> str:
    try:
        return f"version {version(package).partition('+')[0]}"
    except PackageNotFoundError:
        return "its present version"


def _preprocessing(network: nn.Module) -> str:
    """What is done to inputs inside the network, and what its user must do."""
    if any(isinstance(module, Standardise) for module in network.modules()):
        return (
            "Give raw inputs: mean and standard deviation of the training samples are in the file, and the student "
            "standardises its inputs itself."
        )
    return "Give inputs as the task's data set returns them; whatever it does to raw data is not in the file."
