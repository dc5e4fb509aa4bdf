"""The benchmark on SmolLM2 measures a command's seconds and the memory of its largest process."""

from __future__ import annotations

import sys

import pytest

from benchmarks.smollm2 import used

pytestmark = pytest.mark.slow

LARGE = "import numpy, time; block = numpy.ones(50_000_000); time.sleep(0.2)"  # 0.4 GB


@pytest.fixture
def folder(tmp_path):
    (tmp_path / ".dvc").mkdir()
    return tmp_path


@pytest.mark.skipif(sys.platform != "linux", reason="the memory of processes is read as Linux tells it")
def test_the_largest_process_counts_whoever_started_it(folder):
    seconds, direct = used(folder, [sys.executable, "-c", LARGE])
    _, child = used(
        folder,
        [
            sys.executable,
            "-c",
            f"import subprocess, sys; subprocess.run([sys.executable, '-c', {LARGE!r}], check=True)",
        ],
    )
    assert 0.4 < direct < 0.6 and child == pytest.approx(direct, rel=0.1)
    assert seconds > 0.2


@pytest.mark.skipif(sys.platform != "linux", reason="the memory of processes is read as Linux tells it")
def test_a_command_that_fails_is_an_error_with_its_words(folder):
    with pytest.raises(RuntimeError, match="no such stage"):
        used(folder, [sys.executable, "-c", "import sys; sys.exit('no such stage')"])
