"""The claims ledger: every claim of claims/*.yaml with its rerun, its corrected figure and its verdict.

    python -m studies.ledger.ledger

Reads metrics/studies/<study>.<corpus>.json and writes metrics/claims.csv. Where a study has no results on WikiText-2, the
published text, State of the Union decides alone, and the reason says so; a claim whose study has not been run is inconclusive
and says that. The rerun is that of the text which the seed really read: the repeated pangram where a study has one.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from offramp.artifacts.files import write_csv
from offramp.errors import UserError
from studies.ledger.figures import CORPORA, Results, number, terms
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

CLAIMS = Path(__file__).resolve().parents[1] / "claims"
LEDGER = Path("studies/claims.csv")
COLUMNS = (
    "id",
    "seed",
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
)
BANDS = {"level": level_band, "share": share_band}

REASONS = {
    "inside": "The corrected interval is within the claim's region ({region})",
    "apart": "Neither the rerun ({rerun}) nor the corrected interval is within the claim's region ({region})",
    "artefact": "The published protocol gives {rerun}, within the claim's region ({region}); without its flaws it is "
    "{corrected}",
    "edge": "The corrected interval reaches across the edge of the claim's region ({region})",
    "few": "Seeds are too few to decide",
    "no interval": "The corrected figure has no interval",
    "disagree": "Corpora disagree about the claim's region ({region})",
}
"""By what decided, for claims that bring no reason of their own."""


@dataclass(frozen=True)
class Claim:
    """One row of a file of claims with the fields of its group; the head of 003_004.yaml explains them."""

    id: str
    seed: str
    section: str
    statement: str
    study: str
    key: str
    corrected_key: str
    corpora: list[str]
    region: Region
    published: float | None
    conclusion: bool
    """False for a figure that merely describes: its region is a band around what was published."""
    reason: dict[str, str] = field(default_factory=dict)

    @property
    def studies(self) -> set[str]:
        """The studies it takes figures from."""
        return {study for key in (self.key, self.corrected_key) for study, _ in terms(key, self.study)[1]}


def read_claims(folder: Path = CLAIMS) -> list[Claim]:
    """All claims of the folder's files in order. Raises UserError naming the file, the claim, the field and the remedy."""
    claims: dict[str, Claim] = {}
    for path in sorted(folder.glob("*.yaml")):
        for group in YAML(typ="safe").load(path.read_text(encoding="utf-8")):
            shared = {name: value for name, value in group.items() if name != "rows"}
            for row in group["rows"]:
                claim = _claim(
                    shared | row | {"reason": shared.get("reason", {}) | row.get("reason", {})}, path.name
                )
                if claim.id in claims:
                    raise UserError(f"{path.name}: id {claim.id} occurs twice; rename one")
                claims[claim.id] = claim
    return list(claims.values())


def _claim(given: dict[str, Any], file: str) -> Claim:
    name, values = given.get("id", "a row without id"), {"corrected_key": given.get("key")} | given
    band, region = values.pop("band", None), values.get("region")
    if (band is None) == (region is None) or (band is not None and band not in BANDS):
        raise UserError(
            f"{file}: {name}: region {region}, band {band}; give a region or a band, one of "
            f"{', '.join(BANDS)}"
        )
    try:
        values["region"] = BANDS[band](values["published"]) if band else Region(*region)
        claim = Claim(**values, conclusion=band is None)
    except (TypeError, KeyError) as error:
        known = ", ".join(entry.name for entry in fields(Claim) if entry.name != "conclusion")
        raise UserError(f"{file}: {name}: {error}; the fields are {known} and band") from error
    for what, found, allowed in (("corpora", claim.corpora, CORPORA), ("reason", claim.reason, VERDICTS)):
        if set(found) - set(allowed):
            raise UserError(f"{file}: {name}: {what} {', '.join(found)}; choose from {', '.join(allowed)}")
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
    """A claim and what became of it. The corpus that comes first in ``corrected`` is the one the ledger shows."""

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
            "seed": claim.seed,
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
            found = self.corrected[name]
            words += f"; {CORPORA[name]} {number(found.value)} [{number(found.low)}, {number(found.high)}]"
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
        "seed": claim.seed,
        "section": claim.section,
        "statement": claim.statement,
        "published": number(claim.published),
        "n": 0,
        "verdict": "inconclusive",
        "reason": f"The {what} has not been run ({', '.join(sorted(claim.studies))}).",
    }
    return dict.fromkeys(COLUMNS, "") | row


def judge_claim(claim: Claim, results: Results) -> Judged:
    """The verdict on one claim. Raises UserError for a figure that is missing.

    One rerun serves all corpora, that on the text the seed read if there is one: it tells whether the figure reproduces.
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
    each = {name: judge(claim.region, rerun, found) for name, found in corrected.items()}
    return Judged(claim, rerun, rerun_corpus, control, corrected, each)


def write_ledger(root: Path = Path("."), claims: list[Claim] | None = None) -> Path:
    """Write metrics/claims.csv under ``root``; same results, same bytes. Raises UserError as ``judge_claim`` does."""
    claims = read_claims() if claims is None else claims
    results = Results(root, {study for claim in claims for study in claim.studies})
    rows = []
    for claim in claims:
        try:
            rows.append(not_run(claim, results) or judge_claim(claim, results).row())
        except UserError as error:
            raise UserError(f"claim {claim.id}: {error}") from error
    write_csv(root / LEDGER, COLUMNS, rows)
    return root / LEDGER


def main() -> None:
    try:
        print(f"wrote {write_ledger()}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
