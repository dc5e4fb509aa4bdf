"""A checkpoint through the whole pipeline: translators are trained, the rest is Transformers' own."""

from __future__ import annotations

import contextlib
import importlib
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from benchmarks.projects import STAGES
from offramp.analysis.low_rank import readout_inputs
from offramp.app.cli import main
from offramp.app.project import Project, open_project
from offramp.artifacts.artifact import open_artifact
from offramp.corpus.windows import TokenWindows
from offramp.errors import UserError
from offramp.params import load_params
from offramp.routing.generate import decode, generate
from offramp.states.store import States
from tests.conftest import REPOSITORY
from tests.fixtures.checkpoints import save_checkpoint
from tests.fixtures.reduce_params import reduce_params

pytestmark = pytest.mark.slow


SETTINGS = {
    "model__source": "hf",
    "model__name_or_path": "tiny",
    "model__exits_after": [1, 3],
    "tokenizer__kind": "pretrained",
    "pretrain__method": "frozen",
    "pretrain__frozen__translator": "low_rank",
    "pretrain__steps": 6,
    "corpus__source": "files",
    "corpus__calibration_fraction": 0.3,
    "corpus__test_fraction": 0.2,
    "window": 32,
    "threshold": "auto",
}


def run(folder: Path, *stages: str) -> None:
    """As DVC runs them, but in this process."""
    with contextlib.chdir(folder):
        for stage in stages:
            importlib.import_module(f"pipeline.{stage}").run(load_params(stage), Path("."))


@pytest.fixture(scope="module")
def project(addresses, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained")
    text = "".join(file.read_text(encoding="utf-8") for file in sorted(addresses.iterdir())[:3])
    save_checkpoint(folder / "tiny", 400, text)
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(REPOSITORY / name, folder)
    for name in ("src", "pipeline"):  # stage check takes the digests of code
        (folder / name).symlink_to(REPOSITORY / name)
    shutil.copytree(addresses, folder / "text")
    reduce_params(folder / "params.yaml", corpus__paths=["text"], **SETTINGS)
    run(folder, *STAGES[:-1])
    return folder


def test_documents_are_the_tokens_of_the_checkpoint_each_with_its_end(project, addresses):
    data = open_artifact(project / "data", "data")
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(project / "tiny/tokenizer.json"))
    table = pd.read_parquet(data.file("documents.parquet"))
    row = table[table["split"] == "test"].iloc[0]
    (text,) = [file.read_text(encoding="utf-8") for file in addresses.iterdir() if file.name in row["name"]]
    stream = np.fromfile(data.file("test.bin"), dtype=data.meta["dtype"])[
        row["start"] : row["start"] + row["tokens"]
    ].tolist()
    assert stream == [*theirs(text, add_special_tokens=False)["input_ids"], 0]
    assert data.meta["vocab_size"] == 400 and data.meta["kind"] == "pretrained"


def test_full_depth_scores_as_transformers(project):
    model = AutoModelForCausalLM.from_pretrained(project / "tiny").eval()
    windows = TokenWindows(open_artifact(project / "data", "data"), "test")
    tokens, targets = windows.batch(range(len(windows)))
    with torch.no_grad():
        expected = torch.nn.functional.cross_entropy(
            model(tokens).logits.flatten(0, 1), targets.flatten()
        ).exp()
    assert json.loads((project / "metrics/states.json").read_text())["test"]["exit_2"][
        "ppl"
    ] == pytest.approx(expected.item(), rel=1e-4)
    routing = json.loads((project / "metrics/routing.json").read_text())
    assert 0 < routing["exit_fraction"]["exit_0"] < 1 and routing["flop_saving"] != 0


def test_the_artifact_holds_translators_and_the_digest_of_the_weights_alone(project):
    weights = load_file(project / "models/lm/weights.safetensors")
    assert {name.split(".")[0] for name in weights} == {"0", "1"} and sum(
        map(torch.numel, weights.values())
    ) == 2 * (2 * 64 * 32 + 2 * 32)  # and a bias and factors
    config = json.loads((project / "models/lm/config.json").read_text())
    assert config["checkpoint"] == json.loads((project / "build/checkpoint.json").read_text())["weights"]
    assert not (project / "states/test/readout.safetensors").exists()


def test_low_rank_readouts_of_a_checkpoint_are_refused(project):
    states = States(open_artifact(project / "states/test", "states"))
    with pytest.raises(
        UserError, match="holds states of a checkpoint, whose readouts are not kept with them"
    ):
        readout_inputs(states, 0, 100)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda weights: weights.write_bytes(weights.read_bytes()[:-100]), "its safetensors file is damaged"),
        (lambda weights: weights.unlink(), "no safetensors weights there"),
        (
            lambda weights: weights.rename(weights.with_name("pytorch_model.bin")),
            "no safetensors weights there, and pickled ones are not read",
        ),
    ],
)
def test_weights_that_cannot_be_read_are_refused_by_the_check(project, tmp_path, spoil, message):
    """Before DVC deletes the model that was made from them."""
    folder = shutil.copytree(project, tmp_path / "copy", symlinks=True)
    spoil(folder / "tiny/model.safetensors")
    with pytest.raises(UserError, match=message):
        run(folder, "check")


def edit(file: Path, **changes) -> None:
    values = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(values | changes))


PROMPT = "Fellow citizens"


@pytest.fixture
def begun_and_ended(project, tmp_path) -> tuple[Path, int]:
    """A copy whose tokenizer puts token 0 before every text, and what its model says after ``PROMPT``."""
    folder = shutil.copytree(project, tmp_path / "copy", symlinks=True)
    tokenizer = Tokenizer.from_file(str(folder / "tiny/tokenizer.json"))
    tokenizer.post_processor = TemplateProcessing(single="<|end|> $A", special_tokens=[("<|end|>", 0)])
    tokenizer.save(str(folder / "tiny/tokenizer.json"))
    return folder, list(dict.fromkeys(_continue(folder, eos_token_id=None)))[2]


def _continue(folder: Path, **settings) -> list[int]:
    """What Transformers itself makes of ``PROMPT``."""
    ids = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tiny/tokenizer.json"))(
        PROMPT, return_tensors="pt"
    )["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(folder / "tiny", dtype=torch.float32)
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    made = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, pad_token_id=0
    )
    return made[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("told_by", ["config.json", "generation_config.json"])
def test_generation_begins_and_ends_as_under_transformers(begun_and_ended, told_by):
    """Ends may be several, and generation_config.json may name others than end documents."""
    folder, end = begun_and_ended
    (folder / "tiny/generation_config.json").unlink()
    edit(folder / "tiny" / told_by, eos_token_id=[399, end])
    run(folder, "check", "prepare", "pretrain")
    assert (
        told_by in json.loads((folder / "build/corpus.json").read_text())["tokenizer"]
    )  # what makes DVC prepare anew
    opened = open_project(folder)
    assert opened.stop_ids == {399, end} and opened.end_id == (399 if told_by == "config.json" else 0)
    assert opened.encode_prompt(PROMPT) == [0, *opened.encode(PROMPT)]
    (made,) = generate(decode(opened.model, [opened.encode_prompt(PROMPT)], 12, stop=opened.stop_ids), 1)
    assert made.tokens == _continue(folder) and made.tokens[-1] == end and 1 < len(made.tokens) < 12


def test_data_that_does_not_say_where_texts_end_is_refused(project):
    opened = open_project(project)
    del opened.data.meta["stop_ids"]
    with pytest.raises(
        UserError, match=r"data does not say at which tokens the checkpoint's texts end; run `dvc repro`"
    ):
        _ = opened.stop_ids


def test_the_commands_run_on_a_checkpoint(project, monkeypatch, capsys):
    monkeypatch.chdir(project)
    opened = open_project()
    for options in (["--full"], ["--speculate", "0"]):
        assert main(["generate", "--prompt", PROMPT, "--tokens", "8", *options]) == 0
        (made,) = generate(decode(opened.model, [opened.encode(PROMPT)], 8, stop=opened.stop_ids), 1)
        said = PROMPT + opened.decode(opened.encode(PROMPT)[-1], made.tokens)
        assert capsys.readouterr().out.rstrip("\ufffd\n") == said.rstrip(
            "\ufffd\n"
        )  # a last character that is not whole is not shown


def test_the_harness_runs_on_a_checkpoint_from_another_folder(project, tmp_path, monkeypatch):
    instance = pytest.importorskip(
        "lm_eval.api.instance", reason="lm_eval is not installed (pip install 'offramp[eval]')"
    ).Instance
    from offramp.app.harness import RoutedLM

    monkeypatch.chdir(tmp_path)
    lm = RoutedLM(str(project), full=True, batch_size=2)
    pairs = [(PROMPT, " Senate"), ("\n", "The union")]
    found = lm.loglikelihood(
        [instance("loglikelihood", {}, pair, place) for place, pair in enumerate(pairs)], disable_tqdm=True
    )
    theirs = AutoModelForCausalLM.from_pretrained(project / "tiny", dtype=torch.float32)
    for (context, continuation), (log_p, _) in zip(pairs, found):
        before, whole = (lm.tok_encode(text) for text in (context.rstrip(), context + continuation))
        tokens = torch.tensor([whole if before else [lm.eot_token_id, *whole]])
        scored = len(whole) - len(before)
        with torch.no_grad():
            each = theirs(tokens).logits.log_softmax(-1)[:, :-1].gather(-1, tokens[:, 1:, None])[0, -scored:]
        assert log_p == pytest.approx(each.sum().item(), rel=1e-4)
    (text,) = lm.generate_until(
        [instance("generate_until", {}, (PROMPT, {"max_gen_toks": 8, "until": ["\x00"]}), 0)],
        disable_tqdm=True,
    )
    assert text == lm.project.decode(lm.tok_encode(PROMPT)[-1], _greedy(lm.project, 8))


def _greedy(opened: Project, count: int) -> list[int]:
    (made,) = generate(decode(opened.model, [opened.encode(PROMPT)], count, stop=opened.stop_ids), 1)
    return [token for token in made.tokens if token not in opened.stop_ids]


def test_another_checkpoint_in_the_same_place_is_noticed(project, tmp_path):
    """The check writes another fingerprint, which reruns what read the old weights.

    A stage run by hand refuses.
    """
    folder = shutil.copytree(project, tmp_path / "copy", symlinks=True)
    save_checkpoint(folder / "tiny", 400, hidden_size=64)
    run(folder, "check")
    assert (folder / "build/checkpoint.json").read_text() != (project / "build/checkpoint.json").read_text()
    with pytest.raises(
        UserError, match=r"'tiny': its weights are not those that models/lm was made from.*dvc repro"
    ):
        run(folder, "collect")


def test_trained_weights_are_kept_whole(project, tmp_path):
    """Method joint: the model is read from the artifact, whatever becomes of the checkpoint's weights."""
    folder = shutil.copytree(project, tmp_path / "copy", symlinks=True)
    reduce_params(
        folder / "params.yaml",
        corpus__paths=["text"],
        **SETTINGS | {"pretrain__method": "joint", "pretrain__head": "shared"},
    )
    run(folder, "pretrain")
    (folder / "tiny/model.safetensors").unlink()
    run(folder, "collect")
    ppl = [
        json.loads((place / "metrics/states.json").read_text())["test"]["exit_2"]["ppl"]
        for place in (folder, project)
    ]
    assert ppl[0] < 0.9 * ppl[1]


@pytest.mark.parametrize(
    ("setting", "value", "rounding"),
    [("pretrain__frozen__translator", "block", 1e-4), ("collect__precision", "bf16", 5e-2)],
)
def test_exits_with_layers_of_their_own_and_bf16_go_through_every_stage(
    project, tmp_path, setting, value, rounding
):
    folder = shutil.copytree(project, tmp_path / "copy", symlinks=True)
    reduce_params(folder / "params.yaml", corpus__paths=["text"], **SETTINGS | {setting: value})
    run(folder, *STAGES[2:-1])
    routed, cached = (pd.read_parquet(folder / path / "tokens.parquet") for path in ("routed", "states/test"))
    first = routed["exit"] == 0  # behind the first exit, tokens attend to what stands for those that left
    assert 0 < first.mean() < 1
    np.testing.assert_allclose(routed["loss"][first], cached["loss_0"][first], atol=rounding)
    before = pd.read_parquet(project / "states/test/tokens.parquet")
    same = {name: np.allclose(cached[name], before[name], atol=1e-4) for name in ("loss_0", "loss_2")}
    assert same == {"loss_0": False, "loss_2": setting != "collect__precision"}
