"""The `offramp` command: help, exit codes, messages, and a start that does not import half the world."""

import re
import shlex
import socket
import subprocess
import sys
from importlib.metadata import version

import pytest

from offramp.app.cli import main
from offramp.app.parser import make_parser

IN_ORDER = (
    *("suitability", "convert", "params", "generate", "compare", "ui"),
    *("lineage", "separation", "low-rank", "lm-eval", "track"),
)


def offramp(*words, **where):
    return subprocess.run(
        [sys.executable, "-m", "offramp.app.cli", *words], capture_output=True, text=True, **where
    )


@pytest.fixture(scope="module")
def help_text():
    """What `offramp` alone prints."""
    done = offramp()
    assert done.returncode == 0 and done.stderr == ""
    return done.stdout


def test_help_imports_nothing_heavy():
    heavy = {"torch", "mlflow", "rich", "numpy", "pydantic"}
    code = f"import sys, offramp.app.cli; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()"


def test_alone_it_shows_the_help_with_commands_in_the_order_of_use(help_text):
    assert offramp("--help").stdout == help_text
    assert tuple(re.findall(r"^    ([a-z-]+) {2,}\S", help_text, re.MULTILINE)) == IN_ORDER


def test_it_says_its_version():
    done = offramp("--version")
    assert (done.returncode, done.stdout) == (0, f"offramp {version('offramp')}\n")


def test_examples_are_commands_and_help_has_no_markup_in_it(help_text):
    texts = [help_text]
    for name in IN_ORDER:
        if name != "lm-eval":  # which has that of another program
            texts.append(offramp(name, "--help").stdout)
            assert texts[-1].startswith(f"usage: offramp {name}")
    examples = [line.strip() for text in texts for line in re.findall(r"^  offramp .*$", text, re.MULTILINE)]
    assert len(examples) > len(IN_ORDER)
    for example in examples:
        make_parser().parse_args(shlex.split(example)[1:])  # which ends the process where it cannot
    assert not re.search(r"``|\[/|\[bold|\[dim|\*\*", "".join(texts))


def test_the_first_example_of_generate_samples():
    """The likeliest tokens of a small model go round in circles."""
    first = re.search(r"examples:\n(.*)", offramp("generate", "--help").stdout)[1]
    assert make_parser().parse_args(shlex.split(first)[1:]).temperature > 0


def test_parameters_are_checked_without_torch(project):
    code = "import sys, offramp.app.cli as cli; print(cli.main(['params']), 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=project / "metrics", capture_output=True, text=True
    )
    assert done.stdout == "../params.yaml: ok\n0 False\n"


def test_params_are_checked(project, capsys):
    assert main(["params"]) == 0
    assert "ok" in capsys.readouterr().out
    (project / "params.yaml").write_text(
        (project / "params.yaml").read_text().replace("threshold: 0.75", "threshold: 1.7")
    )
    assert main(["params"]) == 2
    assert "threshold = 1.7" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["track"], ["lineage"], ["ui"]])
def test_outside_of_a_project(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    assert main(command) == 2
    assert capsys.readouterr().err.startswith("error: no DVC project")


def test_track_says_whether_it_logged(tracked, monkeypatch, capsys):
    monkeypatch.chdir(tracked.root / "metrics")  # anywhere inside the project
    assert main(["track"]) == 0
    assert "already has these results" in capsys.readouterr().out
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////dev/null/mlflow.db")
    assert main(["track"]) == 1


def test_ui_without_runs(project, capsys):
    (project / "mlflow.db").unlink()
    assert main(["ui"]) == 2
    assert "dvc repro" in capsys.readouterr().err
    assert not (project / "mlflow.db").exists()


def test_ui_on_a_port_in_use(tracked, monkeypatch, capsys):
    monkeypatch.chdir(tracked.root)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        assert main(["ui", "--port", str(other.getsockname()[1])]) == 2
    assert "--port" in capsys.readouterr().err
