"""``python -m studies all --corpus TEXT``: every study that is run on that text, one after the other."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import get_args

from studies.common import run
from studies.common.study import Text, studies


def main(arguments: Sequence[str]) -> None:
    """The command line; the first study that fails ends it."""
    parser = argparse.ArgumentParser(prog="python -m studies all", description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", choices=get_args(Text), required=True)
    corpus = parser.parse_args(arguments).corpus
    for study in studies().values():
        if corpus in study.about.texts:
            run.main(study, ["--corpus", corpus])
