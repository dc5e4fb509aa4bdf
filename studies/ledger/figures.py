"""Figures of the studies as claims name them: by study, key, protocol and corpus.

A key is "name", "study:name", or two of them joined by " - " or " / ". The published protocol has one number
per name, the corrected one a value with its interval over random seeds.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from offramp.errors import UserError
from studies.common.results import Interval, StudyResults, read_results, result_path
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

    def has(self, key: str, study: str, protocol: Protocol, corpus: str) -> bool:
        """Whether every study in ``key`` has results of this protocol on this corpus."""
        files = [self._files[name, corpus] for name, _ in terms(key, study)[1]]
        return all(file is not None and getattr(file, protocol) is not None for file in files)

    def published(self, key: str, study: str, corpus: str) -> float:
        """A figure under the published protocol. UserError if it is missing."""
        operator, figures = terms(key, study)
        values = [self._published(figure, corpus) for figure in figures]
        if operator is None:
            return values[0]
        return values[0] - values[1] if operator == "-" else values[0] / values[1]

    def corrected(self, key: str, study: str, corpus: str) -> Corrected:
        """A figure under the corrected protocol. UserError if it is missing.

        The interval of a difference goes from low - high to high - low of its parts. It contains the paired t
        interval over the same seeds, for the standard deviation of a difference is at most the sum of theirs.
        """
        operator, figures = terms(key, study)
        if operator == "/":
            raise UserError(f"key: {key!r} has no corrected interval; give the claim a corrected_key")
        first, *rest = [self._corrected(figure, corpus) for figure in figures]
        for other in rest:
            low, high = first.low - other.high, first.high - other.low
            first = Corrected(first.value - other.value, low, high, min(first.n, other.n))
        return first

    def _published(self, figure: Term, corpus: str) -> float:
        file = self._files[figure[0], corpus]
        value = file.published.values.get(figure[1]) if file and file.published else None
        if value is None:
            raise self._missing(figure, "published", corpus)
        return value

    def _corrected(self, figure: Term, corpus: str) -> Corrected:
        file = self._files[figure[0], corpus]
        value: Interval | None = file.corrected.values.get(figure[1]) if file and file.corrected else None
        if file is None or file.corrected is None or value is None:
            raise self._missing(figure, "corrected", corpus)
        return Corrected(value.value, value.low, value.high, file.corrected.n)

    def _missing(self, figure: Term, protocol: Protocol, corpus: str) -> UserError:
        study, name = figure
        return UserError(
            f"{result_path(self._home, study, corpus)}: {protocol} has no {name}; run "
            f"`python -m studies {study} --corpus {corpus}`, or mend the key in studies/*/claims.yaml"
        )
