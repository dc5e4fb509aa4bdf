"""A new threshold's seconds are told apart by what DVC prints."""

from __future__ import annotations

import sys

import pytest

from benchmarks.threshold import timeline

LINES = """
import time
for line in ("", "Running stage 'check':", "> python -m pipeline.check", "Updating lock file 'dvc.lock'",
             "Running stage 'evaluate':", "Ran experiment(s): one"):
    print(line, flush=True)
    time.sleep(0.2)
"""


def test_a_stage_lasts_until_dvc_goes_on(tmp_path):
    parts = timeline([sys.executable, "-c", LINES], tmp_path)
    assert list(parts) == ["dvc", "check", "evaluate"]
    # a line is two tenths of a second at least: two of check, one of evaluate, and three of DVC's own
    assert parts["check"] > 0.35 and parts["evaluate"] > 0.15 and parts["dvc"] > 0.55


def test_what_a_command_said_before_it_failed_is_shown(tmp_path):
    with pytest.raises(RuntimeError, match="no such stage"):
        timeline([sys.executable, "-c", "print('no such stage'); raise SystemExit(1)"], tmp_path)
