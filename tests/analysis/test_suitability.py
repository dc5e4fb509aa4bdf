"""Whether early exit is worth it: numbers against plain logits and Transformers, rules of the advice."""

from __future__ import annotations

import math
import re
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from offramp.analysis.advice import propagation, verdict_on
from offramp.analysis.suitability import assess, of_checkpoint, of_states
from offramp.app.cli import main
from offramp.app.project import open_project
from offramp.artifacts.artifact import open_artifact
from offramp.checkpoints.checkpoint import Checkpoint
from offramp.corpus.windows import TokenWindows
from offramp.errors import UserError
from offramp.report.tables import suitability_table
from offramp.results.suitability import (
    Bound,
    BreakEven,
    ExitWorth,
    KeptFirst,
    NllRise,
    OracleBounds,
    ReadoutQuality,
    StatePropagation,
    Suitability,
)
from tests.fixtures.small_project import make_project

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def project(addresses, tmp_path_factory):
    """A finished project and its model."""
    root = tmp_path_factory.mktemp("project")
    return root, make_project(root, addresses)


def expected(model, windows, readout_of):
    """Agreement and NLL of the first exit from plain logits; ``readout_of`` says whose readout it has."""
    tokens, targets = windows.batch(torch.arange(len(windows)))
    with torch.no_grad():
        first, last = model(tokens)
        early, full = model.logits(readout_of, first), model.logits(1, last)
    nll = torch.nn.functional.cross_entropy(early.flatten(0, 1), targets.flatten())
    return (early.argmax(-1) == full.argmax(-1)).double().mean().item(), nll.item()


def of_test_states(project, tokens):
    states = open_artifact(project.root / "states/test", "states")
    settings, hidden = project.params.routing, project.params.exits.hidden
    sizes = {"tokens": tokens, "rounds": 2, "batch_size": 4}
    return of_states(project.data, project.lm, project.model, states, settings, hidden, **sizes)


def test_a_projects_exits_are_read_from_cached_states_raw_and_as_trained(project):
    root, model = project
    opened = open_project(root)
    result = assess(of_test_states(opened, 10**6))
    for kind, readout_of in (("raw", 1), ("tuned", 0)):
        agreement, nll = expected(model, TokenWindows(opened.data, "test"), readout_of)
        first, full = (row.readouts[kind] for row in result.rows)
        assert (first.agreement, first.nll) == (pytest.approx(agreement), pytest.approx(nll, rel=1e-5))
        assert first.nll_interval[0] < nll < first.nll_interval[1]
        assert full.agreement == 1
    result.write(root)
    assert Suitability.read(root) == result


def test_fewer_tokens_are_whole_windows_spread_over_the_text(project):
    subject = of_test_states(open_project(project[0]), 100)
    sequences = subject.readings["tuned"].sequence
    assert (
        len(sequences) == 96
        and (np.unique(sequences, return_counts=True)[1] == 32).all()
        and sequences[0] == 0
    )


@pytest.fixture(scope="module")
def checkpoint(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=data.meta["vocab_size"],
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    theirs = AutoModelForCausalLM.from_config(config).eval()
    theirs.save_pretrained(folder)
    shutil.copy(data.file("tokenizer.json"), folder)
    return folder, theirs


def test_a_checkpoint_as_it_is_is_read_through_the_logit_lens(checkpoint):
    folder, theirs = checkpoint
    text = "Fellow citizens of the Senate and of the House of Representatives. " * 12
    subject = of_checkpoint(Checkpoint(str(folder)), [2, 4], text, CPU, window=32, rounds=2)
    result = assess(subject)
    tokens, targets = (
        torch.cat([part[place] for part in subject.batches])[: result.sequences] for place in (0, 1)
    )
    with torch.no_grad():
        out = theirs(tokens, output_hidden_states=True)
        lens = theirs.lm_head(theirs.model.norm(out.hidden_states[4]))
    second, full = result.rows[1:]
    assert set(second.readouts) == {"raw"}
    expected_nll = torch.nn.functional.cross_entropy(lens.flatten(0, 1), targets.flatten()).item()
    assert second.readouts["raw"].nll == pytest.approx(expected_nll, rel=1e-4)
    assert second.readouts["raw"].agreement == pytest.approx(
        (lens.argmax(-1) == out.logits.argmax(-1)).double().mean().item()
    )
    assert full.layers == 5 and suitability_table(result).row_count == 3


def test_a_text_of_less_than_two_windows_is_refused(checkpoint):
    with pytest.raises(UserError, match=r"--text has \d+ tokens; give at least 65, two windows of 32"):
        of_checkpoint(Checkpoint(str(checkpoint[0])), [2], "Fellow citizens", CPU, window=32)


def measured(kind="tuned", oracle=0.4, agreement=0.6, excess=0.2, flops=(0.05, 0.1), seconds=(0.1, 0.2)):
    """The exits of a model with one early exit, and what oracles save.

    ``flops`` and ``seconds`` are break-even shares of a signal of the state and of one of the readout.
    """

    def readout(share, nll):
        quality = ReadoutQuality(agreement=share, agreement_interval=None, nll=nll, nll_interval=None)
        return {kind: quality}

    shares = {
        signal: BreakEven(flops=flops[place], seconds=seconds[place], asking_seconds=0.01)
        for place, signal in enumerate(("state", "readout"))
    }
    early = ExitWorth(
        exit=0, layers=2, flop_saving=0.5, readouts=readout(agreement, 3.0 + excess), break_even=shares
    )
    full = ExitWorth(exit=1, layers=6, flop_saving=0.0, readouts=readout(1.0, 3.0))
    bound = Bound(flop_saving=oracle, ppl=20.0)
    bounds = OracleBounds(least_loss=bound, same_ppl=bound, small_rise=bound, same_prediction=bound)
    return [early, full], {kind: bounds}


@pytest.mark.parametrize(
    "changes, verdict, sentence",
    [
        (
            {"oracle": 0.07},
            "no",
            r"No: even an oracle that knows every loss saves 7\.0% of the FLOPs at 1% more perplexity\.",
        ),
        (
            {"flops": (0.7, None)},
            "no",
            "No, asking costs more than leaving brings back: at exit 0, after layer 2 of 6, 60% .* 70% must "
            "leave",
        ),
        (
            {"seconds": (0.7, None)},
            "not on this machine",
            r"Not on this machine, though .* 5\.0% must leave .* FLOPs, 70% by the clock",
        ),
        ({"seconds": (None, None)}, "not on this machine", "more than all of them by the clock"),
        (
            {"seconds": (0.1, 0.7)},
            "worth a try",
            "Worth a try, with a signal that looks at the state and reads nothing out: an oracle",
        ),
        ({"seconds": (0.7, 0.1)}, "worth a try", "Worth a try, with a signal of the readout: an oracle"),
        (
            {},
            "worth a try",
            "Worth a try: an oracle that knows every loss saves 40% .* at exit 0, .* 60% of the tokens "
            "already",
        ),
        ({"kind": "raw"}, "worth a try", "Worth a try:"),
        (
            {"kind": "raw", "excess": 2.5},
            "train the exits first",
            r"Not before the exits are trained: .* after layer 2 of 6\) is 2\.50 nats worse",
        ),
        (
            {"kind": "raw", "flops": (0.7, 0.7)},
            "train the exits first",
            "agrees with it on 60% of the tokens",
        ),
        ({"kind": "raw", "oracle": 0.07}, "train the exits first", "saves 7.0% of the FLOPs"),
    ],
)
def test_advice_follows_from_the_numbers(changes, verdict, sentence):
    given, said = verdict_on(*measured(**changes))
    assert given == verdict
    assert re.search(sentence, said), said


def test_advice_is_about_the_tuned_exits_where_there_are_any():
    (tuned, oracle), (raw, raw_oracle) = measured(), measured("raw", excess=5.0)
    both = [
        row.model_copy(update={"readouts": row.readouts | other.readouts}) for row, other in zip(tuned, raw)
    ]
    assert verdict_on(both, oracle | raw_oracle) == verdict_on(tuned, oracle)


def test_the_command_prints_a_table_and_the_advice_or_json(
    project, checkpoint, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(project[0])
    quick = ["--tokens", "200", "--rounds", "2", "--batch-size", "2"]
    assert main(["suitability", "--json", *quick]) == 0
    result = Suitability.model_validate_json(capsys.readouterr().out)
    assert result.tokens == 192 and result.advice.sentence
    assert all(
        math.isfinite(bound["flop_saving"])
        for bounds in result.to_json()["oracle"].values()
        for bound in bounds.values()
    )
    text = tmp_path / "text.txt"
    text.write_text("Fellow citizens of the Senate and of the House of Representatives. " * 12)
    assert (
        main(
            [
                "suitability",
                "--model",
                str(checkpoint[0]),
                "--exits-after",
                "2",
                "--text",
                str(text),
                "--window",
                "32",
                *quick,
            ]
        )
        == 0
    )
    shown = capsys.readouterr().out
    assert "break-even" in shown and "an oracle that knows every loss saves" in shown
    assert main(["suitability", "--model", str(checkpoint[0])]) == 2
    assert "--model needs --exits-after" in capsys.readouterr().err


@pytest.mark.parametrize(
    "every, kept, sentence",
    [
        (0.02, 0.01, r"cost 0\.020 nats per token\."),
        (2.0, 0.05, r"0\.050 if the first of a sequence stays: set routing\.keep_first: 1\."),
        (2.0, 0.5, r"set routing\.keep_first: 1, or routing\.kv: recompute\."),
        (2.0, 1.5, r"and 1\.500 if the first of a sequence stays: set routing\.kv: recompute\."),
    ],
)
def test_advice_on_state_propagation_names_the_setting(every, kept, sentence):
    all_leave, first_stays = (NllRise(nll_rise=rise, interval=None) for rise in (every, kept))
    rises = KeptFirst(keep_first_0=all_leave, keep_first_1=first_stays)
    assert re.search(sentence, propagation(StatePropagation(propagate=rises, drop=rises)))
