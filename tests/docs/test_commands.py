"""Every command of README.md and docs/ is one that its program takes, with parameters that exist."""

from __future__ import annotations

import re
import shlex
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
from click import ClickException
from dvc.cli import DvcParserError
from dvc.cli.parser import get_main_parser
from dvc.exceptions import DvcException
from dvc.utils.hydra import apply_overrides
from mlflow.cli import cli as mlflow

import benchmarks.__main__ as measured
from offramp.app.parser import make_parser
from offramp.errors import UserError
from offramp.params import read_params
from studies.__main__ import TOOLS
from studies.common.run import _parser as study_parser
from studies.common.study import studies
from tests.conftest import REPOSITORY
from tests.docs.pages import GUIDES, PAGES, Command, commands, inline

TARGETS = set(re.findall(r"^([\w-]+)(?: [\w-]+)*:(?!=)", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
TARGETS |= set(re.search(r"^\.PHONY: (.*)$", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)[1].split())

OURS = ("offramp", "dvc", "make", "python", "mlflow")
"""Programs whose arguments are looked at; git, pip and the shell are not ours to know."""


def check(command: Command, tmp_path: Path) -> None:
    """Fail unless the program would take the words."""
    program, *words = command.words
    if program == "make":
        assert {word for word in words if "=" not in word} <= TARGETS, f"{command}: no such target"
    elif program == "offramp" and words[:1] == ["lm-eval"]:
        pass  # all that follows is lm_eval's
    elif program == "offramp":
        make_parser().parse_args(words)
    elif program == "dvc":
        get_main_parser().parse_args(words)
        set_parameters(words, tmp_path)
    elif program == "mlflow":
        name, *options = words
        mlflow.get_command(None, name).make_context(name, options, resilient_parsing=False).close()
    elif program == "python" and words[0] == "-m":
        check_module(command, *words[1:])


def set_parameters(words: list[str], tmp_path: Path) -> None:
    """Set what -S sets as DVC does, and read the parameters as a stage does."""
    pairs = [value for option, value in pairwise(words) if option in ("-S", "--set-param")]
    if pairs:
        params = shutil.copy(REPOSITORY / "params.yaml", tmp_path / "params.yaml")
        apply_overrides(str(params), [re.sub(r"\$\w+", "0.5", pair) for pair in pairs])
        read_params(tmp_path / "params.yaml")


def check_module(command: Command, module: str, *words: str) -> None:
    if module == "studies" and words and words[0] not in TOOLS:
        study_parser(studies()[words[0]]).parse_args(words[1:])
    elif module == "benchmarks":
        assert set(words) <= {*measured.NAMES, "NAME", "--quick"}, f"{command}: no such benchmark"
    else:
        assert is_module(module) or module in ("venv",), f"{command}: no such module"


def is_module(name: str) -> bool:
    """Whether `python -m NAME` runs a package or a module of the repository."""
    place = REPOSITORY / name.replace(".", "/")
    return place.is_dir() or place.with_suffix(".py").is_file()


@pytest.mark.parametrize("page", GUIDES)
def test_commands_in_blocks_are_taken(page, tmp_path):
    for command in commands(page):
        try:
            check(command, tmp_path)
        except (SystemExit, UserError, DvcException, DvcParserError, KeyError) as error:
            pytest.fail(f"{command}: {error}")


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_running_text_exist(page):
    """These are often begun only: the name counts."""
    names = set(make_parser()._subparsers._group_actions[0].choices)
    for command in inline(page):
        program, name, *rest = command.words
        if program == "offramp":
            assert name in names, command
        elif program == "make":
            assert name in TARGETS, command
        elif program == "python":
            assert is_module(rest[0]), command
        elif rest:
            check(command, None) if "-S" not in rest else get_main_parser().parse_args([name, *rest])


def test_the_first_look_sets_parameters_that_exist(tmp_path):
    makefile = (REPOSITORY / "Makefile").read_text().replace("\\\n", " ")
    set_parameters(shlex.split(re.search(r"^QUICK := (.*)$", makefile, re.MULTILINE)[1]), tmp_path)


@pytest.mark.parametrize(
    "words",
    [
        ["make", "everything"],
        ["offramp", "generate"],
        ["dvc", "exp", "runn"],
        ["dvc", "exp", "run", "-S", "threshold=2"],
        ["dvc", "exp", "run", "-S", "routing.kb=drop"],
        ["python", "-m", "studies", "exit_signals", "--nothing"],
        ["python", "-m", "benchmarks", "nothing"],
        ["mlflow", "server", "--nothing"],
    ],
)
def test_a_wrong_command_is_noticed(words, tmp_path):
    with pytest.raises((SystemExit, AssertionError, UserError, DvcException, DvcParserError, ClickException)):
        check(Command("a page", tuple(words)), tmp_path)


def test_there_are_commands_to_look_at():
    assert len(commands("README.md")) >= 8 and all(program_of(c) in OURS for c in inline("README.md"))
    assert sum(len(commands(page)) for page in GUIDES) > 40


def program_of(command: Command) -> str:
    return command.words[0]
