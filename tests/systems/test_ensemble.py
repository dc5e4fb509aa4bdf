"""All seeds together are what each seed is alone, and a member that stopped stays as it was."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from offramp.errors import UserError
from offramp.models.native import BlockwiseLM, ModelConfig
from offramp.systems.deep_supervision import segments_objective
from offramp.systems.ensemble import Ensemble, Optimisation, batch_flops, clip_each, fit, mean_nll
from offramp.systems.iterated import IteratedLM
from offramp.systems.objectives import named

VOCABULARY, WINDOW = 7, 8
TOKENS = torch.randint(0, VOCABULARY, (10, WINDOW + 1), generator=torch.Generator().manual_seed(9))


def build(seed: int) -> BlockwiseLM:
    return BlockwiseLM(ModelConfig(VOCABULARY, WINDOW, 8, 2, 16, (1, 1), norm="post", tied=False))


def batches(seeds: list[int]) -> Iterator[tuple[Tensor, Tensor]]:
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    while True:
        drawn = torch.stack(
            [torch.randint(0, VOCABULARY, (4, WINDOW + 1), generator=one) for one in generators]
        )
        yield drawn[..., :-1], drawn[..., 1:]


def train(seeds: list[int], objective, make=build, **options):
    ensemble = Ensemble(make, seeds)
    options = {"looks": [3, 6, 9, 12], "how": Optimisation(learning_rate=1e-2)} | options
    fitted = fit(
        ensemble,
        batches(seeds),
        objective,
        lambda members: mean_nll(members, objective, TOKENS[:, :-1], TOKENS[:, 1:]),
        **options,
    )
    return ensemble, fitted


@pytest.mark.parametrize(
    ("objective", "make"),
    [
        (named("final", 2), build),
        (named("weighted", 2), build),
        (segments_objective(2), lambda seed: IteratedLM(build(seed))),
    ],
)
@pytest.mark.parametrize("options", [{}, {"patience": 1}, {"patience": 1, "restore_best": False}])
def test_members_become_what_they_become_alone(objective, make, options):
    seeds = [3, 0, 5]
    together, fitted = train(seeds, objective, make, **options)
    for place, seed in enumerate(seeds):
        alone, (one,) = train([seed], objective, make, **options)
        assert (fitted[place].best_look, fitted[place].updates) == (one.best_look, one.updates)
        assert fitted[place].curve == pytest.approx(one.curve, rel=1e-5)
        for name, weight in alone.weights.items():
            torch.testing.assert_close(together.weights[name][place], weight[0], rtol=0, atol=1e-5)
    if options:
        assert (
            len({one.updates for one in fitted}) > 1
        )  # otherwise no member has been held back for the others


def test_a_member_is_the_plain_model():
    ensemble, _ = train([1, 2], named("final", 2))
    ours = ensemble(lambda model, tokens: model(tokens)[-1], TOKENS[:, :-1].expand(2, -1, -1))
    for place in range(2):
        torch.testing.assert_close(ensemble.member(place)(TOKENS[:, :-1])[-1], ours[place])


def test_a_plain_loop_makes_the_same_updates():
    ensemble, _ = train([4], named("sum", 2), looks=[3])
    torch.manual_seed(4)
    model, objective = build(4), named("sum", 2)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.01)
    for _, (tokens, targets) in zip(range(3), batches([4])):
        optimiser.zero_grad()
        objective.loss(model, tokens[0], targets[0], ())[0].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    for name, weight in model.named_parameters():
        torch.testing.assert_close(
            ensemble.weights[name][0], weight, rtol=0, atol=1e-4
        )  # AdamW divides rounding by itself


def test_building_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    Ensemble(build, [1])
    assert torch.equal(torch.rand(1), expected)


def test_frozen_weights_stay_and_the_rest_learns():
    before = Ensemble(build, [0, 1])
    ensemble = Ensemble(build, [0, 1])
    ensemble.freeze(lambda name: name.startswith(("embedding", "blocks.0")))
    objective = named("final", 2)
    fit(ensemble, batches([0, 1]), objective, lambda members: torch.zeros(2), looks=[2], restore_best=False)
    for name, weight in ensemble.weights.items():
        assert torch.equal(weight, before.weights[name]) == name.startswith(("embedding", "blocks.0")), name
    ensemble.freeze(lambda name: True)
    with pytest.raises(UserError, match="every weight is frozen"):
        fit(ensemble, batches([0, 1]), objective, lambda members: torch.zeros(2), looks=[1])


def test_rates_by_name_scale_the_step():
    def moved(rate: float) -> float:
        before = Ensemble(build, [0]).weights["blocks.1.0.query.weight"]
        how = Optimisation(rate_of=lambda name: rate if name.startswith("blocks.1") else 1.0)
        after, _ = train([0], named("final", 2), looks=[1], how=how)
        return float((after.weights["blocks.1.0.query.weight"] - before).detach().abs().mean())

    assert moved(0.1) == pytest.approx(0.1 * moved(1.0), rel=1e-2)


def test_norms_are_clipped_for_each_member():
    gradients = [torch.tensor([[3.0, 0.0], [0.1, 0.0]]), torch.tensor([[[4.0]], [[0.2]]])]
    clip_each(gradients, 1.0)
    norms = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients]).norm(dim=0)
    torch.testing.assert_close(norms, torch.tensor([1.0, 0.05**0.5]), rtol=1e-4, atol=0)


def test_flops_are_those_of_the_matrix_products():
    ensemble, (tokens, targets) = Ensemble(build, [0]), next(batches([0]))
    final, both = (batch_flops(ensemble, named(name, 2), tokens[0], targets[0]) for name in ("final", "sum"))
    assert (
        both - final == 3 * 2 * 8 * VOCABULARY * tokens.numel()
    )  # one more readout: forward, and two products backward
    twice = batch_flops(
        Ensemble(lambda seed: IteratedLM(build(seed)), [0]), segments_objective(2), tokens[0], targets[0]
    )
    assert twice == 2 * final
    ensemble.freeze(lambda name: name.startswith(("embedding", "blocks.0")))
    assert batch_flops(ensemble, named("final", 2), tokens[0], targets[0]) < final


def test_no_seed_is_no_ensemble():
    with pytest.raises(UserError, match="seeds is empty"):
        Ensemble(build, [])
