"""Make the console that tables are printed to."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

UNLIMITED = 10_000  # characters; rich makes a table only as wide as its content


def stdout_console() -> "Console":
    """Return a console for stdout that cuts no table where stdout is not a terminal: in a pipe or a file."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=UNLIMITED)
