"""What a study is: a folder with study.yaml, claims.yaml and study.py, and nothing elsewhere.

study.yaml says what it asks, of which report, on which texts, with which settings (``About``). study.py has
``ARMS``, the names of what it compares, and one function per protocol, ``published(job)`` and
``corrected(job)``, each from a ``Job`` to an ``Outcome``. Settings are passed in: importing a study reads no
file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from ruamel.yaml import YAML

from offramp.errors import UserError
from studies.common.text import StudyText

HOME = Path(__file__).resolve().parents[1]
"""The folder of all studies: a DVC project of its own."""

SHARED = "common/settings.yaml"
"""Settings of models that several studies share, by section; relative to the folder of all studies."""

REPORTS = {
    "exit-labels": "labels for exit classifiers",
    "loss-prediction": "predicting the loss of a token",
    "character-systems": "recurrence, memory, supervision, growth and exits of character-level models",
    "context-vectors": "a recurrent context trained apart from what reads it",
    "selective-output": "a model that may decline to speak",
}
"""The earlier reports that studies test and what they are about, in the order of the findings."""

Report = Literal["exit-labels", "loss-prediction", "character-systems", "context-vectors", "selective-output"]
Text = Literal["pangram", "sotu", "wikitext"]
Protocol = Literal["published", "corrected"]


class About(BaseModel):
    """The contents of study.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    report: Report | None
    """The report whose claims it tests; None for a question of our own."""
    section: str
    """Where in the report, in its own words."""
    asks: str
    """The question, in one sentence."""
    texts: list[Text]
    """Texts that the study is run on; wikitext only where that text is there."""
    own_text: bool = False
    """Whether the corrected protocol runs on text of one's own, too."""
    published_text: Text | None = None
    """The only text that the published protocol is run on; None: on each."""
    published_alone: list[Text] = []
    """Texts that the corrected protocol is not run on."""
    published_seed: int = 42
    """The random seed of the published protocol."""
    seeds: list[int]
    """The random seeds of the corrected protocol."""
    threads: int = 1
    """CPU threads; arms that run side by side have one each."""
    shared: list[str] = []
    """Sections of common/settings.yaml that it takes."""
    settings: dict[str, Any]
    flaws: list[str]
    """What is wrong with the published protocol, in words."""
    story: str = ""
    """What the report did and concluded, and what a fair test is; the opening of the study's part of the
    findings.
    """
    facts: dict[Protocol, list[str]] = {}
    """Sentences of the findings by protocol; figures stand in braces, by their keys, and one that is missing
    drops its sentence.
    """
    timings: list[str] = []
    """Parts of the keys of values in seconds: no rerun gives them again."""
    pooled: list[str] = []
    """Parts of the keys of values that depend on all random seeds together, such as a loss held against the
    other seeds' models.
    """
    tiny: dict[str, Any] = {}
    """Values over ``settings`` with which every arm starts and ends within seconds, to see that it runs."""


@dataclass(frozen=True)
class Job:
    """What a protocol is given."""

    text: StudyText
    arms: tuple[str, ...]
    """Those wanted, in the study's order."""
    settings: Mapping[str, Any]
    """Of study.yaml."""
    shared: Mapping[str, Mapping[str, Any]]
    """Sections of common/settings.yaml by name."""
    seeds: tuple[int, ...]
    """Of the corrected protocol; the published one has the first of them alone, its own."""
    processes: int
    """Arms trained at a time, with one thread each."""
    cache: Path
    """Where models are kept that another study, or this one again, finds by the identity of what made them.
    """


@dataclass
class Outcome:
    """What a protocol found on one text."""

    rows: list[dict[str, float]]
    """Values by key, one dict per random seed, with equal keys; none where no wanted arm runs on this text.
    """
    figures: dict[str, Any] = field(default_factory=dict)
    """Tables and plots of the findings, by name."""
    sentences: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Study:
    """A study by its folder."""

    name: str
    home: Path = HOME

    @cached_property
    def about(self) -> About:
        """study.yaml. UserError that names file, field and value."""
        path = self.home / self.name / "study.yaml"
        try:
            return About.model_validate(read_yaml(path))
        except ValidationError as error:
            problems = (f"{path}: {'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
            raise UserError("\n".join(problems)) from None

    @cached_property
    def module(self) -> Any:
        return import_module(self.module_name)

    @property
    def module_name(self) -> str:
        return f"studies.{self.name}.study"

    @property
    def arms(self) -> list[str]:
        return list(self.module.ARMS)

    def protocol(self, name: Protocol) -> Callable[[Job], Outcome] | None:
        """The function of a protocol; None where the study has none of that name."""
        return getattr(self.module, name, None)

    def protocols_on(self, text: str, wanted: Sequence[Protocol]) -> list[Protocol]:
        """Those of the ``wanted`` protocols that are run on this text."""
        known: list[Protocol] = [name for name in wanted if self.protocol(name)]
        on_text = {
            "published": text != "own" and self.about.published_text in (None, text),
            "corrected": text not in self.about.published_alone,
        }
        return [name for name in known if on_text[name]]

    def job(
        self,
        text: StudyText,
        protocol: Protocol,
        cache: Path,
        arms: Sequence[str] = (),
        seeds: Sequence[int] = (),
        tiny: bool = False,
    ) -> Job:
        """The job of one protocol on one text; arms and seeds are the study's where none are given."""
        about, shared = self.about, read_yaml(self.home / SHARED)
        sections = {name: shared[name] for name in about.shared}
        settings: Mapping[str, Any] = about.settings
        if tiny:
            settings = merged(settings, about.tiny)
            sections = {
                name: merged(section, shared["tiny"].get(name, {})) for name, section in sections.items()
            }
        if protocol == "published":
            seeds = [about.published_seed]
        return Job(
            text=text,
            arms=tuple(chosen_arms(self.name, arms, self.arms)),
            settings=settings,
            shared=sections,
            seeds=tuple(seeds or (about.seeds[:2] if tiny else about.seeds)),  # an interval needs two
            processes=shared["processes"],
            cache=cache,
        )


def studies(home: Path = HOME) -> dict[str, Study]:
    """Every study by name: the folders of ``home`` that hold a study.yaml."""
    return {path.parent.name: Study(path.parent.name, home) for path in sorted(home.glob("*/study.yaml"))}


def study_of(name: str, home: Path = HOME) -> Study:
    """The study ``name``. UserError for one that does not exist."""
    known = studies(home)
    if name not in known:
        raise UserError(f"study = {name!r} does not exist; choose from {', '.join(known)}")
    return known[name]


def chosen_arms(study: str, wanted: Sequence[str], known: Sequence[str]) -> list[str]:
    """The arms asked for, in the study's order; all of them where none is. UserError for one that it does not
    have.
    """
    for name in wanted:
        if name not in known:
            raise UserError(
                f"--arm = {name!r} is not an arm of {study}; choose from {', '.join(map(repr, known))}"
            )
    return [name for name in known if not wanted or name in wanted]


def merged(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``settings`` with ``changes`` over them; sections within sections are merged, other values replaced."""
    out = dict(settings)
    for name, value in changes.items():
        inner = out.get(name)
        both = isinstance(value, Mapping) and isinstance(inner, Mapping)
        out[name] = merged(inner, value) if both else value
    return out


def read_yaml(path: Path) -> Any:
    return YAML(typ="safe").load(path.read_text(encoding="utf-8"))
