"""Deep supervision: several updates per batch, each from the states of the one before, and members together
as alone."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from offramp.errors import UserError
from offramp.systems.deep_supervision import segments_objective
from offramp.systems.ensemble import Ensemble, Optimisation, fit
from offramp.systems.hierarchical import HierarchicalConfig, HierarchicalLM

SMALL = {"vocab_size": 11, "window": 6, "width": 8, "heads": 2, "ffn_width": 16}
HOW = Optimisation(learning_rate=1e-2)


def text(length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(11, (length,), generator=torch.Generator().manual_seed(seed))


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


def test_the_published_first_layer_reaches_no_gradient_and_stays_as_drawn():
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
