"""What studies/*/claims.yaml and questions.yaml say: a report's claims, and our own questions, by a strict
schema.

Both files are lists of groups: fields that rows share, and ``rows``, whose own fields override them. Every
problem of every file is told at once, with file, id, field and remedy.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)
from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import YAMLError

from offramp.errors import UserError
from studies.common.study import HOME, REPORTS, Study, Text, studies
from studies.ledger.figures import terms
from studies.ledger.verdict import ANSWERS, VERDICTS, Region, level_band, share_band

CLAIMS, QUESTIONS = "claims.yaml", "questions.yaml"
AS_PUBLISHED = "as published"
"""The rerun scale of a protocol with the report's text, size and epochs."""

REASON_FIGURES = ("published", "rerun", "corrected", "low", "high", "region", "control")
"""Figures that a reason may name, in braces."""

PLAIN = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)
"""A number in decimal digits."""

BANDS = {"level": level_band, "share": share_band}
Written = Literal["before", "after_pilot", "after_results"]
Kind = Literal["figure", "conclusion", "construction"]
Result = TypeVar("Result")
Read = TypeVar("Read", bound="Statement")
Words = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]


class Numeral(float):
    """A number with the digits that a file gives it."""

    text: str

    def __new__(cls, text: str) -> Numeral:
        number = super().__new__(cls, text)
        number.text = text
        return number


class _Constructor(SafeConstructor):
    """Plain YAML whose numbers keep their digits: 11.40 is not 11.4 in a table of published figures."""

    def construct_numeral(self, node: Any) -> Numeral | str:
        text = self.construct_scalar(node)
        return Numeral(text) if PLAIN.fullmatch(text) else text


for _tag in ("float", "int"):
    _Constructor.add_constructor(f"tag:yaml.org,2002:{_tag}", _Constructor.construct_numeral)


def _digits(value: Any) -> Any:
    return value.text if isinstance(value, Numeral) else value


def _numeric(value: str | None) -> str | None:
    if value is not None and not PLAIN.fullmatch(value):
        raise ValueError(f"{value!r} is no number; write a share as a fraction, and nothing but digits")
    return value


def _heading(value: str) -> str:
    if re.fullmatch(r"[\d.]+", value):
        raise ValueError(f"{value!r} is a number; write the report's heading as it stands there")
    return value


def _region(value: Any) -> Region | None:
    if value is None or isinstance(value, Region):
        return value
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError("is not [low, high]; null is an open end")
    if not all(bound is None or isinstance(bound, float) for bound in value):
        raise ValueError("has a bound that is no number")
    try:
        return Region(*value)
    except UserError as error:
        raise ValueError(str(error)) from error


def _problem(field: str, what: str) -> ValueError:
    return ValueError(f"{field}: {what}")


def _checked(field: str, read: Callable[[], Result]) -> Result:
    """What ``read()`` gives; its error under the field's name."""
    try:
        return read()
    except (UserError, ValueError) as error:
        raise _problem(field, str(error).removeprefix(f"{field}: ")) from error


class Statement(BaseModel):
    """What claims and questions have in common."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, arbitrary_types_allowed=True)
    outcomes: ClassVar[tuple[str, ...]]
    """What the rule may say of it: the keys of ``reason``."""

    study: str
    """The study whose folder the file stands in."""
    report: str | None
    """The study's report; None for a study of no report."""
    id: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+([-.][a-z0-9]+)*$")]
    alias: str = ""
    """The id that the row had when reports had numbers."""
    statement: Words
    key: str
    """The study's name of the figure; "a - b" and "a / b" combine two, "study:key" is of another study."""
    corrected_key: str
    """The corrected quantity where it has another name (default: ``key``)."""
    corpora: Annotated[list[Text], Field(min_length=1)]
    """Texts on which it is judged; where there are two, verdicts must agree."""
    region: Annotated[Region | None, BeforeValidator(_region)] = None
    """Values of the corrected quantity for which the statement is true."""
    written: Written
    """When the region or band was written, relative to the results that it judges."""
    reason: dict[str, str] = {}
    """Why, by outcome, in a sentence without its full stop; figures stand in braces (``REASON_FIGURES``).
    {control} is what the published protocol gives for ``corrected_key``."""

    @model_validator(mode="after")
    def _consistent(self) -> Statement:
        for field in ("key", "corrected_key"):
            operator = _checked(field, lambda field=field: terms(getattr(self, field), self.study))[0]
            if field == "corrected_key" and operator == "/":
                raise _problem(field, "is a ratio, which has no interval; give the name of a figure or a - b")
        for outcome, text in self.reason.items():
            self._check_reason(f"reason.{outcome}", outcome, text)
        return self

    def _check_reason(self, field: str, outcome: str, text: str) -> None:
        if outcome not in self.outcomes:
            raise _problem(field, f"is of no outcome; choose from {', '.join(self.outcomes)}")
        named = _checked(
            field, lambda: {name for _, name, _, _ in Formatter().parse(text) if name is not None}
        )
        if named - set(REASON_FIGURES):
            allowed = ", ".join(f"{{{name}}}" for name in REASON_FIGURES)
            raise _problem(
                field, f"names {', '.join(sorted(named - set(REASON_FIGURES)))}; choose from {allowed}"
            )
        if text.rstrip().endswith("."):
            raise _problem(field, "ends with a full stop; leave it out")

    @property
    def terms(self) -> set[tuple[str, str]]:
        """Study and name of every figure it takes."""
        return {term for key in (self.key, self.corrected_key) for term in terms(key, self.study)[1]}

    @property
    def studies(self) -> set[str]:
        """The studies it takes figures from."""
        return {study for study, _ in self.terms}

    @property
    def rule(self) -> Region:
        """Values of the corrected quantity for which it is true."""
        assert self.region is not None
        return self.region


class Claim(Statement):
    """Something that a report says.

    A conclusion has a region; a figure that merely describes has a band around what was published: level
    (within 25 % of it: nats, perplexities, thresholds) or share (within 0.05 of it: correlations, shares,
    accuracies). ``region`` is that of either once it is read.
    """

    outcomes: ClassVar[tuple[str, ...]] = VERDICTS

    section: Annotated[Words, AfterValidator(_heading)]
    """The report's own heading."""
    published: Annotated[str | None, BeforeValidator(_digits), AfterValidator(_numeric)] = None
    """The figure with the report's digits; None for a statement without one."""
    band: Literal["level", "share"] | None = None
    rerun_scale: Words
    """At which scale the published protocol was rerun, in words; ``AS_PUBLISHED`` for the report's own."""
    smaller: bool = False
    """Whether the rerun is smaller than the report's experiment in text, width or epochs."""
    level_of: Words | None = None
    """Of what the figure is a level that the report's differs in: "text and vocabulary", "machine"."""
    other_quantity: Words | None = None
    """What the corrected figure is, where it is not the report's own quantity."""
    construction: bool = False
    """Whether it holds by construction, such as a parameter count."""

    @model_validator(mode="after")
    def _judgeable(self) -> Claim:
        if self.report not in REPORTS:
            raise _problem("report", f"of the study is {self.report}; move the row to {QUESTIONS}")
        if (self.band is None) == (self.region is None):
            both = "both are given; keep one" if self.band else "give one of them"
            raise _problem("region, band", f"{both}: a region for a conclusion, a band for a figure")
        if self.smaller and self.rerun_scale == AS_PUBLISHED:
            raise _problem("smaller", f"contradicts rerun_scale {AS_PUBLISHED!r}; say which scale it is")
        if self.published is None and self.band:
            raise _problem("published", "is missing; a band is drawn around it")
        if self.figure is not None and not self.rule.contains(self.figure):
            raise _problem(
                "region", f"excludes the published figure {self.published}; mend the region or the figure"
            )
        return self

    @property
    def figure(self) -> float | None:
        """The published figure as a number."""
        return None if self.published is None else float(self.published)

    @property
    def rule(self) -> Region:
        if self.band is None:
            return super().rule
        assert self.figure is not None
        return BANDS[self.band](self.figure)

    @property
    def kind(self) -> Kind:
        if self.construction:
            return "construction"
        return "figure" if self.band else "conclusion"


class Question(Statement):
    """Something that we ask and no report says: the answer is yes where the corrected interval lies in
    ``region``, no where it lies apart from it.
    """

    outcomes: ClassVar[tuple[str, ...]] = ANSWERS

    rerun_scale: str = ""
    """At which scale the published protocol was rerun, where it measures the quantity at all."""

    @model_validator(mode="after")
    def _has_region(self) -> Question:
        if self.region is None:
            raise _problem("region", "is missing; say for which values the answer is yes")
        return self


@dataclass(frozen=True)
class Statements:
    """Claims, report by report, and questions, study by study, of all studies; what cannot be read is among
    the problems instead.
    """

    claims: list[Claim]
    questions: list[Question]
    problems: list[str]


def read_statements(home: Path = HOME) -> Statements:
    """All claims and questions below ``home``, the folder of all studies."""
    known, problems = _described(home)
    claims = [row for study in known.values() for row in _read(study, CLAIMS, Claim, known, problems)]
    questions = [
        row for study in known.values() for row in _read(study, QUESTIONS, Question, known, problems)
    ]
    for field in ("id", "alias"):
        counts = Counter(getattr(row, field) for row in [*claims, *questions])
        for value, count in counts.items():
            if value and count > 1:
                problems.append(
                    f"studies/*/{{{CLAIMS},{QUESTIONS}}}: {value}: {field}: occurs {count} times; rename"
                )
    order = list(REPORTS)
    claims.sort(key=lambda claim: order.index(str(claim.report)))
    return Statements(claims, questions, problems)


def _described(home: Path) -> tuple[dict[str, Study], list[str]]:
    """The studies whose study.yaml can be read, and what is wrong with the others."""
    known, problems = studies(home), []
    for study in list(known.values()):
        try:
            _ = study.about
        except UserError as error:
            problems.append(str(error))
            del known[study.name]
    return known, problems


def read_claims(home: Path = HOME) -> list[Claim]:
    """All claims, report by report. Raises UserError with every problem of claims and questions."""
    return _whole(home).claims


def read_questions(home: Path = HOME) -> list[Question]:
    """All questions of our own, study by study. Raises UserError as ``read_claims`` does."""
    return _whole(home).questions


def _whole(home: Path) -> Statements:
    statements = read_statements(home)
    if statements.problems:
        raise UserError("\n".join([*statements.problems, f"{len(statements.problems)} problems"]))
    return statements


def _read(
    study: Study, name: str, kind: type[Read], known: Mapping[str, Study], problems: list[str]
) -> list[Read]:
    """The rows of one file, none where it does not exist; what is wrong is added to ``problems``."""
    path = study.home / study.name / name
    if not path.exists():
        return []
    file = f"{study.home.name}/{study.name}/{name}"
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _Constructor
    try:
        groups = yaml.load(path.read_text(encoding="utf-8")) or []
    except YAMLError as error:
        problems.append(f"{file}: is no YAML: {' '.join(str(error).split())}")
        return []
    out: list[Read] = []
    for place, group in enumerate(groups if isinstance(groups, list) else [groups], 1):
        rows = group.get("rows") if isinstance(group, Mapping) else None
        if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
            problems.append(
                f"{file}: group {place}: rows: is no list of rows; give the group rows with fields"
            )
            continue
        shared = {field: value for field, value in group.items() if field != "rows"}
        for row in rows:
            given = shared | row
            if isinstance(shared.get("reason"), Mapping) and isinstance(row.get("reason"), Mapping):
                given["reason"] = {**shared["reason"], **row["reason"]}
            try:
                out.append(_row(given, study, kind, known))
            except ValueError as error:
                problems += [f"{file}: {row.get('id', f'group {place}')}: {one}" for one in error.args]
    return out


def _row(given: Mapping[str, Any], study: Study, kind: type[Read], known: Mapping[str, Study]) -> Read:
    """One row with the fields of its group. Raises ValueError with one argument per problem."""
    fields = [field for field in kind.model_fields if field not in ("study", "report")]
    values = {name: value for name, value in given.items() if name in fields}
    if "key" in given:
        values = {"corrected_key": given["key"]} | values
    problems = [
        f"{field}: is no field of a {kind.__name__.lower()}; choose from {', '.join(fields)}"
        for field in given
        if field not in fields
    ]
    try:
        row = kind.model_validate(values | {"study": study.name, "report": study.about.report})
    except ValidationError as error:
        raise ValueError(*problems, *map(_told, error.errors())) from None
    problems += [
        f"key: {name} is no study; choose from {', '.join(known)}"
        for name in sorted(row.studies - set(known))
    ]
    if problems:
        raise ValueError(*problems)
    return row


def _told(error: Any) -> str:
    """A problem that the schema tells, as field, what and remedy."""
    field, message = ".".join(map(str, error["loc"])), error["msg"].removeprefix("Value error, ")
    if error["type"] == "missing":
        message = "is missing; add it to the row or its group"
    elif error["type"] != "value_error":
        message = f"{error['input']!r}: {message[0].lower()}{message[1:]}"
    return f"{field}: {message}" if field else message
