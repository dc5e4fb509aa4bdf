"""A project's exits as they are read, against plain logits, and what the command prints of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from offramp.analysis.advice import by_the_clock
from offramp.analysis.oracle import can_leave
from offramp.analysis.suitability import assess, of_states
from offramp.app.cli import main
from offramp.app.project import open_project
from offramp.artifacts.artifact import open_artifact
from offramp.corpus.windows import TokenWindows
from offramp.report.suitability import section, table
from offramp.results.suitability import (
    Suitability,
)
from tests.fixtures.small_project import make_project


@pytest.fixture(scope="module")
def project(addresses, tmp_path_factory):
    """A finished project and its model."""
    root = tmp_path_factory.mktemp("project")
    return root, make_project(root, addresses)


def kl(full, early):
    """KL(full || early) of logits (..., V), (...,)."""
    full, early = full.double().log_softmax(-1), early.double().log_softmax(-1)
    return (full.exp() * (full - early)).sum(-1)


def expected(model, windows, readout_of):
    """Agreement, NLL and divergence (N,) of the first exit, from plain logits and the readout of an exit."""
    tokens, targets = windows.batch(torch.arange(len(windows)))
    with torch.no_grad():
        first, last = model(tokens)
        early, full = model.logits(readout_of, first), model.logits(1, last)
    nll = torch.nn.functional.cross_entropy(early.flatten(0, 1), targets.flatten())
    agreement = (early.argmax(-1) == full.argmax(-1)).double().mean().item()
    return agreement, nll.item(), kl(full, early).flatten().numpy()


def of_test_states(project, tokens):
    states = open_artifact(project.root / "states/test", "states")
    settings, hidden = project.params.routing, project.params.exits.hidden
    sizes = {"tokens": tokens, "rounds": 2, "batch_size": 4}
    return of_states(project.data, project.lm, project.model, states, settings, hidden, **sizes)


def test_a_projects_exits_are_read_from_cached_states_raw_and_as_trained(project):
    root, model = project
    opened = open_project(root)
    subject = of_test_states(opened, 10**6)
    result = assess(subject)
    for kind, readout_of in (("raw", 1), ("tuned", 0)):
        agreement, nll, divergence = expected(model, TokenWindows(opened.data, "test"), readout_of)
        read = subject.readings[kind]
        assert read.divergence[0] == pytest.approx(divergence, rel=1e-2, abs=1e-4)
        assert not read.divergence[1].any()
        leaving = can_leave(read.divergence[0], read.loss[0], read.loss[1])
        assert result.rows[0].readouts[kind].can_leave == leaving
        saving = result.oracle[kind].attainable.rise_1.flop_saving
        assert saving == pytest.approx(leaving * result.rows[0].flop_saving), "one early exit takes them all"
        first, full = (row.readouts[kind] for row in result.rows)
        assert (first.agreement, first.nll) == (pytest.approx(agreement), pytest.approx(nll, rel=1e-5))
        assert first.nll_interval[0] < nll < first.nll_interval[1]
        assert first.attainable.rise_1.flop_saving == pytest.approx(saving) and full.attainable is None
        assert full.agreement == 1
    result.write(root)
    assert Suitability.read(root) == result


def test_fewer_tokens_are_whole_windows_spread_over_the_text(project):
    subject = of_test_states(open_project(project[0]), 100)
    windows = subject.readings["tuned"].group
    assert subject.grouped_by == "windows", "there are too few documents"
    assert len(windows) == 96 and (np.unique(windows, return_counts=True)[1] == 32).all() and windows[0] == 0


def test_intervals_resample_documents_where_there_are_enough_of_them(project, monkeypatch):
    monkeypatch.setattr("offramp.analysis.suitability.LEAST_DOCUMENTS", 2)
    opened = open_project(project[0])
    subject = of_test_states(opened, 10**6)
    documents = TokenWindows(opened.data, "test").documents(np.arange(result_windows(subject)))
    assert subject.grouped_by == "documents"
    assert (subject.readings["tuned"].group == documents.ravel()).all()


def result_windows(subject):
    return len(subject.readings["tuned"].group) // subject.window


def test_sentences_and_table_name_one_signal(project):
    """That which was asked for, in FLOPs and by the clock."""
    subject = of_test_states(open_project(project[0]), 200)
    costs = {}
    for looks_at, name, other in (
        ("state", "a classifier of the state", "reads out"),
        ("readout", "a signal that reads out", "classifier of the state"),
    ):
        subject.looks_at = looks_at
        result = assess(subject)
        costs[looks_at] = result.rows[0].break_even.flops
        said = f"{by_the_clock(result.rows, result.oracle, looks_at)} {section(result)['signal']}"
        assert name in said and other not in said
        headings = [column for column in section(result)["columns"] if "break-even" in column]
        assert headings == [f"break-even, {looks_at}"]
        assert name in table(result).caption and other not in table(result).caption
    assert costs["state"] < costs["readout"]


def test_the_command_prints_a_table_a_picture_and_the_advice_or_json(project, monkeypatch, capsys):
    monkeypatch.chdir(project[0])
    quick = ["--tokens", "200", "--rounds", "2", "--batch-size", "2"]
    assert main(["suitability", "--json", *quick]) == 0
    result = Suitability.model_validate_json(capsys.readouterr().out)
    assert result.tokens == 192 and result.advice.sentence
    assert all(
        math.isfinite(bound["flop_saving"])
        for oracles in result.to_json()["oracle"].values()
        for oracle in oracles.values()
        for bound in oracle.values()
    )
    assert main(["suitability", *quick]) == 0
    shown = capsys.readouterr().out
    ceiling = "attainable (divergence oracle, if full depth is calibrated) is a saving of at most"
    assert "break-even" in shown and ceiling in shown
    assert "after layer 1 of 3" in shown and "all together" in shown
