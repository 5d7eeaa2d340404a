"""What a command says in place of a traceback."""

from __future__ import annotations


class CommandError(Exception):
    """Something that a command was asked for cannot be done; the message is one sentence for the user."""
