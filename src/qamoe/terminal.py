"""Text for people: streams that take any text, and no control characters in what is shown."""

import logging
import os
import sys


def open_streams() -> None:
    """Open closed standard streams on /dev/null, and let stdout escape characters that its encoding lacks.

    Without this, the first file that a command opens takes the number of a closed stream, and a child process that
    prints would write into that file.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), "w" if number else "r"))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def printable(text: str, kept: str = "\t") -> str:
    """Replace unprintable characters, which could control the terminal, except those in `kept`."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() or letter in kept else "\N{REPLACEMENT CHARACTER}" for letter in text)


class _Printable(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), "\t\n")


def log_to_stderr() -> None:
    """Show warnings of all packages on stderr, without control characters."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Printable("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
