"""Decoder-only Transformers checkpoints as block-wise language models, on the checkpoint's own weights.

An exit reads out through the checkpoint's final norm and head, after a translator of its own (tuned lens, arXiv
2303.08112) or a layer of its own (EE-LLM, arXiv 2312.04916); the identity makes it a logit lens.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from math import isfinite
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from offramp.checkpoints.checkpoint import Checkpoint, first_line
from offramp.checkpoints.configuration import check_cut, read_config
from offramp.checkpoints.weights import check_weights
from offramp.errors import UserError, out_of_memory
from offramp.models.blockwise import Blockwise
from offramp.nn.pretrained_layers import LAYERS, identity_copy
from offramp.nn.translators import BLOCK, make_translator

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
    """What is between the state at an exit and the final norm: a map of ``nn.translators``, or ``block``, a layer."""
    rank: int | None = None
    """Of translators that have one."""
    exited_state: str = "output"
    """What stands for a token that left after block k in later layers: the output of block k."""

    @property
    def num_blocks(self) -> int:
        return len(self.block_layers)

    @property
    def checkpoint(self) -> Checkpoint:
        return Checkpoint(self.name_or_path, self.gguf_file, self.revision)

    def to_json(self) -> dict:
        return {
            **asdict(self),
            "exits_after": list(self.exits_after),
            "block_layers": list(self.block_layers),
        }

    @classmethod
    def from_json(cls, values: dict) -> PretrainedConfig:
        return cls(
            **{
                **values,
                "exits_after": tuple(values["exits_after"]),
                "block_layers": tuple(values["block_layers"]),
            }
        )


class PretrainedLM(Blockwise):
    """A Transformers decoder cut into blocks; it holds the checkpoint's modules, not copies of their weights."""

    config: PretrainedConfig

    def __init__(self, base: PreTrainedModel, config: PretrainedConfig):
        super().__init__()
        self.config = config
        decoder, adapter = base.base_model, LAYERS[base.config.model_type]
        self.embedding = base.get_input_embeddings()
        self.position_embedding = getattr(decoder, "wpe", None)
        layers = [adapter(layer) for layer in getattr(decoder, adapter.STACK)]
        bounds = (0, *config.exits_after, len(layers))
        self.blocks = nn.ModuleList(nn.ModuleList(layers[start:end]) for start, end in pairwise(bounds))
        # A layer that an exit has to itself begins as the checkpoint's next one that adds nothing yet.
        self.translators = nn.ModuleList(
            identity_copy(layers[after])
            if config.translator == BLOCK
            else make_translator(config.translator, config.width, config.rank)
            for after in config.exits_after
        )
        """Of every exit but the last: what it has of its own."""
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

    def exit_layer(self, exit: int) -> Any | None:
        return (
            self.translators[exit]
            if self.config.translator == BLOCK and exit < len(self.translators)
            else None
        )

    def readout_input(self, exit: int, x: Tensor) -> Tensor:
        return self.norm(self.translators[exit](x) if self._translates(exit) else x)

    def readout_flops(self, exit: int) -> int:
        return super().readout_flops(exit) + (self.translators[exit].flops if self._translates(exit) else 0)

    def _translates(self, exit: int) -> bool:
        return self.config.translator != BLOCK and exit < len(self.translators)


def load_pretrained(
    name_or_path: str,
    gguf_file: str | None = None,
    revision: str | None = None,
    exits_after: Sequence[int] = (),
    window: int = 128,
    translator: str = "identity",
    rank: int | None = None,
) -> PretrainedLM:
    """A checkpoint as a block-wise model in fp32 on the CPU, in evaluation mode, its translators as yet identities.

    UserError names what is wrong with it or with where it is to be cut; all but damaged weights before they are read.
    """
    theirs = read_config(Checkpoint(name_or_path, gguf_file, revision))
    config = make_config(theirs, exits_after, window, name_or_path, gguf_file, revision, translator, rank)
    return PretrainedLM(load_weights(name_or_path, gguf_file, revision), config).eval()


def make_config(
    theirs: Any,
    exits_after: Sequence[int],
    window: int,
    name_or_path: str,
    gguf_file: str | None = None,
    revision: str | None = None,
    translator: str = "identity",
    rank: int | None = None,
) -> PretrainedConfig:
    """Where a checkpoint of the configuration ``theirs`` is cut; UserError where it cannot be."""
    check_cut(theirs, Checkpoint(name_or_path, gguf_file, revision), exits_after, window)
    blocks = tuple(
        later - earlier for earlier, later in pairwise((0, *exits_after, theirs.num_hidden_layers))
    )
    return PretrainedConfig(
        name_or_path,
        gguf_file,
        revision,
        tuple(exits_after),
        theirs.vocab_size,
        window,
        theirs.hidden_size,
        blocks,
        translator,
        rank,
    )


def rotary_tables(decoder: nn.Module, window: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines (window, R / 2) of the decoder's own rotary positions, whatever its scaling; R = 0 without any."""
    if not hasattr(decoder, "rotary_emb"):
        return torch.empty(window, 0), torch.empty(window, 0)
    rotary = type(decoder.rotary_emb)(
        decoder.config
    )  # a new one: the decoder may be on another device, or on none
    cos, sin = rotary(torch.zeros(1), position_ids=torch.arange(window).unsqueeze(0))
    return tuple(
        table[0, :, : table.shape[-1] // 2].clone() for table in (cos, sin)
    )  # the second half repeats the first


def load_weights(
    name_or_path: str, gguf_file: str | None = None, revision: str | None = None
) -> PreTrainedModel:
    """Transformers' own model of a checkpoint, in fp32.

    UserError where weights are pickled, damaged, missing or not finite, or do not fit into memory.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    checkpoint = Checkpoint(name_or_path, gguf_file, revision)
    if not sys.stderr.isatty():
        disable_progress_bar()
    formats = {} if checkpoint.gguf_file else {"use_safetensors": True}
    try:
        check_weights(checkpoint)
        model, found = AutoModelForCausalLM.from_pretrained(
            checkpoint.name_or_path,
            dtype=torch.float32,
            output_loading_info=True,
            **formats,
            **checkpoint.options,
        )
    except (MemoryError, RuntimeError, OSError, ValueError, ImportError, SafetensorError) as error:
        raise UserError(f"{checkpoint}: {_why_not_loaded(error)}") from None
    if missing := sorted(found["missing_keys"]):
        raise UserError(
            f"{checkpoint}: {len(missing)} weights are missing, {missing[0]} for one; fetch or save it again"
        )
    for name, weight in model.named_parameters():
        if not all(map(isfinite, weight.detach().aminmax())):
            raise UserError(
                f"{checkpoint}: its weights are not finite numbers, {name} for one; fetch or save it again"
            )
    return model


def _why_not_loaded(error: Exception) -> str:
    if out_of_memory(error):
        return f"loading its weights ran out of memory ({first_line(error) or 'no memory'}); choose a smaller checkpoint"
    if isinstance(error, SafetensorError):
        return f"its safetensors file is damaged ({error}); fetch or save it again"
    if isinstance(error, OSError):
        return f"no safetensors weights there, and pickled ones are not read ({first_line(error)})"
    return f"its weights cannot be loaded: {first_line(error)}"


def empty_model(theirs: Any, config: PretrainedConfig) -> PretrainedLM:
    """The model of a checkpoint's configuration, with weights yet to be assigned."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(theirs)
    return PretrainedLM(base, config)
