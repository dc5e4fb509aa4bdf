"""Weight files that are damaged, missing, pickled or too large are named."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from offramp.checkpoints.checkpoint import Checkpoint
from offramp.checkpoints.configuration import read_config
from offramp.checkpoints.weights import check_shapes, check_weights, weight_digests
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


def test_weights_in_the_format_of_mistral_alone_are_named(folder):
    """``consolidated.safetensors`` has the same weights under other names."""
    (folder / "model.safetensors").rename(folder / "consolidated.safetensors")
    with pytest.raises(
        UserError, match=r"consolidated\.safetensors is in the format of Mistral's own programs"
    ):
        check_weights(Checkpoint(str(folder)))


def test_weights_that_no_index_names_are_named(folder, shards):
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(UserError, match=rf"there is {shards[0].name}, .*neither model\.safetensors nor"):
        check_weights(Checkpoint(str(folder)))


def test_only_weights_that_are_read_are_hashed(folder, shards):
    """Mistral's checkpoints have the same weights twice, in two formats."""
    checkpoint = Checkpoint(str(folder))
    digests = weight_digests(checkpoint)
    assert list(digests) == [shard.name for shard in shards]
    (folder / "consolidated.safetensors").write_bytes(shards[0].read_bytes())
    assert weight_digests(checkpoint) == digests


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"num_key_value_heads": 4},
            r"self_attn\.k_proj\.weight is 16 x 32 in model\.safetensors and 32 x 32 by its config\.json "
            r"\(num_key_value_heads = 4\): they do not belong together",
        ),
        ({"intermediate_size": 50}, r"mlp\.\w+\.weight is [\dx ]*48[\dx ]* in .* and [\dx ]*50"),
        ({"vocab_size": 320}, r"weight is 300 x 32 in model\.safetensors and 320 x 32"),
    ],
)
def test_a_configuration_of_other_sizes_than_the_weights_is_named(folder, changes, message):
    edit_json(folder / "config.json", **changes)
    with pytest.raises(UserError, match=message):
        load_pretrained(Checkpoint(str(folder)), exits_after=[2], window=32)


def test_shapes_of_every_supported_layout_are_those_of_the_configuration(folder, shards):
    checkpoint = Checkpoint(str(folder))
    check_shapes(checkpoint, read_config(checkpoint))
