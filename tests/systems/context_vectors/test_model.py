"""The context-vector model: published sizes, one step by hand, and which context feeds which token."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from offramp.errors import UserError
from offramp.systems.context_vectors.model import TOKEN_INPUTS, ContextVectorConfig, ContextVectorLM
from offramp.systems.context_vectors.recurrence import parallel, previous_contexts, sequential, settle


def model(token_input: str = "all", **changes) -> ContextVectorLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 11, "width": 6, "context_width": 5, "layers": 3}
    return ContextVectorLM(ContextVectorConfig(**sizes | {"token_input": token_input} | changes))


def stream(tokens: int = 60, starts: tuple[int, ...] = (0, 7, 8, 40)) -> tuple[Tensor, Tensor]:
    begins = torch.zeros(tokens, dtype=torch.bool)
    begins[list(starts)] = True
    return torch.randint(11, (tokens,), generator=torch.Generator().manual_seed(1)), begins


def one_by_one(net: ContextVectorLM, tokens: Tensor, begins: Tensor) -> list[Tensor]:
    """Outputs (N, d_i) of all layers, by the definition."""
    rows, context = [], torch.zeros(1, net.config.context_width)
    for token, start in zip(tokens, begins):
        outputs = net.context_block(torch.zeros_like(context) if start else context, net.embed(token.view(1)))
        context = outputs[-1]
        rows.append(outputs)
    return [torch.cat(of_layer) for of_layer in zip(*rows)]


# Sizes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("token_input", "total", "trained", "token_block"),
    [("all", 91_429_969, 45_740_881, 7_091_712), ("first", 101_207_121, 47_215_441, 8_566_272)],
)
def test_published_sizes_have_the_published_counts(token_input, total, trained, token_block):
    with torch.device("meta"):
        net = ContextVectorLM(ContextVectorConfig(50_257, token_input=token_input))
    counts = [
        sum(parameter.numel() for parameter in found)
        for found in (net.parameters(), net.reading_parameters(norm=True), net.token_block.parameters())
    ]
    assert counts == [total, trained, token_block]


def test_widths_fall_in_equal_steps():
    assert ContextVectorConfig(50_257, token_input="first").context_widths == (
        1408,
        1280,
        1152,
        1024,
        896,
        768,
    )
    assert ContextVectorConfig(9, 768, 500, 1, "first").context_widths == (500,)
    assert ContextVectorConfig(9, 6, 5, 3).context_widths == (5, 5, 5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"token_input": "first", "layers": 4},
            "layers = 4: from 11 to context_width = 5 there are no 4 equal steps",
        ),
        ({"token_input": "first", "layers": 7}, "layers = 7"),
        ({"context_width": 0}, "context_width = 0"),
        ({"layers": 0}, "layers = 0"),
        ({"token_input": "last"}, "token_input = 'last'"),
        ({"head": "big"}, "head = 'big'"),
    ],
)
def test_sizes_that_do_not_fit_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        model(**changes)


# Steps --------------------------------------------------------------------------------------


def test_a_step_by_hand_where_every_layer_sees_the_token():
    net = model(layers=2)
    c, x = torch.randn(1, 5), net.embed(torch.tensor([3]))
    torch.testing.assert_close(x, F.layer_norm(net.embedding.weight[3:4], (6,)))
    outputs = net.context_block(c, x)
    for layer, output in zip(net.context_block.layers, outputs):
        change = torch.relu(torch.cat((c, x), dim=1) @ layer.transform.weight.T + layer.transform.bias)
        c = F.layer_norm(c + change, (5,))
        torch.testing.assert_close(output, c)


def test_a_step_by_hand_where_only_the_first_layer_does():
    net = model("first")
    x, c = net.embed(torch.tensor([3])), torch.randn(1, 5)
    one, two, three = net.context_block.layers
    wide = F.layer_norm(one.residual(c) + torch.relu(one.transform(torch.cat((c, x), dim=1))), (9,))
    middle = F.layer_norm(two.residual(wide) + torch.relu(two.transform(wide)), (7,))
    last = F.layer_norm(three.residual(middle) + torch.relu(three.transform(middle)), (5,))
    torch.testing.assert_close(net.context_block(c, x), [wide, middle, last])


def test_the_token_block_reads_every_layer_by_hand():
    net = model("first")
    tokens, contexts = torch.tensor([3, 4]), [torch.randn(2, width) for width in (9, 7, 5)]
    u = net.embed(tokens)
    for transform, context in zip(net.token_block.transforms, contexts):
        u = F.layer_norm(
            u + torch.relu(torch.cat((context, u), dim=1) @ transform.weight.T + transform.bias), (6,)
        )
    torch.testing.assert_close(net.read(tokens, contexts)[:, :-1], u)


@pytest.mark.parametrize("head", ["zero", "untied", "tied"])
def test_heads(head):
    net = model(head=head)
    if head == "untied":
        torch.nn.init.normal_(net.head.bias)
    tokens, contexts = torch.tensor([3, 4]), [torch.randn(2, 5)] * 3
    logits = net.read(tokens, contexts) @ net.readout_matrix().T
    u = net.token_block(net.embed(tokens), contexts)
    torch.testing.assert_close(logits, u @ net.embedding.weight.T if head == "tied" else net.head(u))
    assert (logits.abs().max() == 0) == (head == "zero")
    assert (net.readout_matrix() is net.embedding.weight) == (head == "tied")


# Streams ------------------------------------------------------------------------------------


def test_the_token_before_feeds_a_token_and_nothing_feeds_the_first():
    contexts, (_, begins) = torch.arange(10.0).repeat(2, 1).T.contiguous(), stream(10, (0, 4))
    assert previous_contexts(contexts, begins)[:, 0].tolist() == [0, 0, 1, 2, 0, 4, 5, 6, 7, 8]
    assert previous_contexts(contexts, begins, wrap=True)[:, 0].tolist() == [9, 0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert contexts[0, 0] == 0 and contexts[3, 0] == 3


@pytest.mark.parametrize("token_input", TOKEN_INPUTS)
@pytest.mark.parametrize("together", [60, 13, 5])
def test_the_fused_recurrence_is_the_definition_however_the_stream_is_cut(token_input, together):
    net, (tokens, begins) = model(token_input), stream()
    with torch.no_grad():
        wanted = one_by_one(net, tokens, begins)
    parts = list(sequential(net, tokens, begins, together))
    assert [len(part[0]) for part in parts] == [len(part) for part in tokens.split(together)]
    for layer, of_layer in enumerate(wanted):
        torch.testing.assert_close(torch.cat([part[layer] for part in parts]), of_layer, rtol=1e-4, atol=1e-5)


def test_a_stream_may_go_on_from_a_context():
    net, (tokens, begins) = model(), stream(20, ())
    begins[0] = False
    whole = torch.cat([part[-1] for part in sequential(net, tokens, begins)])
    rest = torch.cat([part[-1] for part in sequential(net, tokens[8:], begins[8:], first=whole[7])])
    torch.testing.assert_close(rest, whole[8:], rtol=1e-4, atol=1e-5)


def test_no_document_sees_another():
    net, (tokens, begins) = model(), stream()
    other = torch.cat(((tokens[:8] + 1) % 11, tokens[8:]))
    contexts = [torch.cat([part[-1] for part in sequential(net, given, begins)]) for given in (tokens, other)]
    assert torch.equal(contexts[0][8:], contexts[1][8:]) and not torch.equal(contexts[0][:8], contexts[1][:8])


@pytest.mark.parametrize("token_input", TOKEN_INPUTS)
def test_parallel_passes_end_in_the_recurrence(token_input):
    net, (tokens, begins) = model(token_input), stream()
    exact = torch.cat([part[-1] for part in sequential(net, tokens, begins)])
    start = torch.randn(60, 5)
    torch.testing.assert_close(settle(net, tokens, begins, start, 32), exact, rtol=1e-4, atol=1e-4)
    once = settle(net, tokens, begins, start, 1)
    torch.testing.assert_close(once[begins], exact[begins], rtol=1e-4, atol=1e-5)  # nothing comes before them
    assert not torch.allclose(once[6], exact[6], atol=1e-2)


def test_the_parallel_pass_is_equal_to_what_it_claims_to_be():
    """From the exact contexts it gives the exact outputs of all layers, whatever its parts."""
    net, (tokens, begins) = model("first"), stream()
    exact = [torch.cat(of_layer) for of_layer in zip(*sequential(net, tokens, begins))]
    given = list(parallel(net, tokens, previous_contexts(exact[-1], begins), together=16))
    for layer, outputs in enumerate(exact):
        torch.testing.assert_close(torch.cat([part[layer] for part in given]), outputs, rtol=1e-4, atol=1e-5)
