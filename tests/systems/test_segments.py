"""Deep supervision, lagged caches and memories in training: who reads what, and models together as models alone."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from offramp.errors import UserError
from offramp.systems.deep_supervision import segments_objective
from offramp.systems.ensemble import Ensemble, Optimisation, fit
from offramp.systems.hierarchical import HierarchicalConfig, HierarchicalLM
from offramp.systems.lagged.model import LaggedConfig, LaggedLM, SampleCache
from offramp.systems.lagged.training import LaggedBatch, collect, fit_head, head_nll, settled, train_lagged
from offramp.systems.segment_memory.model import InfiniConfig, InfiniLM
from offramp.systems.segment_memory.streams import Streams, cut_streams
from offramp.systems.segment_memory.training import streams_nll, train_streams

SMALL = {"vocab_size": 11, "window": 6, "width": 8, "heads": 2, "ffn_width": 16}
HOW = Optimisation(learning_rate=1e-2)


def text(length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(11, (length,), generator=torch.Generator().manual_seed(seed))


def streams(length: int = 121, rows: int = 2) -> Streams:
    return cut_streams(text(length), torch.zeros(length, dtype=torch.long), 6, rows)


# Segments -------------------------------------------------------------------------------------------------------------


def by_hand(net: HierarchicalLM, batches: list[tuple[torch.Tensor, torch.Tensor]], segments: int) -> None:
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.01)
    for tokens, targets in batches:
        states: tuple[torch.Tensor, ...] = ()
        for _ in range(segments):
            optimiser.zero_grad()
            logits, states = net(tokens, states)
            F.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimiser.step()
            states = tuple(state.detach() for state in states)


@pytest.mark.parametrize("variant", ["v1", "v2", "v2_published"])
def test_models_trained_together_become_what_each_becomes_alone(variant):
    def build(seed: int) -> HierarchicalLM:
        return HierarchicalLM(HierarchicalConfig(**SMALL, variant=variant))

    ensemble = Ensemble(build, [3, 4])
    alone = [copy.deepcopy(ensemble.member(index)) for index in range(2)]
    batches = [(text(24, 2 * k).view(2, 2, 6), text(24, 2 * k + 1).view(2, 2, 6)) for k in range(4)]
    fit(
        ensemble,
        iter(batches),
        segments_objective(2),
        lambda _: torch.zeros(2),
        looks=[4],
        how=Optimisation(),
        restore_best=False,
    )
    for index, net in enumerate(alone):
        by_hand(net, [(tokens[index], targets[index]) for tokens, targets in batches], 2)
        for name, weight in ensemble.member(index).named_parameters():
            torch.testing.assert_close(weight, dict(net.named_parameters())[name], atol=2e-4, rtol=1e-4)


def test_the_published_first_layer_stays_as_drawn():  # F4
    ensemble = Ensemble(lambda seed: HierarchicalLM(HierarchicalConfig(**SMALL, variant="v2_published")), [0])
    before = ensemble.snapshot()
    batch = text(12).view(1, 2, 6), text(12, 1).view(1, 2, 6)
    fit(ensemble, iter([batch] * 3), segments_objective(2), lambda _: torch.zeros(1), looks=[3], how=HOW)
    moved = {name: not torch.equal(weight, before[name]) for name, weight in ensemble.weights.items()}
    assert not any(moved[name] for name in moved if name.startswith("layers.0"))
    assert all(moved[name] for name in moved if name.startswith("layers.1"))


def test_evaluation_takes_the_logits_of_the_last_segment():
    net = HierarchicalLM(HierarchicalConfig(**SMALL))
    tokens = text(12).view(2, 6)
    _, states = net(tokens)
    torch.testing.assert_close(segments_objective(2).logits(net, tokens), net(tokens, states)[0])
    with pytest.raises(UserError, match="segments = 0"):
        segments_objective(0)


# Lagged caches ----------------------------------------------------------------------------------------------------------


def lagged(layers: int = 1) -> tuple[Ensemble, SampleCache]:
    config = LaggedConfig(**SMALL, layers=layers)
    return Ensemble(lambda seed: LaggedLM(config), [0, 1]), SampleCache(
        2, 8, config, torch.Generator().manual_seed(0)
    )


def lagged_batches(count: int) -> list[LaggedBatch]:
    windows = text(48).view(8, 6)
    slots = [
        torch.stack(
            [
                torch.randperm(8, generator=torch.Generator().manual_seed(2 * k + member))[:4]
                for member in range(2)
            ]
        )
        for k in range(count)
    ]
    return [LaggedBatch(windows[slot], windows.roll(-1, 1)[slot], slot) for slot in slots]


@pytest.mark.parametrize("layers", [1, 2])
def test_oacd_trains_layers_alone_and_fills_the_cache_of_the_windows_it_saw(layers):
    ensemble, cache = lagged(layers)
    before, states = ensemble.snapshot(), cache.states.clone()
    batch = lagged_batches(1)[0]
    assert train_lagged(ensemble, cache, iter([batch]), "oacd", 4, HOW) == 4
    assert torch.equal(ensemble.weights["head.weight"], before["head.weight"])
    assert not torch.equal(ensemble.weights["layers.0.query.weight"], before["layers.0.query.weight"])
    changed = (cache.states != states).any(-1).any(-1)  # (models, windows, layers)
    for member in range(2):
        assert sorted(changed[member].all(-1).nonzero().flatten().tolist()) == sorted(
            batch.slots[member].tolist()
        )


def test_the_tasks_loss_lowers_it():
    ensemble, cache = lagged()
    windows = text(48).view(8, 6)
    found = []
    for count in (1, 30):
        train_lagged(ensemble, cache, iter(lagged_batches(count)), "task", 2, HOW)
        logits, _ = settled(ensemble.member(0), windows, 4)
        found.append(F.cross_entropy(logits.flatten(0, 1), windows.roll(-1, 1).flatten()).item())
    assert found[1] < 0.8 * found[0]
    with pytest.raises(UserError, match="loss = 'mcdl'"):
        train_lagged(ensemble, cache, iter(lagged_batches(1)), "mcdl", 2, HOW)


def test_a_head_is_fitted_to_the_features_and_chosen_on_other_text():
    ensemble, _ = lagged(2)
    features = collect(ensemble, text(240).view(40, 6), 4)
    assert features.shape == (2, 240, 16)
    single = torch.cat(settled(ensemble.member(1), text(240).view(40, 6), 4)[1].unbind(0), dim=-1).flatten(
        0, 1
    )
    torch.testing.assert_close(features[1], single.detach(), atol=1e-5, rtol=1e-4)
    targets = features[0].matmul(torch.randn(16, 11, generator=torch.Generator().manual_seed(5))).argmax(-1)
    start = ensemble.weights["head.weight"]
    fitted = fit_head(
        start, features[:, :180], targets[:180], (features[:, 180:], targets[180:]), 8, 20, 3e-2
    )
    other = head_nll(fitted.weights, features[:, 180:], targets[180:])
    torch.testing.assert_close(
        other, torch.tensor([min(row[member] for row in fitted.curve) for member in range(2)])
    )
    assert other[0] < 0.7 * head_nll(start, features[:, 180:], targets[180:])[0]
    assert [
        fitted.curve[epoch - 1][member] for member, epoch in enumerate(fitted.best_epoch)
    ] == pytest.approx(other.tolist())


# Memories ---------------------------------------------------------------------------------------------------------------


def remembering(**changes) -> Ensemble:
    return Ensemble(lambda seed: InfiniLM(InfiniConfig(**{**SMALL, "hrm": "v2", **changes})), [0, 1])


@pytest.mark.parametrize("place", ["none", "input", "hidden", "gated"])
def test_carried_memories_equal_reading_window_by_window(place):
    ensemble, text_streams = remembering(place=place), streams()
    net = ensemble.member(1)
    memory, total = net.empty_memory(2), 0.0
    with torch.no_grad():
        for tokens, targets in zip(text_streams.tokens, text_streams.targets):
            carried = None
            for _ in range(2):
                logits, carried = net(tokens, memory, carried)
            memory = carried.memory
            total += F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum").item()
    found = streams_nll(ensemble, text_streams, "carry", 2)[1].item()
    assert found == pytest.approx(total / text_streams.targets.numel(), rel=1e-5)
    reset = streams_nll(ensemble, text_streams, "reset", 2)[1].item()
    assert (reset == pytest.approx(found, abs=1e-7)) == (place == "none")


def test_a_new_document_empties_the_memory():
    ensemble, whole = remembering(), streams()
    cut = Streams(whole.tokens, whole.targets, torch.ones_like(whole.begins))
    torch.testing.assert_close(
        streams_nll(ensemble, cut, "carry", 1), streams_nll(ensemble, whole, "reset", 1)
    )


def test_a_foreign_memory_is_that_of_the_other_row():
    ensemble, own = remembering(place="input"), streams()
    swapped = Streams(
        *(part.flip(1) for part in (own.tokens, own.targets, own.begins))
    )  # two rows: the other is the neighbour
    torch.testing.assert_close(
        streams_nll(ensemble, own, "foreign", 1), streams_nll(ensemble, swapped, "foreign", 1)
    )
    same = Streams(*(part[:, :1].expand_as(part) for part in (own.tokens, own.targets, own.begins)))
    torch.testing.assert_close(
        streams_nll(ensemble, same, "foreign", 1), streams_nll(ensemble, same, "carry", 1)
    )
    assert not torch.allclose(
        streams_nll(ensemble, own, "foreign", 1), streams_nll(ensemble, own, "carry", 1), atol=1e-6
    )


def test_memory_cannot_be_carried_over_shuffled_windows_except_by_the_mistakes_name():
    ensemble, shuffled = remembering(), streams().shuffled(torch.Generator().manual_seed(0))
    for mode in ("carry", "foreign"):
        with pytest.raises(UserError, match="these are shuffled"):
            train_streams(ensemble, lambda number: [shuffled] * 2, mode, 1, 4, HOW)
    assert train_streams(ensemble, lambda number: [shuffled] * 2, "carry_shuffled", 2, 4, HOW) == 4
    with pytest.raises(UserError, match="memory = 'forever'"):
        streams_nll(ensemble, shuffled, "forever", 1)


def test_training_makes_the_updates_it_was_asked_for_or_stops_when_told():
    ensemble, looks = remembering(), []
    assert (
        train_streams(
            ensemble, lambda number: [streams()] * 2, "carry", 2, 26, HOW, lambda made: looks.append(made)
        )
        == 26
    )
    assert looks == list(range(2, 27, 2))
    assert (
        train_streams(ensemble, lambda number: [streams()] * 2, "carry", 2, 26, HOW, lambda made: made == 6)
        == 6
    )
