"""The selective model: published sizes, attempts that see no future, and a generation that computes what
training computed."""

from __future__ import annotations

import pytest
import torch

from offramp.errors import UserError
from offramp.systems.selective_output.model import (
    SelectiveConfig,
    SelectiveLM,
    Writer,
    greedy,
    sampled,
    write,
)

VOCABULARY, WINDOW = 11, 12
TINY = SelectiveConfig(
    VOCABULARY, WINDOW, width=16, layers=2, heads=2, ffn_width=32, gate_width=8, rotary_share=0.5
)


@pytest.fixture(scope="module")
def model() -> SelectiveLM:
    torch.manual_seed(0)
    model = SelectiveLM(TINY).eval()
    with torch.no_grad():  # as drawn, the parts hardly matter
        for weight in model.parameters():
            weight.mul_(8 if weight.ndim == 2 else 1)
    return model


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(VOCABULARY, (2, WINDOW), generator=torch.Generator().manual_seed(1))


def test_the_published_sizes_give_the_published_parameters():
    with torch.device("meta"):
        model = SelectiveLM(SelectiveConfig(50_304, 128))
    count = {
        name: sum(weight.numel() for weight in part.parameters()) for name, part in model.named_children()
    }
    assert sum(count.values()) == 70_748_929
    assert (count["embedding"], count["head"], count["gate"], count["project"]) == (
        25_755_648,
        25_755_648,
        65_793,
        262_656,
    )
    assert (count["layers"], count["norm"]) == (6 * 3_151_360, 1_024)
    assert model.config.rotated == 16


def test_a_layer_by_hand(model):
    """Position by position with plain softmax attention, half of each head turned in pairs (i, i + R / 2)."""
    layer, rotated, width = model.layers[0], TINY.rotated, 16
    x = torch.randn(1, 4, width, generator=torch.Generator().manual_seed(2))
    outputs, _ = layer(x, model.cos[:4], model.sin[:4], None, is_causal=True)
    source = layer.norm(x)[0]
    query, key, value = (
        layer.query_key_value(source)[:, part * width : (part + 1) * width].view(4, 2, 8) for part in range(3)
    )

    def turn(row: torch.Tensor, position: int) -> torch.Tensor:
        out = row.clone()
        for i in range(rotated // 2):
            angle = torch.tensor(position * 10000.0 ** (-2 * i / rotated))
            a, b = row[i], row[i + rotated // 2]
            out[i], out[i + rotated // 2] = (
                a * angle.cos() - b * angle.sin(),
                b * angle.cos() + a * angle.sin(),
            )
        return out

    for t in range(4):
        heads = []
        for head in range(2):
            scores = (
                torch.stack([turn(query[t, head], t) @ turn(key[s, head], s) for s in range(t + 1)]) / 8**0.5
            )
            heads.append(scores.softmax(0) @ value[: t + 1, head])
        inner = torch.nn.functional.gelu(layer.ffn_in(source[t]))
        torch.testing.assert_close(
            outputs[0, t], x[0, t] + layer.attn_out(torch.cat(heads)) + layer.ffn_out(inner)
        )


def test_no_attempt_sees_what_it_is_to_predict(model, tokens):
    """Changing the tokens after a place changes nothing there, after any number of skipped steps."""
    place = 5
    other = tokens.clone()
    other[:, place + 1 :] = (other[:, place + 1 :] + 1) % VOCABULARY
    for one, two in zip(model.attempts(tokens, 3), model.attempts(other, 3)):
        torch.testing.assert_close(one[:, : place + 1], two[:, : place + 1])
        assert not torch.allclose(one[:, place + 1], two[:, place + 1])


def test_tokens_do_not_read_skipped_steps(model, tokens):
    assert torch.equal(model.attempts(tokens, 2)[0], model.states(tokens))
    first, second, third = model.attempts(tokens, 2)
    assert not torch.allclose(first, second) and not torch.allclose(second, third)


@torch.no_grad()
def test_cached_steps_are_those_of_the_parallel_pass(model, tokens):
    wanted = model.attempts(tokens[:1], 2)
    writer = Writer(model)
    for place in range(WINDOW):
        h = writer.read(tokens[0, place : place + 1].tolist())
        for attempt in range(3):
            torch.testing.assert_close(h, wanted[attempt][0, place], rtol=1e-4, atol=1e-5)
            h = writer.skip(h) if attempt < 2 else h


@torch.no_grad()
def test_generation_with_skips_keeps_its_context(model, tokens):
    """What a run with caches writes, with skips, is what full passes over the growing text write."""
    prompt, gates = tokens[0, :4].tolist(), model.gate(model.states(tokens))
    threshold = float(gates.median())
    written = write(model, prompt, 6, max_skip=2, threshold=threshold)
    text = list(prompt)
    skips = 0
    for token in written.tokens:
        attempts = [h[0, -1] for h in model.attempts(torch.tensor([text]), 2)]
        spoken = next((place for place in range(2) if model.gate(attempts[place]) > threshold), 2)
        assert token == greedy(model.head(attempts[spoken]))
        skips += spoken
        text.append(token)
    assert written.skips == skips > 0 and written.steps == 6 + skips
    other = write(model, [(prompt[0] + 1) % VOCABULARY, *prompt[1:]], 6, max_skip=2, threshold=threshold)
    assert other.gates != written.gates  # the first token of the prompt still matters


def test_the_published_generation_forgets_everything_but_the_last_token(model):
    prompts = [[1, 2, 3, 4], [9, 4]]
    one, two = (write(model, prompt, 5, max_skip=1, keeps_context=False) for prompt in prompts)
    assert one.gates[0] != two.gates[0]  # the prompt itself is read whole
    after = [write(model, [one.tokens[0]], 4, max_skip=1, keeps_context=False)]
    assert after[0].tokens == one.tokens[1:]


def test_thresholds_decide_how_often_it_speaks_at_once(model):
    assert write(model, [1, 2], 5, max_skip=2, threshold=-1.0).skips == 0
    assert write(model, [1, 2], 5, max_skip=2, threshold=1.0).skips == 10
    assert write(model, [1, 2], 5, max_skip=0, threshold=1.0).steps == 5
    drawn = [
        write(model, [1, 2], 8, 1, choose=sampled(torch.Generator().manual_seed(seed))).tokens
        for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model, tokens: model.attempts(tokens, -1), "max_skip = -1 counts skipped steps"),
        (lambda model, tokens: write(model, [1], 2, -2), "max_skip = -2 counts skipped steps"),
        (lambda model, tokens: write(model, [], 2, 0), "prompt is empty"),
        (
            lambda model, tokens: write(model, [1] * 6, 7, 0),
            "tokens: 13 of them do not fit the model's window of 12",
        ),
        (lambda model, tokens: model.states(tokens.repeat(1, 2)), "tokens: 24 of them do not fit"),
        (
            lambda model, tokens: SelectiveConfig(10, 8, width=16, heads=3),
            "heads = 3 does not divide width = 16",
        ),
        (
            lambda model, tokens: SelectiveConfig(10, 8, width=16, heads=2, rotary_share=0.375),
            "rotary_share = 0.375",
        ),
    ],
)
def test_bad_input_is_named(model, tokens, call, message):
    with pytest.raises(UserError, match=message):
        call(model, tokens)
