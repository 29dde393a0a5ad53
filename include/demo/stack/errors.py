"""The error of the embedded stack."""

from __future__ import annotations


class StackError(Exception):
    """Something that the person who runs the stack can act on; the text names it and the remedy."""
