"""Transformers checkpoints as files: which can be used, what they are made of, and their own tokenizer.

A checkpoint is a folder or a name on the Hugging Face hub; its weights are safetensors or a GGUF file, never a pickle, and
no code of it is run.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from offramp.errors import UserError
from offramp.lineage.artifact import hash_file

if TYPE_CHECKING:
    from tokenizers import Tokenizer

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3", "gpt2", "gpt_neox")
"""By the ``model_type`` of a configuration."""
ROPE_TYPES = ("default", "linear", "llama3", "yarn")
"""Rotary scalings whose angles are the same whatever the length of a sequence."""


class Checkpoint(NamedTuple):
    """Where a checkpoint is."""

    name_or_path: str
    gguf_file: str | None = None
    """File within it, for weights in the GGUF format."""
    revision: str | None = None
    """Commit, branch or tag on the hub."""

    @classmethod
    def of(cls, model: Any) -> Checkpoint:
        """The one that the ``model`` section of the parameters names."""
        return cls(model.name_or_path, model.gguf_file, model.revision)

    def __str__(self) -> str:
        return f"model.name_or_path = {self.name_or_path!r}"

    @property
    def options(self) -> dict[str, Any]:
        """For the ``from_pretrained`` functions of Transformers."""
        return {"trust_remote_code": False, **{name: value for name, value in self._asdict().items()
                                               if name != "name_or_path" and value}}

    @property
    def folder(self) -> Path | None:
        """None for a name on the hub."""
        return Path(self.name_or_path) if Path(self.name_or_path).is_dir() else None


def read_config(checkpoint: Checkpoint) -> Any:
    """The configuration, as Transformers has it; UserError where there is none or its architecture is not supported."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    _check_folder(checkpoint)
    try:
        config = AutoConfig.from_pretrained(checkpoint.name_or_path, **checkpoint.options)
    except StrictDataclassError as error:
        raise UserError(f"{checkpoint}: its config.json is not valid: {' '.join(str(error).split())}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{checkpoint}: no such folder, or no readable checkpoint of that name on the hub "
                        f"({first_line(error)})") from None
    if config.model_type not in ARCHITECTURES:
        raise UserError(f"{checkpoint}: architecture {config.model_type!r} is not supported; supported: {', '.join(ARCHITECTURES)}")
    if checkpoint.gguf_file:  # its weights are dequantised as they are read
        vars(config).pop("quantization_config", None)
    return config


def _check_folder(checkpoint: Checkpoint) -> None:
    folder, gguf = checkpoint.folder, checkpoint.gguf_file
    if folder is None:
        return
    if checkpoint.revision:
        raise UserError(f"model.revision = {checkpoint.revision!r} is of a name on the hub, but {folder} is a folder; set it to null")
    if gguf and not (folder / gguf).is_file():
        found = ", ".join(sorted(file.name for file in folder.glob("*.gguf"))) or "none"
        raise UserError(f"model.gguf_file = {gguf!r}: no such file in {folder}; it has {found}")
    if not gguf and not (folder / "config.json").is_file():
        raise UserError(f"{checkpoint}: no config.json in that folder; give that of a saved checkpoint, or set model.gguf_file")


def check_cut(config: Any, checkpoint: Checkpoint, exits_after: Sequence[int], window: int) -> None:
    """UserError where a checkpoint of this configuration cannot be cut there, or would not be run exactly."""
    layers = config.num_hidden_layers
    if not exits_after or any(later <= earlier for earlier, later in pairwise((0, *exits_after, layers))):
        raise UserError(f"model.exits_after = {list(exits_after)}: give increasing numbers of layers from 1 to {layers - 1}; "
                        f"{checkpoint.name_or_path} has {layers} layers")
    if window > config.max_position_embeddings:
        raise UserError(f"window = {window} exceeds the {config.max_position_embeddings} positions of {checkpoint.name_or_path}")
    sliding = getattr(config, "sliding_window", None)
    if sliding and window > sliding:
        raise UserError(f"window = {window} exceeds the attention window of {checkpoint.name_or_path}, {sliding} tokens")
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope not in ROPE_TYPES:
        raise UserError(f"{checkpoint}: rotary positions of type {rope!r} are not supported; supported: {', '.join(ROPE_TYPES)}")
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if getattr(config, name, None):
            raise UserError(f"{checkpoint}: it caps its logits ({name}), which is not supported; choose another checkpoint")
    if not getattr(config, "scale_attn_weights", True) or getattr(config, "scale_attn_by_inverse_layer_idx", False):
        raise UserError(f"{checkpoint}: attention that is not scaled by 1/sqrt(head width) is not supported; "
                        "choose another checkpoint")
    if getattr(config, "quantization_config", None):
        raise UserError(f"{checkpoint}: quantised weights are not supported; give them in full precision or as GGUF")


def load_tokenizer(checkpoint: Checkpoint, config: Any) -> Tokenizer:
    """The checkpoint's own fast tokenizer, without truncation or padding.

    UserError where it has none, or one with token ids that the model's vocabulary does not have.
    """
    from tokenizers import Tokenizer

    if checkpoint.gguf_file:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(checkpoint.name_or_path, **checkpoint.options).backend_tokenizer
    else:
        file = find_file(checkpoint, "tokenizer.json")
        if file is None:
            raise UserError(f"{checkpoint}: no tokenizer.json there; save the tokenizer with Transformers' save_pretrained")
        try:
            tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises nothing more specific
            raise UserError(f"{file} is not a readable tokenizer ({first_line(error)}); fetch or save it again") from None
    largest = max(tokenizer.get_vocab().values())
    if largest >= config.vocab_size:
        raise UserError(f"{checkpoint}: its tokenizer has token ids up to {largest}, its model a vocabulary of "
                        f"{config.vocab_size}: they do not belong together")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def end_token(config: Any) -> int | None:
    """The token that ends a text, where the checkpoint names one."""
    named = config.eos_token_id
    return named[0] if isinstance(named, list) else named


def find_file(checkpoint: Checkpoint, name: str) -> Path | None:
    """A file of the checkpoint, fetched where it is on the hub; None where it has no such file."""
    if checkpoint.folder:
        file = checkpoint.folder / name
        return file if file.is_file() else None
    from transformers.utils.hub import cached_file

    try:
        return Path(cached_file(checkpoint.name_or_path, name, revision=checkpoint.revision))
    except OSError:
        return None


def weight_digests(checkpoint: Checkpoint) -> dict[str, str]:
    """SHA-256 of every weight file that is on this machine, by name."""
    if checkpoint.gguf_file:
        files = [find_file(checkpoint, checkpoint.gguf_file)]
    else:
        files = sorted(find_file(checkpoint, "config.json").parent.glob("*.safetensors"))
    return {file.name: hash_file(file) for file in files}


def fingerprint(checkpoint: Checkpoint) -> dict[str, Any]:
    """What changes when the weights do. Those on the hub are not fetched to be looked at: a new commit on the same branch
    goes unnoticed."""
    if checkpoint.folder is None:
        return {"hub": checkpoint.name_or_path, "revision": checkpoint.revision}
    return {"weights": weight_digests(checkpoint)}


def tokenizer_digests(checkpoint: Checkpoint) -> dict[str, str]:
    """SHA-256 of the files that say how text becomes tokens, by name."""
    names = [checkpoint.gguf_file] if checkpoint.gguf_file else ["tokenizer.json", "config.json"]
    return {name: hash_file(file) for name in names if (file := find_file(checkpoint, name))}


def first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
