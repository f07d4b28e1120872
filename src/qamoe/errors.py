"""The one error that people are meant to read, and how a command ends with it."""

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
    """Input that cannot be used: what was seen, what is allowed, and where, in one sentence."""


@contextmanager
def exit_on_user_error(command: str) -> Iterator[None]:
    """End the process where the body raises UserError (a sentence on stderr, exit code 2) or Ctrl-C stops it (130)."""
    try:
        yield
    except UserError as refusal:
        print(f"{command}: {refusal}", file=sys.stderr)
        sys.exit(2)
    except ModuleNotFoundError as missing:
        package = (missing.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        advice = f"pip install '.[{EXTRAS[package]}]' in the checkout installs it"
        print(f"{command}: this needs {package}, which is not installed; {advice}.", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"{command}: stopped; start it again to go on.", file=sys.stderr)
        sys.exit(130)
