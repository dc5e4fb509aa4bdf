"""The ledger: every claim of studies/*/claims.yaml with its rerun, its corrected figure and its verdict, and
every question of questions.yaml with its answer.

    python -m studies ledger               write claims.csv and questions.csv
    python -m studies ledger --check       fail if they differ from what would be written
    python -m studies ledger --validate    only read claims and questions, and tell what is wrong with them

Reads metrics/<study>.<corpus>.json and .csv, and writes below the folder of all studies. Where a study has
results on one of a claim's two texts alone, that text decides, and the reason says so; a claim whose study
has not been run on any of its texts is inconclusive and says that. The rerun is that of the text which the
report really read: the repeated pangram where a study has one.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from offramp.artifacts.files import write_csv
from offramp.errors import UserError
from studies.common.results import number
from studies.common.study import HOME
from studies.ledger.check import check_same
from studies.ledger.claims import Claim, Question, Statement, read_claims, read_questions
from studies.ledger.figures import CORPORA, Results
from studies.ledger.verdict import NEAR, Corrected, Judgement, Region, agree, answer, judge

Kind = TypeVar("Kind", bound=Statement)

LEDGER, ANSWERED = "claims.csv", "questions.csv"

COLUMNS = (
    "id",
    "report",
    "section",
    "statement",
    "kind",
    "published",
    "rerun",
    "rerun_scale",
    "corrected",
    "ci_low",
    "ci_high",
    "n",
    "verdict",
    "reason",
    "written",
    "alias",
)
QUESTION_COLUMNS = (
    "id",
    "study",
    "report",
    "statement",
    "rerun",
    "rerun_scale",
    "corrected",
    "ci_low",
    "ci_high",
    "n",
    "answer",
    "reason",
    "written",
    "alias",
)

REASONS = {
    "holds": "The rerun ({rerun}) and the corrected interval are within the claim's region ({region})",
    "holds only corrected": "The corrected interval is within the claim's region ({region}), the rerun "
    "({rerun}) is not",
    "artefact": "The published protocol gives {rerun}, within the claim's region ({region}); without its "
    "flaws it is {corrected}",
    "fails": "Neither the rerun ({rerun}) nor the corrected interval is within the claim's region ({region})",
    "not reproduced at this scale": "The rerun ({rerun}), of a smaller experiment than the report's, is not "
    "within the claim's region ({region}): nothing is judged",
    "yes": "The corrected interval is within the region ({region})",
    "no": "The corrected interval lies apart from the region ({region})",
    "edge": "The corrected interval reaches across the edge of the region ({region})",
    "few": "Random seeds are too few to decide",
    "disagree": "Corpora do not say the same about the region ({region})",
    "near": "The rerun ({rerun}) is within {near} % of an edge of the region ({region}), whose side decides",
    "other quantity": "The corrected figure is another quantity: {other_quantity}",
    "level": "A level of another {level_of}: the figures stand side by side",
}
"""By outcome or, for what remains undecided, by what decided; for statements that bring no reason of their
own."""

ROUNDING = 1e-6
"""Relative, or of figures below one absolute, difference that is arithmetic and no measurement."""

TOLD = ("few", "near")
"""What decided where the sentence of the file cannot know it."""

GIVEN = (
    *("id", "study", "report", "section", "statement", "kind"),
    *("published", "rerun_scale", "written", "alias"),
)
"""Columns that the file gives."""


def region_text(region: Region) -> str:
    """The region in words."""
    if region.low is None:
        return f"at most {exact(region.high)}"
    low = exact(region.low)
    return f"at least {low}" if region.high is None else f"{low} to {exact(region.high)}"


def exact(value: float | None) -> str:
    """A figure as text: whole numbers with all digits, others with four significant ones; empty for None."""
    if value is not None and float(value).is_integer() and abs(value) < 1e15:
        return str(int(value))
    return number(value)


@dataclass(frozen=True)
class Judged:
    """A claim or a question and what became of it."""

    statement: Statement
    rerun: float | None
    rerun_corpus: str
    control: float | None
    """The corrected quantity under the published protocol, where a reason speaks of it."""
    corrected: Mapping[str, Corrected]
    """By corpus; the ledger shows the first."""
    each: Mapping[str, Judgement]
    """By corpus."""
    judgement: Judgement
    """Of all corpora together."""
    undefined: Sequence[str]
    """Corpora on which some random seeds have no value."""

    def cells(self) -> dict[str, Any]:
        """The columns of the ledger that depend on results, but the outcome; numbers as text."""
        shown = next(iter(self.corrected.values()))
        return {
            "rerun": exact(self.rerun),
            "corrected": exact(shown.value),
            "ci_low": exact(shown.low),
            "ci_high": exact(shown.high),
            "n": shown.n,
            "reason": self._reason(shown),
        }

    def _reason(self, shown: Corrected) -> str:
        outcome, why = self.judgement.outcome, self.judgement.why
        sentence = REASONS.get(outcome) or REASONS[why]
        if why not in TOLD:
            sentence = self.statement.reason.get(outcome, sentence)
        figures = {
            "published": getattr(self.statement, "published", None),
            "rerun": exact(self.rerun),
            "control": exact(self.control),
            "corrected": exact(shown.value),
            "low": exact(shown.low),
            "high": exact(shown.high),
            "region": region_text(self.statement.rule),
            "near": number(100 * NEAR),
            "level_of": getattr(self.statement, "level_of", None),
            "other_quantity": getattr(self.statement, "other_quantity", None),
        }
        return f"{sentence.format(**figures)} ({self._corpora()})."

    def _corpora(self) -> str:
        """Which corpora gave the figures, and those of the corpora that the columns do not show."""
        first, *others = self.corrected
        words = CORPORA[first]
        if first != self.rerun_corpus and self.rerun is not None:
            words = f"rerun: {CORPORA[self.rerun_corpus]}, corrected: {words}"
        missing = [CORPORA[name] for name in self.statement.corpora if name not in self.corrected]
        if missing:
            why = f"no corrected results of {missing[0]}"
            if self.undefined:
                why = f"not defined for every random seed on {CORPORA[self.undefined[0]]}"
            words += f" alone, {why}"
        if self.judgement.why == "disagree":
            words += f": {self.each[first].outcome}"
        for name in others:
            other = self.corrected[name]
            words += f"; {CORPORA[name]} {exact(other.value)} [{exact(other.low)}, {exact(other.high)}]"
            if self.judgement.why == "disagree":
                words += f": {self.each[name].outcome}"
        return words


def judge_claim(claim: Claim, results: Results) -> Judged | None:
    """What became of a claim; None where its study has not been run. Raises UserError for a figure that is
    missing, and for an interval with a width where the claim is said to hold by construction.

    One rerun serves all corpora, that on the text the report read if there is one: it tells whether the
    figure reproduces.
    """
    corrected, rerun_corpus = _corrected(claim, results), _rerun_corpus(claim, results)
    if not corrected or rerun_corpus is None:
        return None
    rerun = results.published(claim.key, claim.study, rerun_corpus)
    if claim.construction and not all(_is_point(figure) for figure in corrected.values()):
        raise UserError("construction: the corrected figure has an interval; leave the field out")
    each: dict[str, Judgement] = {
        name: Judgement("not comparable", "level")
        if claim.level_of
        else judge(
            claim.rule,
            rerun,
            figure,
            smaller=claim.smaller,
            other_quantity=claim.other_quantity is not None,
        )
        for name, figure in corrected.items()
    }
    control = _control(claim, results, rerun_corpus)
    return Judged(
        claim,
        rerun,
        rerun_corpus,
        control,
        corrected,
        each,
        agree(each, "inconclusive"),
        _undefined(claim, results),
    )


def answer_question(question: Question, results: Results) -> Judged | None:
    """The answer to a question; None where its study has not been run. The published protocol may not measure
    the quantity. Raises UserError for a corrected figure that is missing.
    """
    corrected, rerun_corpus = _corrected(question, results), _rerun_corpus(question, results)
    if not corrected:
        return None
    rerun = control = None
    if rerun_corpus is not None and results.measures(question.key, question.study, rerun_corpus):
        rerun = results.published(question.key, question.study, rerun_corpus)
        control = _control(question, results, rerun_corpus)
    each = {name: answer(question.rule, figure) for name, figure in corrected.items()}
    return Judged(
        question,
        rerun,
        rerun_corpus or "",
        control,
        corrected,
        each,
        agree(each, "no answer yet"),
        _undefined(question, results),
    )


def _corrected(statement: Statement, results: Results) -> dict[str, Corrected]:
    """The corrected figure on every corpus on which it is judged; empty where there is none yet."""
    key, study, undefined = statement.corrected_key, statement.study, _undefined(statement, results)
    run = [name for name in CORPORA if results.has(key, study, "corrected", name) and name not in undefined]
    return {name: results.corrected(key, study, name) for name in run if name in statement.corpora}


def _undefined(statement: Statement, results: Results) -> list[str]:
    """Corpora on which it would be judged, were its figure defined for every random seed."""
    key, study = statement.corrected_key, statement.study
    return [name for name in statement.corpora if results.undefined(key, study, name)]


def _rerun_corpus(statement: Statement, results: Results) -> str | None:
    """The text whose rerun counts; None where the published protocol has not been run."""
    run = (name for name in CORPORA if results.has(statement.key, statement.study, "published", name))
    return next(run, None)


def _is_point(figure: Corrected) -> bool:
    """Whether random seeds differ by no more than rounding."""
    return math.isclose(figure.low, figure.high, rel_tol=ROUNDING, abs_tol=ROUNDING)


def _control(statement: Statement, results: Results, corpus: str) -> float | None:
    wanted = any("{control}" in text for text in statement.reason.values())
    return results.published(statement.corrected_key, statement.study, corpus) if wanted else None


def _claim_row(claim: Claim, results: Results) -> dict[str, Any]:
    """A row of the ledger: what the file gives, what the results give, and the verdict."""
    row = {name: getattr(claim, name) for name in COLUMNS if name in GIVEN}
    judged = judge_claim(claim, results)
    if judged is None:
        undecided = "not comparable" if claim.level_of else "inconclusive"
        return {**row, "n": 0, "verdict": undecided, "reason": _why_undecided(claim, results)}
    return {**row, **judged.cells(), "verdict": judged.judgement.outcome}


def _question_row(question: Question, results: Results) -> dict[str, Any]:
    row = {name: getattr(question, name) for name in QUESTION_COLUMNS if name in GIVEN}
    judged = answer_question(question, results)
    if judged is None:
        return {**row, "n": 0, "answer": "no answer yet", "reason": _why_undecided(question, results)}
    return {**row, **judged.cells(), "answer": judged.judgement.outcome}


def _why_undecided(statement: Statement, results: Results) -> str:
    if undefined := _undefined(statement, results):
        return f"It is not defined for every random seed on {CORPORA[undefined[0]]}."
    texts = " or ".join(CORPORA[name] for name in CORPORA if name in statement.corpora)
    return f"Not all of it has been run on {texts} ({', '.join(sorted(statement.studies))})."


def write_ledger(home: Path = HOME, folder: Path | None = None) -> list[Path]:
    """Write claims.csv and questions.csv of the studies below ``home`` to ``folder`` (default: ``home``).

    Same results, same bytes. Raises UserError for claims that cannot be read and figures that are missing.
    """
    claims, questions = read_claims(home), read_questions(home)
    rows: list[Statement] = [*claims, *questions]
    results = Results(home, {study for row in rows for study in row.studies})
    folder = folder or home
    write_csv(folder / LEDGER, COLUMNS, _rows(claims, _claim_row, results))
    write_csv(folder / ANSWERED, QUESTION_COLUMNS, _rows(questions, _question_row, results))
    return [folder / LEDGER, folder / ANSWERED]


def _rows(
    statements: Sequence[Kind], row: Callable[[Kind, Results], dict[str, Any]], results: Results
) -> list[dict[str, Any]]:
    """``row`` of every statement; its error with the statement's study and id."""
    out = []
    for statement in statements:
        try:
            out.append(row(statement, results))
        except UserError as error:
            raise UserError(f"studies/{statement.study}: {statement.id}: {error}") from error
    return out


def check_ledger(home: Path = HOME) -> None:
    """Raise UserError if the files below ``home`` are not what would be written now."""
    with TemporaryDirectory() as folder:
        written = write_ledger(home, Path(folder))
        names = [path.name for path in written]
        check_same(Path(folder), home, names, "run `python -m studies ledger` and commit what it writes")


def validate(home: Path = HOME) -> str:
    """How many claims and questions there are. Raises UserError with all that is wrong with them; needs no
    results.
    """
    return f"{len(read_claims(home))} claims and {len(read_questions(home))} questions can be read"


def main(arguments: Sequence[str], home: Path = HOME) -> None:
    parser = argparse.ArgumentParser(prog="python -m studies ledger", description=__doc__.split("\n\n")[0])
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--check", action="store_true", help="fail if the files are not up to date")
    choice.add_argument("--validate", action="store_true", help="only read claims and questions")
    chosen = parser.parse_args(arguments)
    if chosen.validate:
        print(validate(home))
    elif chosen.check:
        check_ledger(home)
        print("the ledger is up to date")
    else:
        print("\n".join(f"wrote {path}" for path in write_ledger(home)))
