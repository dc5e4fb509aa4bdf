"""A tiny random Llama as a block-wise model, and a trainer of it, for the tests of training pretrained models."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from offramp.corpus.windows import TokenWindows
from offramp.models.pretrained import PretrainedLM, make_config
from offramp.parallel import ALONE, Processes
from offramp.training.pretrain import Pretrainer
from offramp.training.snapshots import Snapshots
from tests.conftest import repository_params


def make_pretrained(vocab_size: int, translator: str = "identity", exits_after: tuple[int, ...] = (1, 2), seed: int = 0) -> PretrainedLM:
    """Three layers with predictions far from uniform, so that exits disagree."""
    torch.manual_seed(seed)
    config = LlamaConfig(vocab_size=vocab_size, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2,
                         max_position_embeddings=32)
    base = AutoModelForCausalLM.from_config(config)
    for parameter in base.parameters():
        torch.nn.init.normal_(parameter, mean=0.5 if parameter.ndim == 1 else 0.0, std=0.3)
    return PretrainedLM(base, make_config(config, exits_after, 32, "tiny", translator=translator, rank=4)).eval()


def make_trainer(data, folder, translator: str = "identity", processes: Processes = ALONE, **changes) -> Pretrainer:
    params = repository_params(**{
        "model__source": "hf", "model__name_or_path": "tiny", "model__exits_after": [1, 2], "tokenizer__kind": "pretrained",
        "pretrain__steps": 12, "pretrain__evaluate_every": 4, "pretrain__batch_size": 8,
        "pretrain__learning_rate": 0.01, **{f"pretrain__{name}": value for name, value in changes.items()},
    }).pretrain
    model = make_pretrained(data.meta["vocab_size"], translator)
    windows = (TokenWindows(data, split) for split in ("train", "calibration"))
    return Pretrainer(model, *windows, params, Snapshots(folder / "resume", 1e9), torch.device("cpu"), processes)
