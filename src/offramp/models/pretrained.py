"""Decoder-only Transformers checkpoints as block-wise language models, on the checkpoint's own weights.

An exit reads out through the checkpoint's final norm and head, with a translator of that exit between them
(tuned lens, arXiv 2303.08112) or a layer of that exit ahead of them (EE-LLM, arXiv 2312.04916); the identity
makes it a logit lens.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from math import isfinite
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from offramp.checkpoints.checkpoint import Checkpoint, first_line
from offramp.checkpoints.configuration import check_cut, read_config
from offramp.checkpoints.weights import check_shapes, check_weights
from offramp.errors import UserError, out_of_memory
from offramp.models.blockwise import Blockwise
from offramp.nn.layers import Layer
from offramp.nn.pretrained_layers import LAYERS, identity_copy
from offramp.nn.translators import BLOCK, Identity, Translator, make_translator

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class PretrainedConfig:
    """Which checkpoint, where it is cut, and what its exits have of their own."""

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
    """What maps the normed state at an exit for the head: one of ``nn.translators``, or ``block``, a layer
    ahead of the norm."""
    rank: int | None = None
    """Rank, or inner width, of translators that have one."""
    exited_state: str = "output"
    """What stands for a token that left after block k in later layers: the output of block k."""

    @property
    def num_blocks(self) -> int:
        return len(self.block_layers)

    @property
    def checkpoint(self) -> Checkpoint:
        """Where the checkpoint is."""
        return Checkpoint(self.name_or_path, self.gguf_file, self.revision)

    def to_json(self) -> dict[str, Any]:
        """The configuration as plain values."""
        return {
            **asdict(self),
            "exits_after": list(self.exits_after),
            "block_layers": list(self.block_layers),
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> PretrainedConfig:
        """The configuration that ``to_json`` wrote."""
        return cls(
            **{
                **values,
                "exits_after": tuple(values["exits_after"]),
                "block_layers": tuple(values["block_layers"]),
            }
        )


class PretrainedLM(Blockwise):
    """A Transformers decoder cut into blocks; ``Blockwise`` says what its methods do.

    It holds the checkpoint's modules, not copies of their weights.
    """

    config: PretrainedConfig

    def __init__(self, base: PreTrainedModel, config: PretrainedConfig):
        super().__init__()
        self.config = config
        decoder, adapter = cast("PreTrainedModel", base.base_model), LAYERS[base.config.model_type]
        self.embedding = cast(nn.Embedding, base.get_input_embeddings())
        self.position_embedding = getattr(decoder, "wpe", None)
        layers = [adapter(layer) for layer in getattr(decoder, adapter.STACK)]
        bounds = (0, *config.exits_after, len(layers))
        self.blocks = nn.ModuleList(nn.ModuleList(layers[start:end]) for start, end in pairwise(bounds))
        # An exit's layer begins as the next layer of the checkpoint, made to add nothing yet.
        self.translators = nn.ModuleList(
            identity_copy(layers[after])
            if config.translator == BLOCK
            else make_translator(config.translator, config.width, config.rank)
            for after in config.exits_after
        )
        """Of every exit but the last: its translator or its layer."""
        self.norm = getattr(decoder, adapter.FINAL_NORM)
        head = cast(nn.Linear, base.get_output_embeddings())
        self.head = None if head.weight is self.embedding.weight else head
        """The readout matrix; None where it is the embedding matrix."""
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

    def exit_layer(self, exit: int) -> Layer | None:
        if self.config.translator != BLOCK or exit >= len(self.translators):
            return None
        return cast(Layer, self.translators[exit])

    def readout_input(self, exit: int, x: Tensor) -> Tensor:
        translator, normed = self._translator(exit), self.norm(x)
        return normed if translator is None else translator(normed)

    def readout_flops(self, exit: int) -> int:
        translator = self._translator(exit)
        return super().readout_flops(exit) + (0 if translator is None else translator.flops)

    def _translator(self, exit: int) -> Identity | Translator | None:
        """The map behind an exit's final norm; None at full depth, and where the exit has a layer instead."""
        if self.config.translator == BLOCK or exit >= len(self.translators):
            return None
        return cast("Identity | Translator", self.translators[exit])


def load_pretrained(
    checkpoint: Checkpoint,
    exits_after: Sequence[int],
    window: int = 128,
    translator: str = "identity",
    rank: int | None = None,
) -> PretrainedLM:
    """A checkpoint as a block-wise model in fp32 on the CPU, in evaluation mode.

    Exits stand after the layers ``exits_after`` and read out through the ``translator``, which is untrained
    and hence the identity as yet. UserError names what is wrong with the checkpoint, or with where it is to
    be cut; all but damaged weights are noticed before any are read.
    """
    hf_config = read_config(checkpoint)
    config = make_config(
        hf_config, checkpoint, exits_after=exits_after, window=window, translator=translator, rank=rank
    )
    check_weights(checkpoint)
    check_shapes(checkpoint, hf_config)
    return PretrainedLM(load_weights(checkpoint), config).eval()


def make_config(
    hf_config: PreTrainedConfig,
    checkpoint: Checkpoint,
    *,
    exits_after: Sequence[int],
    window: int,
    translator: str = "identity",
    rank: int | None = None,
) -> PretrainedConfig:
    """Where a checkpoint whose configuration is ``hf_config`` is cut; UserError where it cannot be."""
    check_cut(hf_config, checkpoint, exits_after, window)
    blocks = tuple(
        later - earlier for earlier, later in pairwise((0, *exits_after, hf_config.num_hidden_layers))
    )
    return PretrainedConfig(
        name_or_path=checkpoint.name_or_path,
        gguf_file=checkpoint.gguf_file,
        revision=checkpoint.revision,
        exits_after=tuple(exits_after),
        vocab_size=hf_config.vocab_size,
        window=window,
        width=hf_config.hidden_size,
        block_layers=blocks,
        translator=translator,
        rank=rank,
    )


def rotary_tables(decoder: PreTrainedModel, window: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines (window, R / 2) of a decoder's rotary positions, scaled; R = 0 without any."""
    if not hasattr(decoder, "rotary_emb"):
        return torch.empty(window, 0), torch.empty(window, 0)
    # a new module, since the decoder may be on another device, or on none
    embedding = cast("Callable[[PreTrainedConfig], nn.Module]", type(decoder.rotary_emb))
    rotary = embedding(decoder.config)
    cos, sin = rotary(torch.zeros(1), position_ids=torch.arange(window).unsqueeze(0))
    half = cos.shape[-1] // 2  # the second half repeats the first
    return cos[0, :, :half].clone(), sin[0, :, :half].clone()


def load_weights(checkpoint: Checkpoint) -> PreTrainedModel:
    """The model that Transformers makes of a checkpoint, in fp32.

    UserError where weights are pickled, damaged, missing or not finite, or do not fit into memory.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    if not sys.stderr.isatty():
        disable_progress_bar()
    formats = {} if checkpoint.gguf_file else {"use_safetensors": True}
    try:
        check_weights(checkpoint)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            checkpoint.place,
            dtype=torch.float32,
            output_loading_info=True,
            **formats,
            **checkpoint.options,
        )
        model, report = cast("tuple[PreTrainedModel, dict[str, list[str]]]", loaded)
    except (MemoryError, RuntimeError, OSError, ValueError, ImportError, SafetensorError) as error:
        raise UserError(f"{checkpoint}: {_why_not_loaded(error)}") from None
    if missing := sorted(report["missing_keys"]):
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
        reason = first_line(error) or "no memory"
        return f"loading its weights ran out of memory ({reason}); choose a smaller checkpoint"
    if isinstance(error, SafetensorError):
        return f"its safetensors file is damaged ({error}); fetch or save it again"
    if isinstance(error, OSError):
        return f"no safetensors weights there, and pickled ones are not read ({first_line(error)})"
    return f"its weights cannot be loaded: {first_line(error)}"


def empty_model(hf_config: PreTrainedConfig, config: PretrainedConfig) -> PretrainedLM:
    """The model of a checkpoint whose configuration is ``hf_config``, with weights yet to be assigned."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(hf_config)
    return PretrainedLM(base, config)
