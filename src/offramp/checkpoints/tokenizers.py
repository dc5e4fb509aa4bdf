"""The tokenizer of a checkpoint, and the tokens at which its texts end."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, cast

from offramp.artifacts.files import hash_file
from offramp.checkpoints.checkpoint import Checkpoint, find_file, first_line, read_json
from offramp.checkpoints.configuration import listed
from offramp.errors import UserError, out_of_memory

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast


def load_tokenizer(checkpoint: Checkpoint, config: PreTrainedConfig) -> Tokenizer:
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
                f"{checkpoint}: no tokenizer.json there; save the tokenizer with Transformers' "
                "save_pretrained"
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
    """The tokenizer that Transformers makes from a GGUF file; UserError where the file has none."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.place, **checkpoint.options)
        return cast("PreTrainedTokenizerFast", tokenizer)
    except Exception as error:  # missing keys lead to errors of any type
        if out_of_memory(error):
            raise
        raise UserError(
            f"{checkpoint}: {checkpoint.gguf_file} has no tokenizer that can be read "
            f"({first_line(error) or type(error).__name__}); give a GGUF file with its tokenizer in it"
        ) from None


def chat_tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
    """The tokenizer as Transformers makes it, with a chat template; UserError where it has none."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.name_or_path, **checkpoint.options)
    except Exception as error:  # damaged and missing files lead to errors of many types
        if out_of_memory(error):
            raise
        raise UserError(
            f"{checkpoint}: its tokenizer cannot be read by Transformers ({first_line(error)}), so there is "
            "no chat template; save it with save_pretrained"
        ) from None
    if tokenizer.chat_template is None:
        raise UserError(
            f"{checkpoint}: its tokenizer has no chat template (chat_template.jinja, or chat_template in "
            "tokenizer_config.json); leave the option out, or choose a checkpoint that was trained on chats"
        )
    return tokenizer


def _without_unknown_specials(tokenizer: Tokenizer, vocab_size: int) -> Tokenizer:
    """The tokenizer without special tokens that the model does not know.

    Transformers appends such tokens for roles that a file leaves open. No text becomes one of them, as
    special tokens in a text are plain text. The tokens of the vocabulary proper stay, as a text may become
    those, and so does what is put before or after every text.
    """
    from tokenizers import Tokenizer

    proper = tokenizer.get_vocab(with_added_tokens=False).values()
    written = tokenizer.encode("").ids
    unknown = {
        id
        for id, token in tokenizer.get_added_tokens_decoder().items()
        if token.special and id >= vocab_size and id not in proper and id not in written
    }
    if not unknown:
        return tokenizer
    values = json.loads(tokenizer.to_str())
    values["added_tokens"] = [token for token in values["added_tokens"] if token["id"] not in unknown]
    return Tokenizer.from_str(json.dumps(values))


def end_token(config: PreTrainedConfig) -> int | None:
    """The token that ends a document: the first that the configuration names, or None where it names none."""
    return next(iter(listed(config.eos_token_id)), None)


def stop_tokens(checkpoint: Checkpoint, config: PreTrainedConfig) -> list[int]:
    """The tokens at which generation ends, in increasing order.

    As under Transformers they are those of generation_config.json, in which chat models name more of them;
    those of the configuration where that file is missing or names none. UserError where the file is damaged.
    """
    file = find_file(checkpoint, "generation_config.json")
    named = listed(read_json(checkpoint, file).get("eos_token_id")) if file else []
    return sorted(set(named or listed(config.eos_token_id)))


def tokenizer_digests(checkpoint: Checkpoint) -> dict[str, str]:
    """SHA-256, by name, of the files that say how text becomes tokens and which tokens end it."""
    names = [
        *([checkpoint.gguf_file] if checkpoint.gguf_file else ["tokenizer.json", "config.json"]),
        "generation_config.json",
    ]
    return {name: hash_file(file) for name in names if (file := find_file(checkpoint, name))}
