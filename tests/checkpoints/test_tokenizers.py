"""Tokenizers of checkpoints: which are refused, and which of their tokens are left out."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from offramp.checkpoints.checkpoint import Checkpoint
from offramp.checkpoints.configuration import read_config
from offramp.checkpoints.tokenizers import load_tokenizer
from offramp.errors import UserError
from tests.fixtures.checkpoints import make_tokenizer


def test_a_tokenizer_that_does_not_fit_or_cannot_be_read_is_named(folder):
    checkpoint = Checkpoint(str(folder))
    load_tokenizer(checkpoint, config := read_config(checkpoint))
    config.vocab_size = 200
    with pytest.raises(
        UserError, match="its tokenizer has token ids up to 299, its model a vocabulary of 200"
    ):
        load_tokenizer(checkpoint, config)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer\.json is not a readable tokenizer"):
        load_tokenizer(checkpoint, config)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"no tokenizer\.json there"):
        load_tokenizer(checkpoint, config)


def test_a_tokenizer_without_tokens_is_refused(folder):
    values = json.loads((folder / "tokenizer.json").read_text())
    values["model"] |= {"vocab": {}, "merges": []}
    (folder / "tokenizer.json").write_text(json.dumps(values | {"added_tokens": []}))
    checkpoint = Checkpoint(str(folder))
    with pytest.raises(UserError, match="its tokenizer has no tokens"):
        load_tokenizer(checkpoint, read_config(checkpoint))


def test_special_tokens_that_the_model_does_not_know_are_left_out_where_no_text_becomes_them(folder):
    """Transformers appends such for roles that a file leaves open."""
    checkpoint, tokenizer = Checkpoint(str(folder)), Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    kept = load_tokenizer(checkpoint, read_config(checkpoint))
    assert (
        kept.get_vocab() == make_tokenizer().get_vocab()
        and max(kept.encode("so <|endoftext|> is <|end|>").ids) < 300
    )
    tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 300)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    with pytest.raises(
        UserError, match="its tokenizer has token ids up to 300"
    ):  # it is put before every text
        load_tokenizer(checkpoint, read_config(checkpoint))
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["State"])
    tokenizer.save(str(folder / "tokenizer.json"))
    with pytest.raises(UserError, match="its tokenizer has token ids up to 300"):  # texts have it
        load_tokenizer(checkpoint, read_config(checkpoint))
