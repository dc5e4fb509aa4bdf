"""Training by lagged caches: what a step changes, and the head that is fitted to frozen features."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from offramp.errors import UserError
from offramp.systems.ensemble import Ensemble, Optimisation
from offramp.systems.lagged.model import LaggedConfig, LaggedLM, SampleCache
from offramp.systems.lagged.training import LaggedBatch, collect, fit_head, head_nll, lagged_updates, settled

SMALL = {"vocab_size": 11, "window": 6, "width": 8, "heads": 2, "ffn_width": 16}
HOW = Optimisation(learning_rate=1e-2)


def text(length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(11, (length,), generator=torch.Generator().manual_seed(seed))


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
    lagged_updates(ensemble, cache, iter([batch]), "oacd", passes=4, how=HOW)(0)
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
    step = lagged_updates(ensemble, cache, iter(lagged_batches(30)), "task", passes=2, how=HOW)
    losses = []
    for number in range(30):
        step(number)
        logits, _ = settled(ensemble.member(0), windows, 4)
        losses.append(F.cross_entropy(logits.flatten(0, 1), windows.roll(-1, 1).flatten()).item())
    assert losses[-1] < 0.8 * losses[0]
    with pytest.raises(UserError, match="loss = 'mcdl'"):
        lagged_updates(ensemble, cache, iter(lagged_batches(1)), "mcdl", passes=2, how=HOW)


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
        start,
        features[:, :180],
        targets[:180],
        (features[:, 180:], targets[180:]),
        epochs=8,
        batch=20,
        learning_rate=3e-2,
    )
    other = head_nll(fitted.weights, features[:, 180:], targets[180:])
    torch.testing.assert_close(
        other, torch.tensor([min(row[member] for row in fitted.curve) for member in range(2)])
    )
    assert other[0] < 0.7 * head_nll(start, features[:, 180:], targets[180:])[0]
    assert [
        fitted.curve[epoch - 1][member] for member, epoch in enumerate(fitted.best_epoch)
    ] == pytest.approx(other.tolist())
