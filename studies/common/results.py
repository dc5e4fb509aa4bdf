"""What every study leaves behind: two small files per text, and intervals over random seeds.

metrics/<study>.<text>.json has the values of both protocols, figures and sentences (``StudyResults``);
metrics/<study>.<text>.csv has a row per value of the corrected protocol with its number for every random
seed, so that differences can be paired and a rerun of one seed can be compared.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError
from scipy.special import stdtrit

from offramp.artifacts.files import write_csv, write_json
from offramp.errors import UserError
from studies.common.study import Outcome, Protocol, Study
from studies.common.text import StudyText


class Interval(BaseModel):
    """A mean over random seeds with its 95 % t interval."""

    model_config = ConfigDict(extra="forbid")

    value: float
    low: float
    high: float


class Shown(BaseModel):
    """What a protocol gives the findings beside its values."""

    model_config = ConfigDict(extra="forbid")

    figures: dict[str, Any]
    """Tables and plots by name."""
    sentences: list[str]


class Published(Shown):
    """The published protocol: one run."""

    n: int
    values: dict[str, float | None]


class Corrected(Shown):
    """The corrected protocol: means over ``n`` random seeds."""

    n: int
    interval: str
    values: dict[str, Interval]


class StudyResults(BaseModel):
    """The contents of metrics/<study>.<text>.json."""

    model_config = ConfigDict(extra="forbid")

    study: str
    corpus: str
    text: dict[str, str]
    published: Published | None = None
    corrected: Corrected | None = None

    @property
    def protocols(self) -> list[Published | Corrected]:
        """Those that were run."""
        return [protocol for protocol in (self.published, self.corrected) if protocol is not None]

    @property
    def figures(self) -> dict[str, Any]:
        """Of both protocols."""
        return {name: figure for one in self.protocols for name, figure in one.figures.items()}

    @property
    def sentences(self) -> list[str]:
        """Of both protocols."""
        return [sentence for one in self.protocols for sentence in one.sentences]


def result_path(home: Path, study: str, text: str) -> Path:
    return home / "metrics" / f"{study}.{text}.json"


def seeds_path(home: Path, study: str, text: str) -> Path:
    return home / "metrics" / f"{study}.{text}.csv"


def read_results(home: Path, study: str, text: str) -> StudyResults | None:
    """The results of a study on a text; None if it has not been run. UserError for a file that is damaged."""
    path = result_path(home, study, text)
    try:
        return StudyResults.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: {where}: {first['msg']}; run `python -m studies {study}` again") from None


def read_seeds(home: Path, study: str, text: str) -> dict[int, dict[str, float]]:
    """Values of the corrected protocol by random seed; empty where none are stored."""
    path = seeds_path(home, study, text)
    if not path.exists():
        return {}
    with path.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    seeds = [int(name) for name in (rows[0] if rows else {}) if name != "key"]
    return {seed: {row["key"]: float(row[str(seed)]) for row in rows if row[str(seed)]} for seed in seeds}


def over_seeds(rows: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Mean and 95 % t interval over random seeds of every key; ``rows`` holds one dict per seed, with equal
    keys.

    A key that is None for some seed is left out: an interval over fewer seeds would pass for one over all.
    """
    if len(rows) < 2:
        raise UserError(
            f"an interval over seeds needs at least 2 of them, got {len(rows)}; add to the study's seeds"
        )
    out = {}
    for key in rows[0]:
        values = [row[key] for row in rows]
        if any(value is None for value in values):
            continue
        array = np.asarray(values, dtype=np.float64)
        half = stdtrit(len(array) - 1, 0.975) * array.std(ddof=1) / np.sqrt(len(array))
        mean = float(array.mean())
        out[key] = {"value": mean, "low": float(mean - half), "high": float(mean + half)}
    return out


def write_results(
    home: Path, study: Study, text: StudyText, outcomes: Mapping[Protocol, Outcome], seeds: Sequence[int]
) -> Path:
    """Write both files of a study on a text; ``seeds`` are those of the corrected protocol's rows.

    A protocol that did not run keeps what the files say of it, if they are of the same text.
    """
    path = result_path(home, study.name, text.corpus)
    before = json.loads(path.read_text()) if path.exists() else {}
    if before.get("text") != text.record():
        before = {}
    kept = {
        name: before[name] for name in ("published", "corrected") if name in before and name not in outcomes
    }
    out: dict[str, Any] = {
        "study": study.name,
        "corpus": text.corpus,
        "text": text.record(),
        **kept,
    }
    for name, outcome in outcomes.items():
        out[name] = {"figures": outcome.figures, "sentences": outcome.sentences}
    if "published" in outcomes:
        out["published"] |= {"n": 1, "values": outcomes["published"].rows[0]}
    if "corrected" in outcomes:
        rows = outcomes["corrected"].rows
        out["corrected"] |= {
            "n": len(rows),
            "interval": f"95 % t interval over {len(rows)} seeds",
            "values": over_seeds(rows),
        }
        table = (
            {"key": key, **{str(seed): row[key] for seed, row in zip(seeds, rows, strict=True)}}
            for key in rows[0]
        )
        write_csv(seeds_path(home, study.name, text.corpus), ("key", *map(str, seeds)), table)
    elif "corrected" not in kept:  # values by random seed that are there are of another text
        seeds_path(home, study.name, text.corpus).unlink(missing_ok=True)
    StudyResults.model_validate(out)
    write_json(path, out)
    return path


def number(value: float | None) -> str:
    """Four significant digits, without an exponent where that is readable; empty for None."""
    if value is None:
        return ""
    rounded = float(f"{value:.4g}")
    if rounded == 0:
        return "0"
    return np.format_float_positional(rounded, trim="-") if 1e-6 <= abs(rounded) < 1e9 else f"{rounded:.4g}"
