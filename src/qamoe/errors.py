"""UserError, the one exception whose message is written for users, and how a command exits with it."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from qamoe.terminal import printable

# Packages that only an extra of pyproject.toml installs.
EXTRAS = {
    "fastapi": "serve",
    "h11": "serve",
    "starlette": "serve",
    "uvicorn": "serve",
    "jinja2": "train",
    "matplotlib": "train",
    "mlflow": "train",
    "optuna": "train",
    "ruamel": "train",
    "sqlalchemy": "train",
    "espeakng_loader": "sample",
    "faster_whisper": "speech",
}

_LONGEST = 2000  # characters of a message


class UserError(Exception):
    """Unusable input; the message gives the value seen, the values allowed and the place, in one sentence.

    A message with a very long value, such as a cell of a damaged table, is cut in the middle.
    """

    def __str__(self) -> str:
        text = super().__str__()
        return text if len(text) <= _LONGEST else f"{text[: _LONGEST * 3 // 4]} ... {text[-_LONGEST // 5 :]}"


@contextmanager
def exit_on_user_error(command: str) -> Iterator[None]:
    """Exit with code 2 and the message on stderr if the body raises UserError, with code 130 on Ctrl-C.

    A file or a stream that the system refuses is the user's matter too, so OSError is one sentence with its reason.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # here, because a failure at the end of the process is a traceback
    except UserError as error:
        print(f"{command}: {printable(str(error), chr(10))}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # the reader, such as `head`, has what it wants
        _abandon_stdout()
        sys.exit(1)
    except OSError as error:
        if error.strerror is None:  # raised by a library without a reason of the system
            raise
        _abandon_stdout()
        place = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        print(f"{command}: {printable(place)}{error.strerror}.", file=sys.stderr)
        sys.exit(2)
    except ModuleNotFoundError as missing:
        package = (missing.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        advice = f"pip install '.[{EXTRAS[package]}]' in the checkout installs it"
        print(f"{command}: the module {package} is not installed; {advice}.", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"{command}: stopped; start it again to go on.", file=sys.stderr)
        sys.exit(130)


def _abandon_stdout() -> None:
    """If stdout takes no more text, send the rest to /dev/null, so that the end of the process does not fail too."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
