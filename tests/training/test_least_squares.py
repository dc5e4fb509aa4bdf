"""Maps by least squares against numpy's, on the architectures whose norms and biases differ; sums that add
up; what executor and decoder make of an exit read out through its map."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from offramp.errors import UserError
from offramp.machine.processes import ALONE
from offramp.models.pretrained import PretrainedLM, make_config
from offramp.routing.executor import Executor
from offramp.routing.generate import decode, generate
from offramp.routing.policies import FixedExit, GivenExits
from offramp.training import least_squares
from offramp.training.least_squares import (
    SCALES,
    TOKENS_PER_FEATURE,
    NormalEquations,
    begin,
    fit_maps,
    require_tokens,
    sums,
)
from tests.models.conftest import VOCAB, WINDOW
from tests.models.test_pretrained import CONFIGS, TINY

FAMILIES = {name: CONFIGS[name] for name in ("llama", "gpt2", "gpt_neox")}
"""A norm by the second moment; norms with a mean and biases; the same with parallel residuals."""


def make_model(config, translator: str = "affine", rank: int = 4) -> PretrainedLM:
    torch.manual_seed(0)
    reference = AutoModelForCausalLM.from_config(config).eval()
    for parameter in reference.parameters():
        torch.nn.init.normal_(parameter, mean=0.5 if parameter.ndim == 1 else 0.0, std=0.2)
    cut = make_config(config, TINY, exits_after=(1, 3), window=WINDOW, translator=translator, rank=rank)
    return PretrainedLM(reference, cut).eval()


def batches(count: int, seed: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(VOCAB, (4, WINDOW), generator=generator) for _ in range(count)]


@torch.no_grad()
def normed(model: PretrainedLM, texts: list[torch.Tensor]) -> list[np.ndarray]:
    """Normed states (N, D) at every exit and at full depth, as a plain forward pass has them."""
    states = zip(*([model.norm(x).flatten(0, 1) for x in model(text)] for text in texts))
    return [torch.cat(parts).double().numpy() for parts in states]


@pytest.fixture(params=FAMILIES.values(), ids=FAMILIES)
def model(request):
    return make_model(request.param)


def test_without_a_ridge_the_maps_are_those_of_numpys_least_squares(model, monkeypatch):
    monkeypatch.setattr(least_squares, "RIDGES", (1e-10,))  # where a norm takes the mean off, one is needed
    texts = batches(8)
    *inputs, wanted = normed(model, texts)
    equations = sums(model, texts)
    assert equations.tokens == len(wanted) == 8 * 4 * WINDOW
    for fit, y in zip(fit_maps(equations, equations), inputs):
        # rounding alone leaves the plane in which states without a mean lie
        solution, *_ = np.linalg.lstsq(np.c_[y, np.ones(len(y))], wanted, rcond=1e-6)
        ours, theirs = y @ fit.weight.numpy().T + fit.bias.numpy(), np.c_[y, np.ones(len(y))] @ solution
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
        left = ((theirs - wanted) ** 2).sum() / ((wanted - wanted.mean(0)) ** 2).sum()
        assert fit.error == pytest.approx(left, rel=1e-4)
        assert 0.01 < left < 0.9


@settings(deadline=None, max_examples=20)
@given(
    ridge=st.floats(1e-6, 10), tokens=st.integers(12, 60), width=st.integers(1, 6), seed=st.integers(0, 2**31)
)
def test_a_ridge_acts_as_tokens_that_say_zero(ridge, tokens, width, seed):
    """The independent way: D more rows, each with one input above its mean and the mean output."""
    rng = np.random.default_rng(seed)
    y, wanted = rng.normal(1, 2, (tokens, width)), rng.normal(-1, 1, (tokens, width))
    equations = NormalEquations(1, width)
    equations.add([torch.from_numpy(y)], torch.from_numpy(wanted))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(least_squares, "RIDGES", (ridge,))
        (fit,) = fit_maps(equations, equations)
    centred = y - y.mean(0)
    size = np.sqrt(ridge * centred.var(0).mean() * tokens)
    solution, *_ = np.linalg.lstsq(
        np.r_[centred, size * np.eye(width)],
        np.r_[wanted - wanted.mean(0), np.zeros((width, width))],
        rcond=None,
    )
    np.testing.assert_allclose(fit.weight, solution.T, atol=1e-8)
    np.testing.assert_allclose(fit.bias, wanted.mean(0) - solution.T @ y.mean(0), atol=1e-8)


def test_the_ridge_is_the_one_that_errs_least_on_what_was_held_out(model):
    texts, held = batches(1), batches(2, seed=4)
    *inputs, wanted = normed(model, held)
    fits = fit_maps(sums(model, texts), sums(model, held))
    for exit, y in enumerate(inputs):
        errors = []
        for ridge in least_squares.RIDGES:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(least_squares, "RIDGES", (ridge,))
                fit = fit_maps(sums(model, texts), sums(model, held))[exit]
            left = ((y @ fit.weight.numpy().T + fit.bias.numpy() - wanted) ** 2).sum()
            errors.append(left / ((wanted - wanted.mean(0)) ** 2).sum())
            assert fit.error == pytest.approx(errors[-1], rel=1e-6)
        best = int(np.argmin(errors))
        assert fits[exit].ridge == least_squares.RIDGES[best] and best > 0


def test_sums_of_two_halves_are_those_of_the_whole(model, monkeypatch):
    texts = batches(5)
    whole = sums(model, texts)
    monkeypatch.setattr(least_squares, "CHUNK", 7)
    halves = sums(model, texts[:2]) + sums(model, texts[2:])
    assert halves.tokens == whole.tokens == 5 * 4 * WINDOW
    for name, value in halves.over(ALONE).state_dict().items():
        torch.testing.assert_close(value, whole.state_dict()[name], rtol=1e-12, atol=1e-9)


@torch.no_grad()
def test_an_exit_is_read_out_through_its_map_by_executor_and_decoder(model):
    texts, held = batches(8), batches(2, seed=4)
    states = [x.flatten(0, 1) for x in model(held[0])]
    before = model.logits(2, model(held[1])[2])
    fits = begin(model, sums(model, texts), sums(model, held), states)
    tokens, targets = held[1][:, :-1], held[1][:, 1:]
    for exit, fit in enumerate(fits):
        y = model.norm(model(tokens)[exit]).double()
        mapped = fit.scale * (y @ fit.weight.T + fit.bias)
        log_p = (mapped @ model.readout_matrix(2).double().T).log_softmax(-1)
        wanted = -log_p.gather(-1, targets[..., None])[..., 0].float()
        routed = Executor(model).run(tokens, targets, GivenExits(torch.full((targets.numel(),), exit)))
        torch.testing.assert_close(routed.loss, wanted, atol=1e-4, rtol=1e-4)
        prompt = tokens[0, :9].tolist()
        (made,) = generate(decode(model, [prompt], 1, FixedExit(exit), route_prompt=True), 1)
        assert made.tokens == [int(log_p[0, 8].argmax())]
    assert torch.equal(model.logits(2, model(held[1])[2]), before)  # full depth has no map


@torch.no_grad()
def test_the_maps_bring_predictions_nearer_to_full_depth_at_the_best_scale(model):
    texts, held = batches(40), batches(2, seed=4)
    states = [x.flatten(0, 1) for x in model(held[0])]
    *lens, full = (model.logits(exit, x).log_softmax(-1) for exit, x in enumerate(states))
    fits = begin(model, sums(model, texts), sums(model, held), states)
    assert {fit.scale for fit in fits} <= set(SCALES)
    for exit, (fit, before) in enumerate(zip(fits, lens)):
        mapped = model.norm(states[exit]).double() @ fit.weight.T + fit.bias
        divergence = {}
        for scale in SCALES:
            log_p = (scale * mapped.float() @ model.readout_matrix(2).T).log_softmax(-1)
            divergence[scale] = float((full.exp() * (full - log_p)).sum(-1).mean())
        assert divergence[fit.scale] == min(divergence.values())
        assert divergence[fit.scale] < 0.8 * float((full.exp() * (full - before)).sum(-1).mean())


@torch.no_grad()
def test_a_map_of_low_rank_is_the_best_of_its_rank(model):
    """Against the singular vectors of the map times the inputs, which need all of the inputs."""
    texts, held = batches(8), batches(2, seed=4)
    equations, held_out = sums(model, texts), sums(model, held)
    states = [x.flatten(0, 1) for x in model(held[0])]
    low = make_model(FAMILIES["llama"], "low_rank", rank=5)
    low.norm, low.blocks, low.embedding, low.head = model.norm, model.blocks, model.embedding, model.head
    low.position_embedding, low.cos, low.sin = model.position_embedding, model.cos, model.sin
    for exit, fit in enumerate(begin(low, equations, held_out, states)):
        y = torch.from_numpy(normed(model, texts)[exit])
        centred = (y - y.mean(0)) @ fit.weight.T * fit.scale
        left, values, right = torch.linalg.svd(centred, full_matrices=False)
        best = (left[:, :5] * values[:5]) @ right[:5] + fit.scale * (y.mean(0) @ fit.weight.T + fit.bias)
        ours = low.translators[exit](y.float())
        torch.testing.assert_close(ours, best.float(), atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_a_rank_above_the_width_gives_the_map_itself():
    texts, held = batches(8), batches(2, seed=4)
    low = make_model(FAMILIES["llama"], "low_rank", rank=40)
    states = [x.flatten(0, 1) for x in low(held[0])]
    for exit, fit in enumerate(begin(low, sums(low, texts), sums(low, held), states)):
        y = low.norm(states[exit])
        mapped = fit.scale * (y.double() @ fit.weight.T + fit.bias)
        torch.testing.assert_close(low.translators[exit](y), mapped.float(), atol=1e-4, rtol=1e-4)


def test_bad_states_and_too_few_tokens_are_named():
    equations, y = NormalEquations(2, 3), torch.ones(4, 3)
    with pytest.raises(UserError, match=r"exit 1 are not finite numbers; .*fp32"):
        equations.add([y, y * torch.nan], y)
    with pytest.raises(UserError, match=r"full depth are not finite"):
        equations.add([y, y], y * torch.inf)
    assert equations.tokens == 0
    enough = 576 * TOKENS_PER_FEATURE
    require_tokens(enough, 576, "--tokens")
    with pytest.raises(UserError, match=rf"--tokens: {enough - 1} tokens are too few .* at least {enough}"):
        require_tokens(enough - 1, 576, "--tokens")
