"""Rules of the house: what names mean, what the core needs, and that every example in a docstring runs.

The order of modules is checked with its description, in test_docs.py.
"""

import ast
import doctest
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import mfh

SOURCE = Path(mfh.__file__).parent

CORE = ["saliency", "networks", "data", "problems", "venn", "parallel", "values", "errors"]
MODULES = sorted(module.name for module in pkgutil.walk_packages([str(SOURCE)], "mfh."))


def imported(path, nodes=ast.walk):
    """Everything of ours that a file imports, as parts of the name: mfh.networks.cut -> channels."""
    for node in nodes(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} uses a relative import"
            below = [f"{node.module}.{alias.name}" for alias in node.names]
            names = below if node.module == "mfh" else [str(node.module)]
        else:
            continue
        yield from (name.split(".") for name in names)


@pytest.mark.parametrize("name", CORE)
def test_the_core_needs_torch_and_numpy_only(name):
    """What is imported when a core module is, not what a plot or a progress bar fetches when asked for."""
    for path in [SOURCE / f"{name}.py"] if (SOURCE / f"{name}.py").exists() else (SOURCE / name).glob("*.py"):
        given = {entry[0] for entry in imported(path, lambda tree: ast.iter_child_nodes(tree))}
        assert given - set(sys.stdlib_module_names) <= {"torch", "numpy", "mfh"}, path


def test_light_import():
    heavy = "{'torch', 'lightning', 'matplotlib', 'pandas', 'numpy', 'sklearn', 'scipy', 'rich'}"
    code = f"import sys, mfh; found = {heavy} & set(sys.modules); sys.exit(str(found) if found else 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_stranger_can_place_any_line():
    entries = [path.name for path in SOURCE.iterdir() if path.name != "__pycache__"]
    assert len(entries) <= 22, sorted(entries)


def test_modules_of_the_first_version_are_found_where_they_were():
    for name, place in mfh._MODULES.items():
        assert importlib.import_module(f"mfh.{name}") is importlib.import_module(place)
    code = "import mfh; mfh.metrics.accuracy; from mfh.losses import hint_loss; import mfh.channels; mfh.channels.split"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_exports():
    assert set(dir(mfh)) >= set(mfh.__all__)
    for name in mfh.__all__:
        value = getattr(mfh, name)
        assert name.startswith("__") or inspect.getdoc(value), f"{name} has no docstring"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = mfh.nothing
    listed = SOURCE.joinpath("__init__.py").read_text()
    for name in mfh._EXPORTS:  # type checkers see the same names as users
        assert f"import {name} as {name}\n" in listed, name


def test_public_names_and_modules_never_meet():
    for package in ("mfh", *[name for name in MODULES if hasattr(importlib.import_module(name), "__path__")]):
        public = set(getattr(importlib.import_module(package), "__all__", ()))
        children = {name.rsplit(".", 1)[1] for name in MODULES if name.rsplit(".", 1)[0] == package}
        assert not public & children, package


@pytest.mark.parametrize("name", [name for name in MODULES if name != "mfh.__main__"])
def test_every_public_thing_is_explained_and_its_examples_run(name):
    module = importlib.import_module(name)
    assert inspect.getdoc(module), f"{name} has no docstring"
    for key, value in vars(module).items():
        ours = getattr(value, "__module__", None) == name and not key.startswith("_")
        if ours and (inspect.isfunction(value) or inspect.isclass(value)):
            assert inspect.getdoc(value), f"{name}.{key} has no docstring"
    failed, _ = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert not failed


def test_examples_of_the_core_exist():
    finder = doctest.DocTestFinder()
    found = {
        test.name
        for name in MODULES
        if name != "mfh.__main__"
        for test in finder.find(importlib.import_module(name))
        if test.examples
    }
    for name in (
        "saliency.scores.channel_saliency",
        "saliency.masks.mask_channels",
        "problems.losses.KDLoss",
        "venn.ModalityVenn",
    ):
        assert f"mfh.{name}" in found
