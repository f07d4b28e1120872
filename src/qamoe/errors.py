"""UserError, the one exception whose message is written for users, and how a command exits with it."""

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
    """Exit with code 2 and the message on stderr if the body raises UserError, with code 130 on Ctrl-C."""
    try:
        yield
    except UserError as error:
        print(f"{command}: {error}", file=sys.stderr)
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
