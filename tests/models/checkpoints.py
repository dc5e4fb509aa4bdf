"""Checkpoint folders as Transformers writes them: a tiny random model beside a tokenizer made from a little text."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.numpy import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig

TEXT = "Gentlemen of the Senate:\n\nThe union of the States shall endure, naïve or not.\nIt is so.\n\n" * 20


def make_tokenizer(vocab_size: int = 300, text: str = TEXT) -> Tokenizer:
    """Its tokens may span line ends, as those of Llama 3 and Qwen do."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(" ", "merged_with_next"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator([text], trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=["<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    return tokenizer


def save_checkpoint(folder: Path, vocab_size: int = 300, text: str = TEXT, **changes) -> Path:
    """A Llama of four layers with predictions far from uniform; token 0 ends texts."""
    sizes = {"vocab_size": vocab_size, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
             "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 0}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**sizes | changes))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=0.5 if parameter.ndim == 1 else 0.0, std=0.2)
    model.save_pretrained(folder)
    make_tokenizer(vocab_size, text).save(str(folder / "tokenizer.json"))
    return folder


GGUF_NAMES = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
              "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
              "post_attention_layernorm": "ffn_norm"}
WHOLE = {"model.embed_tokens.weight": "token_embd.weight", "lm_head.weight": "output.weight", "model.norm.weight": "output_norm.weight"}


def save_gguf(file: Path, folder: Path, with_tokenizer: bool = True) -> Path:
    """The Llama that ``save_checkpoint`` wrote to ``folder``, as one GGUF file in fp32."""
    config, tokenizer = LlamaConfig.from_pretrained(folder), json.loads((folder / "tokenizer.json").read_text())["model"]
    writer = gguf.GGUFWriter(str(file), "llama")
    for add, value in ((writer.add_block_count, config.num_hidden_layers), (writer.add_context_length, config.max_position_embeddings),
                       (writer.add_embedding_length, config.hidden_size), (writer.add_feed_forward_length, config.intermediate_size),
                       (writer.add_head_count, config.num_attention_heads), (writer.add_head_count_kv, config.num_key_value_heads),
                       (writer.add_layer_norm_rms_eps, config.rms_norm_eps), (writer.add_vocab_size, config.vocab_size),
                       (writer.add_rope_dimension_count, config.head_dim), (writer.add_rope_freq_base, 10_000.0)):
        add(value)
    if with_tokenizer:
        tokens = sorted(tokenizer["vocab"], key=tokenizer["vocab"].get)
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(tokens)
        writer.add_token_types([gguf.TokenType.CONTROL] + [gguf.TokenType.NORMAL] * (len(tokens) - 1))
        writer.add_token_merges([" ".join(pair) for pair in tokenizer["merges"]])
        writer.add_eos_token_id(0)
    heads = {"self_attn.q_proj": config.num_attention_heads, "self_attn.k_proj": config.num_key_value_heads}
    for name, weight in load_file(folder / "model.safetensors").items():
        if name in WHOLE:
            writer.add_tensor(WHOLE[name], weight)
            continue
        layer, part = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
        if part in heads:  # llama.cpp turns neighbouring dimensions of a head, Transformers its halves
            weight = weight.reshape(heads[part], 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
        writer.add_tensor(f"blk.{layer}.{GGUF_NAMES[part]}.weight", np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file
