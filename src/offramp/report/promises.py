"""What is said of a rise in perplexity that was allowed: that it was kept, or not, or that nobody knows."""

from __future__ import annotations

from offramp.results.routing import RiseCheck
from offramp.results.shape import Interval

LEADS = {
    "kept": "The rise in perplexity that was allowed was kept on fresh text.",
    "not kept": "The rise in perplexity that was allowed was NOT kept on fresh text.",
    "not established": "Whether the rise in perplexity that was allowed was kept is not established.",
}


def in_short(check: RiseCheck) -> str:
    """What was allowed and what became of it, for the end of a sentence."""
    return f"allowed {_signed(check.allowed)}, {check.verdict} on test text"


def in_full(check: RiseCheck, leave: bool) -> tuple[str, str]:
    """The verdict, and the numbers that it rests on; ``leave`` says whether any test token does."""
    lead = (
        LEADS[check.verdict]
        if leave
        else "No candidate stayed within the rise that was allowed, so nothing leaves."
    )
    return lead, (
        f"Allowed: {_signed(check.allowed)} over full depth. Found on {check.tokens:,} held-out tokens of "
        f"{check.groups} {check.grouped_by} of calibration text by running {check.executed} of "
        f"{check.candidates} candidates, not a guarantee: {_rise(check.rise, check.interval)} there; the upper "
        f"end of the interval had to be within. On test text: {_rise(check.test_rise, check.test_interval)}."
    )


def _rise(value: float, bounds: Interval | None) -> str:
    return _signed(value) + (
        f" (95% interval {_signed(bounds[0])} to {_signed(bounds[1])})" if bounds else ""
    )


def _signed(value: float) -> str:
    """A rise in per cent, with two decimals: what is allowed may be a fraction of one."""
    text = f"{100 * value:+.2f}%"
    return "0.00%" if float(text[1:-1]) == 0 else text.replace("-", "\N{MINUS SIGN}")
