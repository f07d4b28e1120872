"""UserError, the one exception whose message is written for users, and how a command exits with it."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Packages that only an extra of pyproject.toml installs.
EXTRAS = {
    "fastapi": "serve",
    "starlette": "serve",
    "uvicorn": "serve",
    "jinja2": "train",
    "matplotlib": "train",
    "mlflow": "train",
    "optuna": "train",
    "ruamel": "train",
    "sqlalchemy": "train",
    "espeakng_loader": "sample",
}


class UserError(Exception):
    """Unusable input; the message gives the value seen, the values allowed and the place, in one sentence."""


@contextmanager
def exit_on_user_error(command: str) -> Iterator[None]:
    """Exit with code 2 and a sentence on stderr after a UserError or an error of the system, with code 130 on Ctrl-C.

    An error of the system is one with its number: a full disk, a folder that must not be written, and others.
    """
    try:
        yield
    except UserError as error:
        print(f"{command}: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno is None:
            raise
        place = "" if error.filename is None else f": {error.filename}"
        print(f"{command}: {error.strerror or os.strerror(error.errno)}{place}", file=sys.stderr)
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
