"""The benchmark on SmolLM2 measures a command's seconds and the memory of its largest process."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.smollm2 import exit_rows, used

LARGE = "import numpy, time; block = numpy.ones(50_000_000); time.sleep(0.2)"  # 0.4 GB


@pytest.fixture
def folder(tmp_path):
    (tmp_path / ".dvc").mkdir()
    return tmp_path


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the memory of processes is read as Linux tells it")
def test_a_command_that_fails_is_an_error_with_its_words(folder):
    with pytest.raises(RuntimeError, match="no such stage"):
        used(folder, [sys.executable, "-c", "import sys; sys.exit('no such stage')"])


@pytest.mark.parametrize("documents", [2, 6])
def test_exits_are_told_by_test_perplexity_with_an_interval_over_enough_documents(documents):
    generator = np.random.default_rng(0)
    columns = {f"loss_{exit}": generator.normal(4 - exit, 0.1, 600).astype(np.float32) for exit in range(3)}
    columns["document"] = np.arange(600) % documents
    first, second = exit_rows(SimpleNamespace(num_exits=3, column=columns.get))
    assert (first.name, first.bar, second.name, second.bar) == (
        *("smollm2_exit_10_ppl", "<= 150", "smollm2_exit_20_ppl", "<= 75"),
    )
    assert first.value == pytest.approx(np.exp(columns["loss_0"].mean()), rel=1e-5)
    assert second.value.n == documents and f"{documents} documents; full depth 7.4" in second.held_against
    verdicts = {row.record().verdict for row in (first, second)}
    assert verdicts == ({"met"} if documents > 4 else {"not established"})
