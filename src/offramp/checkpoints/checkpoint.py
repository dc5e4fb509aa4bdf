"""Transformers checkpoints as files: which can be used, what they are made of, and their own tokenizer.

A checkpoint is a folder or a name on the Hugging Face hub; its weights are safetensors or a GGUF file, never a pickle, and
no code of it is run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from offramp.artifacts.files import hash_file
from offramp.errors import UserError, out_of_memory

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3", "gpt2", "gpt_neox")
"""By the ``model_type`` of a configuration."""
ROPE_TYPES = ("default", "linear", "llama3", "yarn")
"""Rotary scalings whose angles are the same whatever the length of a sequence."""
SIZES = (
    "vocab_size",
    "hidden_size",
    "n_embd",
    "intermediate_size",
    "num_hidden_layers",
    "n_layer",
    "num_attention_heads",
    "n_head",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "n_positions",
)
"""What a configuration counts, as the families call it."""
HUB_NAME = re.compile(r"\w[\w.-]*(/[\w.-]+)?", re.ASCII)
"""A name on the hub, perhaps of an owner. Anything else is a path: more than one slash, or a beginning like ``/``, ``./`` or ``~``."""


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
        return {
            "trust_remote_code": False,
            **{name: value for name, value in self._asdict().items() if name != "name_or_path" and value},
        }

    @property
    def folder(self) -> Path | None:
        """None for a name on the hub."""
        return Path(self.name_or_path) if Path(self.name_or_path).is_dir() else None

    @property
    def may_be_on_hub(self) -> bool:
        return self.folder is None and HUB_NAME.fullmatch(self.name_or_path) is not None

    def under(self, root: Path) -> Checkpoint:
        """The same, where a relative path starts at ``root``."""
        inside = self._replace(name_or_path=str(root / self.name_or_path))
        return inside if inside.folder or not HUB_NAME.fullmatch(self.name_or_path) else self


def read_config(checkpoint: Checkpoint) -> Any:
    """The configuration, as Transformers has it; UserError where there is none, it is damaged or its architecture is not supported."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    _check_place(checkpoint)
    if file := None if checkpoint.gguf_file else find_file(checkpoint, "config.json"):
        _check_sizes(checkpoint, _read_json(checkpoint, file))
    try:
        config = AutoConfig.from_pretrained(checkpoint.name_or_path, **checkpoint.options)
    except StrictDataclassError as error:
        raise UserError(
            f"{checkpoint}: its config.json is not valid: {' '.join(str(error).split())}"
        ) from None
    except Exception as error:  # of damaged files Transformers says it in many ways
        if out_of_memory(error):
            raise
        if checkpoint.gguf_file and checkpoint.folder:
            raise UserError(
                f"{checkpoint}: {checkpoint.gguf_file} is damaged, or no GGUF file of a supported architecture "
                f"({first_line(error) or type(error).__name__}); fetch it again"
            ) from None
        raise UserError(
            f"{checkpoint}: no such folder, or no readable checkpoint of that name on the hub "
            f"({first_line(error)})"
        ) from None
    if config.model_type not in ARCHITECTURES:
        raise UserError(
            f"{checkpoint}: architecture {config.model_type!r} is not supported; supported: {', '.join(ARCHITECTURES)}"
        )
    if checkpoint.gguf_file:  # its weights are dequantised as they are read
        vars(config).pop("quantization_config", None)
    _check_values(checkpoint, config)
    return config


def _check_place(checkpoint: Checkpoint) -> None:
    folder, gguf = checkpoint.folder, checkpoint.gguf_file
    if folder is None and Path(checkpoint.name_or_path).is_file():
        raise UserError(
            f"{checkpoint} is a file; give its folder, and for a GGUF file its name as model.gguf_file"
        )
    if folder is None and not checkpoint.may_be_on_hub:
        raise UserError(
            f"{checkpoint}: no such folder, and no name on the hub either; give the path of a saved checkpoint"
        )
    if find_file(
        checkpoint, "adapter_config.json"
    ):  # Transformers would add the adapter's weights to the model
        raise UserError(
            f"{checkpoint}: an adapter is saved there (adapter_config.json), which is not supported; merge it with PEFT's "
            "merge_and_unload and save the whole model, or delete its files"
        )
    if folder is None:
        return
    if checkpoint.revision:
        raise UserError(
            f"model.revision = {checkpoint.revision!r} is of a name on the hub, but {folder} is a folder; set it to null"
        )
    if gguf and not (folder / gguf).is_file():
        found = ", ".join(sorted(file.name for file in folder.glob("*.gguf"))) or "none"
        raise UserError(f"model.gguf_file = {gguf!r}: no such file in {folder}; it has {found}")
    if not gguf and not (folder / "config.json").is_file():
        raise UserError(
            f"{checkpoint}: no config.json in that folder; give that of a saved checkpoint, or set model.gguf_file"
        )


def _check_sizes(checkpoint: Checkpoint, values: dict[str, Any]) -> None:
    """Before Transformers computes with them."""
    for name in SIZES:
        if isinstance(size := values.get(name), int) and size < 1:
            raise UserError(f"{checkpoint}: {name} = {size} in its config.json; it is at least 1")
    quantised = values.get("quantization_config")
    if quantised is not None and not isinstance(quantised, dict):
        raise UserError(
            f"{checkpoint}: quantization_config = {quantised!r} in its config.json is no section; quantised weights are not "
            "supported"
        )


def _check_values(checkpoint: Checkpoint, config: Any) -> None:
    from transformers.activations import ACT2CLS

    for name in ("hidden_act", "activation_function"):
        if getattr(config, name, None) not in (None, *ACT2CLS):
            raise UserError(
                f"{checkpoint}: {name} = {getattr(config, name)!r} in its config.json is no activation that Transformers has; "
                f"known: {', '.join(ACT2CLS)}"
            )
    ends = config.eos_token_id
    if ends == [] or not all(isinstance(end, int) and 0 <= end < config.vocab_size for end in _listed(ends)):
        raise UserError(
            f"{checkpoint}: eos_token_id = {ends} is not in its vocabulary of {config.vocab_size}; give a token of it, or null "
            "where no token ends a text"
        )


def check_cut(config: Any, checkpoint: Checkpoint, exits_after: Sequence[int], window: int) -> None:
    """UserError where a checkpoint of this configuration cannot be cut there, or would not be run exactly."""
    layers = config.num_hidden_layers
    if not exits_after or any(later <= earlier for earlier, later in pairwise((0, *exits_after, layers))):
        raise UserError(
            f"model.exits_after = {list(exits_after)}: give increasing numbers of layers from 1 to {layers - 1}; "
            f"{checkpoint.name_or_path} has {layers} layers"
        )
    if window > config.max_position_embeddings:
        raise UserError(
            f"window = {window} exceeds the {config.max_position_embeddings} positions of {checkpoint.name_or_path}"
        )
    sliding = getattr(config, "sliding_window", None)
    if sliding and window > sliding:
        raise UserError(
            f"window = {window} exceeds the attention window of {checkpoint.name_or_path}, {sliding} tokens"
        )
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope not in ROPE_TYPES:
        raise UserError(
            f"{checkpoint}: rotary positions of type {rope!r} are not supported; supported: {', '.join(ROPE_TYPES)}"
        )
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if getattr(config, name, None):
            raise UserError(
                f"{checkpoint}: it caps its logits ({name}), which is not supported; choose another checkpoint"
            )
    if not getattr(config, "scale_attn_weights", True) or getattr(
        config, "scale_attn_by_inverse_layer_idx", False
    ):
        raise UserError(
            f"{checkpoint}: attention that is not scaled by 1/sqrt(head width) is not supported; "
            "choose another checkpoint"
        )
    if getattr(config, "quantization_config", None):
        raise UserError(
            f"{checkpoint}: quantised weights are not supported; give them in full precision or as GGUF"
        )


def load_tokenizer(checkpoint: Checkpoint, config: Any) -> Tokenizer:
    """The checkpoint's own fast tokenizer, without truncation or padding.

    UserError where it has none, or one with token ids that the model's vocabulary does not have.
    """
    from tokenizers import Tokenizer

    if checkpoint.gguf_file:
        tokenizer = gguf_tokenizer(checkpoint).backend_tokenizer
    else:
        file = find_file(checkpoint, "tokenizer.json")
        if file is None:
            raise UserError(
                f"{checkpoint}: no tokenizer.json there; save the tokenizer with Transformers' save_pretrained"
            )
        try:
            tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises nothing more specific
            raise UserError(
                f"{file} is not a readable tokenizer ({first_line(error)}); fetch or save it again"
            ) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer = _without_unknown_specials(tokenizer, config.vocab_size)
    largest = max(tokenizer.get_vocab().values(), default=None)
    if largest is None:
        raise UserError(f"{checkpoint}: its tokenizer has no tokens; fetch or save it again")
    if largest >= config.vocab_size:
        raise UserError(
            f"{checkpoint}: its tokenizer has token ids up to {largest}, its model a vocabulary of "
            f"{config.vocab_size}: they do not belong together"
        )
    return tokenizer


def gguf_tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerFast:
    """As Transformers makes it from the file; UserError where the file has none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(checkpoint.name_or_path, **checkpoint.options)
    except Exception as error:  # where keys are missing, whatever they lead to
        if out_of_memory(error):
            raise
        raise UserError(
            f"{checkpoint}: {checkpoint.gguf_file} has no tokenizer that can be read "
            f"({first_line(error) or type(error).__name__}); give a GGUF file with its tokenizer in it"
        ) from None


def _without_unknown_specials(tokenizer: Tokenizer, vocab_size: int) -> Tokenizer:
    """Without special tokens that the model does not know, which Transformers appends for roles that a file leaves open.

    No text becomes one of them, as special tokens in a text are plain text; the tokens of the vocabulary proper stay, as a text may
    become those, and so does what is put before or after every text.
    """
    from tokenizers import Tokenizer

    own = tokenizer.get_vocab(with_added_tokens=False).values()
    written = tokenizer.encode("").ids
    unknown = {
        id
        for id, token in tokenizer.get_added_tokens_decoder().items()
        if token.special and id >= vocab_size and id not in own and id not in written
    }
    if not unknown:
        return tokenizer
    values = json.loads(tokenizer.to_str())
    values["added_tokens"] = [token for token in values["added_tokens"] if token["id"] not in unknown]
    return Tokenizer.from_str(json.dumps(values))


def end_token(config: Any) -> int | None:
    """The token that ends a document, where the checkpoint names one: the first of them."""
    return next(iter(_listed(config.eos_token_id)), None)


def stop_tokens(checkpoint: Checkpoint, config: Any) -> list[int]:
    """The tokens at which generation ends, in increasing order: as under Transformers, those of generation_config.json, which chat models
    have more of. The configuration's where that file is missing or names none.
    """
    file = find_file(checkpoint, "generation_config.json")
    named = _listed(_read_json(checkpoint, file).get("eos_token_id")) if file else []
    return sorted(set(named or _listed(config.eos_token_id)))


def _listed(tokens: int | list[int] | None) -> list[int]:
    return tokens if isinstance(tokens, list) else [] if tokens is None else [tokens]


def find_file(checkpoint: Checkpoint, name: str) -> Path | None:
    """A file of the checkpoint, fetched where it is on the hub; None where it has no such file."""
    if checkpoint.folder:
        file = checkpoint.folder / name
        return file if file.is_file() else None
    if not checkpoint.may_be_on_hub:
        return None
    from transformers.utils.hub import cached_file

    try:
        return Path(cached_file(checkpoint.name_or_path, name, revision=checkpoint.revision))
    except OSError:
        return None


def _read_json(checkpoint: Checkpoint, file: Path) -> dict[str, Any]:
    """A JSON object; UserError where the file is none."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"{checkpoint}: its {file.name} is not valid JSON ({first_line(error)}); fetch or save it again"
        ) from None
    if not isinstance(values, dict):
        raise UserError(f"{checkpoint}: its {file.name} is no JSON object; fetch or save it again")
    return values


def check_weights(checkpoint: Checkpoint) -> None:
    """UserError where weights in a folder are missing, cut short or pickled. Headers alone are read; those of a GGUF file are with its
    configuration."""
    if checkpoint.gguf_file or checkpoint.folder is None:
        return
    from safetensors import SafetensorError, safe_open

    for file in _weight_files(checkpoint, checkpoint.folder):
        try:
            with safe_open(file, "numpy"):
                pass
        except (SafetensorError, OSError) as error:
            if out_of_memory(error):
                raise
            raise UserError(
                f"{checkpoint}: its safetensors file is damaged ({file.name}: {first_line(error)}); "
                "fetch or save it again"
            ) from None


def _weight_files(checkpoint: Checkpoint, folder: Path) -> list[Path]:
    """Those that Transformers reads: one, or the shards of an index."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        return [whole]
    if not index.is_file():
        raise UserError(
            f"{checkpoint}: no safetensors weights there, and pickled ones are not read; save it with Transformers' "
            "save_pretrained"
        )
    shards = _read_json(checkpoint, index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise UserError(
            f"{checkpoint}: its {index.name} has no weight_map, which says where weights are; fetch or save it again"
        )
    files = [folder / str(name) for name in dict.fromkeys(shards.values())]
    if missing := [file.name for file in files if not file.is_file()]:
        raise UserError(
            f"{checkpoint}: {', '.join(missing)} of its {index.name} is missing; fetch or save it again"
        )
    return files


def weight_digests(checkpoint: Checkpoint) -> dict[str, str]:
    """SHA-256 of every weight file that is on this machine, by name; UserError where the checkpoint is not."""
    sought = checkpoint.gguf_file or "config.json"
    found = find_file(checkpoint, sought)
    if found is None:
        raise UserError(f"{checkpoint}: no {sought} there; restore the checkpoint, or correct its name")
    files = [found] if checkpoint.gguf_file else sorted(found.parent.glob("*.safetensors"))
    return {file.name: hash_file(file) for file in files}


def fingerprint(checkpoint: Checkpoint) -> dict[str, Any]:
    """What changes when the weights do. Those on the hub are not fetched to be looked at: a new commit on the same branch
    goes unnoticed."""
    if checkpoint.folder is None:
        return {"hub": checkpoint.name_or_path, "revision": checkpoint.revision}
    return {"weights": weight_digests(checkpoint)}


def tokenizer_digests(checkpoint: Checkpoint) -> dict[str, str]:
    """SHA-256 of the files that say how text becomes tokens and which of them end it, by name."""
    names = [
        *([checkpoint.gguf_file] if checkpoint.gguf_file else ["tokenizer.json", "config.json"]),
        "generation_config.json",
    ]
    return {name: hash_file(file) for name in names if (file := find_file(checkpoint, name))}


def first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
