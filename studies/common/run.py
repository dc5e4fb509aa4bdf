"""Running a study: its protocols on a text, to its result files or to lines on the terminal."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from offramp.errors import UserError
from offramp.machine.device import setup
from studies.common.results import number, over_seeds, write_results
from studies.common.study import HOME, Outcome, Protocol, Study
from studies.common.text import StudyText, own_text, text_of

OWN_SPLITS = ("train", "calibration", "test")


def run_protocols(
    study: Study,
    text: StudyText,
    protocols: Sequence[Protocol],
    cache: Path,
    arms: Sequence[str] = (),
    seeds: Sequence[int] = (),
    tiny: bool = False,
) -> dict[Protocol, Outcome]:
    """The outcomes of those of the ``protocols`` that run on this text and have some of the ``arms`` there.

    UserError if none does.
    """
    setup("cpu", study.about.threads)
    outcomes = {}
    for name in study.protocols_on(text.corpus, protocols):
        run = study.protocol(name)
        assert run is not None
        outcome = run(study.job(text, name, cache, arms, seeds, tiny))
        if outcome.rows:
            outcomes[name] = outcome
    if not outcomes:
        wanted = f", arms {', '.join(map(repr, arms))}" if arms else ""
        raise UserError(
            f"{study.name} has nothing to run on the text {text.corpus} under protocol "
            f"{' or '.join(protocols)}{wanted}; "
            "leave out --protocol and --arm to see what it has"
        )
    return outcomes


def main(study: Study, arguments: Sequence[str], home: Path = HOME) -> None:
    """The command line of a study. All arms of the whole setting are written to its result files, anything
    less is printed.
    """
    given = _parser(study).parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format=f"{study.name}: %(message)s", stream=sys.stderr)
    text = _text(study, given)
    protocols: list[Protocol] = ["published", "corrected"] if given.protocol == "both" else [given.protocol]
    cache = home / "build" / ("tiny" if given.tiny else ".") / text.corpus
    outcomes = run_protocols(study, text, protocols, cache, given.arm, given.seed, given.tiny)
    if given.tiny or given.arm or given.seed:
        print("\n".join(_lines(outcomes)))
    else:
        logging.info("wrote %s", write_results(home, study, text, outcomes, study.about.seeds))


def _parser(study: Study) -> argparse.ArgumentParser:
    about = study.about
    parser = argparse.ArgumentParser(prog=f"python -m studies {study.name}", description=about.asks)
    parser.add_argument("--corpus", choices=about.texts, help="one of the study's texts")
    if about.own_text:
        for split in OWN_SPLITS:
            parser.add_argument(
                f"--{split}", type=Path, metavar="FILE", help=f"your own text for {split}, all three together"
            )
    parser.add_argument("--protocol", choices=("published", "corrected", "both"), default="both")
    names = ", ".join(map(repr, study.arms))
    parser.add_argument(
        "--arm", action="append", default=[], metavar="NAME", help=f"print this arm alone: {names}"
    )
    parser.add_argument(
        "--seed",
        action="append",
        default=[],
        type=int,
        help="print the corrected protocol of this random seed alone",
    )
    parser.add_argument(
        "--tiny", action="store_true", help="print what tiny settings give: only to see that it runs"
    )
    return parser


def _text(study: Study, given: argparse.Namespace) -> StudyText:
    files = {split: getattr(given, split, None) for split in OWN_SPLITS}
    if (given.corpus is None) != all(files.values()) or len({path is None for path in files.values()}) > 1:
        files_too = ", or --train, --calibration and --test together" if study.about.own_text else ""
        raise UserError(f"text: give --corpus{files_too}")
    return text_of(given.corpus) if given.corpus else own_text(**files)


def _lines(outcomes: Mapping[Protocol, Outcome]) -> list[str]:
    """Every value on a line, with its interval over random seeds where it has one."""
    lines = []
    for protocol, outcome in outcomes.items():
        if len(outcome.rows) == 1:
            lines += [f"{protocol}  {key}  {number(value)}" for key, value in outcome.rows[0].items()]
            continue
        for key, value in over_seeds(outcome.rows).items():
            low, high = number(value["low"]), number(value["high"])
            lines.append(f"{protocol}  {key}  {number(value['value'])} [{low}, {high}]")
    return lines
