"""Token statistics against the plain full-logits formulas."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.states import statistics
from offramp.states.statistics import Readout, predictions, token_statistics


def reference(inputs, matrix, targets):
    logits = inputs.double() @ matrix.double().T
    log_p = logits.log_softmax(1)
    p = log_p.exp()
    top = logits.topk(2, dim=1)
    loss = -log_p.gather(1, targets[:, None])[:, 0]
    return {
        "max_prob": p.amax(1),
        "max_logit": top.values[:, 0],
        "mean_logit": logits.mean(1),
        "margin": top.values[:, 0] - top.values[:, 1],
        "entropy": -(p * log_p).sum(1),
        "argmax": top.indices[:, 0],
        "loss": loss,
        "correct_prob": torch.exp(-loss),
    }, log_p


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(1, 70),
    vocab=st.integers(2, 150),
    width=st.integers(1, 12),
    block=st.sampled_from([1, 300, 5000, 2**18]),
    columns=st.sampled_from([8, 32, 4096]),
    slots=st.sampled_from([1, 3, 64]),
    tile=st.sampled_from([1, 40, 2**19]),
    scale=st.sampled_from([0.1, 3.0, 40.0]),
    seed=st.integers(0, 1000),
)
def test_statistics_equal_the_plain_formulas_whatever_the_block_sizes(
    tokens, vocab, width, block, columns, slots, tile, scale, seed
):
    """Also for logits in the hundreds, where sums of exponentials need a shift."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    inputs, matrices = [draw(tokens, width) * scale for _ in range(2)], [draw(vocab, width) for _ in range(2)]
    targets = torch.randint(vocab, (tokens,), generator=generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "BLOCK", {"cpu": block})
        patch.setattr(statistics, "COLUMNS", columns)
        patch.setattr(statistics, "SLOTS", slots)
        patch.setattr(statistics, "TILE", tile)
        computed = token_statistics(inputs, [Readout(matrix) for matrix in matrices], targets)
        loss, argmax, max_prob = predictions(inputs[0], Readout(matrices[0]), targets)
    wanted, log_ps = zip(*(reference(x, matrix, targets) for x, matrix in zip(inputs, matrices)))
    for exit in range(2):
        for name, values in wanted[exit].items():
            if name == "argmax":
                best = inputs[exit].double() @ matrices[exit].double().T
                torch.testing.assert_close(
                    best.gather(1, computed[exit][name][:, None])[:, 0],
                    best.amax(1),
                    atol=1e-4 * scale,
                    rtol=1e-5,
                )
            else:
                torch.testing.assert_close(
                    computed[exit][name].double(), values, atol=3e-4 * max(1.0, scale), rtol=1e-4, msg=name
                )
    divergence = (log_ps[1].exp() * (log_ps[1] - log_ps[0])).sum(1)
    torch.testing.assert_close(
        computed[0]["divergence"].double(), divergence, atol=1e-3 * max(1.0, scale), rtol=1e-3
    )
    assert "divergence" not in computed[1]
    torch.testing.assert_close(loss, computed[0]["loss"])
    assert torch.equal(argmax, computed[0]["argmax"])
    torch.testing.assert_close(max_prob, computed[0]["max_prob"])


def test_memory_does_not_grow_with_tokens_or_vocabulary():
    """4,096 tokens x 20,000 entries would be 330 MB of logits; blocks stay in the tens of MB."""
    import resource

    readout = Readout(torch.randn(20_000, 4))
    token_statistics([torch.randn(300, 4)], [readout])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    token_statistics([torch.randn(4_096, 4)], [readout])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB
