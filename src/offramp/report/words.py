"""Numbers as the page and the terminal write them."""

from __future__ import annotations


def percent(value: float) -> str:
    """A share in per cent."""
    return _minus(f"{100 * value:.1f}%")


def whole(value: float) -> str:
    """A share that someone chose, in per cent and with no more digits than it needs."""
    return f"{100 * value:g}%"


def points(value: float) -> str:
    """A difference of shares in percentage points."""
    return f"{100 * value:.1f} points"


def signed(value: float) -> str:
    """A change in per cent, with its sign."""
    return _minus(f"{100 * value:+.1f}%")


def perplexity(value: float) -> str:
    """Two decimals, none from a thousand on."""
    return f"{value:,.2f}" if value < 1000 else f"{value:,.0f}"


def nats(value: float) -> str:
    """Four decimals."""
    return _minus(f"{value:.4f}")


def _minus(text: str) -> str:
    """A typographic minus, and no negative zero."""
    digits = text.strip("+-%")
    if float(digits) == 0:
        return text.lstrip("+-")
    return text.replace("-", "\N{MINUS SIGN}")
