"""Decoder-only Transformers checkpoints as block-wise language models, on the checkpoint's own weights.

An exit reads out through the checkpoint's final norm and head, after a translator of its own (tuned lens, arXiv
2303.08112); the identity makes it a logit lens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from offramp.errors import UserError
from offramp.models.blockwise import Blockwise
from offramp.nn.pretrained_layers import LAYERS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROPE_TYPES = ("default", "linear", "llama3", "yarn")
"""Rotary scalings whose angles are the same whatever the length of a sequence."""


@dataclass(frozen=True)
class PretrainedConfig:
    """Which checkpoint, and where it is cut."""

    name_or_path: str
    """A folder, or a name on the Hugging Face hub."""
    gguf_file: str | None
    """File within it, for checkpoints in the GGUF format."""
    revision: str | None
    """Commit, branch or tag on the hub."""
    exits_after: tuple[int, ...]
    """Numbers of layers after which an exit stands; the last exit, at full depth, is not listed."""
    vocab_size: int
    window: int
    """Longest sequence, in tokens."""
    width: int
    block_layers: tuple[int, ...]
    """Layers of each block; there is one exit after each block."""
    translator: str = "identity"
    """Kind of map between the state at an exit and the final norm, see ``nn.translators``."""
    rank: int | None = None
    """Of translators that have one."""
    exited_state: str = "output"
    """What stands for a token that left after block k in later layers: the output of block k."""

    @property
    def num_blocks(self) -> int:
        return len(self.block_layers)

    def to_json(self) -> dict:
        return {**asdict(self), "exits_after": list(self.exits_after), "block_layers": list(self.block_layers)}

    @classmethod
    def from_json(cls, values: dict) -> PretrainedConfig:
        return cls(**{**values, "exits_after": tuple(values["exits_after"]), "block_layers": tuple(values["block_layers"])})


class PretrainedLM(Blockwise):
    """A Transformers decoder cut into blocks; it holds the checkpoint's modules, not copies of their weights."""

    config: PretrainedConfig

    def __init__(self, base: PreTrainedModel, config: PretrainedConfig, translators: Iterable[nn.Module] = ()):
        """``translators`` are those of every exit but the last; none given is the identity everywhere."""
        super().__init__()
        self.config = config
        decoder, adapter = base.base_model, LAYERS[base.config.model_type]
        self.embedding = base.get_input_embeddings()
        self.position_embedding = getattr(decoder, "wpe", None)
        layers = [adapter(layer) for layer in getattr(decoder, adapter.STACK)]
        if any(abs(layer.scaling * layer.head_dim**0.5 - 1) > 1e-6 for layer in layers):
            raise UserError(f"model.name_or_path = {config.name_or_path!r}: its attention is not scaled by 1/sqrt(head width), "
                            "which no layer here does otherwise; choose another checkpoint")
        bounds = (0, *config.exits_after, len(layers))
        self.blocks = nn.ModuleList(nn.ModuleList(layers[start:end]) for start, end in pairwise(bounds))
        self.translators = nn.ModuleList(list(translators) or [nn.Identity() for _ in config.exits_after])
        self.norm = getattr(decoder, adapter.FINAL_NORM)
        head = base.get_output_embeddings()
        self.head = None if head.weight is self.embedding.weight else head
        """None where it is the embedding matrix."""
        self.exit_classifiers = nn.ModuleList()
        cos, sin = rotary_tables(decoder, config.window)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def embed(self, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
        x = self.embedding(tokens)
        if self.position_embedding is None:
            return x
        if positions is None:
            positions = torch.arange(tokens.shape[-1], device=tokens.device)
        return x + self.position_embedding(positions)

    def readout_matrix(self, exit: int) -> Tensor:
        return (self.embedding if self.head is None else self.head).weight

    def readout_input(self, exit: int, x: Tensor) -> Tensor:
        return self.norm(x if exit == self.config.num_blocks - 1 else self.translators[exit](x))

    def readout_flops(self, exit: int) -> int:
        translator = None if exit == self.config.num_blocks - 1 else self.translators[exit]
        return super().readout_flops(exit) + getattr(translator, "flops", 0)


def load_pretrained(name_or_path: str, gguf_file: str | None = None, revision: str | None = None,
                    exits_after: Sequence[int] = (), window: int = 128) -> PretrainedLM:
    """A checkpoint as a block-wise model in fp32 on the CPU, in evaluation mode, with identities as translators.

    Reads safetensors or GGUF, never pickles, and runs no code of the checkpoint. UserError names what is wrong with
    it or with where it is to be cut; all but damaged weights is found before they are read.
    """
    theirs = read_config(name_or_path, gguf_file, revision)
    config = make_config(theirs, exits_after, window, name_or_path, gguf_file, revision)
    return PretrainedLM(load_weights(name_or_path, gguf_file, revision), config).eval()


def read_config(name_or_path: str, gguf_file: str | None = None, revision: str | None = None) -> Any:
    """The checkpoint's own configuration; UserError where there is none or its architecture is not one of LAYERS."""
    from transformers import AutoConfig

    source, folder = f"model.name_or_path = {name_or_path!r}", Path(name_or_path)
    if folder.is_dir():
        if revision:
            raise UserError(f"model.revision = {revision!r} belongs to a name on the hub, and {name_or_path} is a folder: "
                            "set it to null")
        if gguf_file and not (folder / gguf_file).is_file():
            raise UserError(f"model.gguf_file = {gguf_file!r}: no such file in {name_or_path}; "
                            f"it has {', '.join(sorted(file.name for file in folder.glob('*.gguf'))) or 'none'}")
        if not gguf_file and not (folder / "config.json").is_file():
            raise UserError(f"{source}: no config.json in that folder; give the folder of a saved checkpoint, "
                            "or set model.gguf_file")
    try:
        config = AutoConfig.from_pretrained(name_or_path, trust_remote_code=False, **_given(gguf_file, revision))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{source}: no such folder, or no readable checkpoint of that name on the hub "
                        f"({_first_line(error)})") from None
    if config.model_type not in LAYERS:
        raise UserError(f"{source}: its architecture {config.model_type!r} is not supported; supported: {', '.join(LAYERS)}")
    return config


def make_config(theirs: Any, exits_after: Sequence[int], window: int, name_or_path: str, gguf_file: str | None = None,
                revision: str | None = None) -> PretrainedConfig:
    """Where a checkpoint of the configuration ``theirs`` is cut; UserError where it cannot be, or not exactly run."""
    layers, source = theirs.num_hidden_layers, f"model.name_or_path = {name_or_path!r}"
    bounds = (0, *exits_after, layers)
    if not exits_after or any(later <= earlier for earlier, later in pairwise(bounds)):
        raise UserError(f"model.exits_after = {list(exits_after)}: give increasing numbers of layers from 1 to {layers - 1}; "
                        f"{name_or_path} has {layers} layers")
    if window > theirs.max_position_embeddings:
        raise UserError(f"window = {window} exceeds the {theirs.max_position_embeddings} positions of {name_or_path}")
    sliding = getattr(theirs, "sliding_window", None)
    if sliding and window > sliding:
        raise UserError(f"window = {window} exceeds the attention window of {name_or_path}, {sliding} tokens; set a smaller one")
    rope = (getattr(theirs, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope not in ROPE_TYPES:
        raise UserError(f"{source}: its rotary positions are of type {rope!r}; supported: {', '.join(ROPE_TYPES)}")
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if getattr(theirs, name, None):
            raise UserError(f"{source}: it caps logits ({name}), which is not supported; choose another checkpoint")
    if gguf_file is None and getattr(theirs, "quantization_config", None):
        raise UserError(f"{source}: its weights are quantised, which is not supported; give it in full precision or as GGUF")
    return PretrainedConfig(name_or_path, gguf_file, revision, tuple(exits_after), theirs.vocab_size, window, theirs.hidden_size,
                            tuple(later - earlier for earlier, later in pairwise(bounds)))


def rotary_tables(decoder: nn.Module, window: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines (window, R / 2) of the decoder's own rotary positions, whatever its scaling; R = 0 without any."""
    if not hasattr(decoder, "rotary_emb"):
        return torch.empty(window, 0), torch.empty(window, 0)
    cos, sin = decoder.rotary_emb(torch.zeros(1), position_ids=torch.arange(window).unsqueeze(0))
    return tuple(table[0, :, : table.shape[-1] // 2].clone() for table in (cos, sin))  # the second half repeats the first


def load_weights(name_or_path: str, gguf_file: str | None = None, revision: str | None = None) -> PreTrainedModel:
    """Transformers' own model of a checkpoint, in fp32; UserError where weights are pickled, damaged or missing."""
    from transformers import AutoModelForCausalLM

    source = f"model.name_or_path = {name_or_path!r}"
    options: dict[str, Any] = {} if gguf_file else {"use_safetensors": True}
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            name_or_path, trust_remote_code=False, dtype=torch.float32, output_loading_info=True,
            **_given(gguf_file, revision), **options)
    except SafetensorError as error:
        raise UserError(f"{source}: its safetensors file is damaged ({error}); fetch or save it again") from None
    except OSError as error:
        raise UserError(f"{source}: no safetensors weights there, and pickled ones are not read ({_first_line(error)})") from None
    except (RuntimeError, ValueError, ImportError) as error:
        raise UserError(f"{source}: its weights cannot be loaded: {_first_line(error)}") from None
    if found["missing_keys"]:
        raise UserError(f"{source}: weights are missing: {', '.join(sorted(found['missing_keys'])[:3])}; fetch or save it again")
    return model


def _given(gguf_file: str | None, revision: str | None) -> dict[str, str]:
    return {name: value for name, value in (("gguf_file", gguf_file), ("revision", revision)) if value}


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
