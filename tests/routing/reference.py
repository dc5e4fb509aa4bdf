"""Token-by-token decoding with early exit and state propagation, written plainly from the definition."""

from __future__ import annotations

import math

import torch


@torch.no_grad()
def decode(model, tokens, targets, leaves, kv="propagate"):
    """Route one sequence (T,) a token at a time; ``leaves(exit, state (D,)) -> bool``.

    Returns exits (T,) and losses (T,). Keys and values are cached per layer; those of a token that left come from its
    last state (``propagate``), are its true ones (``recompute``: it is run through all layers whatever was decided), or
    are missing (``drop``); the same goes for layers that exits have to themselves. No code is shared with the executor: projections, rotation, attention and norms are spelled out.
    """
    last = len(model.blocks) - 1
    caches = [([], []) for block in model.blocks for _ in block]
    exit_caches = [([], []) for _ in model.blocks]
    exits, losses = [], []
    for position, token in enumerate(tokens.tolist()):
        x, state, exit, number = model.embedding.weight[token], None, last, 0
        for block, layers in enumerate(model.blocks):
            if state is not None and kv != "recompute":  # it left: only keys and values, if those
                for layer in layers:
                    if kv == "propagate":
                        _remember(layer, state, position, model, caches[number])
                    number += 1
                if kv == "propagate" and model.exit_layer(block):
                    _remember(model.exit_layer(block), state, position, model, exit_caches[block])
                continue
            entered = x
            for layer in layers:
                x = _step(layer, x, position, model, caches[number])
                number += 1
            read = x
            if own := model.exit_layer(block):
                read = _step(own, x, position, model, exit_caches[block])
            if state is None and block < last and leaves(block, x):
                exit, state = block, x if model.config.exited_state == "output" else entered
                logits = model.logits(block, read)
        if state is None:
            logits = model.logits(last, x)
        exits.append(exit)
        losses.append(-logits.double().log_softmax(0)[targets[position]])
    return torch.tensor(exits), torch.stack(losses).float()


def _turn(vector, position, model):
    half = vector.shape[-1] // 2
    angle = position * 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    cos, sin = angle.cos().float(), angle.sin().float()
    first, second = vector[..., :half], vector[..., half:]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def _normed(norm, x):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6) * norm.weight


def _source(layer, x):
    return _normed(layer.attn_norm, x) if layer.norm == "pre" else x


def _remember(layer, x, position, model, cache):
    key, value = (layer.key_value.weight @ _source(layer, x)).view(2, -1, layer.head_dim)
    cache[0].append(_turn(key, position, model))
    cache[1].append(value)


def _step(layer, x, position, model, cache):
    _remember(layer, x, position, model, cache)
    query = _turn((layer.query.weight @ _source(layer, x)).view(layer.heads, layer.head_dim), position, model)
    shared = layer.heads // cache[0][0].shape[0]  # so many heads in a row read the same keys and values
    keys, values = (torch.stack(part).repeat_interleave(shared, dim=1) for part in cache)
    scores = torch.einsum("he,the->ht", query, keys) / math.sqrt(layer.head_dim)
    read = torch.einsum("ht,the->he", scores.softmax(-1), values).flatten()

    def feed_forward(y):
        gate, up = (layer.ffn_in.weight @ y).chunk(2)
        return layer.ffn_out.weight @ (gate * torch.sigmoid(gate) * up)

    x = x + layer.attn_out.weight @ read
    if layer.norm == "post":
        x = _normed(layer.attn_norm, x)
        return _normed(layer.ffn_norm, x + feed_forward(x))
    return x + feed_forward(_normed(layer.ffn_norm, x))
