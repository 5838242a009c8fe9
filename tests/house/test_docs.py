"""The documentation is true: its code runs, its commands parse, its links lead somewhere, its lists are complete.

Marks in the pages, as HTML comments on the line before a block:

    runnable        the block runs; blocks of one page run in order, in one namespace, in an empty folder
    file: NAME      the block is written to that file first
    example: PATH   the block's lines stand in that script word for word
"""

import ast
import inspect
import pkgutil
import re
import runpy
import shlex
from functools import cache
from pathlib import Path

import pytest
import tyro

import mfh
from documented import PAGES, ROOT, blocks, is_pattern, lines, name_of, prose
from mfh.cli import commands
from mfh.cli.options import Command
from real_views import replace_real_data

SOURCE = ROOT / "src" / "mfh"


def pages_with(mark: str) -> list[Path]:
    return [page for page in PAGES if any(block.mark.startswith(mark) for block in blocks(page))]


# --- code -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_blocks_are_python(page):
    for block in blocks(page):
        if block.language == "python":
            ast.parse(block.code)


@pytest.mark.parametrize("page", pages_with("runnable"), ids=name_of)
def test_runnable_blocks_run(page, tmp_path, monkeypatch):
    replace_real_data(monkeypatch)  # as many samples of the same shapes, without their packages
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # as where a script lies beside its files
    namespace: dict[str, object] = {"__name__": "documentation"}
    for block in blocks(page):
        if block.mark.startswith("file: "):
            (tmp_path / block.mark.removeprefix("file: ")).write_text(block.code, encoding="utf-8")
        elif block.mark == "runnable":
            exec(compile(block.code, name_of(page), "exec"), namespace)


def test_some_blocks_are_marked():
    assert pages_with("runnable")
    assert ROOT / "README.md" in pages_with("runnable")
    assert pages_with("example")


def test_the_readme_is_short_and_its_python_is_three_lines():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 120
    (block,) = [block for block in blocks(ROOT / "README.md") if block.mark == "runnable"]
    imported, *three = [line for line in block.code.splitlines() if line]
    assert imported == "import mfh"
    assert len(three) == 3


def test_files_of_one_name_are_the_same():
    """A page may repeat a file of another one, my_task.py for instance; each page runs its own."""
    files: dict[str, set[str]] = {}
    for page in PAGES:
        for block in blocks(page):
            if block.mark.startswith("file: "):
                files.setdefault(block.mark, set()).add(block.code)
    assert all(len(contents) == 1 for contents in files.values())
    assert len(files["file: my_task.py"].pop().splitlines()) <= 25


@pytest.mark.parametrize("page", pages_with("example: "), ids=name_of)
def test_excerpts_stand_in_their_scripts(page):
    for block in blocks(page):
        if block.mark.startswith("example: "):
            assert block.code in (ROOT / block.mark.removeprefix("example: ")).read_text(encoding="utf-8")


def test_the_three_lines_of_the_site_run(capsys):
    runpy.run_path(str(ROOT / "examples/01_three_lines.py"), run_name="__main__")
    assert "student returns logits of shape (1, 2)" in capsys.readouterr().out


# --- commands ---------------------------------------------------------------------------------------------------------


@cache
def all_commands() -> list[tuple[str, tuple[str, ...]]]:
    """(page, words after `mfh`) of every command line in a block or in the running text."""
    return [(name_of(page), line.words[1:]) for page in PAGES for line in lines(page) if line.words[0] == "mfh"]


def command_names() -> set[str]:
    """Of the commands, without those below `mfh prepare`."""
    union = (SOURCE / "cli" / "options.py").read_text(encoding="utf-8").partition("\nCommand = ")[2]
    return set(re.findall(r"subcommand\(\"([\w-]+)\"", union))


def test_commands_parse(capsys):
    names = command_names()
    assert len(all_commands()) > 20
    wrong = []
    for page, words in all_commands():
        if words[0] not in names:
            wrong.append(f"{page}: there is no command {words[0]!r}")
        elif not is_pattern(words):
            try:
                tyro.cli(Command, prog="mfh", args=words)
            except SystemExit as end:
                message = " ".join(capsys.readouterr().err.split())
                if end.code:  # --help ends with 0
                    wrong.append(f"{page}: mfh {shlex.join(words)}: {message}")
    assert not wrong, "\n".join(wrong)


def test_error_messages_are_as_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    shown = 0
    for block in blocks(ROOT / "docs/command-line.md"):
        for command, answer in re.findall(r"^\$ mfh (.*)\n(mfh: .*)$", block.code, re.MULTILINE):
            with pytest.raises(SystemExit) as exit_code:
                commands.main(shlex.split(command))
            assert exit_code.value.code == 2
            assert capsys.readouterr().err.strip() == answer
            shown += 1
    assert shown


def test_every_command_is_documented():
    names = command_names()
    for page in ("README.md", "docs/command-line.md"):
        assert names <= {words[0] for name, words in all_commands() if name == page}


def test_the_site_shows_the_help_of_every_command():
    hook = runpy.run_path(str(ROOT / "docs/scripts/options_hook.py"))
    page = hook["on_page_markdown"]((ROOT / "docs/command-line.md").read_text(encoding="utf-8"))
    shown = re.findall(r"<summary>mfh ([\w-]+).*?</summary>\n\n```text\nusage: mfh \1(.*?)```", page, re.DOTALL)
    assert command_names() == {name for name, _ in shown}
    helps = dict(shown)
    assert "--label-fractions " in helps["study"]
    assert "--int8" in helps["export"]
    assert max(map(len, helps["study"].splitlines())) <= 80


def test_make_targets_exist():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for page in PAGES:
        assert {line.words[1] for line in lines(page) if line.words[0] == "make"} <= targets


def test_the_readme_starts_with_the_two_commands():
    first = blocks(ROOT / "README.md")[0]
    assert [shlex.split(line, comments=True) for line in first.code.splitlines()] == [
        ["make", "demo"],
        ["make", "test"],
    ]


# --- links and lists --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_local_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", prose(page)):
        target = "".join(target)
        if not re.match(r"[a-z]+:|#", target):
            assert (page.parent / target.partition("#")[0]).exists(), f"{name_of(page)} links to {target}"


def test_links_of_the_package_page_are_absolute():
    absolute = runpy.run_path(str(ROOT / "scripts/absolute_links.py"))["absolute"]
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    made = absolute(text, "https://example.org/mfh/", "v1")
    assert "](https://example.org/mfh/blob/v1/docs/install.md)" in made
    assert 'src="https://example.org/mfh/raw/v1/docs/figures/idea.svg"' in made
    targets = re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", made)
    assert len(targets) > 20
    assert all("".join(target).startswith("https://") for target in targets)
    assert "https://arxiv.org/abs/2206.06487" in made  # links that are absolute stay


def test_pictures_have_alternative_texts():
    for page in PAGES:
        assert not re.search(r"!\[\s*\]\(|<img(?![^>]*alt=\"\w)", prose(page)), name_of(page)


def test_the_site_shows_every_page():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        assert f": {page.relative_to(ROOT / 'docs')}\n" in navigation


def test_the_api_lists_every_public_name():
    listed = re.findall(r"^\| \[`mfh\.(\w+)`\]", (ROOT / "docs/api/index.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(set(mfh.__all__) - {"__version__"})


def test_the_api_pages_name_what_exists():
    names = [
        n
        for page in (ROOT / "docs/api").glob("*.md")
        for n in re.findall(r"^::: (\S+)", page.read_text(), re.MULTILINE)
    ]
    assert len(names) > 60
    assert all(inspect.getdoc(pkgutil.resolve_name(name)) for name in names)


def test_wings_import_only_wings_further_down_the_list():
    design = (ROOT / "docs/design.md").read_text(encoding="utf-8").partition("## Wings")[2]
    order = re.findall(r"^\| `(\w+)` \|", design, re.MULTILINE)
    modules = {path.relative_to(SOURCE).parts[0].removesuffix(".py") for path in SOURCE.rglob("*.py")}
    assert sorted(order) == sorted(modules - {"__init__", "__main__"})
    for path in SOURCE.rglob("*.py"):
        module = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        if module not in ("__init__", "__main__"):
            for imported in imported_modules(path) - {module}:
                assert order.index(imported) > order.index(module), f"{module} imports {imported}"


def imported_modules(path: Path) -> set[str]:
    """Modules of the package that a file imports, by the first part of their names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "mfh":
            found |= {alias.name for alias in node.names if not alias.name.startswith("__")}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mfh."):
            found.add(str(node.module).split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("mfh.")}
    return found
