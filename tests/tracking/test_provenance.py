"""What counts as uncommitted: changed files and new code, and a checkout that git cannot read is never clean."""

import subprocess
from pathlib import Path

import pytest

from qamoe.errors import UserError
from qamoe.tracking.provenance import changed_files, provenance

pytestmark = pytest.mark.integration


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one committed module in src/ and an ignored one; it is the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QAMOE_DEVICE", "cpu")
    (tmp_path / "src/package").mkdir(parents=True)
    (tmp_path / "src/package/known.py").write_text("")
    (tmp_path / ".gitignore").write_text("ignored.py\n")
    (tmp_path / "src/ignored.py").write_text("")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *arguments], check=True)
    return tmp_path


@pytest.mark.parametrize(
    "name", ["src/package/new.py", "flows/extra/daily.py", "yaml.py", "torch/__init__.py", "src/é.py"]
)
def test_new_code_is_named(checkout: Path, name: str) -> None:
    assert changed_files() == []
    path = checkout / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")
    (checkout / "notes.txt").write_text("no code")
    assert changed_files() == [name]


@pytest.mark.parametrize("kind", ["corrupt index", "no program", "no checkout", "another owner"])
def test_a_checkout_that_git_cannot_read_is_not_clean(
    checkout: Path, kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if kind == "corrupt index":
        (checkout / ".git/index").write_bytes(b"damaged")
    elif kind == "no program":
        monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    elif kind == "no checkout":
        (checkout / ".git").rename(checkout / "git")
    else:
        monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    with pytest.raises(UserError) as refusal:
        changed_files()
    assert "git" in str(refusal.value)
    tags = provenance()
    assert tags.get("qamoe.git_dirty") == ("unknown" if kind == "corrupt index" else None)
