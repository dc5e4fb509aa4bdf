"""Growing a model layer by layer: what is added changes nothing, what is frozen stays, and nothing grows too
far."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from offramp.errors import UserError
from offramp.models.native import BlockwiseLM, ModelConfig
from offramp.systems.ensemble import Ensemble, Optimisation, fit, mean_nll
from offramp.systems.growth import SCHEDULES, Schedule, add_layer, begin, schedule
from offramp.systems.objectives import from_logits

TOKENS = torch.randint(0, 30, (3, 16), generator=torch.Generator().manual_seed(0))


def initialise(model: nn.Module) -> None:
    for parameter in model.parameters():
        if parameter.ndim == 2:
            nn.init.trunc_normal_(parameter, std=0.02)


def built(depth: int, norm: str = "post", vocab: int = 30, width: int = 32, **changes: object) -> BlockwiseLM:
    """A model whose gains are far from 1, as training leaves them."""
    torch.manual_seed(depth)
    model = BlockwiseLM(
        ModelConfig(vocab, 64, width, 4, 4 * width, (1,) * depth, norm=norm, tied=False, **changes)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.2 if parameter.ndim == 2 else 1.0))
    return model


def top_logits(model: BlockwiseLM) -> torch.Tensor:
    return model.logits(model.config.num_blocks - 1, model(TOKENS)[-1])


def names(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters()]


def test_parameters_are_those_of_the_seed():
    count = {depth: sum(p.numel() for p in built(depth, width=64).parameters()) for depth in (1, 2, 3, 4)}
    assert count == {1: 69_504, 2: 135_168, 3: 200_832, 4: 266_496}
    grown = add_layer(built(3, width=64), 4, initialise)
    assert sum(p.numel() for p in grown.parameters()) == 266_496
    new = Schedule(3, 4, learns="new").stages()[1].rates(names(grown))
    assert sum(p.numel() for name, p in grown.named_parameters() if name in new) == 67_584


@pytest.mark.parametrize(
    "changes", [{"norm": "post"}, {"norm": "pre"}, {"norm": "pre", "heads_per_exit": True}]
)
def test_an_identity_layer_changes_no_prediction(changes):
    model = built(2, **changes)
    grown = add_layer(model, 4, initialise, "identity")
    torch.testing.assert_close(top_logits(grown), top_logits(model), rtol=1e-5, atol=1e-4)
    again = add_layer(grown, 4, initialise, "identity")
    torch.testing.assert_close(top_logits(again), top_logits(model), rtol=1e-5, atol=1e-4)


def test_silent_projections_alone_do_not_make_a_post_norm_layer_an_identity():
    model = built(2)
    grown = add_layer(model, 3, initialise)
    with torch.no_grad():
        for matrix in (grown.blocks[-1][-1].attn_out, grown.blocks[-1][-1].ffn_out):
            matrix.weight.zero_()
    before, after = model(TOKENS)[-1], grown(TOKENS)[-1]
    torch.testing.assert_close(torch.cosine_similarity(before, after, dim=-1), torch.ones(3, 16))
    length = before.norm(dim=-1) / after.norm(dim=-1)
    assert length.std() > 0.05, "by its token: no gain of the new norms can undo it"
    assert (top_logits(grown) - top_logits(model)).abs().max() > 0.1


def test_an_identity_layer_learns_from_the_first_step():
    grown = add_layer(built(2), 3, initialise, "identity")
    nn.functional.cross_entropy(top_logits(grown).flatten(0, 1), TOKENS.flatten()).backward()
    layer = grown.blocks[-1][-1]
    for part in (layer.attn_out, layer.ffn_out, layer.attn_norm, layer.ffn_norm):
        assert part.weight.grad.abs().max() > 0
    # behind a zero matrix there is no gradient yet; there is one after its first update
    with torch.no_grad():
        for matrix in (layer.attn_out, layer.ffn_out):
            matrix.weight -= 0.1 * matrix.weight.grad
    grown.zero_grad()
    nn.functional.cross_entropy(top_logits(grown).flatten(0, 1), TOKENS.flatten()).backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in grown.parameters())


def test_what_was_learnt_stays_and_the_new_layer_starts_as_in_a_whole_model():
    model = built(2)
    torch.manual_seed(7)
    grown = add_layer(model, 3, initialise)
    for name, value in model.state_dict().items():
        assert torch.equal(grown.state_dict()[name], value)
    torch.manual_seed(7)
    whole = BlockwiseLM(grown.config)
    initialise(whole)
    for name, value in whole.blocks[2].state_dict().items():
        assert torch.equal(grown.blocks[2].state_dict()[name], value)


def test_gradient_reaches_exactly_what_a_stage_trains():
    model = built(3)
    rates = Schedule(3, 3, embedding="never trained").stages()[0].rates(names(model))
    assert {name for name, _ in model.named_parameters()} - set(rates) == {"embedding.weight"}
    grown = add_layer(model, 4, initialise)
    new = Schedule(3, 4, learns="new").stages()[1].rates(names(grown))
    assert all(name.startswith(("blocks.3.", "heads.")) for name in new) and len(new) == 8
    for name, parameter in grown.named_parameters():
        parameter.requires_grad_(name in new)
    top_logits(grown).square().mean().backward()
    assert {name for name, parameter in grown.named_parameters() if parameter.grad is not None} == set(new)


def test_every_layer_learns_slower_than_the_one_above():
    rates = Schedule(2, 3, rate_decay=0.5).stages()[1].rates(names(built(3)))
    assert rates["heads.0"] == rates["blocks.2.0.query.weight"] == 1
    assert (
        rates["blocks.1.0.query.weight"],
        rates["blocks.0.0.query.weight"],
        rates["embedding.weight"],
    ) == (0.5, 0.25, 0.125)
    assert set(Schedule(2, 3, rate_decay=0.5).stages()[0].rates(names(built(2))).values()) == {1.0}


def test_stages_of_the_named_schedules():
    depths = {name: [stage.depth for stage in schedule(name, 4).stages()] for name in SCHEDULES}
    assert depths.pop("no growth") == [1, 1, 1, 1]
    assert all(found == [1, 2, 3, 4] for found in depths.values())
    assert [stage.depth for stage in schedule("frozen append", 4, start=3).stages()] == [3, 4]
    assert [stage.learns for stage in schedule("greedy", 3).stages()] == ["all", "new", "new"]
    last = schedule("greedy", 4, fine_tune=0.1).stages()[-1]
    assert (last.learns, last.rate, last.adds) == ("all", 0.1, False)
    mistaken = [name for name in SCHEDULES if schedule(name, 2).embedding == "never trained"]
    assert mistaken == ["greedy, embedding never trained"]
    assert all(schedule(name, 2).goes_on_from == "best" for name in SCHEDULES)


def test_growth_beyond_the_target_is_refused():
    with pytest.raises(UserError, match="has 3 layers and its target is 3; raise the target"):
        add_layer(built(3), 3, initialise)


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("sideways", {}, "'sideways' is not a schedule"),
        ("greedy", {"start": 5}, "target = 4 is below start = 5"),
        ("greedy", {"start": 0}, "start = 0"),
        ("greedy", {"rate_decay": 0.0}, "rate_decay = 0.0"),
        ("greedy", {"fine_tune": 0.0}, "fine_tune = 0.0"),
    ],
)
def test_schedules_that_cannot_be_are_refused(name, changes, said):
    with pytest.raises(UserError, match=said):
        schedule(name, 4, **changes)


def test_exit_classifiers_come_after_growth():
    with pytest.raises(UserError, match="exit_classifiers"):
        add_layer(built(2, exit_classifiers=True), 3, initialise)


def grown_together(plan: Schedule, seeds: list[int]) -> tuple[Ensemble, list[dict[str, torch.Tensor]]]:
    """All seeds through all stages of ``plan``, a few updates each; the weights at the beginning of every
    stage."""
    objective = from_logits(
        lambda model, tokens: model.logits(model.config.num_blocks - 1, model(tokens)[-1])
    )
    ensemble, before = Ensemble(lambda seed: small(plan.start), seeds), []
    for stage in plan.stages():
        how = begin(stage, ensemble, plan, initialise, Optimisation())
        before.append(ensemble.snapshot())
        batch = TOKENS[:, :-1].expand(len(seeds), -1, -1), TOKENS[:, 1:].expand(len(seeds), -1, -1)
        fit(
            ensemble,
            iter([batch] * 3),
            objective,
            lambda found: mean_nll(found, objective, TOKENS[:, :-1], TOKENS[:, 1:]),
            looks=[3],
            how=how,
        )
    return ensemble, before


def small(depth: int) -> BlockwiseLM:
    model = BlockwiseLM(ModelConfig(30, 64, 16, 2, 32, (1,) * depth, norm="post", tied=False))
    initialise(model)
    return model


def test_seeds_grow_together_as_they_grow_alone():
    plan = schedule("progressive", 3, rate_decay=0.5, new_layer="identity", fine_tune=0.1)
    together = grown_together(plan, [3, 5])[0]
    for index, seed in enumerate([3, 5]):
        alone = grown_together(plan, [seed])[0].member(0)
        for name, value in together.member(index).state_dict().items():
            torch.testing.assert_close(alone.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_frozen_layers_keep_their_bits_and_the_readout_goes_on_learning():
    ensemble, before = grown_together(schedule("greedy", 2), [0, 1])
    moved = {name for name, value in before[1].items() if not torch.equal(value, ensemble.weights[name])}
    assert {name.split(".")[0] + "." + name.split(".")[1] for name in moved} == {"blocks.1", "heads.0"}


def test_the_published_greedy_growth_never_trains_its_embedding():
    ensemble, before = grown_together(schedule("greedy, embedding never trained", 2), [0])
    assert torch.equal(before[0]["embedding.weight"], ensemble.weights["embedding.weight"])
    ensemble, before = grown_together(schedule("greedy", 2), [0])
    assert not torch.equal(before[0]["embedding.weight"], before[1]["embedding.weight"])


def test_the_control_goes_through_the_same_stages_and_adds_nothing():
    ensemble, before = grown_together(schedule("no growth", 3), [0])
    assert len(before) == 3 and not any(name.startswith("blocks.1") for name in ensemble.weights)
    assert all(weight.requires_grad for weight in ensemble.weights.values())
