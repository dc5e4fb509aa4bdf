"""The `offramp` command: exit codes, messages, and a start that does not import half the world."""

import socket
import subprocess
import sys

import pytest

from offramp.app.cli import main


def test_help_imports_nothing_heavy():
    heavy = {"torch", "mlflow", "rich", "numpy", "pydantic"}
    code = f"import sys, offramp.app.cli; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()"


def test_help_names_the_commands(capsys):
    with pytest.raises(SystemExit) as done:
        main(["--help"])
    assert done.value.code == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("lineage", "track", "params", "ui"))


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
