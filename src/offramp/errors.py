"""Errors that a user can act on."""

from __future__ import annotations


class UserError(Exception):
    """Wrong input: the message names the key or file, the value and the remedy. Shown without a traceback."""
