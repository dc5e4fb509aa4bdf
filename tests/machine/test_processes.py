"""How processes share work; what two of them do together is tested in tests/training."""

from __future__ import annotations

import os
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from offramp.machine.processes import Processes
from tests.conftest import REPOSITORY


@given(st.lists(st.integers()), st.integers(1, 9))
def test_shares_are_consecutive_stretches_of_nearly_equal_size(items, count):
    shares = [Processes(rank, count).share(items) for rank in range(count)]
    assert [item for share in shares for item in share] == items
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_process_started_alone_does_not_import_accelerate():
    program = (
        "import sys, torch; from offramp.machine.processes import join; "
        "join(torch.device('cpu')); sys.exit('accelerate' in sys.modules)"
    )
    subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(REPOSITORY / "src")}, check=True
    )
