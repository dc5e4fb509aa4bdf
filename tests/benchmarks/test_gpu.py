"""The check of a GPU: its checks hold on the CPU too and can fail, and without a GPU it says so."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace

import pytest
import torch

import benchmarks.gpu.checks as gpu_checks
from benchmarks.gpu.__main__ import MOST_SECONDS, main, run_check, run_checks
from benchmarks.gpu.checks import CHECKS, COMPUTING, REDUCED, Failed, small_pipeline
from benchmarks.gpu.speed import GIB, Size, rows
from benchmarks.projects import set_params
from offramp.params import read_params
from offramp.results.gpu import GpuCheck, GpuRun
from tests.conftest import REPOSITORY

CPU = torch.device("cpu")
TINY = Size(128, 1, 256, 16, windows=2, rows=2, prompt=4, new=3, repetitions=1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has what the test wants absent")
def test_without_a_gpu_nothing_is_checked_or_written(capsys):
    before = (REPOSITORY / GpuRun.path).exists()
    assert main() == 0
    assert "no CUDA device" in capsys.readouterr().out
    assert (REPOSITORY / GpuRun.path).exists() == before


@pytest.mark.parametrize("check", [check for check in CHECKS if check is not small_pipeline])
def test_every_check_holds_on_the_cpu(check, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_checks, "precision_of", lambda device: "fp32")  # bf16 is slow on most CPUs
    assert "within" in (said := check(CPU, tmp_path)) or "differ by 0.0e+00" in said


def test_the_pipeline_of_the_check_is_one_that_the_schema_takes(tmp_path):
    shutil.copy(REPOSITORY / "params.yaml", tmp_path)
    set_params(tmp_path / "params.yaml", REDUCED)
    assert read_params(tmp_path / "params.yaml").pretrain.steps == REDUCED["pretrain.steps"]
    assert all((REPOSITORY / f"pipeline/{stage}.py").exists() for stage in COMPUTING)


def test_a_pass_that_differs_is_told(monkeypatch, tmp_path):
    right = gpu_checks.decoded

    def wrong(*arguments):
        steps = right(*arguments)
        return replace(steps, loss=steps.loss + 0.01)

    monkeypatch.setattr(gpu_checks, "decoded", wrong)
    (check,) = run_checks(CPU, [gpu_checks.decoding_equals_one_pass], time.monotonic())
    assert not check.passed and "losses differ by 1.0e-02" in check.detail


def test_a_run_passes_where_every_check_was_reached_and_held():
    def fails():
        raise Failed("no")

    def passed(*checks: GpuCheck) -> bool:
        return GpuRun(machine="m", commit=None, seconds=1.0, checks=list(checks), rows=[]).passed

    now = time.monotonic()
    good, bad = run_check("good", lambda: "well", now), run_check("bad", fails, now)
    late = run_check("late", lambda: "well", now - MOST_SECONDS - 1)
    assert [check.passed for check in (good, bad, late)] == [True, False, None]
    assert passed(good) and not passed(good, bad) and not passed(good, late)


def test_speed_is_measured_against_plain_passes_and_static_truncation():
    measured = {row.name: row.record() for row in rows(CPU, TINY, "fp32")}
    assert list(measured) == [
        "gpu_routed_nothing_exits",
        "gpu_routed_50_exit",
        "gpu_routed_90_exit",
        "gpu_decode_never_exits",
        "gpu_decode_forced_two_thirds",
        "gpu_decode_forced_one_third",
    ]
    assert all(row.value == row.value and row.bar for row in measured.values())


def test_the_size_follows_the_memory():
    assert Size.filling(140 * GIB).width > Size.filling(8 * GIB).width
