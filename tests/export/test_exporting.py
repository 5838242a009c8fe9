import ast
import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from foreign_networks import Sentences, bert, encoded
from mfh.errors import InputError
from mfh.export import exporting
from mfh.export.exporting import export_network
from mfh.export.formats import format_of, input_names
from mfh.networks.standardise import Standardise
from mfh.tasks.small_networks import image_network, series_network, vector_network

ABOUT = {"Arm": "soft", "Seed": "3"}


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Nested(nn.Module):
    """A mapping with a vector and a tuple of a series, and a number that is the same for all samples."""

    def __init__(self):
        super().__init__()
        self.vector, self.series, self.out = nn.Linear(4, 8), nn.Conv1d(2, 8, 3, padding=1), nn.Linear(8, 3)

    def forward(self, x):
        series = torch.relu(self.series(x["eyes"][0])).mean(-1)
        return self.out(torch.relu(self.vector(x["sound"])) * x["gain"] + series)


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.out = nn.Embedding(20, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.out(self.embedding(x).mean(1))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.out = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Linear(8, 3)

    def forward(self, x):
        return self.out(self.layer(x).mean(1))


class Pixels(nn.Module):
    """(N, 2, 6, 6) -> (N, 3, 6, 6), with batch normalisation."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 1))

    def forward(self, x):
        return self.layers(x)


class WithLogits(nn.Module):
    """Returns an object with .logits, as models of transformers do."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(4, 2)

    def forward(self, x):
        return type("Output", (), {"logits": self.out(x)})()


class Hesitant(nn.Module):
    """Looks at its input to decide what to do."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(4, 2)

    def forward(self, x):
        return self.out(x) if float(x.sum()) > 0 else self.out(-x)


class Counting(Hesitant):
    """Counts its samples to decide what to do."""

    def forward(self, x):
        return self.out(x) if len(x) > 5 else self.out(-x)


class Deceitful(nn.Module):
    """Does something else while it is traced."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(4, 2)

    def forward(self, x):
        return self.out(x) * (2 if torch.compiler.is_exporting() else 1)


def code_of(made):
    """The lines of a card that load the file."""
    return made.card.read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]


def standardised(make, *shape):
    return make(torch.arange(shape[0]).float() * 100, torch.arange(shape[0]).float(), 5), 100 * randn(9, *shape)


KINDS = {
    "vector": lambda: standardised(vector_network, 4),
    "series": lambda: standardised(series_network, 2, 40),
    "image": lambda: standardised(image_network, 3, 8, 8),
    "nested": lambda: (Nested(), {"sound": randn(9, 4), "eyes": (randn(9, 2, 11),), "gain": randn(9, 1)}),
    "tokens": lambda: (Tokens(), torch.arange(9 * 6).reshape(9, 6) % 20),
    "attention": lambda: (Attention(), randn(9, 5, 8)),
    "dense": lambda: (Pixels(), randn(9, 2, 6, 6)),
    "output": lambda: (WithLogits(), randn(9, 4)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_exported_program_does_what_the_network_does_at_any_batch_size(kind, tmp_path):
    torch.manual_seed(0)
    network, samples = KINDS[kind]()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    made = export_network(network, samples, tmp_path / "student.pt2", about=ABOUT)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    student = torch.export.load(made.path).module()
    network.eval()
    for size in (1, 5, 9):
        part = exporting._batch(samples, size)
        with torch.no_grad():
            expected = network(part)
        expected = getattr(expected, "logits", expected)
        assert torch.allclose(student(part), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["image", "nested", "tokens"])
def test_onnx_does_what_the_network_does_and_names_its_inputs(kind, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    network, samples = KINDS[kind]()
    made = export_network(network, samples, tmp_path / "student.onnx", about=ABOUT)
    session = onnxruntime.InferenceSession(made.path)
    names = [one.name for one in session.get_inputs()]
    assert names == input_names(samples) == (["sound", "eyes.0", "gain"] if kind == "nested" else ["input"])
    assert all(one.shape[0] == "batch" for one in session.get_inputs())
    given = (
        {"sound": samples["sound"], "eyes.0": samples["eyes"][0], "gain": samples["gain"]}
        if kind == "nested"
        else {"input": samples}
    )
    found = session.run(None, {name: value.numpy() for name, value in given.items()})[0]
    with torch.no_grad():
        assert torch.allclose(torch.from_numpy(found), network.eval()(samples), rtol=1e-5, atol=1e-5)


def test_weights_alone_load_into_the_same_class(tmp_path):
    from safetensors.torch import load_file

    network = Nested()
    made = export_network(network, KINDS["nested"]()[1], tmp_path / "student.safetensors", about=ABOUT)
    Nested().load_state_dict(load_file(made.path))
    card = made.card.read_text(encoding="utf-8")
    assert "weights alone" in card
    assert "test_exporting.Nested`" in card
    code = card.partition("```python\n")[2].partition("```")[0]
    assert "\nlogits = student(x)  # x: {'sound': tensor, 'eyes': (tensor,), 'gain': tensor}\n" in code
    ast.parse(code)


CLASSES = ["still", "walk\n", "r\u00fcn", "sit", "lie"]


@pytest.mark.parametrize("classes", [CLASSES, []], ids=["names", "no names"])
@pytest.mark.parametrize("suffix", ["pt2", "onnx", "safetensors"])
def test_a_file_says_what_it_is_and_the_lines_of_its_card_read_it(suffix, classes, tmp_path, monkeypatch, capsys):
    if suffix == "onnx":
        pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    network, samples = KINDS["vector"]()
    made = export_network(
        network,
        samples,
        tmp_path / f"student.{suffix}",
        about=ABOUT | {"mfh version": "2", "Made by": "mfh study /my/path"},
        classes=classes,
    )
    monkeypatch.chdir(tmp_path)
    found = {"x": samples.double().numpy(), "make_student": lambda: KINDS["vector"]()[0]}  # as NumPy makes arrays
    exec(code_of(made), found)
    facts = {"arm": "soft", "seed": "3", "mfh_version": "2"}
    assert found["facts"] == (facts | {"classes": CLASSES} if classes else facts)
    with torch.no_grad():
        expected = network.eval()(samples)
    torch.testing.assert_close(torch.as_tensor(found["logits"]), expected, rtol=1e-5, atol=1e-5)
    assert capsys.readouterr().out == (CLASSES[expected[0].argmax()] + "\n" if classes else "")


def test_the_lines_of_the_guide_load_a_file(tmp_path, monkeypatch, capsys):
    guide = (Path(__file__).parents[2] / "docs" / "deploy.md").read_text(encoding="utf-8")
    (code,) = [block for block in guide.split("```") if "extra_files=extra).module()" in block]
    torch.manual_seed(0)
    network, samples = KINDS["vector"]()
    (tmp_path / "runs" / "deploy").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    export_network(network, samples, "runs/deploy/student.pt2", about=ABOUT, classes=CLASSES)
    exec(code.removeprefix("python\n"), {"x": samples.double().numpy()})
    with torch.no_grad():
        assert capsys.readouterr().out == CLASSES[network.eval()(samples)[0].argmax()] + "\n"


@pytest.mark.parametrize("suffix", ["pt2", "onnx"])
def test_the_lines_of_a_card_take_nested_inputs_and_print_several_labels(suffix, tmp_path, monkeypatch, capsys):
    if suffix == "onnx":
        pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    network, samples = KINDS["nested"]()
    names = ["low", "middle", "high"]
    made = export_network(
        network, samples, tmp_path / f"student.{suffix}", about=ABOUT, classes=names, categorical=False
    )
    monkeypatch.chdir(tmp_path)
    arrays = {
        "sound": samples["sound"].double().numpy(),
        "eyes": (samples["eyes"][0].double().numpy(),),
        "gain": samples["gain"].double().numpy(),
    }
    exec(code_of(made), {"x": arrays if suffix == "onnx" else samples})
    with torch.no_grad():
        first = network(samples)[0]
    expected = [name for name, logit in zip(names, first, strict=True) if logit > 0]
    assert capsys.readouterr().out == f"{expected}\n"


def test_class_names_of_every_pixel_are_in_the_file_and_no_first_one_is_printed(tmp_path):
    network, samples = KINDS["dense"]()
    made = export_network(network, samples, tmp_path / "student.pt2", about=ABOUT, classes=["sky", "road", "car"])
    assert "print" not in made.loading
    extra = {"mfh.json": ""}
    torch.export.load(made.path, extra_files=extra)
    assert json.loads(extra["mfh.json"])["classes"] == ["sky", "road", "car"]


def test_raw_inputs_are_standardised_inside(tmp_path):
    network, samples = KINDS["vector"]()
    assert any(isinstance(module, Standardise) for module in network)
    made = export_network(
        network, samples, tmp_path / "student.pt2", about=ABOUT, classes=["a", "b", "c", "d", "e\x1b"]
    )
    raw = torch.export.load(made.path).module()(samples)
    assert not torch.allclose(raw, network[1:](samples).detach())  # not as if they were standardised before
    card = made.card.read_text(encoding="utf-8")
    for text in (
        "# student.pt2",
        "* **Arm:** soft",
        "float32, (N, 4)",
        "logits, (N, 5)",
        "Give raw inputs",
        "4. e\\x1b",
    ):
        assert text in card
    assert f"{made.parameters:,} parameters" in card
    assert made.size == made.path.stat().st_size
    assert made.parameters == sum(one.numel() for one in network.parameters())
    assert made.milliseconds > 0
    assert made.lines[0].startswith(f"Student: {made.path}")


def test_8_bit_weights_are_smaller_and_say_how_far_they_agree(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(16, 256), nn.ReLU(), nn.Linear(256, 4))
    made = export_network(network, randn(50, 16), tmp_path / "student.onnx", about=ABOUT, int8=True)
    for path in (made.path, made.int8.path):
        properties = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
        assert json.loads(properties["mfh.json"]) == {"arm": "soft", "seed": "3"}
    assert made.int8 is not None
    assert made.int8.path == tmp_path / "student.int8.onnx"
    assert made.int8.size == made.int8.path.stat().st_size < made.size / 2
    assert 0.9 < made.int8.agreement <= 1
    assert f"{100 * made.int8.agreement:.1f} % of 50 test samples" in made.lines[2]
    assert made.int8.path.name in made.card.read_text(encoding="utf-8")
    numbers = export_network(network, randn(50, 16), tmp_path / "other.onnx", about=ABOUT, int8=True, categorical=False)
    assert numbers.int8.agreement is None
    assert "largest difference of an output" in numbers.lines[2]


def test_convolutions_have_8_bit_weights_too(tmp_path):
    pytest.importorskip("onnxruntime")
    network, samples = KINDS["image"]()
    made = export_network(network, samples, tmp_path / "student.onnx", about=ABOUT, int8=True)
    assert made.int8 is not None
    assert made.int8.size < made.size


def test_few_samples_are_enough(tmp_path):
    network, samples = KINDS["vector"]()
    assert export_network(network, samples[:1], tmp_path / "student.pt2", about=ABOUT).path.is_file()


@pytest.mark.parametrize("suffix", ["pt2", "onnx"])
def test_what_cannot_be_traced_is_refused_with_a_way_out(suffix, tmp_path):
    with pytest.raises(InputError, match=rf"Hesitant cannot be exported to \.{suffix}.*export it as \.safetensors"):
        export_network(Hesitant(), randn(9, 4), tmp_path / f"student.{suffix}", about=ABOUT)
    assert not list(tmp_path.iterdir())
    assert export_network(Hesitant(), randn(9, 4), tmp_path / "student.safetensors", about=ABOUT).path.is_file()


@pytest.mark.parametrize("suffix", ["pt2", "onnx"])
def test_what_depends_on_the_number_of_samples_is_refused(suffix, tmp_path):
    with pytest.raises(InputError, match=rf"Counting cannot be exported to \.{suffix}.*export it as \.safetensors"):
        export_network(Counting(), randn(9, 4), tmp_path / f"student.{suffix}", about=ABOUT)
    assert not list(tmp_path.iterdir())


def test_a_file_that_differs_from_the_network_is_not_written(tmp_path):
    (tmp_path / "student.pt2").write_text("before")
    with pytest.raises(InputError, match=r"student\.pt2 was not written: of 1 test samples.* differs from the network"):
        export_network(Deceitful(), randn(9, 4), tmp_path / "student.pt2", about=ABOUT)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]


def test_names_and_places_that_cannot_be(tmp_path):
    for path, given, message in (
        (
            tmp_path / "student.pt",
            None,
            r"student\.pt ends in '\.pt'; choose pt2, onnx, safetensors; close names: 'pt2'",
        ),
        (tmp_path / "student", None, "ends in 'nothing'"),
        (None, "pth", "format is 'pth'; choose pt2, onnx, safetensors"),
        (tmp_path / "student.pt2", "onnx", r"does not end in \.onnx"),
    ):
        with pytest.raises(InputError, match=message):
            format_of(path, given)
    network, samples = KINDS["vector"]()
    with pytest.raises(InputError, match="missing is no folder; make it"):
        export_network(network, samples, tmp_path / "missing" / "student.pt2", about=ABOUT)
    (tmp_path / "folder.pt2").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        export_network(network, samples, tmp_path / "folder.pt2", about=ABOUT)
    with pytest.raises(InputError, match=r"int8 is for \.onnx files"):
        export_network(network, samples, tmp_path / "student.pt2", about=ABOUT, int8=True)


def test_a_file_of_the_user_is_not_replaced_by_the_model_card(tmp_path):
    network, samples = KINDS["vector"]()
    (tmp_path / "mine.pt2.md").write_text("# My project")
    with pytest.raises(InputError, match=r"mine\.pt2\.md exists and is no model card"):
        export_network(network, samples, tmp_path / "mine.pt2", about=ABOUT)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.pt2.md"]
    assert (tmp_path / "mine.pt2.md").read_text() == "# My project"


def test_every_file_has_a_card_of_its_own(tmp_path):
    network, samples = KINDS["vector"]()
    for suffix, arm in (("pt2", "no-kd"), ("safetensors", "soft"), ("pt2", "regular")):  # the last one anew
        made = export_network(network, samples, tmp_path / f"student.{suffix}", about={"Arm": arm})
        assert made.card == tmp_path / f"student.{suffix}.md"
    for suffix, arm in (("pt2", "regular"), ("safetensors", "soft")):
        card = (tmp_path / f"student.{suffix}.md").read_text()
        assert card.startswith(f"# student.{suffix}\n\n* **Arm:** {arm}\n")


def test_weights_of_networks_of_mfh_name_the_layers_that_are_needed(tmp_path):
    network, samples = KINDS["vector"]()
    card = export_network(network, samples, tmp_path / "student.safetensors", about=ABOUT).card.read_text()
    assert "of the class `torch.nn.modules.container.Sequential`, with layers of `mfh.networks.standardise" in card


@pytest.mark.parametrize("suffix", ["pt2", "onnx", "safetensors"])
def test_the_lines_of_the_card_run_a_network_of_transformers(suffix, tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    data = Sentences(9)
    samples = encoded([data[index] for index in range(9)])[0]
    network = bert().eval()
    made = export_network(network, samples, tmp_path / f"student.{suffix}", about=ABOUT)
    monkeypatch.chdir(tmp_path)
    arrays = {name: tensor.numpy() for name, tensor in samples.items()}
    found = {"x": arrays if suffix == "onnx" else samples, "make_student": bert}
    exec(code_of(made), found)
    with torch.no_grad():
        expected = network(**samples).logits
    torch.testing.assert_close(torch.as_tensor(found["logits"]), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_extra_is_named(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    network, samples = KINDS["vector"]()
    with pytest.raises(InputError, match=rf"{package} is not installed, .*pip install 'mfh\[export\]'"):
        export_network(network, samples, tmp_path / "student.onnx", about=ABOUT)
    assert not list(tmp_path.iterdir())
