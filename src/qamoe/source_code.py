"""Parse source files: what they import, and their code without comments, docstrings and layout."""

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from qamoe.errors import UserError

_WITH_DOCSTRING = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def imported_names(path: Path) -> frozenset[str]:
    """Return the dotted names that a file imports, also inside functions.

    Raises UserError with path and line for invalid Python and for a relative import.
    """
    with _named(path):
        return _imported_names(path.read_text(encoding="utf-8"))


def normalised_source(path: Path) -> str:
    """Return the source rewritten from its syntax tree, without comments, docstrings and layout.

    Raises UserError with path and line if it is not valid Python.
    """
    with _named(path):
        return _normalised_source(path.read_text(encoding="utf-8"))


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turn errors of the parser into one that names the file."""
    try:
        yield
    except SyntaxError as error:
        raise UserError(f"{path}, line {error.lineno}: {error.msg}.") from None
    except ValueError as error:  # bytes that are not UTF-8, or a null byte
        raise UserError(f"{path} is not a valid Python source file: {error}.") from None


@cache  # several stages share most of their files
def _imported_names(text: str) -> frozenset[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level or node.module is None:
                raise SyntaxError(
                    "relative import; write the full name, from qamoe on", (None, node.lineno, None, None)
                )
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


@cache
def _normalised_source(text: str) -> str:
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, _WITH_DOCSTRING) and ast.get_docstring(node, clean=False) is not None:
            del node.body[0]
    return ast.unparse(tree)
