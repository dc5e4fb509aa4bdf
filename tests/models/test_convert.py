"""GGUF files read directly and converted to a checkpoint folder."""

from __future__ import annotations

import pytest
import torch

from offramp.checkpoints.checkpoint import Checkpoint
from offramp.checkpoints.configuration import read_config
from offramp.checkpoints.tokenizers import load_tokenizer
from offramp.errors import UserError
from offramp.models.convert import convert_gguf
from offramp.models.pretrained import load_pretrained
from tests.fixtures.checkpoints import TEXT, save_gguf


@torch.no_grad()
def test_a_gguf_file_is_the_checkpoint_it_was_made_from_and_so_is_what_it_is_converted_to(
    folder, tmp_path, batch
):
    file = save_gguf(tmp_path / "tiny.gguf", folder)
    convert_gguf(file, tmp_path / "converted")
    expected = load_pretrained(Checkpoint(str(folder)), exits_after=[2], window=32)(batch[0])
    checkpoints = Checkpoint(str(tmp_path), "tiny.gguf"), Checkpoint(str(tmp_path / "converted"))
    for checkpoint in checkpoints:
        states = load_pretrained(Checkpoint(*checkpoint), exits_after=[2], window=32)(batch[0])
        torch.testing.assert_close(states, expected, atol=1e-5, rtol=1e-5)
    tokenizer, converted = (load_tokenizer(checkpoint, read_config(checkpoint)) for checkpoint in checkpoints)
    assert (
        tokenizer.encode(TEXT).ids == converted.encode(TEXT).ids
        and tokenizer.decode(tokenizer.encode(TEXT).ids) == TEXT
    )
    assert max(tokenizer.get_vocab().values()) == 299


def test_a_gguf_file_without_a_tokenizer_is_refused_by_name(folder, tmp_path):
    file = save_gguf(tmp_path / "tiny.gguf", folder, with_tokenizer=False)
    checkpoint = Checkpoint(str(tmp_path), "tiny.gguf")
    with pytest.raises(UserError, match=r"tiny\.gguf has no tokenizer that can be read"):
        load_tokenizer(checkpoint, read_config(checkpoint))
    with pytest.raises(UserError, match=r"tiny\.gguf has no tokenizer that can be read"):
        convert_gguf(file, tmp_path / "converted")
    assert not (tmp_path / "converted").exists()


def test_a_damaged_gguf_file_is_named_and_nothing_is_written(tmp_path):
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(UserError, match=r"bad\.gguf is damaged, or no GGUF file of a supported architecture"):
        convert_gguf(tmp_path / "bad.gguf", tmp_path / "out")
    with pytest.raises(UserError, match=r"missing\.gguf: no such file"):
        convert_gguf(tmp_path / "missing.gguf", tmp_path / "out")
    assert [file.name for file in tmp_path.iterdir()] == ["bad.gguf"]
