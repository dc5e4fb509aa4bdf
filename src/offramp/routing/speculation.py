"""Self-speculation as it goes: which exit drafts, how many tokens, and whether drafting pays at all.

Everything is decided from what was measured so far: how often drafted tokens are right, and the seconds that
drafting a token, verifying a draft and a plain step take. Exits are tried in turn; then the one that promises
most tokens per second drafts, as many tokens as promise most. An exit whose cycles take longer than the plain
steps they stand for is given up for good.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from offramp.errors import UserError


@dataclass
class Drafting:
    """What drafting from one exit has brought, and taken."""

    length: int
    """Most tokens of one draft."""
    reach: int = 1
    """Most tokens of the next draft, while the exit is tried. Drafts begin with one token, which needs fewest
    of them to be right and costs least to find out, and grow while all are."""
    drafted: int = 0
    accepted: int = 0
    judged: int = 0
    """Drafted tokens up to the first wrong one of each draft."""
    draft_seconds: list[float] = field(default_factory=list)
    """Per cycle, of one drafted token."""
    verify_seconds: list[float] = field(default_factory=list)
    cycle_seconds: list[float] = field(default_factory=list)
    cycle_tokens: list[float] = field(default_factory=list)
    """Tokens made per row and cycle."""
    given_up: bool = False

    RECENT = 8

    def count(self, drafted: int, accepted: int, judged: int) -> None:
        """Twice as many tokens after a cycle whose drafts were all right, one fewer after another."""
        self.drafted += drafted
        self.accepted += accepted
        self.judged += judged
        if accepted < drafted:
            self.reach = max(1, self.reach - 1)
        elif drafted:
            self.reach = min(self.length, 2 * self.reach)

    def time(self, drafting: float, fed: int, verifying: float) -> None:
        """Seconds of a cycle's drafting, in which tokens were fed so many times, and of its verification."""
        self.draft_seconds.append(drafting / fed)
        self.verify_seconds.append(verifying)

    def speed(self, length: int) -> float:
        """Tokens per row and second that drafts of this length promise.

        Of ``length`` tokens that are each right with the share of those judged so far, those before the first
        wrong one count, and the one that verification adds.
        """
        if not self.draft_seconds:
            return 0.0
        right = (self.accepted + 1) / (self.judged + 2)
        tokens = sum(right**place for place in range(length + 1))
        return tokens / ((length + 1) * _mean(self.draft_seconds) + _mean(self.verify_seconds))

    @property
    def best_length(self) -> int:
        """The length of drafts that promises most."""
        return max(range(1, self.length + 1), key=self.speed)

    def pays(self, plain: float) -> bool:
        """Whether recent cycles took no longer than the plain steps, of ``plain`` seconds, they stand for."""
        recent = slice(-self.RECENT, None)
        return sum(self.cycle_seconds[recent]) <= plain * sum(self.cycle_tokens[recent])


def _mean(values: Sequence[float]) -> float:
    recent = values[-Drafting.RECENT :]
    return sum(recent) / len(recent)


@dataclass
class Speculation:
    """How drafts are made, and whether they pay: measured, and given up for good where they do not.

    Seconds are of plain steps and of draft-and-verify cycles; a cycle is worth the plain steps it replaces.
    """

    exit: int | None = None
    """The exit that drafts; None: the one that turns out to be best."""
    length: int = 4
    """Most tokens of one draft."""
    confidence: float = 0.4
    """A draft ends at the first token with a smaller probability."""
    vocabulary: Tensor | None = None
    """Tokens (F,) that can be drafted; None: all. Reading out few of a large vocabulary makes drafts cheap,
    and verification reads out all."""
    pays: bool = True
    plain_seconds: list[float] = field(default_factory=list)
    by_exit: dict[int, Drafting] = field(default_factory=dict)
    """What each exit that may draft was seen to do."""

    PLAIN_STEPS, TRIAL = 2, 3

    def __post_init__(self) -> None:
        if self.length < 1:
            raise UserError(f"length = {self.length}: a draft has at least one token")
        self._rows: dict[int, Tensor] = {}

    def begin(self, last: int, stop: Collection[int], vocab_size: int) -> None:
        """Get ready for a model of ``last`` early exits; UserError for exits or tokens that it has not."""
        if self.exit is not None and not 0 <= self.exit < last:
            raise UserError(
                f"a draft needs an exit before the last; exit {self.exit} is not one of 0 to {last - 1}"
            )
        if self.vocabulary is not None:
            known = set(self.vocabulary.tolist())
            if not known or min(known) < 0 or max(known) >= vocab_size:
                raise UserError(
                    f"vocabulary of drafts: its {len(known)} tokens are not some of 0 to {vocab_size - 1}"
                )
            if missing := sorted(set(stop) - known):
                raise UserError(
                    f"vocabulary of drafts: token {missing[0]}, which ends a text, is not in it; add it, or "
                    "drafts would go on where texts end"
                )
        for exit in range(last) if self.exit is None else [self.exit]:
            self.by_exit.setdefault(exit, Drafting(self.length))

    @property
    def drafted(self) -> int:
        return sum(drafting.drafted for drafting in self.by_exit.values())

    @property
    def accepted(self) -> int:
        return sum(drafting.accepted for drafting in self.by_exit.values())

    @property
    def next_exit(self) -> int:
        """The exit that drafts next: one that is still tried, or the one that promises most."""
        left = {exit: drafting for exit, drafting in self.by_exit.items() if not drafting.given_up}
        for exit, drafting in left.items():
            if self._is_tried(drafting):
                return exit
        return max(left, key=lambda exit: left[exit].speed(left[exit].best_length))

    def next_length(self, exit: int) -> int:
        """Most tokens of the next draft from an exit."""
        drafting = self.by_exit[exit]
        return drafting.reach if self._is_tried(drafting) else drafting.best_length

    def judge(self, exit: int) -> None:
        """Give an exit up whose recent cycles did not pay, if no other length promises to; and drafting as a
        whole with the last of them."""
        drafting, plain = self.by_exit[exit], sum(self.plain_seconds) / len(self.plain_seconds)
        cycles = len(drafting.cycle_seconds)
        if cycles >= self.TRIAL and not drafting.pays(plain):
            hopeless = drafting.speed(drafting.best_length) * plain <= 1
            drafting.given_up = hopeless or cycles >= self.TRIAL + drafting.RECENT
        self.pays = not all(drafting.given_up for drafting in self.by_exit.values())

    def readout(self, matrix: Tensor) -> Tensor:
        """The rows of a readout matrix (V, D) that drafts are read out by, copied once."""
        assert self.vocabulary is not None
        key = matrix.data_ptr()
        if key not in self._rows:
            self._rows[key] = matrix.detach()[self.vocabulary.to(matrix.device)].contiguous()
        return self._rows[key]

    def _is_tried(self, drafting: Drafting) -> bool:
        return len(drafting.cycle_seconds) < self.TRIAL


def most_frequent(counts: Tensor, size: int, kept: Collection[int] = ()) -> Tensor:
    """The ``size`` tokens of highest ``counts`` (V,), and those that are ``kept`` anyway: (F,)."""
    frequent = counts.argsort(descending=True, stable=True)[:size]
    return torch.unique(torch.cat([frequent, torch.tensor(sorted(kept), dtype=torch.int64)]))
