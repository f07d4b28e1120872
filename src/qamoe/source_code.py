"""Parse source files: what they import, and their code without comments, docstrings and layout."""

import ast
from functools import cache
from pathlib import Path

from qamoe.errors import UserError

_WITH_DOCSTRING = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def imported_names(path: Path) -> frozenset[str]:
    """Return the dotted names that a file imports, also inside functions.

    Raises UserError with path and line for invalid Python and for a relative import.
    """
    return _imported_names(_text(path), str(path))


def normalised_source(path: Path) -> str:
    """Return the source rewritten from its syntax tree, without comments, docstrings and layout.

    Raises UserError with path and line if it is not valid Python.
    """
    return _normalised_source(_text(path), str(path))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a valid Python source file: {error}.") from None


def _syntax_tree(text: str, path: str) -> ast.Module:
    try:
        return ast.parse(text, path)
    except SyntaxError as error:
        raise UserError(f"{path}, line {error.lineno}: {error.msg}.") from None
    except ValueError as error:  # a null byte
        raise UserError(f"{path} is not a valid Python source file: {error}.") from None


@cache  # several stages share most of their files
def _imported_names(text: str, path: str) -> frozenset[str]:
    names: set[str] = set()
    for node in ast.walk(_syntax_tree(text, path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level or node.module is None:
                raise UserError(f"{path}, line {node.lineno}: relative import; write the full name, from qamoe on.")
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


@cache
def _normalised_source(text: str, path: str) -> str:
    tree = _syntax_tree(text, path)
    for node in ast.walk(tree):
        if isinstance(node, _WITH_DOCSTRING) and ast.get_docstring(node, clean=False) is not None:
            del node.body[0]
    return ast.unparse(tree)
