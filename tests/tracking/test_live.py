"""A stage's run in MLflow while the stage runs: true whatever becomes of the stage and of the server."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time

import pytest

from benchmarks.projects import set_params
from offramp.tracking.live import Live
from offramp.tracking.sender import Sender
from offramp.tracking.view import TAG
from tests.fixtures.live_project import ClosingProxy, LiveProject, wait_for
from tests.fixtures.pipeline_run import command, experiments, queue_workers

pytestmark = pytest.mark.slow

COLUMNS = ("train_loss", "calibration_ppl")
RATES = {"learning_rate", "gradient_norm", "tokens_per_second", "memory_gib"}


def assert_the_curve_is_the_files(project: LiveProject, rates: bool = True) -> None:
    """Every point once, in order, and to the last bit; and ``rates`` to the end, which no file has."""
    run = project.run()
    for block in (0, 1):
        for column in COLUMNS:
            points = project.history(run, f"block_{block}/{column}")
            assert points == project.curve(block, column)
            assert [step for step, _ in points] == [5, 10, 15, 20, 25, 30]
        steps = [step for step, _ in project.history(run, f"block_{block}/tokens_per_second")]
        assert len(steps) == len(set(steps)) and (not rates or max(steps) == 30)


def test_a_killed_training_goes_on_in_its_run(live_project, untracked_project):
    killed = live_project.start("pretrain", step_seconds=0.1)
    wait_for(lambda: live_project.shows(3))
    run = live_project.run()
    assert run.info.status == "RUNNING" and run.data.params["pretrain.steps"] == "60"
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    wait_for(lambda: live_project.run().info.status == "KILLED")
    resumed = live_project.start("pretrain")
    out, err = resumed.communicate()
    assert (out, resumed.returncode) == ("False\n", 0), err  # mlflow is not imported by what trains
    again = live_project.run()
    assert (again.info.run_id, again.info.status) == (run.info.run_id, "FINISHED")
    assert_the_curve_is_the_files(live_project)
    assert {key.removeprefix("block_0/") for key in again.data.metrics if key.startswith("block_0/")} == {
        *COLUMNS,
        *RATES,
    }
    assert live_project.digest() == untracked_project.digest()
    assert not list((live_project.root / ".resume").iterdir())


def test_a_server_that_goes_and_comes_back_leaves_no_gap(server, live_project, untracked_project):
    project = LiveProject(live_project.root, server.uri.replace("//", "//bob:s3cret@"))
    training = project.start("pretrain", step_seconds=0.2)
    wait_for(lambda: project.shows(2))
    server.kill()
    time.sleep(3)  # looks are missed, and the server is tried
    hold = project.root / "hold"
    hold.touch()
    assert training.poll() is None
    server.start()
    hold.unlink()
    err = training.communicate()[1]
    assert training.returncode == 0, err
    assert err.count("warning:") == 1 and "offramp track" in err and "s3cret" not in err and "bob" not in err
    assert project.run().info.status == "FINISHED"
    assert_the_curve_is_the_files(project)
    assert project.digest() == untracked_project.digest()


def test_track_completes_the_run_and_closes_what_was_left_open(server, live_project):
    """The server is gone at the end of the training."""
    project = LiveProject(live_project.root, server.uri, seed=7)
    set_params(project.root / "params.yaml", {"tracking.system_metrics": True})
    project.environment = project.environment | {"MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "0.3"}
    training = project.start("pretrain", step_seconds=0.15)
    wait_for(lambda: project.shows(2) and system_metrics(project))
    assert system_metrics(project) >= {"system/cpu_utilization_percentage", "system/disk_usage_percentage"}
    server.kill()
    begun = time.monotonic()
    err = training.communicate()[1]
    assert training.returncode == 0 and err.count("warning:") == 1, err
    assert time.monotonic() - begun < 60
    server.start()
    before = project.run()
    assert before.info.status == "RUNNING"  # nobody could say otherwise
    subprocess.run(
        [sys.executable, "-m", "offramp.app.cli", "track"],
        cwd=project.root,
        env=project.environment,
        check=True,
        capture_output=True,
    )
    run = project.run()
    assert (run.info.run_id, run.info.status) == (before.info.run_id, "FINISHED")
    assert run.data.tags["mlflow.parentRunId"] and run.data.tags["dvc.stage.pretrain"]
    assert run.inputs.dataset_inputs[0].dataset.name == "data"
    assert_the_curve_is_the_files(project, rates=False)
    assert not list((project.root / ".resume").iterdir())


def test_a_connection_that_is_closed_in_the_midst_of_a_request_costs_nothing(server, live_project):
    with ClosingProxy(server.port) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        project = LiveProject(live_project.root, proxy.uri, seed=9)
        training = project.start("pretrain", step_seconds=0.1)
        wait_for(lambda: project.shows(1))
        proxy.closing = 1
        err = training.communicate()[1]
        proxy.shutdown()
    assert proxy.closed == 1
    assert training.returncode == 0 and not err.count("warning:"), err
    project = LiveProject(live_project.root, server.uri, seed=9)
    assert project.run().info.status == "FINISHED"
    assert_the_curve_is_the_files(project)


def system_metrics(project: LiveProject) -> set[str]:
    """What the run of pretrain holds of the machine."""
    return {key for key in project.run().data.metrics if key.startswith("system/")}


def test_a_machine_that_psutil_cannot_count_on_has_no_system_metrics(live_project, tmp_path):
    (tmp_path / "stubs/psutil").mkdir(parents=True)
    (tmp_path / "stubs/psutil/__init__.py").write_text("raise ImportError('no counters')")
    messages = [{**ABOUT, "root": str(live_project.root), "system_metrics": True}]
    messages.append({"at": 9, "part": "final", "step": 7, "values": {"tokens_per_second": 3.0}})
    messages.append({"at": 10, "end": "FINISHED", "made": {}})
    path = os.pathsep.join([str(tmp_path / "stubs"), str(live_project.root / "src")])
    sender = subprocess.run(
        [sys.executable, "-m", "offramp.tracking.sender"],
        input="".join(json.dumps(message) + "\n" for message in messages),
        env={**live_project.environment, "PYTHONPATH": path},
        text=True,
        capture_output=True,
    )
    assert "no system metrics: ImportError: no counters" in sender.stderr
    run = live_project.run()
    assert run.info.status == "FINISHED" and set(run.data.metrics) == {"final/tokens_per_second"}


def test_the_view_of_the_experiment_is_there_while_the_first_run_trains(server, live_project):
    project = LiveProject(live_project.root, server.uri, seed=8)
    (project.root / "hold").touch()
    training = project.start("pretrain")
    wait_for(project.runs)
    experiment = lambda: project.client.get_experiment_by_name(project.root.name)  # noqa: E731
    wait_for(lambda: TAG in experiment().tags)
    assert project.root.name in experiment().tags["mlflow.note.content"]
    assert project.run().info.status == "RUNNING" and training.poll() is None
    (project.root / "hold").unlink()
    err = training.communicate()[1]
    assert training.returncode == 0 and not err.count("warning:"), err
    assert not system_metrics(project)  # the parameter is false unless somebody sets it


ABOUT = {
    "stage": "pretrain",
    "key": "same",
    "params": {"pretrain": {"steps": 30}},
    "begun": 1,
    "system_metrics": False,
    "send_seconds": 0.0,
    "pause_seconds": 1.0,
}
"""What a stage tells of itself first, but for where it is."""
STOPPED = """
import os, sys, time
from pathlib import Path
from offramp.params import load_params
from offramp.tracking.live import live_run
with live_run("pretrain", load_params("pretrain"), Path("."), sys.argv[1]):
    print("begun", flush=True)
    sys.argv[1] == "raises" and sys.exit(2)
    time.sleep(60)
"""


def test_the_status_says_how_a_stage_ended(live_project):
    ways = {
        "raises": None,
        "interrupted": signal.SIGINT,
        "terminated": signal.SIGTERM,
        "killed": signal.SIGKILL,
    }
    stages = {
        key: subprocess.Popen(
            [sys.executable, "-c", STOPPED, key],
            cwd=live_project.root,
            env=live_project.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        for key in ways
    }
    for key, stage in stages.items():
        assert stage.stdout and stage.stdout.readline() == b"begun\n"
        if ways[key]:
            stage.send_signal(ways[key])

    def statuses():
        runs = live_project.runs()
        return {run.data.tags["offramp.snapshot_key"]: run.info.status for run in runs}

    wanted = {"raises": "FAILED", "interrupted": "KILLED", "terminated": "KILLED", "killed": "KILLED"}
    wait_for(lambda: statuses() == wanted)
    assert all(stage.wait() != 0 for stage in stages.values())


def test_a_step_waits_for_nobody():
    """Not for a process that never reads, and not for one that is gone."""
    deaf = subprocess.Popen(["sleep", "60"], stdin=subprocess.PIPE, bufsize=0)
    live = Live(deaf)
    begun = time.monotonic()
    for number in range(20_000):
        live.curve([{"phase": "block 0", "exit": 0, "step": number, "train_loss": 1 / 3}])
    assert time.monotonic() - begun < 5 and len(live.waiting) <= 10_000
    deaf.kill()
    deaf.wait()
    live.step("block 0", 1, 32)
    live.end("FINISHED")
    assert not live.waiting


def test_two_processes_have_one_run(live_project):
    path = os.pathsep.join([str(live_project.root / "src"), str(live_project.root)])
    subprocess.run(
        [
            *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
            *("--main_process_port", "0", "-m", "pipeline.pretrain"),
        ],
        cwd=live_project.root,
        env={**live_project.environment, "PYTHONPATH": path},
        check=True,
        capture_output=True,
    )
    assert live_project.run().info.status == "FINISHED"
    assert_the_curve_is_the_files(live_project)


def test_experiments_side_by_side_have_their_runs_and_a_cached_one_has_none(live_project):
    root = live_project.root
    for seed in (1, 2):
        command(root, "dvc", "exp", "run", "--queue", "-S", f"pretrain.seed={seed}", "pretrain")
    with queue_workers(root, jobs=2):
        wait_for(lambda: len(experiments(root)) == 2)
        wait_for(lambda: [run.info.status for run in live_project.runs()] == ["FINISHED"] * 2)
    runs = live_project.runs()
    assert {run.data.params["pretrain.seed"] for run in runs} == {"1", "2"}
    assert len({run.data.tags["dvc.exp_name"] for run in runs}) == 2
    done = command(root, "dvc", "exp", "run", "--temp", "-S", "pretrain.seed=2", "pretrain").stdout
    assert "Running stage 'pretrain'" not in done
    assert len(live_project.runs()) == 2


def test_other_values_than_before_begin_the_run_anew(live_project):
    """A training that was taken up on a GPU need not come to the values that the run shows already."""

    def training(end, *rows):
        messages: queue.SimpleQueue = queue.SimpleQueue()
        for step, loss in rows:
            row = {"phase": "final", "exit": 1, "step": step, "tokens": 1, "train_loss": loss}
            messages.put({"at": step, "rows": [row | {"calibration_ppl": 9.0}]})
        messages.put({"at": 100, "part": "final", "step": 7, "values": {"tokens_per_second": 3.0}})
        messages.put({"at": 101, "end": end, "made": {}})
        Sender({**ABOUT, "root": str(live_project.root)}).run(messages)

    training("KILLED", (5, 2.0), (10, 1.5), (15, 1.25))
    first = live_project.run()
    training("KILLED", (5, 2.0), (10, 1.5))
    assert live_project.run().info.run_id == first.info.run_id
    training("FINISHED", (5, 2.0), (10, 1.5000001))
    run = live_project.run()  # the other one is in the bin
    assert run.info.run_id != first.info.run_id and run.info.status == "FINISHED"
    assert live_project.history(run, "final/train_loss") == [(5, 2.0), (10, 1.5000001)]
    assert live_project.history(run, "final/tokens_per_second") == [(7, 3.0)]
