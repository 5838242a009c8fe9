"""Every option is written once, and its help is a sentence that stands alone."""

import ast
import dataclasses
import re
import typing
from pathlib import Path

import pytest

import mfh
from mfh.cli import options
from mfh.cli.commands import main
from mfh.studies import settings
from mfh.tasks import finding, sizes

SOURCE = Path(mfh.__file__).parent


def documented_fields():
    """(class, field, help) of every option that the command line shows."""
    for module in (options, settings, finding, sizes):
        tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
        for node in tree.body:
            if not isinstance(node, ast.ClassDef):
                continue
            for field, text in zip(node.body, node.body[1:], strict=False):
                is_text = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
                if isinstance(field, ast.AnnAssign) and is_text:
                    yield node.name, field.target.id, text.value.value


def test_every_option_of_the_command_line_has_help():
    known = {(kind, name) for kind, name, _ in documented_fields()}
    assert len(known) > 80
    groups = ("dataset", "training", "files", "execution", "loss", "scoring", "keeping", "features", "sizes")
    for kind in typing.get_args(options.Command):
        command = typing.get_args(kind)[0]
        for field in dataclasses.fields(command):
            homes = [parent.__name__ for parent in command.__mro__ if (parent.__name__, field.name) in known]
            assert homes or field.name in groups, (command.__name__, field.name)


def test_no_help_is_written_twice():
    source = "\n".join(path.read_text(encoding="utf-8") for path in SOURCE.rglob("*.py"))
    for kind, name, text in documented_fields():
        assert source.count(text) == 1, (kind, name)


def test_help_is_a_sentence_that_stands_alone():
    for kind, name, text in documented_fields():
        assert text[0].isupper() or text.startswith(("vary-", "modify-")), (kind, name, text)
        assert text.endswith("."), (kind, name, text)
        assert not text.startswith(("Of ", "Instead ", "That ", "Which ", "So many")), (kind, name, text)
        assert "\n" not in text, (kind, name, "the terminal would break the line here")


def test_the_version(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"mfh {mfh.__version__}\n"


def test_the_old_name_of_role_still_works(tmp_path, caplog, capsys):
    import tiny_task

    main(["pretrain", tiny_task.__file__, "--modality", "student", "--epochs", "1", "--out", str(tmp_path / "run")])
    assert "--modality is deprecated; use --role" in caplog.text
    assert capsys.readouterr().out.startswith("student: validation accuracy")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["report"], "--out DIR Folder of the page (default: the run folder; for several runs, the folder"),
        (["check"], "Read every item of a task and list bad ones. Exit code 1 if there are any."),
        (["gauss"], "Defaults are as published, except for --permutations."),
        (["prepare", "vggsound"], "--test DIR Folder with test strips"),
    ],
)
def test_help_says_what_holds(command, said, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        main([*command, "--help"])
    text = " ".join(re.sub("[\u2500-\u257f]", " ", capsys.readouterr().out).split())  # without the boxes
    assert said in text
    assert "(default: )" not in text


@pytest.mark.parametrize("command", ["study", "distill", "diagnose", "pretrain"])
def test_help_shows_a_commands_own_options_first_and_the_rest_in_groups(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = capsys.readouterr().out
    assert text.splitlines()[0].endswith("TASK")
    places = [
        re.search(rf"(?m)^\W*{title}\W*$", text).start() for title in ("options", "dataset options", "training options")
    ]
    assert places == sorted(places)
