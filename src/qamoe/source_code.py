"""Parse source files, and reduce them to their code without comments, docstrings and layout."""

import ast
from pathlib import Path

from qamoe.errors import UserError

_WITH_DOCSTRING = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def syntax_tree(path: Path) -> ast.Module:
    """Parse a source file. Raises UserError with path and line if it is not valid Python."""
    try:
        return ast.parse(path.read_text(encoding="utf-8"), str(path))
    except SyntaxError as error:
        raise UserError(f"{path}, line {error.lineno}: {error.msg}.") from None
    except ValueError as error:  # bytes that are not UTF-8, or a null byte
        raise UserError(f"{path} is not a valid Python source file: {error}.") from None


def normalised_source(path: Path) -> str:
    """Return the source rewritten from its syntax tree, without comments, docstrings and layout."""
    tree = syntax_tree(path)
    for node in ast.walk(tree):
        if isinstance(node, _WITH_DOCSTRING) and ast.get_docstring(node, clean=False) is not None:
            del node.body[0]
    return ast.unparse(tree)
