"""Which source files can change the result of a stage: found by reading imports, never by running code.

dvc.yaml lists the same files as `deps` (a test compares the two), and a checkpoint carries their digest.
"""

import ast
import hashlib
from pathlib import Path

PACKAGE = Path(__file__).parent.parent
# Rooms that write down what happened or say where it runs; params.py holds no values, dvc.yaml tracks those.
UNCHANGING = (
    "cluster",
    "errors",
    "files",
    "lifetime",
    "params",
    "settings",
    "records",
    "stages.entry",
    "stages.closure",
)


def _file(module: str) -> Path | None:
    place = PACKAGE.parent.joinpath(*module.split("."))
    for path in (place.with_suffix(".py"), place / "__init__.py"):
        if path.is_file():
            return path
    return None


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def closure(module: str) -> list[Path]:
    """Sorted source files of qamoe that a module of it reaches by imports, itself included."""
    seen: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        short = name.removeprefix("qamoe.")
        path = _file(name)
        if path is None or name in seen or any(short == u or short.startswith(f"{u}.") for u in UNCHANGING):
            continue
        seen[name] = path
        parents = [".".join(name.split(".")[:i]) for i in range(2, name.count(".") + 1)]
        waiting += [n for n in imports(path) if n.startswith("qamoe.")] + parents
    return sorted(path for path in set(seen.values()) if path.stat().st_size > 0)


def code_digest(module: str) -> str:
    """SHA-256 over the names and contents of a module's closure."""
    digest = hashlib.sha256()
    for path in closure(module):
        digest.update(str(path.relative_to(PACKAGE)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
