"""Counting what faults did."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, field
from typing import Any

from tests.faults.project import Outcome


@dataclass
class Tally:
    """The trials of one kind of fault."""

    what: str
    """The fault, in words."""
    promise: str
    """What has to hold after it."""
    trials: int = 0
    survived: int = 0
    lost: int = 0
    """Results that were overwritten, missing or other ones, or an ending that was not the promised one."""
    tracebacks: int = 0
    hangs: int = 0
    failures: list[str] = field(default_factory=list)
    """What each failed trial was."""

    def count(self, name: str, *outcomes: Outcome, wrong: str | None) -> None:
        """Count one trial; ``wrong`` says what of the promise did not hold."""
        self.trials += 1
        problem = wrong
        if any(outcome.code is None for outcome in outcomes):
            self.hangs += 1
            problem = "hung"
        elif any(outcome.traceback for outcome in outcomes):
            self.tracebacks += 1
            problem = "traceback"
        elif wrong:
            self.lost += 1
        if problem is None:
            self.survived += 1
            return
        said = " | ".join(outcome.said[-700:] for outcome in outcomes)
        self.failures.append(f"{name}: {problem}: {said}")
        print(f"FAILED {self.failures[-1]}", file=sys.stderr, flush=True)

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "failures"}
