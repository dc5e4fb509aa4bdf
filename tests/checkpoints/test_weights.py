"""Weight files that are damaged, missing, pickled or too large are named."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from offramp.checkpoints.checkpoint import Checkpoint
from offramp.errors import UserError
from offramp.models.pretrained import load_pretrained
from tests.fixtures.checkpoints import edit_json, save_checkpoint


def test_damaged_missing_and_pickled_weights_are_named(folder):
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(UserError, match="its safetensors file is damaged"):
        load_pretrained(Checkpoint(str(folder)), exits_after=[2], window=32)
    edit_json(folder / "config.json", num_hidden_layers=5)
    weights.write_bytes(whole)
    with pytest.raises(UserError, match=r"9 weights are missing, model\.layers\.4"):
        load_pretrained(Checkpoint(str(folder)), exits_after=[2], window=32)
    weights.unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="no safetensors weights there, and pickled ones are not read"):
        load_pretrained(Checkpoint(str(folder)), exits_after=[2], window=32)


def test_missing_and_damaged_shards_are_named(folder, shards):
    load_pretrained(Checkpoint(str(folder)), exits_after=[2], window=32)
    whole = shards[1].read_bytes()
    shards[1].write_bytes(whole[:-50])
    with pytest.raises(UserError, match=rf"its safetensors file is damaged \({shards[1].name}"):
        load_pretrained(Checkpoint(str(folder)), exits_after=[2], window=32)
    shards[1].unlink()
    with pytest.raises(
        UserError, match=rf"{shards[1].name} of its model\.safetensors\.index\.json is missing"
    ):
        load_pretrained(Checkpoint(str(folder)), exits_after=[2], window=32)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{}", "has no weight_map"),
        ('{"weight_map": {}}', "has no weight_map"),
        ("[]", "is no JSON object"),
        ("{", "is not valid JSON"),
    ],
)
def test_an_index_that_says_nothing_is_named(folder, shards, index, message):
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(UserError, match=rf"its model\.safetensors\.index\.json {message}"):
        load_pretrained(Checkpoint(str(folder)), exits_after=[2], window=32)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_not_finite_are_refused(folder, value):
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.3.mlp.down_proj.weight"][1, 2] = value
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        UserError,
        match=r"its weights are not finite numbers, model\.layers\.3\.mlp\.down_proj\.weight for one",
    ):
        load_pretrained(Checkpoint(str(folder)), exits_after=[2], window=32)


@pytest.mark.slow
def test_weights_too_large_for_memory_are_not_taken_for_damaged_ones(tmp_path):
    """A real process under a limit of address space, once it has loaded a small model and all that takes."""
    small = save_checkpoint(tmp_path / "small")
    large = save_checkpoint(tmp_path / "large", 300_000, hidden_size=64, num_hidden_layers=2)
    script = (
        "import resource\n"
        "from offramp.checkpoints.checkpoint import Checkpoint\n"
        "from offramp.models.pretrained import load_weights\n"
        f"load_weights(Checkpoint({str(small)!r}))\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**26,) * 2)\n"
        "try:\n"
        f"    load_weights(Checkpoint({str(large)!r}))\n"
        "except Exception as error:\n"
        "    print(type(error).__name__, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120
    )
    assert "UserError" in done.stdout and "loading its weights ran out of memory" in done.stdout, (
        done.stdout + done.stderr
    )
    assert "choose a smaller checkpoint" in done.stdout
