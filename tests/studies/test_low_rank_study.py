"""The low-rank study on states of a small random model: keys, halves, and what is refused to be called a number."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from offramp.artifacts.artifact import create_artifact
from offramp.states.store import StatesWriter
from studies.low_rank_readout import study as study

SETTINGS = study.SETTINGS | {
    "threads": 1,
    "seeds": [0, 1],
    "ranks": [1, 3, 5],
    "tokens": 60,
    "logit_chunks": {"count": 3, "tokens": 20},
}


def write_states(path, model: int, text: int) -> None:
    matrix = torch.randn(40, 5, generator=torch.Generator().manual_seed(model))
    hidden = torch.randn(200, 5, generator=torch.Generator().manual_seed(text)) + 1
    path.parent.mkdir(parents=True, exist_ok=True)
    with create_artifact(path, "states", {}, {}) as out:
        save_file({"matrix_0": matrix}, out.path / "readout.safetensors")
        writer = StatesWriter(out.path, 1, "float32", 1000)
        writer.add(
            {"token": np.zeros(200, np.int32), "target": np.arange(200, dtype=np.int32) % 40}, [hidden]
        )
        writer.close()
        out.meta.update(exits=1, tokens=200, shards=writer.shards, window=20)


@pytest.fixture
def root(tmp_path):
    made = tmp_path / "build/studies/sotu"
    write_states(made / "published/states", 9, 9)
    for seed in SETTINGS["seeds"]:
        for place, name in enumerate(("calibration", "test")):
            write_states(made / f"words/{seed}/states/{name}", seed, 10 * seed + place)
    return tmp_path


def test_both_protocols_write_every_measure_of_every_variant_and_rank(root):
    path = study.run("sotu", "both", root, {"sha256": "0", "source": "test"}, SETTINGS)
    found = json.loads(path.read_text())
    wanted = {
        f"{prefix}{name}.{rank}"
        for prefix in ("", "centred.", "weighted.", "weighted_centred.")
        for name in study.MEASURES
        for rank in (1, 3, 5)
    } | {f"flop_share.{rank}" for rank in (1, 3, 5)}
    assert set(found["published"]["values"]) == set(found["corrected"]["values"]) == wanted
    assert found["corrected"]["values"]["softmax_corr.5"]["value"] == pytest.approx(1, abs=1e-5)
    assert {row["variant"] for row in found["figures"]["correlation.corrected"]} == set(study.VARIANTS)


def test_published_logit_figures_are_means_over_the_first_chunks(root):
    values, _ = study.published(root / "build/studies/sotu/published", SETTINGS)
    generator = torch.Generator().manual_seed(9)
    matrix = torch.randn(40, 5, generator=generator).double()
    hidden = (torch.randn(200, 5, generator=generator.manual_seed(9)) + 1).double()
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    low = (u[:, :3] * s[:3]) @ vt[:3]
    by_chunk = [
        np.corrcoef((part @ matrix.T).flatten(), (part @ low.T).flatten())[0, 1]
        for part in hidden[:60].split(20)
    ]
    assert values["logit_corr.3"] == pytest.approx(np.mean(by_chunk), abs=1e-5)


def test_a_correlation_that_is_not_defined_is_no_number():
    row = dict.fromkeys(study.MEASURES, 0.5) | {
        "variant": "weighted",
        "rank": 1,
        "margin_corr": float("nan"),
        "flop_share": 0.1,
    }
    values = study.values_of([row])
    assert (
        values["weighted.margin_corr.1"] is None
        and values["weighted.softmax_corr.1"] == 0.5
        and values["flop_share.1"] == 0.1
    )
    assert "margin" not in {line["signal"] for line in study.figures_of([row])["correlation"]}
