"""Checks of options that several commands make, and the project that they are about."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from offramp.errors import UserError


def project_folder() -> Path:
    """The project that the current folder is in, as a relative path; the folder itself if it is in none."""
    from offramp.tracking.recorded import find_root

    try:
        return Path(os.path.relpath(find_root()))
    except UserError:
        return Path()


def refuse_idle(options: argparse.Namespace, applies: bool, names: Sequence[str], reason: str) -> None:
    """UserError for the first option of ``names`` that was given, where none of them has an effect."""
    present = [
        name for name in names if getattr(options, name) is not None and getattr(options, name) is not False
    ]
    if applies and present:
        raise UserError(f"--{present[0].replace('_', '-')} has no effect: {reason}; leave it out")


def check_exit(exit: int, exits: int) -> None:
    """UserError where ``--exit`` names no exit of states that have so many."""
    if not 0 <= exit < exits:
        raise UserError(f"--exit {exit}: these states have exits 0 to {exits - 1}")
