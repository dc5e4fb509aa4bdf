"""A pipeline run that never ran: metrics, plot tables and artifacts with realistic numbers for K exits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from offramp.corpus.tokenizer import FILE, Encoder, train_tokenizer
from offramp.lineage.artifact import Artifact, create_artifact, open_artifact, write_json
from offramp.params import TokenizerParams

TEXT = (
    "Fellow-citizens of the Senate and House of Representatives:\n\nI embrace with great satisfaction the "
    "opportunity which now presents itself of congratulating you on the present favorable prospects of our "
    "public affairs. A <script>alert('x & y')</script> and a caf\u00e9 would not change them."
)
SIGNALS = {
    "learned": 0.45,
    "max_prob": 0.12,
    "entropy": 0.1,
    "margin": 0.18,
    "max_logit": -0.05,
    "max_minus_mean": 0.02,
}
ORACLES = {"random": 0.0, "loss_oracle": 0.3, "gain_oracle": 1.0}


def settings(exits: int = 2) -> dict[str, Any]:
    """Parameters as a stage's ``params.to_json()`` gives them: sections and dotted names."""
    return {
        "threshold": 0.75,
        "window": 128,
        "corpus": {"source": "sotu", "hub_name": None, "paths": [], "test_fraction": 0.1},
        "tokenizer": {"kind": "bpe", "vocab_size": 300},
        "model": {"source": "native", "width": 128, "block_layers": [1, 3, 2, 2][:exits], "tied": True},
        "pretrain.method": "blockwise",
        "exits": {"confidence": "learned", "label": "divergence", "inputs": "both", "hidden": [128]},
        "report": {"text_tokens": 200},
    }


def fabricate(
    root: Path, exits: int = 2, routing: dict[str, Any] | None = None, timing: dict[str, Any] | None = None
) -> Path:
    """Write what the stages before would; ``routing`` and ``timing`` override entries of their files."""
    routed = _artifacts(root, exits)
    metrics = root / "metrics"
    split = {
        "documents": 24,
        "characters": 980_000,
        "tokens": 288_412,
        "windows": 2_253,
        "unknown_rate": 0.0,
    }
    corpus = {"vocab_size": 1024, "window": 128, "calibration": split, "test": split}
    write_json(metrics / "corpus.json", corpus | {"train": split | {"documents": 189, "tokens": 2_611_208}})
    phases = {f"block {k}": {"best_step": 500, "steps": 500, "calibration_ppl": 27.0} for k in range(exits)}
    write_json(metrics / "pretrain.json", {"parameters": 1_312_768, "tokens_seen": 4_096_000} | phases)
    write_json(metrics / "routing.json", _routing(exits, routed.inputs) | (routing or {}))
    saved = {"wall_saving": 0.216, "wall_saving_low": 0.19, "wall_saving_high": 0.241, "skipping_saving": 0.23, "asking_cost": 0.012,
             "asking_microseconds": 0.45}
    machine = {"pairs": 12, "machine": "x86_64, 2 threads"}
    write_json(metrics / "timing.json", saved | machine | (timing or {}))
    write_json(metrics / "suitability.json", _suitability(exits))
    (metrics / "plots").mkdir()
    for name, table in _tables(exits).items():
        table.to_csv(metrics / "plots" / f"{name}.csv", index=False)
    return root


def _suitability(exits: int) -> dict[str, Any]:
    def read(exit: int, worse: float) -> dict[str, Any]:
        return {"agreement": 1 - worse, "agreement_interval": [0.99 - worse, 1.0 - worse], "nll": 3.1 + worse, "nll_interval": [3.0, 3.4]}

    rows = {}
    for exit in range(exits):
        behind = exits - 1 - exit
        rows[f"exit_{exit}"] = {"exit": exit, "layers": exit + 1, "flop_saving": behind / exits,
                                "readouts": {"raw": read(exit, 0.3 * behind), "tuned": read(exit, 0.1 * behind)}}
        if behind:
            rows[f"exit_{exit}"]["break_even"] = {"state": {"flops": 0.04, "seconds": 0.12}, "readout": {"flops": 0.3, "seconds": None}}
    bounds = {name: {"flop_saving": saving, "ppl": 20.0} for name, saving in (
        ("least_loss", 0.2), ("same_ppl", 0.5), ("small_rise", 0.52), ("same_prediction", 0.31))}
    rise = {"nll_rise": 0.02, "interval": [0.01, 0.03]}
    return {"exits": rows, "oracle": {"raw": bounds, "tuned": bounds}, "tokens": 16_384, "sequences": 128,
            "state_propagation": {kv: {"keep_first_0": rise, "keep_first_1": rise} for kv in ("propagate", "drop")},
            "timing": {"rounds": 5, "tokens": 4096, "machine": "x86_64, 2 threads"},
            "advice": {"verdict": "worth a try", "sentence": "Worth a try: an oracle that knows every loss saves 52% of the FLOPs.",
                       "propagation": "Propagated keys and values cost 0.020 nats per token."}}


def _artifacts(root: Path, exits: int) -> Artifact:
    tokenizer = train_tokenizer(TokenizerParams(kind="bpe", vocab_size=300, min_count=1), [TEXT])
    with create_artifact(root / "data", "data", {}, {}) as data:
        tokenizer.save(str(data.path / FILE))
        data.meta |= {"kind": "bpe", "end_id": 0, "vocab_size": 300}
    data = open_artifact(root / "data", "data")

    ids = [*Encoder(tokenizer, "bpe")(TEXT).tolist(), 0] * 2
    rng, rows = np.random.default_rng(0), len(ids) - 1
    exit_taken = rng.choice(exits, size=rows)
    table = pd.DataFrame(
        {
            "document": np.repeat([3, 7], len(ids) // 2)[:rows],
            "sequence": np.arange(rows) // 128,
            "position": np.arange(rows) % 128,
            "token": ids[:-1],
            "target": ids[1:],
            "exit": exit_taken,
            "confidence": np.where(exit_taken == exits - 1, np.nan, rng.uniform(0.75, 1, rows)),
            "loss": rng.gamma(1.5, 2.0, rows),
            "argmax": rng.choice(ids, rows),
        }
    )
    with create_artifact(
        root / "routed", "routed", {}, dict.fromkeys(("data", "lm", "exits"), data)
    ) as routed:
        table.to_parquet(routed.path / "tokens.parquet", index=False)
    return open_artifact(root / "routed", "routed")


def _routing(exits: int, inputs: dict[str, str]) -> dict[str, Any]:
    early = exits - 1
    quality = {"shallow_ratio": 0.47, "agreement": 0.81, "accuracy": 0.338}
    fixed = {
        f"exit_{k}": {
            "ppl": 28.5 - 3 * k,
            "accuracy": 0.3 + 0.02 * k,
            "agreement": 0.6 + 0.1 * k,
            "shallow_ratio": 1.0,
            "flop_saving": 0.61 - 0.2 * k,
            "layer_saving": 0.75 - 0.2 * k,
        }
        for k in range(early)
    }
    full = {"ppl": 21.6, "accuracy": 0.352, "agreement": 1.0, "shallow_ratio": 0.0}
    return quality | {
        "confidence": "learned",
        "threshold": {f"exit_{k}": 0.75 for k in range(early)},
        "tokens": 288_384,
        "documents": 24,
        "ppl": 22.61,
        "exit_fraction": {f"exit_{k}": 0.47 / early for k in range(early)} | {f"exit_{early}": 0.53},
        "layer_saving": 0.35,
        "flop_saving": 0.27,
        "headroom": 0.455,
        "interval": {
            "ppl": [21.74, 23.52],
            "accuracy": [0.331, 0.346],
            "ppl_increase": [0.042, 0.051],
            "headroom": [0.431, 0.478],
            "random_minus_signal_nll": [0.0612, 0.0688],
        },
        "controls": fixed
        | {
            "full": full | {"flop_saving": 0.0, "layer_saving": 0.0},
            "signal": {"ppl": 22.75} | quality,
            "random": {"ppl": 24.28, "accuracy": 0.327, "agreement": 0.76, "shallow_ratio": 0.47},
            "loss_oracle": {"ppl": 23.4, "accuracy": 0.34, "agreement": 0.85, "shallow_ratio": 0.47},
            "gain_oracle": {"ppl": 19.6, "accuracy": 0.37, "agreement": 0.9, "shallow_ratio": 0.47},
        },
        "control_tokens": 76_800,
        "inputs": inputs,
    }


def _ppl(share: float, skill: float) -> float:
    """Perplexity when a share of tokens leaves, chosen with some skill: 0 is chance, 1 the oracle."""
    return 21.6 + 6.9 * share - 13 * skill * share * (1 - share)


def _tables(exits: int) -> dict[str, pd.DataFrame]:
    losses = np.linspace(0.25, 14.75, 30)
    last = exits - 1
    learning, distribution, curve, reliability, positions = [], [], [], [], []
    for k in range(exits):
        for step in range(100, 501, 100):
            ppl = (27 - 3 * k) * (1 + 90 / step / (k + 1) ** 2)
            learning.append((f"block {k}", k, step, step * 4096, np.log(ppl) + 0.05, ppl))
        density = losses**0.6 * np.exp(-losses / (3 - 0.3 * k))
        for split in ("calibration", "test"):
            distribution += [(split, k, loss, share) for loss, share in zip(losses, density / density.sum())]
        for place in range(128):
            early = 0.47 + 0.1 * np.exp(-place / 12)
            positions.append((place, k, 1 - early if k == last else early / last))
        depth = (last - k) / max(last, 1)
        fixed = (float(k < last), np.nan, float(k < last), _ppl(depth, 0), 0.33, 0.8)
        curve.append(("fixed", *fixed, 0.75 * depth, 0.61 * depth, np.nan))
    for k in range(last):
        for confidence in np.linspace(0.05, 0.95, 10):
            agreement = confidence + (0.04 + 0.03 * k) * np.sin(9 * confidence)
            reliability.append((k, confidence, min(1.0, agreement), int(4000 * confidence) + 200))
    for signal, skill in (SIGNALS | ORACLES).items():
        for share in (0.1, 0.3, 0.5, 0.7, 0.9):
            cost = 0.09 if signal in SIGNALS and signal != "learned" else 0.0
            threshold = np.nan if signal in ORACLES else 1 - share
            quality = (share, threshold, share, _ppl(share, skill), 0.33, 0.8)
            curve.append((signal, *quality, 0.75 * share, 0.61 * share - cost, skill))
    columns = {
        "learning_curves": (learning, "phase exit step tokens train_loss calibration_ppl"),
        "loss_distribution": (distribution, "split exit loss share"),
        "threshold_curve": (
            curve,
            "signal fraction threshold shallow_ratio ppl accuracy agreement layer_saving flop_saving "
            "headroom",
        ),
        "reliability": (reliability, "exit confidence agreement tokens"),
        "exits_by_position": (positions, "position exit share"),
    }
    return {name: pd.DataFrame(rows, columns=names.split()) for name, (rows, names) in columns.items()}
