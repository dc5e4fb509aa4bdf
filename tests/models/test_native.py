"""The native transformer against Transformers' Llama, and published parameter counts."""

from __future__ import annotations

import pytest
import torch

from offramp.models.native import BlockwiseLM, ModelConfig


@pytest.mark.parametrize("groups", [4, 2])
def test_pre_norm_model_equals_transformers_llama(groups):
    transformers = pytest.importorskip("transformers")
    config = ModelConfig(
        vocab_size=80,
        window=32,
        width=32,
        heads=4,
        ffn_width=48,
        block_layers=(1, 2),
        tied=False,
        key_value_heads=groups,
    )
    torch.manual_seed(0)
    model = BlockwiseLM(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=0.2)
    reference = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=80,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=groups,
            max_position_embeddings=32,
            rms_norm_eps=1e-6,
            tie_word_embeddings=False,
        )
    ).eval()
    weights = {
        "model.embed_tokens.weight": model.embedding.weight,
        "model.norm.weight": model.norms[1].weight,
        "lm_head.weight": model.heads[0],
    }
    for number, layer in enumerate(layer for block in model.blocks for layer in block):
        key, value = layer.key_value.weight.chunk(2)
        gate, up = layer.ffn_in.weight.chunk(2)
        for name, tensor in {
            "self_attn.q_proj": layer.query.weight,
            "self_attn.k_proj": key,
            "self_attn.v_proj": value,
            "self_attn.o_proj": layer.attn_out.weight,
            "mlp.gate_proj": gate,
            "mlp.up_proj": up,
            "mlp.down_proj": layer.ffn_out.weight,
            "input_layernorm": layer.attn_norm.weight,
            "post_attention_layernorm": layer.ffn_norm.weight,
        }.items():
            weights[f"model.layers.{number}.{name}.weight"] = tensor
    reference.load_state_dict(weights, strict=True)
    tokens = torch.randint(80, (3, 32))
    with torch.no_grad():
        torch.testing.assert_close(
            model.logits(1, model(tokens)[1]), reference(tokens).logits, atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize(
    ("vocab", "layers", "published"), [(97, 1, 78_080), (97, 4, 275_072), (30, 1, 69_504), (30, 4, 266_496)]
)
def test_post_norm_models_have_the_published_parameter_counts(vocab, layers, published):
    """The models of the report character-systems have 128 V + 65,664 L parameters at width 64."""
    model = BlockwiseLM(
        ModelConfig(
            vocab_size=vocab,
            window=64,
            width=64,
            heads=4,
            ffn_width=256,
            block_layers=(layers,),
            norm="post",
            tied=False,
        )
    )
    assert sum(parameter.numel() for parameter in model.parameters()) == published


def test_post_norm_layer_equals_its_equations():
    torch.manual_seed(1)
    model = BlockwiseLM(
        ModelConfig(
            vocab_size=9, window=8, width=8, heads=2, ffn_width=16, block_layers=(1,), norm="post", tied=False
        )
    )
    layer, x = model.blocks[0][0], torch.randn(1, 8, 8)
    from tests.fixtures.routing_reference import _step

    cache, rows = ([], []), []
    with torch.no_grad():
        for position in range(8):
            rows.append(_step(layer, x[0, position], position, model, cache))
        torch.testing.assert_close(model.run_block(0, x)[0], torch.stack(rows), atol=1e-5, rtol=1e-5)
