"""What is refused of a checkpoint from its configuration alone, and what the message says."""

from __future__ import annotations

import pytest
from transformers import GPT2Config

from offramp.checkpoints.checkpoint import Checkpoint
from offramp.checkpoints.configuration import ARCHITECTURES, check_cut, read_config
from offramp.errors import UserError
from offramp.models.pretrained import load_pretrained
from offramp.nn.pretrained_layers import LAYERS
from tests.fixtures.checkpoints import edit_json, save_checkpoint, save_gguf


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"exits_after": []},
            r"model.exits_after = \[\]: give increasing numbers of layers from 1 to 3; .* has 4 layers",
        ),
        ({"exits_after": [2, 2]}, "model.exits_after = .*increasing"),
        ({"exits_after": [1, 4]}, "model.exits_after = .*from 1 to 3"),
        ({"window": 65}, "window = 65 exceeds the 64 positions"),
        ({"gguf_file": "no.gguf"}, "model.gguf_file = 'no.gguf': no such file in .*; it has none"),
        ({"revision": "main"}, "model.revision = 'main' is of a name on the hub"),
        (
            {"name_or_path": "/no/such/folder"},
            "model.name_or_path = '/no/such/folder': no such folder, and no name on the hub either",
        ),
        (
            {"name_or_path": "a/b/c"},
            "model.name_or_path = 'a/b/c': no such folder, and no name on the hub either",
        ),
        (
            {"name_or_path": "./tiny"},
            "model.name_or_path = './tiny': no such folder, and no name on the hub either",
        ),
        (
            {"name_or_path": __file__},
            "model.name_or_path = .* is a file; give its folder, and for a GGUF file its name as "
            "model.gguf_file",
        ),
    ],
    ids=str,
)
def test_where_a_checkpoint_cannot_be_cut_is_said_before_its_weights_are_read(folder, changes, message):
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=message):
        given = {"name_or_path": str(folder), "exits_after": [2], "window": 32} | changes
        place = {name: given.pop(name) for name in Checkpoint._fields if name in given}
        load_pretrained(Checkpoint(**place), **given)


ROPE = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model_type": "opt"},
            "architecture 'opt' is not supported; supported: llama, mistral, qwen2, qwen3, gpt2, gpt_neox",
        ),
        ({"hidden_size": "wide"}, "its config.json is not valid: .*hidden_size"),
        ({"model_type": "nonsense"}, "no such folder, or no readable checkpoint"),
        (
            {"rope_parameters": ROPE},
            "rotary positions of type 'dynamic' are not supported; supported: default, linear",
        ),
        (
            {"model_type": "mistral", "sliding_window": 16},
            "window = 32 exceeds the attention window of .*, 16 tokens",
        ),
        ({"final_logit_softcapping": 30.0}, "caps its logits"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantised weights are not supported"),
        ({"quantization_config": "gptq"}, "quantization_config = 'gptq' in its config.json is no section"),
        (
            {"hidden_act": "nope"},
            "hidden_act = 'nope' in its config.json is no activation that Transformers has; known: gelu, ",
        ),
        ({"num_attention_heads": 0}, "num_attention_heads = 0 in its config.json; it is at least 1"),
        ({"vocab_size": 0}, "vocab_size = 0 in its config.json"),
        ({"eos_token_id": 300}, "eos_token_id = 300 is not in its vocabulary of 300"),
        ({"eos_token_id": [0, -1]}, r"eos_token_id = \[0, -1\] is not in its vocabulary"),
        ({"eos_token_id": []}, r"eos_token_id = \[\] is not in its vocabulary"),
    ],
    ids=str,
)
def test_what_is_not_supported_is_refused_by_name(folder, changes, message):
    edit_json(folder / "config.json", **changes)
    with pytest.raises(UserError, match=message):
        load_pretrained(Checkpoint(str(folder)), exits_after=[2], window=32)


def test_a_configuration_that_is_no_section_and_an_adapter_are_refused_by_name(folder):
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(
        UserError, match=r"an adapter is saved there \(adapter_config\.json\).*merge_and_unload"
    ):
        load_pretrained(Checkpoint(str(folder)), exits_after=[2], window=32)
    (folder / "adapter_config.json").unlink()
    for content in ("[]", "null", '{"model_type":'):
        (folder / "config.json").write_text(content)
        with pytest.raises(UserError, match=r"its config\.json is (no JSON object|not valid JSON)"):
            load_pretrained(Checkpoint(str(folder)), exits_after=[2], window=32)


def test_scaled_attention_is_refused_by_name():
    config = GPT2Config(n_layer=2, scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(
        UserError, match=r"attention that is not scaled by 1/sqrt\(head width\) is not supported"
    ):
        check_cut(config, Checkpoint("tiny"), [1], window=8)


@pytest.mark.parametrize("length", [0, 3, 8, 23, 100, 3000, 9000, 60_000, -100])
def test_a_gguf_file_cut_short_is_named_before_its_weights_are_read(folder, tmp_path, length):
    file = save_gguf(tmp_path / "tiny.gguf", folder)
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(UserError, match=r"tiny\.gguf is damaged"):
        read_config(Checkpoint(str(tmp_path), "tiny.gguf"))


def test_every_supported_architecture_has_an_adapter_for_its_layers():
    assert LAYERS.keys() == set(ARCHITECTURES)


def test_a_path_starts_at_the_project_also_where_dvc_runs_a_copy_of_it(tmp_path, monkeypatch):
    """Git ignores build/, so the copy has none: the checkpoint is the project's, and no name on the hub."""
    save_checkpoint(tmp_path / "project/build/tiny")
    (tmp_path / "copy").mkdir()
    monkeypatch.chdir(tmp_path / "copy")
    assert Checkpoint("build/tiny").may_be_on_hub
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "project"))
    checkpoint = Checkpoint("build/tiny")
    assert checkpoint.folder == tmp_path / "project/build/tiny" and not checkpoint.may_be_on_hub
    assert read_config(checkpoint).num_hidden_layers == 4
    mistyped = Checkpoint("build/tyni")
    assert not mistyped.may_be_on_hub
    with pytest.raises(UserError, match="no such folder, and no name on the hub either"):
        read_config(mistyped)
