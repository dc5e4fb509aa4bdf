"""The claims ledger: every claim of studies/*/claims.yaml with its rerun, its corrected figure and its
verdict.

    python -m studies ledger

Reads metrics/<study>.<corpus>.json and writes claims.csv, below the folder of all studies. Where a study has
no results on WikiText-2, the published text, State of the Union decides alone, and the reason says so; a
claim whose study has not been run is inconclusive and says that. The rerun is that of the text which the
report really read: the repeated pangram where a study has one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from offramp.artifacts.files import write_csv
from offramp.errors import UserError
from studies.common.results import number
from studies.common.study import HOME, REPORTS, read_yaml, studies
from studies.ledger.figures import CORPORA, Results, terms
from studies.ledger.verdict import (
    VERDICTS,
    Corrected,
    Judgement,
    Region,
    agree,
    judge,
    level_band,
    share_band,
)

COLUMNS = (
    "id",
    "report",
    "section",
    "statement",
    "published",
    "rerun",
    "corrected",
    "ci_low",
    "ci_high",
    "n",
    "verdict",
    "reason",
    "alias",
)
BANDS = {"level": level_band, "share": share_band}

REASONS = {
    "inside": "The corrected interval is within the claim's region ({region})",
    "apart": "Neither the rerun ({rerun}) nor the corrected interval is within the claim's region ({region})",
    "artefact": "The published protocol gives {rerun}, within the claim's region ({region}); without its "
    "flaws it is {corrected}",
    "edge": "The corrected interval reaches across the edge of the claim's region ({region})",
    "few": "Random seeds are too few to decide",
    "no interval": "The corrected figure has no interval",
    "disagree": "Corpora disagree about the claim's region ({region})",
}
"""By what decided, for claims that bring no reason of their own."""


@dataclass(frozen=True)
class Claim:
    """One row of a claims.yaml with the fields of its group; a row may override those.

    A claim needs a region or, for a figure that merely describes, a band around what was published: level
    (within 25 % of it: nats, perplexities, thresholds) or share (within 0.05 of it: correlations, shares,
    accuracies). Claims with a region are conclusions.
    """

    id: str
    alias: str
    """The id that the claim had when reports had numbers."""
    report: str
    section: str
    """Where in the report."""
    statement: str
    study: str
    """The study whose folder the claim stands in."""
    key: str
    """The study's name of the figure; "a - b" and "a / b" combine two, "study:key" is of another study."""
    corrected_key: str
    """The corrected quantity where it is another one (default: ``key``)."""
    corpora: list[str]
    """Where it is judged: figures that depend on the text on wikitext, general statements on both, where
    verdicts must agree.
    """
    region: Region
    """Values of the corrected quantity for which the claim is true."""
    published: float | None
    """None for a conclusion without a figure."""
    conclusion: bool
    """False for a figure that merely describes."""
    reason: dict[str, str] = field(default_factory=dict)
    """Why, per verdict, in a sentence without its full stop; it may name {published}, {rerun}, {corrected},
    {low}, {high}, {region} and {control}: what the published protocol gives for ``corrected_key``."""

    @property
    def studies(self) -> set[str]:
        """The studies it takes figures from."""
        return {study for key in (self.key, self.corrected_key) for study, _ in terms(key, self.study)[1]}


def read_claims(home: Path = HOME) -> list[Claim]:
    """All claims, report by report. Raises UserError naming the file, the claim, the field and the remedy."""
    claims: dict[str, Claim] = {}
    for study in studies(home).values():
        path = home / study.name / "claims.yaml"
        if not path.exists():
            continue
        for group in read_yaml(path) or ():
            shared = {name: value for name, value in group.items() if name != "rows"}
            shared |= {"study": study.name, "report": study.about.report}
            for row in group["rows"]:
                reason = shared.get("reason", {}) | row.get("reason", {})
                claim = _claim(shared | row | {"reason": reason}, f"{study.name}/claims.yaml")
                if claim.id in claims:
                    raise UserError(f"{study.name}/claims.yaml: id {claim.id} occurs twice; rename one")
                claims[claim.id] = claim
    order = list(REPORTS)
    return sorted(claims.values(), key=lambda claim: order.index(claim.report))


def _claim(given: dict[str, Any], file: str) -> Claim:
    name, values = given.get("id", "a row without id"), {"corrected_key": given.get("key")} | given
    band, region = values.pop("band", None), values.get("region")
    if (band is None) == (region is None) or (band is not None and band not in BANDS):
        raise UserError(
            f"{file}: {name}: region {region}, band {band}; "
            f"give a region or a band, one of {', '.join(BANDS)}"
        )
    if values["report"] not in REPORTS:
        raise UserError(
            f"{file}: {name}: the study's report is {values['report']}; claims are of {', '.join(REPORTS)}"
        )
    try:
        values["region"] = BANDS[band](values["published"]) if band else Region(*region)
        claim = Claim(**values, conclusion=band is None)
    except (TypeError, KeyError) as error:
        known = ", ".join(
            entry.name for entry in fields(Claim) if entry.name not in ("conclusion", "study", "report")
        )
        raise UserError(f"{file}: {name}: {error}; the fields are {known} and band") from error
    for what, values_given, allowed in (
        ("corpora", claim.corpora, CORPORA),
        ("reason", claim.reason, VERDICTS),
    ):
        if set(values_given) - set(allowed):
            raise UserError(
                f"{file}: {name}: {what} {', '.join(values_given)}; choose from {', '.join(allowed)}"
            )
    return claim


def region_text(region: Region) -> str:
    """The region in words."""
    if region.low is None:
        return f"at most {number(region.high)}"
    return (
        f"at least {number(region.low)}"
        if region.high is None
        else f"{number(region.low)} to {number(region.high)}"
    )


@dataclass(frozen=True)
class Judged:
    """A claim and what became of it. The corpus that comes first in ``corrected`` is the one the ledger
    shows.
    """

    claim: Claim
    rerun: float
    rerun_corpus: str
    control: float | None
    """The corrected quantity under the published protocol, where a reason speaks of it."""
    corrected: Mapping[str, Corrected]
    each: Mapping[str, Judgement]

    def row(self) -> dict[str, Any]:
        """The columns of the ledger; numbers as text of four significant digits."""
        claim, shown = self.claim, next(iter(self.corrected.values()))
        return {
            "id": claim.id,
            "report": claim.report,
            "section": claim.section,
            "statement": claim.statement,
            "published": number(claim.published),
            "rerun": number(self.rerun),
            "corrected": number(shown.value),
            "ci_low": number(shown.low),
            "ci_high": number(shown.high),
            "n": shown.n,
            "verdict": agree(self.each).verdict,
            "reason": self._reason(),
            "alias": claim.alias,
        }

    def _reason(self) -> str:
        judgement, shown = agree(self.each), next(iter(self.corrected.values()))
        default = REASONS["artefact" if judgement.verdict == "artefact" else judgement.why]
        figures = {
            "published": self.claim.published,
            "rerun": self.rerun,
            "control": self.control,
            "corrected": shown.value,
            "low": shown.low,
            "high": shown.high,
        }
        written = {name: number(value) for name, value in figures.items()}
        written["region"] = region_text(self.claim.region)
        sentence = self.claim.reason.get(judgement.verdict, default).format(**written)
        return f"{sentence} ({self._corpora(judgement)})."

    def _corpora(self, judgement: Judgement) -> str:
        """Which corpora gave the figures, and those of the corpora that the columns do not show."""
        first, *others = self.corrected
        words = CORPORA[first]
        if first != self.rerun_corpus:
            words = f"rerun: {CORPORA[self.rerun_corpus]}, corrected: {words}"
        missing = [CORPORA[name] for name in self.claim.corpora if name not in self.corrected]
        if missing:
            words += f" alone, no corrected results of {missing[0]}"
        if judgement.why == "disagree":
            words += f": {self.each[first].verdict}"
        for name in others:
            other = self.corrected[name]
            words += f"; {CORPORA[name]} {number(other.value)} [{number(other.low)}, {number(other.high)}]"
            if judgement.why == "disagree":
                words += f": {self.each[name].verdict}"
        return words


def not_run(claim: Claim, results: Results) -> dict[str, Any] | None:
    """The row of a claim that cannot be judged because its study has no results yet; None if it can be."""
    reruns = any(results.has(claim.key, claim.study, "published", name) for name in CORPORA)
    corrected = any(
        results.has(claim.corrected_key, claim.study, "corrected", name) for name in {*claim.corpora, "sotu"}
    )
    if reruns and corrected:
        return None
    what = "published protocol" if corrected else "corrected protocol" if reruns else "study"
    row = {
        "id": claim.id,
        "report": claim.report,
        "section": claim.section,
        "statement": claim.statement,
        "published": number(claim.published),
        "n": 0,
        "verdict": "inconclusive",
        "reason": f"The {what} has not been run ({', '.join(sorted(claim.studies))}).",
        "alias": claim.alias,
    }
    return dict.fromkeys(COLUMNS, "") | row


def judge_claim(claim: Claim, results: Results) -> Judged:
    """The verdict on one claim. Raises UserError for a figure that is missing.

    One rerun serves all corpora, that on the text the report read if there is one: it tells whether the
    figure reproduces.
    """
    published_on = [name for name in CORPORA if results.has(claim.key, claim.study, "published", name)]
    judged_on = [
        name
        for name in CORPORA
        if name in claim.corpora and results.has(claim.corrected_key, claim.study, "corrected", name)
    ]
    rerun_corpus = next(iter(published_on), "sotu")
    alone = claim.corpora if claim.corpora == ["pangram"] else ["sotu"]
    corrected = {
        name: results.corrected(claim.corrected_key, claim.study, name) for name in judged_on or alone
    }
    rerun = results.published(claim.key, claim.study, rerun_corpus)
    compared = any("{control}" in text for text in claim.reason.values())
    control = results.published(claim.corrected_key, claim.study, rerun_corpus) if compared else None
    each = {name: judge(claim.region, rerun, figure) for name, figure in corrected.items()}
    return Judged(claim, rerun, rerun_corpus, control, corrected, each)


def write_ledger(home: Path = HOME, claims: list[Claim] | None = None) -> Path:
    """Write claims.csv in ``home``, the folder of all studies; same results, same bytes. Raises UserError as
    ``judge_claim`` does.
    """
    claims = read_claims(home) if claims is None else claims
    results = Results(home, {study for claim in claims for study in claim.studies})
    rows = []
    for claim in claims:
        try:
            rows.append(not_run(claim, results) or judge_claim(claim, results).row())
        except UserError as error:
            raise UserError(f"claim {claim.id}: {error}") from error
    path = home / "claims.csv"
    write_csv(path, COLUMNS, rows)
    return path


def main(arguments: Sequence[str]) -> None:
    print(f"wrote {write_ledger()}")
