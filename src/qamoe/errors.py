"""The one error that people are meant to read, and how a command ends with it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Input that cannot be used: what was seen, what is allowed, and where, in one sentence."""


@contextmanager
def exit_on_user_error(command: str) -> Iterator[None]:
    """End the process where the body raises UserError (a sentence on stderr, exit code 2) or Ctrl-C stops it (130)."""
    try:
        yield
    except UserError as refusal:
        print(f"{command}: {refusal}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"{command}: stopped; start it again to go on.", file=sys.stderr)
        sys.exit(130)
