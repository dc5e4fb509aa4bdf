"""Checkpoint folders as Transformers writes them: a tiny random model beside a tokenizer made from a little text."""

from __future__ import annotations

from pathlib import Path

import torch
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
