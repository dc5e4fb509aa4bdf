"""What is said of a rise in perplexity that was allowed: that it was kept, or not, or that nobody knows."""

from __future__ import annotations

from offramp.results.routing import RiseCheck
from offramp.results.shape import Interval

LEADS = {
    "kept": "The allowed rise in perplexity was kept on fresh text.",
    "not kept": "The allowed rise in perplexity was NOT kept on fresh text.",
    "not established": "Whether the allowed rise in perplexity was kept on fresh text is not established.",
}
NONE = "No candidate stayed within the allowed rise in perplexity, so nothing leaves."


def in_short(check: RiseCheck) -> str:
    """What was allowed and what became of it, for the middle of a sentence."""
    allowed = f"allowed {_signed(check.allowed)}"
    if not check.place:
        return f"{allowed}, which no candidate kept on held-out text"
    if check.verdict == "not established":
        if check.test_interval is None:
            return f"{allowed}, not established on test text"
        low, high = map(_signed, check.test_interval)
        if check.test_rise <= check.allowed:
            return f"{allowed}: kept on test text, but the interval reaches {high}"
        return f"{allowed}: not kept on test text, but the interval reaches down to {low}"
    return f"{allowed}, {check.verdict} on test text"


def in_full(check: RiseCheck) -> tuple[str, str]:
    """The verdict, and the numbers that it rests on."""
    return LEADS[check.verdict] if check.place else NONE, (
        f"Allowed: {_signed(check.allowed)} over full depth. Found on {check.tokens:,} held-out tokens of "
        f"{check.groups} {check.grouped_by} of calibration text by running {check.executed} of "
        f"{check.candidates} candidates, not a guarantee: {_rise(check.rise, check.interval)} there; the "
        "upper end of the interval had to be within. On test text: "
        f"{_rise(check.test_rise, check.test_interval)}."
    )


def _rise(value: float, bounds: Interval | None) -> str:
    between = f" (95% interval {_signed(bounds[0])} to {_signed(bounds[1])})" if bounds else ""
    return _signed(value) + between


def _signed(value: float) -> str:
    """A rise in per cent, with two decimals: what is allowed may be a fraction of one."""
    text = f"{100 * value:+.2f}%"
    return "0.00%" if float(text[1:-1]) == 0 else text.replace("-", "\N{MINUS SIGN}")
