"""What every study leaves behind: one small JSON file per corpus, and intervals over seeds."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from ruamel.yaml import YAML
from scipy.special import stdtrit

from offramp.artifacts.files import write_json
from offramp.errors import UserError

PARAMS = Path(__file__).resolve().parents[1] / "params.yaml"


@cache
def study_params(study: str) -> dict[str, Any]:
    """The section of pipeline/studies/params.yaml that belongs to ``study``."""
    return YAML(typ="safe").load(PARAMS.read_text(encoding="utf-8"))[study]


def over_seeds(values: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Mean and 95 % t interval over seeds of every key; ``values`` holds one dict per seed, with equal keys.

    A key that is None for some seed is left out: an interval over fewer seeds would pass for one over all.
    """
    if len(values) < 2:
        raise UserError(
            f"an interval over seeds needs at least 2 of them, got {len(values)}; add to the study's seeds"
        )
    out = {}
    for key in values[0]:
        found = [row[key] for row in values]
        if any(value is None for value in found):
            continue
        array = np.asarray(found, dtype=np.float64)
        half = stdtrit(len(array) - 1, 0.975) * array.std(ddof=1) / np.sqrt(len(array))
        out[key] = {
            "value": float(array.mean()),
            "low": float(array.mean() - half),
            "high": float(array.mean() + half),
        }
    return out


def write_results(
    study: str,
    corpus: str,
    text: dict[str, Any],
    flaws: list[str],
    published: dict[str, float] | None,
    corrected: list[dict[str, float]] | None,
    figures: dict[str, Any],
    root: Path = Path("."),
    sentences: list[str] | None = None,
) -> Path:
    """Write metrics/studies/<study>.<corpus>.json; ``corrected`` holds one dict per seed.

    A protocol given as None keeps what the file says of it, if it exists and is of the same text.
    """
    path = root / "metrics/studies" / f"{study}.{corpus}.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    kept = before if before.get("text") == text else {}
    other_protocol = (published is None and "published" in kept) or (
        corrected is None and "corrected" in kept
    )
    out: dict[str, Any] = {
        "study": study,
        "corpus": corpus,
        "text": text,
        "flaws": flaws or kept.get("flaws", []),
        "figures": (kept.get("figures", {}) if other_protocol else {}) | figures,
        "sentences": sentences or kept.get("sentences", []),
    }
    if published is not None:
        out["published"] = {"n": 1, "values": published}
    elif "published" in kept:
        out["published"] = kept["published"]
    if corrected is not None:
        out["corrected"] = {
            "n": len(corrected),
            "interval": f"95 % t interval over {len(corrected)} seeds",
            "values": over_seeds(corrected),
        }
    elif "corrected" in kept:
        out["corrected"] = kept["corrected"]
    write_json(path, out)
    return path
