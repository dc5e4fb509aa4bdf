"""A checkpoint judged in one pass: readings against plain logits, budgets, bad input before any long work."""

from __future__ import annotations

import re
import socket

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig

from offramp.analysis import checkpoint as subjects
from offramp.analysis.checkpoint import (
    HELD_OUT,
    held_out,
    least_windows,
    of_checkpoint,
    of_trained,
    quarters,
    shares,
)
from offramp.analysis.oracle import attainable
from offramp.analysis.suitability import DRAWS, assess
from offramp.app.cli import main
from offramp.artifacts.artifact import create_artifact
from offramp.checkpoints.checkpoint import Checkpoint
from offramp.checkpoints.configuration import read_config
from offramp.checkpoints.tokenizers import load_tokenizer
from offramp.corpus.excerpts import draw, read_documents, split
from offramp.corpus.tokenizer import Encoder
from offramp.errors import UserError
from offramp.models.pretrained import load_pretrained
from offramp.models.store import save_model
from offramp.results.suitability import CheckpointSuitability
from offramp.routing.cost import exit_costs
from offramp.states.resampling import GroupSums, interval
from tests.fixtures.checkpoints import make_tokenizer

CPU = torch.device("cpu")
WINDOW, TOKENS = 32, 3200
SIZES = {"vocab_size": 300, "bos_token_id": 0, "eos_token_id": 0}
LLAMA = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "num_hidden_layers": 4,
    "max_position_embeddings": 64,
}
CONFIGS = {
    "llama": LlamaConfig(**SIZES, **LLAMA),
    "gpt2": GPT2Config(**SIZES, n_embd=16, n_layer=4, n_head=2, n_positions=64),
    "gpt_neox": GPTNeoXConfig(**SIZES, **LLAMA, use_parallel_residual=True),
}


def save(folder, config):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=0.5 if parameter.ndim == 1 else 0.0, std=0.2)
    model.save_pretrained(folder)
    make_tokenizer(300).save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save(tmp_path_factory.mktemp("llama"), CONFIGS["llama"])


@pytest.fixture(scope="module")
def judged(llama):
    """A subject, and the measurement of it."""
    subject = of_checkpoint(Checkpoint(str(llama)), CPU, window=WINDOW, tokens=TOKENS, rounds=1)
    return subject, assess(subject)


@pytest.mark.parametrize("family", CONFIGS)
def test_exits_are_read_raw_and_by_least_squares_on_documents_that_were_not_fitted(tmp_path, family):
    checkpoint = Checkpoint(str(save(tmp_path, CONFIGS[family])))
    subject = of_checkpoint(checkpoint, CPU, window=WINDOW, tokens=TOKENS)
    assert subject.model.config.exits_after == (1, 2, 3), "a quarter of the depth each"
    encode = Encoder(load_tokenizer(checkpoint, read_config(checkpoint)), "pretrained")
    count, _ = shares(TOKENS // WINDOW)
    windows = draw(split(read_documents([]))[1], encode, WINDOW, count)
    model = load_pretrained(checkpoint, [1, 2, 3], WINDOW)
    with torch.no_grad():
        states = model(windows.tokens)
        full = model.logits(3, states[3]).double().log_softmax(-1)
        for kind, through in (("raw", model), ("least_squares", subject.model)):
            read = subject.readings[kind]
            for exit in (0, 1, 2):
                early = through.logits(exit, states[exit]).double().log_softmax(-1)
                loss = -early.gather(-1, windows.targets.unsqueeze(-1)).flatten()
                divergence = (full.exp() * (full - early)).sum(-1).flatten()
                assert read.loss[exit] == pytest.approx(loss.numpy(), rel=1e-3, abs=1e-3)
                assert read.divergence[exit] == pytest.approx(divergence.numpy(), rel=1e-2, abs=1e-3)
                assert (read.argmax[exit] == early.argmax(-1).flatten().numpy()).mean() > 0.999
            assert not read.divergence[3].any()
            assert (read.group == np.repeat(windows.group, WINDOW)).all()
    raw, fitted = (subject.readings[kind].divergence.mean(1) for kind in ("raw", "least_squares"))
    assert (fitted[:3] < raw[:3]).all(), "the map brings every exit closer to full depth"


def test_what_is_attainable_is_said_of_every_exit_alone_with_intervals_over_documents(judged):
    subject, result = judged
    assert result.grouped_by == "documents" and result.text.groups == result.text.documents >= 10
    assert result.sequences * WINDOW == result.tokens
    costs = np.array(exit_costs(subject.model, WINDOW, reads_out=False, decision_flops=0))
    for kind, read in subject.readings.items():
        for row in result.rows[:-1]:
            both = [row.exit, 3]
            alone = attainable(read.divergence[both], read.loss[both], costs[both], read.group, DRAWS)
            quality = row.readouts[kind]
            assert quality.attainable == alone
            assert alone.rise_1.flop_saving == pytest.approx(quality.can_leave * row.flop_saving)
            together = result.oracle[kind].attainable
            assert together.rise_5.flop_saving >= alone.rise_5.flop_saving - 1e-9
            draws = GroupSums(read.group, {"nll": read.loss[row.exit]}).resample(DRAWS, 0)["nll"]
            assert quality.nll_interval == interval(draws)
        assert result.rows[-1].readouts[kind].attainable is None


def test_the_measurement_is_read_back_as_it_was_written(judged, tmp_path):
    result = judged[1]
    result.write(tmp_path)
    assert CheckpointSuitability.read(tmp_path) == result


def test_a_single_file_is_fitted_on_its_beginning_and_measured_on_the_rest_of_it(llama, tmp_path):
    file = tmp_path / "letters.txt"
    file.write_text("".join(f"Letter {number}: it is so, or it is not. " for number in range(1200)))
    subject = of_checkpoint(Checkpoint(str(llama)), CPU, window=WINDOW, tokens=TOKENS, text=[file], rounds=1)
    result = assess(subject)
    assert (result.grouped_by, result.text.documents, result.text.fit_documents) == ("stretches", 1, 1)
    assert result.text.groups == 30 and result.text.source == str(file)
    assert result.tokens + result.text.fit_tokens == TOKENS


def test_exits_of_a_trained_model_are_read_as_they_are_too(llama, tmp_path):
    model = load_pretrained(Checkpoint(str(llama)), [1, 3], 64, translator="affine")
    torch.nn.init.normal_(model.translators[0].last.weight, std=0.3)
    with create_artifact(tmp_path / "lm", "lm", {}, {}) as out:
        save_model(model, out.path, base_trained=False)
    (tmp_path / "letters.txt").write_text(
        "".join(f"Letter {n}: it is so, or it is not. " for n in range(1200))
    )
    unseen = {"tokens": TOKENS, "text": [tmp_path / "letters.txt"]}
    subject = of_trained(tmp_path / "lm", CPU, window=WINDOW, rounds=1, **unseen)
    assert list(subject.readings) == ["raw", "least_squares", "tuned"]
    raw, fitted, tuned = (read.loss for read in subject.readings.values())
    assert tuned[1] == pytest.approx(raw[1]), "this translator is the identity"
    assert abs(tuned[0] - raw[0]).max() > 0.1 and abs(fitted[1] - raw[1]).max() > 0.1
    assert (tuned[2] == raw[2]).all() and (fitted[2] == raw[2]).all()
    with pytest.raises(UserError, match=r"--window 128 exceeds the 64 tokens that .*lm was trained on"):
        of_trained(tmp_path / "lm", CPU, window=128, **unseen)
    with pytest.raises(
        UserError, match="was trained, maybe on the text that is read by default; give --text"
    ):
        of_trained(tmp_path / "lm", CPU, window=WINDOW)


@pytest.mark.parametrize(
    "layers, places", [(30, [8, 15, 22]), (12, [3, 6, 9]), (3, [1, 2]), (2, [1]), (1, [])]
)
def test_exits_stand_at_every_quarter_of_the_depth(layers, places):
    assert quarters(layers) == places


def test_windows_are_no_longer_than_the_model_can_read_if_not_told_otherwise(llama):
    assert of_checkpoint(Checkpoint(str(llama)), CPU, tokens=TOKENS).window == 64


def test_a_third_is_to_measure_and_some_of_the_rest_chooses_the_ridge():
    assert shares(234) == (78, 156) and shares(3) == (2, 1)
    mask = held_out(np.repeat(np.arange(40), 2))
    assert mask.sum() == 2 * 40 // HELD_OUT and (mask[::2] == mask[1::2]).all(), "whole documents"
    assert held_out(np.zeros(16, int)).sum() == 2
    assert 0 < held_out(np.arange(3)).sum() < 3


def test_the_least_budget_that_is_named_is_enough_and_one_window_less_is_not(llama):
    least = least_windows(WINDOW, 16) * WINDOW
    with pytest.raises(
        UserError, match=f"--tokens {least - WINDOW}: too few to fit exits of 16 .* least {least}$"
    ):
        of_checkpoint(Checkpoint(str(llama)), CPU, window=WINDOW, tokens=least - WINDOW)
    assert of_checkpoint(Checkpoint(str(llama)), CPU, window=WINDOW, tokens=least)


@pytest.fixture
def no_weights(monkeypatch):
    """Nothing here is to read weights."""

    def refuse(*arguments, **named):
        raise AssertionError("weights were read")

    monkeypatch.setattr(subjects, "load_pretrained", refuse)


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"exits_after": [2, 2]},
            "--exits-after 2 2: give increasing numbers of layers from 1 to 3, each once; ",
        ),
        ({"exits_after": [3, 1]}, "--exits-after 3 1: give increasing"),
        ({"exits_after": [2, 4]}, "--exits-after 2 4: give increasing numbers of layers from 1 to 3"),
        ({"exits_after": [0, 2]}, "--exits-after 0 2: give increasing"),
        ({"tokens": 31}, "--tokens 31 is less than one --window of 32; give more, e.g. 30000"),
        ({"window": 128}, "--window 128 exceeds the model's 64 positions; give at most that"),
    ],
)
def test_what_cannot_be_measured_is_named_before_weights_are_read(llama, no_weights, changes, message):
    with pytest.raises(UserError, match=re.escape(message)):
        of_checkpoint(Checkpoint(str(llama)), CPU, **{"window": WINDOW, "tokens": TOKENS} | changes)


def test_a_text_that_is_too_short_is_named_before_weights_are_read(llama, no_weights, tmp_path):
    (tmp_path / "text.txt").write_text("Fellow citizens of the Senate. " * 10)
    with pytest.raises(
        UserError, match=r"--text .*text\.txt: its windows of 32 have \d+ tokens, too few to fit"
    ):
        of_checkpoint(Checkpoint(str(llama)), CPU, window=WINDOW, text=[tmp_path / "text.txt"])


def test_a_model_of_one_layer_has_no_place_for_an_exit(tmp_path, no_weights):
    folder = save(tmp_path, LlamaConfig(**SIZES, **LLAMA | {"num_hidden_layers": 1}))
    with pytest.raises(UserError, match=r"has 1 layer\(s\): no exit can stand before the last"):
        of_checkpoint(Checkpoint(str(folder)), CPU)


def test_states_that_are_not_finite_are_named(tmp_path):
    folder = save(tmp_path, CONFIGS["llama"])
    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.nn.init.constant_(model.model.layers[1].mlp.down_proj.weight, 3e38)
    model.save_pretrained(folder)
    with pytest.raises(UserError, match="not finite numbers"):
        of_checkpoint(Checkpoint(str(folder)), CPU, window=WINDOW, tokens=TOKENS)


@pytest.fixture
def no_network(monkeypatch):
    """Whom anyone tried to reach, with the hub said to be within reach."""
    reached = []

    def refuse(self, address):
        reached.append(address)
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    return reached


def run(*arguments):
    return main(
        ["suitability", "--window", str(WINDOW), "--tokens", str(TOKENS), "--rounds", "1", *arguments]
    )


def test_the_command_writes_what_it_prints_and_fetches_nothing_for_a_folder(
    llama, tmp_path, monkeypatch, capsys, no_network
):
    monkeypatch.chdir(tmp_path)
    assert run("--model", str(llama)) == 0
    shown = capsys.readouterr().out
    assert "after layer 2 of 4" in shown and "all together" in shown and "Written: suitability/" in shown
    folder = tmp_path / "suitability" / llama.name
    result = CheckpointSuitability.read(folder)
    assert result.advice.sentence in shown and result.text.documents >= 10
    assert "<svg" in (folder / "suitability.html").read_text()
    assert run("--model", str(llama), "--exits-after", "2", "--out", str(tmp_path / "out"), "--json") == 0
    printed = CheckpointSuitability.model_validate_json(capsys.readouterr().out)
    assert printed == CheckpointSuitability.read(tmp_path / "out") and len(printed.exits) == 2
    assert not no_network


@pytest.mark.parametrize("name", ["checkpoints/missing", "./missing", "../missing", "missing/"])
def test_a_path_that_is_not_there_is_never_looked_for_elsewhere(
    tmp_path, monkeypatch, capsys, no_network, name
):
    (tmp_path / "checkpoints").mkdir()
    monkeypatch.chdir(tmp_path)
    assert run("--model", name) == 2
    assert f"--model {name}: no such folder" in capsys.readouterr().err
    assert not no_network


def test_options_that_have_no_effect_or_cannot_be_followed_are_refused(llama, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run("--out", "somewhere") == 2
    assert "--window has no effect" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert run("--model", str(llama), "--out", "file/below") == 2
    assert "--out file/below: nothing can be written" in capsys.readouterr().err
