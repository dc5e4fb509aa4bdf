"""Checkpoints as block-wise models against Transformers itself, on tiny random models of every family."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from offramp.artifacts.artifact import create_artifact, open_artifact
from offramp.checkpoints.checkpoint import Checkpoint
from offramp.checkpoints.configuration import ARCHITECTURES, read_config
from offramp.checkpoints.tokenizers import load_tokenizer
from offramp.errors import UserError
from offramp.models.convert import convert_gguf
from offramp.models.pretrained import PretrainedLM, load_pretrained, make_config
from offramp.models.store import load_model, save_model
from offramp.nn.layers import StackedKeysValues
from offramp.nn.pretrained_layers import LAYERS
from offramp.routing.cost import executed_flops, full_depth_flops
from offramp.routing.executor import Executor, Work
from offramp.routing.policies import GivenExits
from tests.fixtures.checkpoints import TEXT, make_tokenizer, save_checkpoint, save_gguf

WINDOW, VOCAB = 24, 61
TINY = Checkpoint("tiny")
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": WINDOW,
}
NEOX = {name: value for name, value in SIZES.items() if name != "num_key_value_heads"}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8,
}
CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "llama, tied": LlamaConfig(**SIZES, tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
    "llama, scaled positions": LlamaConfig(**SIZES, rope_parameters=LLAMA3),
    "mistral": MistralConfig(**SIZES, head_dim=16, sliding_window=WINDOW),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES, head_dim=12),
    "gpt2": GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=5, n_head=4, n_positions=WINDOW),
    "gpt_neox": GPTNeoXConfig(**NEOX, use_parallel_residual=True),
    "gpt_neox, sequential": GPTNeoXConfig(
        **NEOX,
        use_parallel_residual=False,
        rope_parameters={"partial_rotary_factor": 0.5, "rope_type": "default", "rope_theta": 10_000.0},
    ),
    "gpt_neox, no biases": GPTNeoXConfig(**NEOX, attention_bias=False),
}


def make_pair(config, exits_after=(1, 3), window=WINDOW):
    """Transformers' model and ours on its weights, far from initialisation so that every part matters."""
    torch.manual_seed(0)
    theirs = AutoModelForCausalLM.from_config(config).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, mean=0.5 if parameter.ndim == 1 else 0.0, std=0.2)
    return theirs, PretrainedLM(
        theirs, make_config(config, TINY, exits_after=exits_after, window=window)
    ).eval()


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS)
def pair(request):
    return make_pair(request.param)


@pytest.fixture
def batch():
    return torch.randint(VOCAB, (2, 3, WINDOW), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_states_after_every_block_and_logits_are_those_of_transformers(pair, batch):
    theirs, ours = pair
    expected, states = theirs(batch[0], output_hidden_states=True), ours(batch[0])
    for state, layers in zip(states[:-1], ours.config.exits_after):
        torch.testing.assert_close(state, expected.hidden_states[layers], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours.logits(2, states[-1]), expected.logits, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_exits_of_the_plain_model_are_the_logit_lens(pair, batch):
    """The head of the checkpoint, after its final norm, on the state of an earlier layer."""
    theirs, ours = pair
    truncated = theirs(batch[0], output_hidden_states=True).hidden_states[3]
    expected = theirs.get_output_embeddings()(ours.norm(truncated))
    torch.testing.assert_close(ours.logits(1, ours(batch[0])[1]), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_stacked_keys_and_values_are_those_of_every_layer(pair):
    _, ours = pair
    x, layers = torch.randn(7, 32, generator=torch.Generator().manual_seed(2)), ours.blocks[1]
    cos, sin = ours.cos[3:10], ours.sin[3:10]
    for layer, stacked in zip(layers, StackedKeysValues(layers)(x, cos, sin)):
        for got, expected in zip(stacked, layer.keys_values(layer.attention_input(x), cos, sin)):
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("exit", [0, 1, 2])
def test_tokens_sent_to_one_exit_score_as_the_model_cut_there(pair, batch, exit):
    _, ours = pair
    tokens, targets = batch
    routed = Executor(ours).run(tokens, targets, GivenExits(torch.full((targets.numel(),), exit)))
    log_p = ours.logits(exit, ours(tokens)[exit]).log_softmax(-1)
    assert (routed.exit == exit).all()
    torch.testing.assert_close(
        routed.loss, -log_p.gather(-1, targets[..., None])[..., 0], atol=1e-4, rtol=1e-4
    )


def test_weights_are_those_of_transformers_not_copies(pair):
    theirs, ours = pair
    own = {parameter.data_ptr() for parameter in ours.parameters()}
    assert own == {parameter.data_ptr() for parameter in theirs.parameters()}
    assert LAYERS.keys() == set(ARCHITECTURES)


def test_reported_flops_match_what_torch_counts(pair, batch):
    _, ours = pair
    exits = torch.randint(3, (batch[0].numel(),), generator=torch.Generator().manual_seed(4))
    work, executor = Work(), Executor(ours)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        executor.run(*batch, GivenExits(exits), work)
    assert executed_flops(ours, work) == pytest.approx(counter.get_total_flops(), rel=0.02)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        ours.logits(2, ours(batch[0])[2])
    assert full_depth_flops(ours, batch[0].numel(), WINDOW) == counter.get_total_flops()


def make_with_exit_layers(config):
    """A layer for each early exit, as far from the identity as the checkpoint's."""
    torch.manual_seed(0)
    theirs = AutoModelForCausalLM.from_config(config).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, mean=0.5 if parameter.ndim == 1 else 0.0, std=0.2)
    model = PretrainedLM(
        theirs, make_config(config, TINY, exits_after=(1, 3), window=WINDOW, translator="block")
    ).eval()
    return theirs, model


@torch.no_grad()
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_an_exit_layer_begins_as_the_identity_and_is_routed_as_it_reads_whole_sequences(config, batch):
    theirs, model = make_with_exit_layers(config)
    states = model(batch[0])
    for exit in (0, 1):
        assert torch.equal(model.exit_states(exit, states[exit]), states[exit])
    for parameter in model.translators.parameters():
        torch.nn.init.normal_(parameter, mean=0.5 if parameter.ndim == 1 else 0.0, std=0.2)
    torch.testing.assert_close(
        model.logits(2, model(batch[0])[2]), theirs(batch[0]).logits, atol=1e-4, rtol=1e-4
    )
    exits = torch.randint(3, (batch[0].numel(),), generator=torch.Generator().manual_seed(4))
    work, executor = Work(), Executor(model)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        executor.run(*batch, GivenExits(exits), work)
    assert executed_flops(model, work) == pytest.approx(counter.get_total_flops(), rel=0.02)
    for exit in (0, 1):
        read = model.exit_states(exit, states[exit])
        assert not torch.allclose(read, states[exit], atol=0.1)
        routed = executor.run(*batch, GivenExits(torch.full((batch[0].numel(),), exit)))
        log_p = model.logits(exit, read).log_softmax(-1)
        torch.testing.assert_close(
            routed.loss, -log_p.gather(-1, batch[1][..., None])[..., 0], atol=1e-4, rtol=1e-4
        )


@torch.no_grad()
@pytest.mark.parametrize("translator", ["affine", "block"])
def test_trained_weights_come_back_without_the_checkpoints(tmp_path, batch, translator):
    """Saved whole, a model needs its checkpoint for nothing."""
    folder = save_checkpoint(tmp_path / "tiny", VOCAB, text="")
    model = load_pretrained(Checkpoint(str(folder)), exits_after=[2], window=WINDOW, translator=translator)
    for parameter in model.parameters():
        parameter += 0.01
    with create_artifact(tmp_path / "lm", "lm", {}, {}) as out:
        save_model(model, out.path)
    for file in folder.iterdir():
        file.unlink()
    again = load_model(open_artifact(tmp_path / "lm", "lm"))
    assert again.config == model.config and all(
        torch.equal(*states) for states in zip(model(batch[0]), again(batch[0]))
    )
    states = model(batch[0])[0]
    found, wanted = (some.readout_input(0, some.exit_states(0, states)) for some in (again, model))
    assert torch.equal(found, wanted) and not torch.equal(wanted, model.norm(states))


@torch.no_grad()
def test_layers_of_exits_are_kept_beside_the_checkpoint(tmp_path, batch):
    folder = save_checkpoint(tmp_path / "tiny", VOCAB, text="")
    model = load_pretrained(Checkpoint(str(folder)), exits_after=[2], window=WINDOW, translator="block")
    for parameter in model.translators.parameters():
        parameter += 0.01
    with create_artifact(tmp_path / "lm", "lm", {}, {}) as out:
        save_model(model, out.path, base_trained=False)
    again = load_model(open_artifact(tmp_path / "lm", "lm"))
    assert torch.equal(*(some.exit_states(0, some(batch[0])[0]) for some in (model, again)))


@pytest.fixture
def folder(tmp_path):
    return save_checkpoint(tmp_path / "tiny", 300)


def edit(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


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
            "model.name_or_path = .* is a file; give its folder, and for a GGUF file its name as model.gguf_file",
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
    edit(folder / "config.json", **changes)
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
        make_config(config, TINY, exits_after=[1], window=8)


def test_damaged_missing_and_pickled_weights_are_named(folder):
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(UserError, match="its safetensors file is damaged"):
        load_pretrained(Checkpoint(str(folder)), exits_after=[2], window=32)
    edit(folder / "config.json", num_hidden_layers=5)
    weights.write_bytes(whole)
    with pytest.raises(UserError, match=r"9 weights are missing, model\.layers\.4"):
        load_pretrained(Checkpoint(str(folder)), exits_after=[2], window=32)
    weights.unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="no safetensors weights there, and pickled ones are not read"):
        load_pretrained(Checkpoint(str(folder)), exits_after=[2], window=32)


@pytest.fixture
def shards(folder):
    """The same weights in several files, and their index."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="60KB")
    return sorted(folder.glob("model-*.safetensors"))


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


@torch.no_grad()
def test_a_head_of_its_own_is_kept_though_the_configuration_says_tied(folder, tmp_path, batch):
    edit(folder / "config.json", tie_word_embeddings=True)
    model = load_pretrained(Checkpoint(str(folder)), exits_after=[2], window=32)
    assert model.head is not None
    with create_artifact(tmp_path / "lm", "lm", {}, {}) as out:
        save_model(model, out.path)
    again = load_model(open_artifact(tmp_path / "lm", "lm"))
    assert torch.equal(again.logits(1, again(batch[0])[1]), model.logits(1, model(batch[0])[1]))


@torch.no_grad()
def test_a_relative_path_starts_at_the_root_of_the_project(folder, tmp_path, batch, monkeypatch):
    monkeypatch.chdir(folder.parent)
    model = load_pretrained(Checkpoint(folder.name), exits_after=[2], window=32)
    with create_artifact(folder.parent / "lm", "lm", {}, {}) as out:
        save_model(model, out.path, base_trained=False)
    monkeypatch.chdir(Path(__file__).parent)
    again = load_model(open_artifact(folder.parent / "lm", "lm"), root=folder.parent)
    assert torch.equal(again(batch[0])[1], model(batch[0])[1]) and again.config == model.config
    for gone in (folder / "config.json", folder):
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
        with pytest.raises(
            UserError, match=r"no config\.json there; restore the checkpoint, or correct its name"
        ):
            load_model(open_artifact(folder.parent / "lm", "lm"), root=folder.parent)


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


@torch.no_grad()
def test_a_gguf_file_is_the_checkpoint_it_was_made_from_and_so_is_what_it_is_converted_to(
    folder, tmp_path, batch
):
    file = save_gguf(tmp_path / "tiny.gguf", folder)
    convert_gguf(file, tmp_path / "converted")
    expected = load_pretrained(Checkpoint(str(folder)), exits_after=[2], window=32)(batch[0])
    checkpoints = Checkpoint(str(tmp_path), "tiny.gguf"), Checkpoint(str(tmp_path / "converted"))
    for checkpoint in checkpoints:
        found = load_pretrained(Checkpoint(*checkpoint), exits_after=[2], window=32)(batch[0])
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    ours, theirs = (load_tokenizer(checkpoint, read_config(checkpoint)) for checkpoint in checkpoints)
    assert ours.encode(TEXT).ids == theirs.encode(TEXT).ids and ours.decode(ours.encode(TEXT).ids) == TEXT
    assert max(ours.get_vocab().values()) == 299


def test_a_gguf_file_without_a_tokenizer_is_refused_by_name(folder, tmp_path):
    file = save_gguf(tmp_path / "tiny.gguf", folder, with_tokenizer=False)
    checkpoint = Checkpoint(str(tmp_path), "tiny.gguf")
    with pytest.raises(UserError, match=r"tiny\.gguf has no tokenizer that can be read"):
        load_tokenizer(checkpoint, read_config(checkpoint))
    with pytest.raises(UserError, match=r"tiny\.gguf has no tokenizer that can be read"):
        convert_gguf(file, tmp_path / "converted")
    assert not (tmp_path / "converted").exists()


@pytest.mark.parametrize("length", [0, 3, 8, 23, 100, 3000, 9000, 60_000, -100])
def test_a_gguf_file_cut_short_is_named_before_its_weights_are_read(folder, tmp_path, length):
    file = save_gguf(tmp_path / "tiny.gguf", folder)
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(UserError, match=r"tiny\.gguf is damaged"):
        read_config(Checkpoint(str(tmp_path), "tiny.gguf"))


def test_a_damaged_gguf_file_is_named_and_nothing_is_written(tmp_path):
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(UserError, match=r"bad\.gguf is damaged, or no GGUF file of a supported architecture"):
        convert_gguf(tmp_path / "bad.gguf", tmp_path / "out")
    with pytest.raises(UserError, match=r"missing\.gguf: no such file"):
        convert_gguf(tmp_path / "missing.gguf", tmp_path / "out")
    assert [file.name for file in tmp_path.iterdir()] == ["bad.gguf"]


SMOLLM2 = Path(__file__).resolve().parents[2] / "build/smollm2"
ENGLISH = """The lighthouse keeper wrote in his journal every evening. On the first of November the wind came round to the north,
and by midnight no ship could have passed the reef. He counted the lamps, trimmed the wick and waited for the morning. When it
came, the sea was grey and quiet, and a small boat lay on the sand below the rocks with nobody in it."""


@torch.no_grad()
@pytest.mark.skipif(not SMOLLM2.is_dir(), reason="build/smollm2 is not there; `make smollm2` makes it")
def test_smollm2_scores_english_as_under_transformers():
    checkpoint = Checkpoint(str(SMOLLM2))
    tokens = torch.tensor([load_tokenizer(checkpoint, read_config(checkpoint)).encode(ENGLISH).ids])
    ours = load_pretrained(Checkpoint(str(SMOLLM2)), exits_after=[10, 20], window=tokens.shape[1])
    found = ours.logits(2, ours(tokens)[2])
    theirs = AutoModelForCausalLM.from_pretrained(SMOLLM2, dtype=torch.float32)(tokens, labels=tokens)
    torch.testing.assert_close(found, theirs.logits, atol=1e-4, rtol=0.0)
    loss = torch.nn.functional.cross_entropy(found[0, :-1], tokens[0, 1:])
    assert loss.item() == pytest.approx(theirs.loss.item(), abs=1e-5) and 5 < loss.exp() < 80
