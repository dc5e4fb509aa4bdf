"""Both phases of the context-vector model: the losses by hand, what is trained, and caches that belong to
their stream."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from offramp.artifacts.artifact import open_artifact
from offramp.errors import UserError
from offramp.systems.context_vectors.model import ContextVectorConfig, ContextVectorLM
from offramp.systems.context_vectors.recurrence import parallel, previous_contexts, sequential
from offramp.systems.context_vectors.store import KIND, Contexts, write_contexts
from offramp.systems.context_vectors.training import (
    UNKNOWN,
    FixedPoint,
    Reading,
    find_contexts,
    learn_to_read,
    next_tokens,
    phase_1_loss,
    reading_losses,
    stopped_at,
    updates_per_epoch,
)
from offramp.systems.lagged.model import oacd


def model(**changes) -> ContextVectorLM:
    torch.manual_seed(0)
    return ContextVectorLM(
        ContextVectorConfig(**{"vocab_size": 11, "width": 6, "context_width": 5, "layers": 3} | changes)
    )


@pytest.fixture
def stream() -> tuple[Tensor, Tensor]:
    begins = torch.zeros(40, dtype=torch.bool)
    begins[[0, 15, 30]] = True
    return torch.randint(11, (40,), generator=torch.Generator().manual_seed(1)), begins


@pytest.fixture
def cached(tmp_path, stream):
    net = model(token_input="first")
    parts = list(sequential(net, *stream, together=16))
    return (
        net,
        parts,
        Contexts(
            write_contexts(tmp_path / "contexts", *stream, parts, {}, dtype="float32", shard=16), *stream
        ),
    )


# Phase 1 ------------------------------------------------------------------------------------


def test_losses_by_hand():
    contexts, wanted = torch.randn(8, 5), torch.randn(8, 5)
    away, mean = (contexts - wanted).square().mean(), contexts.mean(0)
    spread = (contexts - mean).square().sum().sqrt()
    torch.testing.assert_close(
        phase_1_loss(contexts, wanted, FixedPoint(weight=0.8)), 0.2 * away - 0.8 * spread / 8
    )
    by_rms = FixedPoint(weight=0.5, diversity="rms")
    torch.testing.assert_close(
        phase_1_loss(contexts, wanted, by_rms), 0.5 * away - 0.5 * spread / math.sqrt(40)
    )
    torch.testing.assert_close(phase_1_loss(contexts, wanted, FixedPoint(loss="oacd")), oacd(contexts))


def test_only_the_rms_diversity_does_not_shrink_with_the_batch():
    contexts = torch.randn(8, 5)
    for diversity, factor in (("batch", 0.5), ("rms", 1.0)):
        how = FixedPoint(weight=1.0, diversity=diversity)
        one, four = (
            phase_1_loss(contexts, contexts, how),
            phase_1_loss(contexts.repeat(4, 1), contexts.repeat(4, 1), how),
        )
        torch.testing.assert_close(four, factor * one)


@pytest.mark.parametrize("loss", ["cvfp", "oacd"])
def test_phase_1_trains_the_context_block_and_nothing_else(stream, loss):
    net = model()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    find_contexts(net, *stream, FixedPoint(loss=loss, most=3, batch=16), seed=0)
    changed = {
        name.split(".")[0] for name, value in net.state_dict().items() if not torch.equal(value, before[name])
    }
    assert changed == {"context_block"}


def test_an_iteration_is_one_step_however_it_is_cut_into_batches(stream):
    """Batches of equal size: their mean gradient is that of the whole where the loss is a mean."""
    nets = [model(), model()]
    for net, batch in zip(nets, (40, 20)):
        find_contexts(net, *stream, FixedPoint(weight=0.0, most=4, batch=batch), seed=0)
    for one, other in zip(nets[0].parameters(), nets[1].parameters()):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_the_last_contexts_are_of_the_weights_before_the_last_step(stream):
    """Without noise: what an iteration leaves is one pass from what the iteration before left."""
    net, earlier = model(), model()
    search = find_contexts(net, *stream, FixedPoint(noise=0.0, most=4), seed=0)
    find_contexts(earlier, *stream, FixedPoint(noise=0.0, most=3), seed=0)
    (outputs,) = parallel(earlier, stream[0], previous_contexts(search.before, stream[1]))
    torch.testing.assert_close(search.contexts, outputs[-1], rtol=1e-4, atol=1e-5)
    assert search.iterations == 4 and len(search.converged) == 3


def test_phase_1_stops_once_nearly_all_tokens_are_converged(stream):
    assert find_contexts(model(), *stream, FixedPoint(tolerance=100.0, fewest=5), seed=0).iterations == 5
    assert find_contexts(model(), *stream, FixedPoint(tolerance=0.0, most=7), seed=0).iterations == 7


def test_documents_are_apart_unless_the_stream_is_a_ring(stream):
    tokens, begins = stream
    other = torch.cat(((tokens[:15] + 1) % 11, tokens[15:]))
    for wrap in (False, True):
        how = FixedPoint(most=1, wrap=wrap, noise=0.0)
        one, two = (find_contexts(model(), given, begins, how, seed=0).contexts for given in (tokens, other))
        assert torch.equal(one[15:], two[15:])  # one iteration carries nothing yet
        how = FixedPoint(most=2, wrap=wrap, noise=0.0)
        one, two = (find_contexts(model(), given, begins, how, seed=0).contexts for given in (tokens, other))
        assert torch.equal(one[15], two[15]) != wrap


@pytest.mark.parametrize("changes", [{"loss": "mse"}, {"diversity": "std"}, {"weight": 1.5}])
def test_unknown_ways_of_phase_1_are_named(changes):
    with pytest.raises(UserError, match=f"{next(iter(changes))} = "):
        FixedPoint(**changes)


# Caches -------------------------------------------------------------------------------------


def test_a_cache_gives_back_every_layer_in_the_order_of_the_stream(cached):
    _, parts, contexts = cached
    assert contexts.shards == 3
    cached_parts = list(contexts)
    assert [here for here, _ in cached_parts] == [slice(0, 16), slice(16, 32), slice(32, 40)]
    for (_, outputs), part in zip(cached_parts, parts):
        assert all(torch.equal(output, given) for output, given in zip(outputs, part))
    assert torch.equal(contexts.layer(0), torch.cat([part[0] for part in parts]))


def test_same_contexts_same_bytes_however_the_pass_is_cut(cached, tmp_path, stream):
    _, parts, contexts = cached
    halves = [[output[half] for output in part] for part in parts for half in (slice(0, 8), slice(8, 16))]
    again = write_contexts(
        tmp_path / "again", *stream, [half for half in halves if len(half[0])], {}, dtype="float32", shard=16
    )
    assert (
        again.digest == contexts.layers[0].artifact.digest == open_artifact(tmp_path / "again", KIND).digest
    )


def test_contexts_of_another_stream_are_refused(cached, stream, tmp_path):
    tokens, begins = stream
    artifact = open_artifact(tmp_path / "contexts", KIND)
    moved = begins.roll(1)
    for other in (((tokens + 1) % 11, begins), (tokens, moved), (tokens[:-1], begins[:-1])):
        with pytest.raises(UserError, match="contexts of another token stream"):
            Contexts(artifact, *other)


def test_contexts_that_are_too_few_leave_nothing(stream, tmp_path):
    parts = list(sequential(model(), *stream, together=16))[:-1]
    with pytest.raises(UserError, match="32 were made for 40 tokens"):
        write_contexts(tmp_path / "contexts", *stream, parts, {})
    assert not (tmp_path / "contexts").exists()


# Phase 2 ------------------------------------------------------------------------------------


def test_targets_stay_in_their_document(stream):
    targets = next_tokens(*stream)
    assert [place for place, target in enumerate(targets.tolist()) if target == UNKNOWN] == [14, 29, 39]
    assert torch.equal(targets[:14], stream[0][1:15])


@pytest.mark.parametrize("norm", [True, False])
def test_phase_2_trains_what_reads_the_contexts(cached, norm):
    net, _, contexts = cached
    before = {name: value.clone() for name, value in net.state_dict().items()}
    how = Reading(batch=8, shuffled=True, norm=norm, learning_rate=1e-2)
    nll: list[float] = []

    def look() -> float:
        nll.append(reading_losses(net, *_stream(contexts), contexts)[0].mean().item())
        return nll[-1]

    learn_to_read(net, contexts, how, look, looks=5, updates_per_look=10, seed=0)
    changed = {
        name.split(".")[0] for name, value in net.state_dict().items() if not torch.equal(value, before[name])
    }
    assert changed == {"token_block", "head", *(["embed_norm"] if norm else [])}
    assert nll[-1] < math.log(11) - 0.5


def _stream(contexts: Contexts) -> tuple[Tensor, Tensor]:
    return contexts.tokens, contexts.begins


def test_unshuffled_batches_are_consecutive_and_epochs_are_whole(cached):
    net, _, contexts = cached
    how, seen = Reading(batch=6), []
    read = net.read
    net.read = lambda tokens, outputs: (seen.append(tokens), read(tokens, outputs))[1]
    updates = updates_per_epoch(contexts, how)
    learn_to_read(net, contexts, how, lambda: 0.0, looks=2, updates_per_look=updates, seed=0)
    known = next_tokens(*_stream(contexts)) != UNKNOWN
    assert torch.equal(torch.cat(seen), contexts.tokens[known].repeat(2)) and len(seen) == 2 * updates


def test_losses_are_those_of_all_logits(cached):
    net, parts, contexts = cached
    torch.nn.init.normal_(net.head.weight)
    losses, right = reading_losses(net, *_stream(contexts), contexts)
    known = next_tokens(*_stream(contexts)) != UNKNOWN
    with torch.no_grad():
        u = net.token_block(net.embed(contexts.tokens), [torch.cat(of_layer) for of_layer in zip(*parts)])
    logits, wanted = net.head(u)[known], next_tokens(*_stream(contexts))[known]
    torch.testing.assert_close(
        losses, F.cross_entropy(logits, wanted, reduction="none"), rtol=1e-4, atol=1e-5
    )
    assert torch.equal(right, logits.argmax(1) == wanted)


def test_patience_is_the_best_look_before_it_runs_out():
    nll = [3.0, 2.0, 2.5, 2.4, 1.0]
    assert [stopped_at(nll, patience) for patience in (1, 2, 3, None)] == [1, 1, 4, 4]
    with pytest.raises(UserError, match="patience = 0"):
        stopped_at(nll, 0)
