"""README and docs: their commands are accepted, their links and tables are current."""

import argparse
import re
import shlex
import subprocess
import sys

import nbformat
import pypandoc
import pytest

from dfd_utils.cli import build_parser
from dfd_utils.config import PROJECT_ROOT

PAGES = [PROJECT_ROOT / "README.md", *sorted((PROJECT_ROOT / "docs").glob("*.md"))]
COMMAND = r"(?:dfd|\./run_all\.sh|torchrun|python -m|python) "
PLACEHOLDERS = {"N": "1", "COMMAND": "run"}


def commands(page):
    """The commands of a page, in blocks of code and in lines of text."""
    text = page.read_text()
    blocks = re.findall(r"```\w*\n(.*?)```", text, flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    lines = [re.split(r"\s{2,}#|\s{3,}[a-z]", line.strip())[0] for line in lines]
    rest = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    lines += [" ".join(c.split()) for c in re.findall(rf"`({COMMAND}[^`]+)`", rest)]
    return [line for line in lines if re.match(COMMAND, line)]


def subparsers():
    parser = build_parser()
    (action,) = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return action.choices


def arguments(line):
    """The arguments of `dfd` in a line, or None if it calls something else."""
    line = re.sub(
        r"[\[\]]", " ", line.replace("]…", "]")
    )  # what may be left out is checked as well
    words = [PLACEHOLDERS.get(word, word) for word in shlex.split(line.split(" < ")[0])]
    if words[0] == "./run_all.sh":
        return None if words[1:2] in (["setup"], ["test"]) else ["run", *words[1:]]
    if "dfd_utils" in words:
        return words[words.index("dfd_utils") + 1 :]
    return words[1:] if words[0] == "dfd" else None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_accepted(page):
    known = subparsers()
    for line in commands(page):
        words = arguments(line)
        if not words:
            continue
        if words[0] in ("--help", "--version"):
            continue
        assert words[0] in known, line
        parser = known[words[0]]
        flags = [word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)]
        assert set(flags) <= {*parser._option_string_actions, "--debug"}, line
        if "…" not in line and len(words) > 1 and "--help" not in words:
            required = [a for a in parser._actions if a.required and a.option_strings]
            missing = [a for a in required if not set(a.option_strings) & set(flags)]
            extra = [word for a in missing for word in (a.option_strings[0], "x")]
            build_parser().parse_args([*words, *extra])  # exits if it is not accepted


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_sections_that_are_named_exist(page):
    text = page.read_text()
    for module in re.findall(r"python -m (benchmarks\.\w+)", text):
        assert (PROJECT_ROOT / f"{module.replace('.', '/')}.py").is_file(), module
    for name in re.findall(r"(?:benchmarks|tests|docs|notebooks)/[\w/]+\.(?:py|md|ipynb)", text):
        assert (PROJECT_ROOT / name).is_file(), name
    for target in re.findall(r"\]\(([\w./-]+)(?:#[\w-]*)?\)", text):
        assert (page.parent / target).exists(), target


def test_the_front_pages_are_current():
    command = [sys.executable, "-m", "benchmarks.front_page", "--check"]
    done = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "up to date\n"), done.stdout + done.stderr


def test_the_badges_are_pictures_with_links():
    """On a line that begins with a comment, Markdown would show them as text."""
    book = nbformat.read(PROJECT_ROOT / "notebooks" / "01_explore_data.ipynb", as_version=4)
    for text in (PAGES[0].read_text(), book.cells[0].source):
        html = pypandoc.convert_text(text, "html5", "gfm", ["--wrap=none"])
        linked = re.findall(r'<a href="([^"]+)"[^>]*><img src="([^"]+)"', html)
        assert len(linked) == 3, html[:500]
        assert all("/blob/main/notebooks/01_explore_data.ipynb" in link for link, _ in linked)
