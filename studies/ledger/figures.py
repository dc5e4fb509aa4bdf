"""Figures of the studies as claims name them: by study, key, protocol and corpus.

A key is "name", "study:name", or two of them joined by " - " or " / ". The published protocol has one number per name,
the corrected one a value with its interval over seeds.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from offramp.errors import UserError
from studies.ledger.verdict import Corrected

CORPORA = {"pangram": "the pangram", "wikitext": "WikiText-2", "sotu": "State of the Union"}
"""Corpora by the weight of their figures, with their names: WikiText-2 is the published text, except where a seed read a
repeated pangram in its place."""
Term = tuple[str, str]
"""Study and name of one figure."""


def result_path(study: str, corpus: str) -> Path:
    return Path("metrics/studies") / f"{study}.{corpus}.json"


def read_result(root: Path, study: str, corpus: str) -> dict[str, Any] | None:
    """The result file of a study, None if there is none."""
    path = root / result_path(study, corpus)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def terms(key: str, study: str) -> tuple[str | None, list[Term]]:
    """The operator of ``key`` (None, "-" or "/") and its one or two figures; ``study`` is that of a bare name."""
    words = key.split()
    if len(words) not in (1, 3) or (len(words) == 3 and words[1] not in "-/"):
        raise UserError(f'key: {key!r} is not "name", "a - b" or "a / b"')
    named = [word.split(":") if ":" in word else [study, word] for word in words[::2]]
    return (words[1] if len(words) == 3 else None), [(study, name) for study, name in named]


class Results:
    """The result files of some studies."""

    def __init__(self, root: Path, studies: Iterable[str]):
        """Any file may be missing: ``has`` says what there is."""
        self._files = {
            (study, corpus): read_result(root, study, corpus)
            for corpus in CORPORA
            for study in sorted(set(studies))
        }

    def has(self, key: str, study: str, protocol: str, corpus: str) -> bool:
        """Whether every study in ``key`` has results of this protocol on this corpus."""
        return all(protocol in (self._files[name, corpus] or {}) for name, _ in terms(key, study)[1])

    def published(self, key: str, study: str, corpus: str) -> float:
        """A figure under the published protocol. UserError if it is missing."""
        operator, figures = terms(key, study)
        values = [float(self._value(figure, "published", corpus)) for figure in figures]
        if operator is None:
            return values[0]
        return values[0] - values[1] if operator == "-" else values[0] / values[1]

    def corrected(self, key: str, study: str, corpus: str) -> Corrected:
        """A figure under the corrected protocol. UserError if it is missing.

        The interval of a difference goes from low - high to high - low of its parts. It contains the paired t interval
        over the same seeds, for the standard deviation of a difference is at most the sum of theirs.
        """
        operator, figures = terms(key, study)
        if operator == "/":
            raise UserError(f"key: {key!r} has no corrected interval; give the claim a corrected_key")
        first, *rest = [self._corrected(figure, corpus) for figure in figures]
        for other in rest:
            bounded = None not in (first.low, first.high, other.low, other.high)
            first = Corrected(
                first.value - other.value,
                first.low - other.high if bounded else None,
                first.high - other.low if bounded else None,
                min(first.n, other.n),
            )
        return first

    def _corrected(self, figure: Term, corpus: str) -> Corrected:
        found = self._value(figure, "corrected", corpus)
        n = self._files[figure[0], corpus]["corrected"]["n"]
        return Corrected(found["value"], found.get("low"), found.get("high"), n)

    def _value(self, figure: Term, protocol: str, corpus: str) -> Any:
        study, name = figure
        found = (self._files[study, corpus] or {}).get(protocol, {}).get("values", {}).get(name)
        if found is None:
            raise UserError(
                f"{result_path(study, corpus)}: {protocol} has no {name}; run "
                f"python -m pipeline.studies.{study} --corpus {corpus}, or mend the key in pipeline/studies/claims"
            )
        return found


def number(value: float | None) -> str:
    """Four significant digits, without an exponent where that is readable; empty for None."""
    if value is None:
        return ""
    rounded = float(f"{value:.4g}")
    if rounded == 0:
        return "0"
    return np.format_float_positional(rounded, trim="-") if 1e-6 <= abs(rounded) < 1e9 else f"{rounded:.4g}"
