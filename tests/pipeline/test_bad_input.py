"""Wrong input ends before any work, with one clear message, a non-zero exit code, and nothing overwritten."""

from __future__ import annotations

import json
import shutil

import pyarrow.parquet as pq
import pytest

from offramp.artifacts.artifact import create_artifact, open_artifact
from offramp.errors import UserError
from tests.conftest import repository_params
from tests.fixtures.pipeline_run import command
from tests.fixtures.reduce_params import reduce_params

CHECKPOINT = {
    "model__source": "hf",
    "model__name_or_path": "tiny",
    "model__exits_after": [1, 3],
    "tokenizer__kind": "pretrained",
    "pretrain__method": "frozen",
}
BAD_PARAMS = [
    ({"threshold": 1.7}, "threshold = 1.7: give a number from 0 to 1"),
    ({"threshold": [0.8, 0.9]}, r"threshold \[0\.8, 0\.9\] has 2 values; give one for each of the 1 exits"),
    ({"threshold": "abc"}, "threshold = 'abc': give a number from 0 to 1"),
    ({"thresold": 0.5}, "thresold = 0.5: unknown key"),
    ({"exits__labl": "gain"}, "exits.labl = 'gain': unknown key"),
    ({"model__block_layers": []}, r"model.block_layers = \[\]: .*at least 2"),
    ({"model__block_layers": [4]}, r"model.block_layers = \[4\]: .*at least 2"),
    ({"model__heads": 3}, "model: width 64 is not divisible by 2 x heads = 6"),
    ({"model__key_value_heads": 3}, "model: key_value_heads 3 does not divide heads = 4"),
    ({"exits__label": "lucky"}, "exits.label = 'lucky': Input should be 'correct', 'distill'"),
    (
        {"exits__confidence": "correct_prob"},
        "exits: confidence = 'correct_prob' needs the target.*oracle.*learned, max_prob",
    ),
    (
        {"exits__confidence": "sureness"},
        "exits: confidence = 'sureness' is not a signal; known: learned, max_prob",
    ),
    (
        {"exits__confidence": "patience"},
        "exits.confidence patience compares successive exits.*at least 3 blocks",
    ),
    ({"exits__risk__tolerance": 1.5}, "exits.risk.tolerance = 1.5: .*less than 1"),
    ({"exits__risk__delta": 0.0}, "exits.risk.delta = 0.0: .*greater than 0"),
    (
        {"exits__risk__measure": "regret"},
        "exits.risk.measure = 'regret': .*'disagreement', 'error' or 'nll_increase'",
    ),
    ({"routing__budget": 1.0}, "routing.budget = 1.0: .*less than 1"),
    ({"threshold": "price", "exits__confidence": "entropy"}, "threshold price weighs a predicted gain"),
    (
        {"threshold": "price", "exits__label": "correct"},
        "threshold price needs exits.label gain or divergence",
    ),
    ({"corpus__test_fraction": 0.99}, "corpus: .*leave nothing to train on"),
    ({"corpus__source": "files"}, "corpus: source files needs paths"),
    ({"pretrain__learning_rate": 0.0}, "pretrain.learning_rate = 0.0: .*greater than 0"),
    ({"pretrain__exit_weights": [1.0]}, "pretrain.exit_weights has 1 values for 2 blocks"),
    ({"pretrain__blockwise__context": "repack"}, "pretrain.blockwise: context repack packs hard tokens"),
    ({"pretrain__head": "shared"}, "pretrain.head shared with model.tied"),
    ({"pretrain__method": "final"}, "pretrain.method final never trains the earlier heads"),
    (
        CHECKPOINT | {"window": 128, "pretrain__frozen__tokens": 127},
        "pretrain.frozen.tokens 127 is less than one window of 128; give more tokens, or a smaller window",
    ),
    (
        {"pretrain__frozen__init": "zero"},
        "pretrain.frozen.init = 'zero': Input should be 'least_squares' or 'identity'",
    ),
    ({"pretrain__layer_dropout": 1.0}, "pretrain.layer_dropout = 1.0: .*less than 1"),
    (
        {"pretrain__lora": {"rank": 8, "alpha": 16}},
        "pretrain.lora belongs to method joint; set it to null for method blockwise",
    ),
    (
        {"pretrain__method": "joint", "pretrain__lora": {"rank": 8, "alpha": 16}},
        "pretrain.lora adapts a trained model",
    ),
    (
        {
            "pretrain__method": "joint",
            "pretrain__curriculum": "gradual",
            "pretrain__exit_weights": [1.0, 0.0],
        },
        "pretrain.curriculum always trains the last exit",
    ),
    ({"exits__mode": "joint"}, "exits.mode joint needs pretrain.joint_classifier"),
    ({"model__source": "hf"}, "model: source hf needs name_or_path: the folder of a checkpoint"),
    ({"model__source": "hf", "model__name_or_path": "tiny"}, "model: source hf needs exits_after"),
    ({"model__exits_after": [3, 3]}, r"model: exits_after = \[3, 3\] is not increasing"),
    ({**CHECKPOINT, "tokenizer__kind": "bpe"}, "tokenizer.kind bpe does not go with model.source hf"),
    ({"tokenizer__kind": "pretrained"}, "tokenizer.kind pretrained does not go with model.source native"),
    (
        {**CHECKPOINT, "pretrain__method": "blockwise"},
        "pretrain.method blockwise is of model.source native; use frozen, joint or final",
    ),
    (
        {**CHECKPOINT, "pretrain__gradient_checkpointing": True},
        "pretrain.gradient_checkpointing runs layers again, and under method frozen with translator affine "
        "no layer is trained",
    ),
    (
        {"routing__first_exit": 1},
        "routing.first_exit 1 leaves no exit before full depth of 2 blocks; give 0 to 0",
    ),
    (
        {"threshold": "budget", "routing__kv": "recompute"},
        "threshold budget weighs what leaving saves, which with routing.kv recompute hangs",
    ),
    (
        {"threshold": "auto", "routing__decay": 1.0},
        "threshold auto is found for all positions alike; with routing.decay give a number, or quality",
    ),
    ({"threshold": "qualty"}, "threshold = 'qualty': give a number .*\"quality\""),
    (
        {"pretrain__method": "frozen"},
        "pretrain.method frozen trains the exits of a checkpoint; set model.source: hf",
    ),
]


@pytest.mark.parametrize(("changes", "message"), BAD_PARAMS, ids=lambda value: str(value)[:40])
def test_parameters_are_refused_by_name_value_and_remedy(changes, message):
    with pytest.raises(UserError, match=f"params.yaml: {message}"):
        repository_params(**changes)


@pytest.fixture
def copy(reduced_run, tmp_path):
    return shutil.copytree(reduced_run, tmp_path / "copy")


def contents(folder):
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for name in ("data", "models", "states", "routed", "metrics", "report")
        for file in sorted((folder / name).rglob("*"))
        if file.is_file()
    }


def refused(folder, stage, *messages):
    before = contents(folder)
    done = command(folder, "python", "-m", f"pipeline.{stage}", check=False)
    place, _, error = done.stdout.partition("\n")
    assert done.returncode == 2 and place.startswith(f"{stage}: stage ") and error.startswith("error: ")
    assert "Traceback" not in error
    for message in messages:
        assert message in done.stdout
    assert contents(folder) == before


def test_dvc_stops_at_the_check_and_keeps_every_output(copy):
    before = contents(copy)
    done = command(copy, "dvc", "exp", "run", "-S", "threshold=1.7", check=False)
    assert done.returncode != 0 and "params.yaml: threshold = 1.7" in done.stdout
    assert contents(copy) == before


def test_a_truncated_file_is_named(copy):
    shard = next((copy / "states/calibration").glob("hidden_0-*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-10])
    refused(copy, "train_exits", shard.name, "bytes, its manifest says", "dvc repro")


def test_an_edited_file_is_named(copy):
    weights = copy / "models/lm/weights.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    refused(copy, "collect", "weights.safetensors was changed after it was written", "dvc repro")


def test_an_edited_manifest_is_named(copy):
    manifest = copy / "data/manifest.json"
    values = json.loads(manifest.read_text())
    values["meta"]["window"] = 32
    manifest.write_text(json.dumps(values))
    refused(copy, "pretrain", "manifest.json was edited")


def test_states_of_another_model_are_refused(copy):
    lm = open_artifact(copy / "models/lm", "lm")
    files = {file.name: file.read_bytes() for file in lm.path.iterdir() if file.name != "manifest.json"}
    with create_artifact(
        copy / "models/lm",
        "lm",
        {**lm.params, "pretrain": "another"},
        {"data": open_artifact(copy / "data", "data")},
    ) as out:
        for name, content in files.items():
            (out.path / name).write_bytes(content)
    refused(copy, "evaluate", "states/test was made from another lm", "run `dvc repro`")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        (b"", "is empty"),
        (b"caf\xe9 au lait\n" * 900, "UTF-8"),
        (b"too short\n", "document"),
    ],
)
def test_unusable_text_leaves_the_last_corpus_in_place(copy, content, message):
    """Also through DVC, which deletes the outputs of a stage before it runs."""
    text = copy / "text.txt"
    if content is not None:
        text.write_bytes(content)
    before = contents(copy)
    done = command(
        copy, "dvc", "exp", "run", "-S", "corpus.source=files", "-S", "corpus.paths=[text.txt]", check=False
    )
    assert (
        done.returncode != 0
        and "error: " in done.stdout
        and message in done.stdout
        and "Traceback" not in done.stdout
    )
    assert contents(copy) == before


def test_too_few_sequences_for_a_promise_and_an_impossible_budget_are_refused(copy):
    """They are refused before the test split is touched.

    The message says how many sequences it takes, or the least possible budget.
    """
    reduce_params(copy / "params.yaml", threshold="risk", exits__risk__tolerance=0.0001)
    refused(copy, "evaluate", "exits.risk", "need at least 29956 held-out sequences", "there are")
    reduce_params(copy / "params.yaml", threshold="budget", routing__budget=0.05)
    refused(
        copy,
        "evaluate",
        "routing.budget = 0.05",
        "even with every token leaving at the first exit that is asked",
        "give at least",
    )


def test_states_without_the_statistic_asked_for_are_refused(copy):
    states = copy / "states/calibration"
    table = pq.read_table(states / "tokens.parquet").drop_columns(["saturation_0"])
    old = open_artifact(states, "states", verify=False)
    inputs = {"data": open_artifact(copy / "data", "data"), "lm": open_artifact(copy / "models/lm", "lm")}
    files = {
        file.name: file.read_bytes()
        for file in states.iterdir()
        if file.name not in ("manifest.json", "tokens.parquet")
    }
    with create_artifact(states, "states", old.params, inputs) as out:
        pq.write_table(table, out.path / "tokens.parquet", compression="NONE")
        for name, raw in files.items():
            (out.path / name).write_bytes(raw)
        out.meta.update(old.meta)
    refused(copy, "train_exits", "has no column 'saturation_0'")
