"""Figures of the studies as claims name them: by study, key, protocol and corpus.

A key is "name", "study:name", or two of them joined by " - " or " / ". The published protocol has one number
per name, the corrected one a value with its interval over random seeds. The interval of a difference is the
paired one, where a study keeps values by random seed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from offramp.errors import UserError
from studies.common.results import (
    Interval,
    StudyResults,
    over_seeds,
    read_results,
    read_seeds,
    result_path,
    seeds_path,
)
from studies.common.study import Protocol
from studies.ledger.verdict import Corrected

CORPORA = {"pangram": "the pangram", "wikitext": "WikiText-2", "sotu": "State of the Union"}
"""Corpora by the weight of their figures, with their names: WikiText-2 is the published text, except where a
report read a repeated pangram in its place."""
Term = tuple[str, str]
"""Study and name of one figure."""


def terms(key: str, study: str) -> tuple[str | None, list[Term]]:
    """The operator of ``key`` (None, "-" or "/") and its one or two figures; ``study`` is that of a bare
    name.
    """
    words = key.split()
    if len(words) not in (1, 3) or (len(words) == 3 and words[1] not in "-/"):
        raise UserError(f'key: {key!r} is not "name", "a - b" or "a / b"')
    named = [word.split(":") if ":" in word else [study, word] for word in words[::2]]
    return (words[1] if len(words) == 3 else None), [(study, name) for study, name in named]


class Results:
    """The result files of some studies, below ``home``, the folder of all studies."""

    def __init__(self, home: Path, studies: Iterable[str]):
        """Any file may be missing: ``has`` says what there is."""
        self._home = home
        self._files: dict[tuple[str, str], StudyResults | None] = {
            (study, corpus): read_results(home, study, corpus)
            for corpus in CORPORA
            for study in sorted(set(studies))
        }
        self._seeds: dict[tuple[str, str], dict[int, dict[str, float]]] = {}

    def has(self, key: str, study: str, protocol: Protocol, corpus: str) -> bool:
        """Whether every study in ``key`` has results of this protocol on this corpus."""
        files = [self._files[name, corpus] for name, _ in terms(key, study)[1]]
        return all(file is not None and getattr(file, protocol) is not None for file in files)

    def undefined(self, key: str, study: str, corpus: str) -> bool:
        """Whether some random seeds of the corrected protocol have no value of a figure in ``key``, and so
        the study gives no interval: a share, for one, whose whole is nothing for some of them."""
        return self.has(key, study, "corrected", corpus) and any(
            0 < sum(name in values for values in seeds.values()) < len(seeds)
            for seeds, name in ((self._of_seeds(part, corpus), name) for part, name in terms(key, study)[1])
        )

    def published(self, key: str, study: str, corpus: str) -> float:
        """A figure under the published protocol. UserError if it is missing."""
        operator, figures = terms(key, study)
        values = [self._published(figure, corpus) for figure in figures]
        if operator is None:
            return values[0]
        return values[0] - values[1] if operator == "-" else values[0] / values[1]

    def measures(self, key: str, study: str, corpus: str) -> bool:
        """Whether the published protocol has every figure in ``key``."""
        return all(self._published_or_none(figure, corpus) is not None for figure in terms(key, study)[1])

    def corrected(self, key: str, study: str, corpus: str) -> Corrected:
        """A figure under the corrected protocol. UserError if it is missing.

        The interval of a difference is the paired t interval over random seeds, where both figures are kept
        by random seed. Else it goes from low - high to high - low of the two, which contains that one, for
        the standard deviation of a difference is at most the sum of theirs.
        """
        operator, figures = terms(key, study)
        if operator == "/":
            raise UserError(f"key: {key!r} has no corrected interval; give the claim a corrected_key")
        first, *rest = [self._corrected(figure, corpus) for figure in figures]
        if not rest:
            return first
        second = rest[0]
        one, other = (self._by_seed(figure, corpus) for figure in figures)
        if one and one.keys() == other.keys():
            values = over_seeds([{key: one[seed] - other[seed]} for seed in one])[key]
            return Corrected(values["value"], values["low"], values["high"], len(one))
        low, high = first.low - second.high, first.high - second.low
        return Corrected(first.value - second.value, low, high, min(first.n, second.n))

    def _published_or_none(self, figure: Term, corpus: str) -> float | None:
        file = self._files[figure[0], corpus]
        return file.published.values.get(figure[1]) if file and file.published else None

    def _published(self, figure: Term, corpus: str) -> float:
        value = self._published_or_none(figure, corpus)
        if value is None:
            raise self._missing(figure, "published", corpus)
        return value

    def _corrected(self, figure: Term, corpus: str) -> Corrected:
        file = self._files[figure[0], corpus]
        value: Interval | None = file.corrected.values.get(figure[1]) if file and file.corrected else None
        if file is None or file.corrected is None or value is None:
            raise self._missing(figure, "corrected", corpus)
        return Corrected(value.value, value.low, value.high, file.corrected.n)

    def _by_seed(self, figure: Term, corpus: str) -> dict[int, float]:
        """A corrected figure by random seed; empty where the study keeps none. UserError if its values are
        not those of the result file."""
        study, name = figure
        values = {seed: row[name] for seed, row in self._of_seeds(study, corpus).items() if name in row}
        if values:
            shown = self._corrected(figure, corpus)
            mean = math.fsum(values.values()) / len(values)
            if len(values) != shown.n or not math.isclose(mean, shown.value, rel_tol=1e-9, abs_tol=1e-12):
                raise UserError(
                    f"{seeds_path(self._home, study, corpus)}: {name} is not that of the result file beside "
                    f"it; run `python -m studies {study} --corpus {corpus}` again"
                )
        return values

    def _of_seeds(self, study: str, corpus: str) -> dict[int, dict[str, float]]:
        if (study, corpus) not in self._seeds:
            self._seeds[study, corpus] = read_seeds(self._home, study, corpus)
        return self._seeds[study, corpus]

    def _missing(self, figure: Term, protocol: Protocol, corpus: str) -> UserError:
        study, name = figure
        return UserError(
            f"{result_path(self._home, study, corpus)}: {protocol} has no {name}; run "
            f"`python -m studies {study} --corpus {corpus}`, or mend the key in studies/{study}"
        )
