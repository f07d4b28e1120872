"""Raw clips: every fault of a manifest gives one sentence, and a drawn split never changes."""

import csv
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from qamoe.config.task import Task
from qamoe.data.clip import LabelledClip, MediaSpan, drawn_split
from qamoe.data.manifest import COLUMNS, GENERATOR_VERSION, read, read_generated
from qamoe.errors import UserError
from tests.fixtures.damage import mutated, ruined

REGRESSION = Task(kind="regression", low=-3, high=3)
CLASSES = Task(kind="classification", classes=("joy", "anger"))
GOOD = {
    "clip_id": "clip-1",
    "source": "anna",
    "path": "media/one.mp4",
    "start_s": "0.5",
    "end_s": "2.5",
    "text": "not bad, I'd say",
    "label": "-1.5",
    "split": "train",
}
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return a function that writes a folder of clips: write(row, ...), each GOOD with some cells changed."""

    def make(*changes: dict[str, str], columns: tuple[str, ...] = COLUMNS) -> Path:
        folder = tmp_path / "data"
        (folder / "media").mkdir(parents=True, exist_ok=True)
        (folder / "media/one.mp4").write_bytes(b"video")
        (tmp_path / "outside.mp4").write_bytes(b"video")
        with (folder / "manifest.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows({**GOOD, **change} for change in changes)
        return folder

    return make


def test_a_row_becomes_a_clip(write: Write) -> None:
    folder = write({}, {"clip_id": "clip-2", "start_s": "", "end_s": "", "label": "3", "text": ""})
    corpus = read(folder, REGRESSION)
    media = folder.resolve() / "media/one.mp4"
    assert corpus.clips == [
        LabelledClip(
            span=MediaSpan(clip_id="clip-1", path=media, start_s=0.5, end_s=2.5, text="not bad, I'd say"),
            source="anna",
            split="train",
            label=-1.5,
        ),
        LabelledClip(span=MediaSpan(clip_id="clip-2", path=media), source="anna", split="train", label=3.0),
    ]
    assert corpus.modalities == ("text", "audio", "vision")
    assert not corpus.generated


def test_a_class_becomes_its_index(write: Write) -> None:
    assert read(write({"label": "anger"}), CLASSES).clips[0].label == 1.0


def test_a_manifest_saved_by_a_spreadsheet_is_read(write: Write) -> None:
    """It has a byte order mark at the start and an additional column at the end."""
    folder = write({"remark": "nice"}, columns=(*COLUMNS, "remark"))
    path = folder / "manifest.csv"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read(folder, REGRESSION).clips[0].clip_id == "clip-1"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ([], r" .*no clips"),
        ([{"path": "media/two.mp4"}], r", line 2: .*path 'media/two\.mp4' .*exist"),
        ([{"path": "media"}], r", line 2: .*path 'media' .*exist"),
        ([{"path": "../outside.mp4"}], r", line 2: path '\.\./outside\.mp4' .*outside"),
        ([{"path": "/etc/passwd"}], r", line 2: path '/etc/passwd' .*outside"),
        ([{}, {}], r", line 3: .*'clip-1'.*line 2"),
        (
            [{}, {"clip_id": "b", "split": "test"}],
            r", line 3: source 'anna' .*split train \(clip clip-1\) .*split test \(clip b\)",
        ),
        ([{"label": "rather good"}], r", line 2: label 'rather good' .*number.*regression"),
        ([{"label": "3.5"}], r", line 2: label 3\.5 .*\[-3, 3\]"),
        ([{"label": "nan"}], r", line 2: label nan .*\[-3, 3\]"),
        ([{"label": ""}], r", line 2: label .*empty"),
        ([{"clip_id": " "}], r", line 2: clip_id .*empty"),
        ([{"source": ""}], r", line 2: source .*empty"),
        ([{"path": ""}], r", line 2: path .*empty"),
        ([{"split": "dev"}], r", line 2: split .*'dev'.*train, valid, gate, test"),
        ([{"start_s": "soon"}], r", line 2: start_s .*'soon'.*seconds"),
        ([{"start_s": "-1"}], r", line 2: start_s .*'-1'.*seconds"),
        ([{"end_s": "inf"}], r", line 2: end_s .*'inf'.*seconds"),
        ([{"end_s": "nan"}], r", line 2: end_s .*'nan'.*seconds"),
        ([{"end_s": "0.5"}], r", line 2: end_s 0\.5 .*start_s 0\.5"),
        ([{}, {"clip_id": "b", "label": "x"}], r", line 3: label 'x'"),
    ],
)
def test_an_invalid_manifest_is_rejected(write: Write, changes: list[dict[str, str]], named: str) -> None:
    with pytest.raises(UserError, match=rf"manifest\.csv{named}") as raised:
        read(write(*changes), REGRESSION)
    assert "\n" not in str(raised.value)


def test_a_label_that_is_not_a_class_is_rejected(write: Write) -> None:
    with pytest.raises(UserError, match=r"manifest\.csv, line 2: label 'fear' .*joy, anger"):
        read(write({"label": "fear"}), CLASSES)


@pytest.mark.parametrize("column", COLUMNS)
def test_a_missing_column_is_named(write: Write, column: str) -> None:
    columns = tuple(c for c in COLUMNS if c != column)
    with pytest.raises(UserError, match=rf"manifest\.csv .*column {column};.*{','.join(COLUMNS)}"):
        read(write({}, columns=columns), REGRESSION)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("label,split", "label,l,split", r"manifest\.csv, line 2: fewer cells"),
        ("label,split", "label,split,split", r"manifest\.csv .*column 'split'"),
        ('"not bad, I\'d say"', "not bad, I'd say", r"manifest\.csv, line 2: more cells"),
        ("b,anna", '"b,anna', r"manifest\.csv, line 3: .*csv"),
        ("b,anna", '"b",anna"', None),
        ("train\n", "train,,,\n", None),
    ],
)
def test_cells_that_would_move_or_swallow_others_are_rejected(
    write: Write, old: str, new: str, named: str | None
) -> None:
    """A stray quote swallows the rows up to the next quote, and a stray comma moves every cell after it."""
    path = write({}, {"clip_id": "b", "text": "well"}, {"clip_id": "c", "text": 'with "quotes"'}) / "manifest.csv"
    whole = path.read_text()
    assert old in whole
    path.write_text(whole.replace(old, new))
    if named is None:
        assert [clip.clip_id for clip in read(path.parent, REGRESSION).clips] == ["clip-1", "b", "c"]
        return
    with pytest.raises(UserError, match=named) as raised:
        read(path.parent, REGRESSION)
    assert "\n" not in str(raised.value)


def test_a_manifest_without_a_header_is_rejected(write: Write) -> None:
    folder = write()
    (folder / "manifest.csv").write_text("")
    with pytest.raises(UserError, match=r"manifest\.csv .*column clip_id"):
        read(folder, REGRESSION)


def test_a_manifest_in_another_encoding_is_rejected(write: Write) -> None:
    folder = write({})
    path = folder / "manifest.csv"
    path.write_bytes(path.read_bytes().replace(b"anna", "zoë".encode("latin-1")))
    with pytest.raises(UserError, match=r"manifest\.csv.*UTF-8"):
        read(folder, REGRESSION)


def test_a_missing_folder_or_manifest_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere .*'dvc pull data\.dvc'"):
        read(tmp_path / "nowhere", REGRESSION)
    with pytest.raises(UserError, match=rf"{tmp_path}/manifest\.csv .*clip_id,source,path,"):
        read(tmp_path, REGRESSION)


def test_a_link_out_of_the_folder_is_a_file_of_it_unless_others_fill_the_folder(write: Write, tmp_path: Path) -> None:
    """DVC's cache.type symlink makes such links, and their targets have no suffix and no neighbours."""
    folder = write({"path": "media/link.mp4"})
    (folder / "media/link.mp4").symlink_to(tmp_path / "outside.mp4")
    (clip,) = read(folder, REGRESSION).clips
    assert clip.media is not None
    assert clip.media.path == folder.resolve() / "media/link.mp4"
    with pytest.raises(UserError, match=r"line 2: path 'media/link\.mp4' .*link.* outside"):
        read(folder, REGRESSION, links=False)


def test_a_folder_of_media_may_be_a_link_but_a_path_may_not_climb_out_of_it(write: Write, tmp_path: Path) -> None:
    (tmp_path / "disk/deep").mkdir(parents=True)
    (tmp_path / "disk/deep/one.mp4").write_bytes(b"video")
    (tmp_path / "disk/secret.mp4").write_bytes(b"video")
    folder = write({"path": "nas/one.mp4"}, {"clip_id": "b", "path": "nas/../secret.mp4"})
    (folder / "nas").symlink_to(tmp_path / "disk/deep")
    faults: list[str] = []
    assert [clip.clip_id for clip in read(folder, REGRESSION, faults).clips] == ["clip-1"]
    assert len(faults) == 1
    assert ", line 3: path 'nas/../secret.mp4' " in faults[0]


@pytest.mark.parametrize(
    ("path", "on_disk", "cause"),
    [
        ("media\\two.mp4", "media/two.mp4", "; write / and not \\ "),
        ("media/caf\u00e9.mp4", "media/cafe\u0301.mp4", " form NFD; "),
        ("media/cafe\u0301.mp4", "media/caf\u00e9.mp4", " form NFC; "),
        ("media/two.mp4", "media/three.mp4", "folder."),
    ],
)
def test_why_a_file_that_seems_to_be_there_is_not_found(write: Write, path: str, on_disk: str, cause: str) -> None:
    folder = write({"path": path})
    (folder / on_disk).write_bytes(b"video")
    with pytest.raises(UserError, match=r"line 2: path .*does not exist") as raised:
        read(folder, REGRESSION)
    assert cause in str(raised.value)


def test_a_link_to_a_disk_that_is_not_there_is_named(write: Write) -> None:
    folder = write({"path": "media/link.mp4"})
    (folder / "media/link.mp4").symlink_to("/no-such-disk/one.mp4")
    with pytest.raises(UserError, match=r"line 2: path 'media/link\.mp4' .*link to /no-such-disk/one\.mp4"):
        read(folder, REGRESSION)


@pytest.mark.parametrize(("separator", "name"), [(";", "semicolons"), ("\t", "tabs"), ("|", "bars")])
def test_another_separator_is_named(write: Write, separator: str, name: str) -> None:
    folder = write({})
    path = folder / "manifest.csv"
    path.write_text(path.read_text().replace(",", separator))
    with pytest.raises(UserError, match=rf"manifest\.csv has {name} .* commas; .*decimal point"):
        read(folder, REGRESSION)


@pytest.mark.parametrize(("column", "number"), [("end_s", "2,4"), ("start_s", "0,25"), ("label", "-2,60")])
def test_a_decimal_comma_is_named(write: Write, column: str, number: str) -> None:
    with pytest.raises(
        UserError, match=rf"line 2: {column} .*'{number}'.*write {number.replace(',', '.')}, "
    ) as raised:
        read(write({column: number}), REGRESSION)
    assert "\n" not in str(raised.value)


def test_a_folder_reached_by_a_link_is_read(write: Write, tmp_path: Path) -> None:
    folder = write({})
    (tmp_path / "link").symlink_to(folder)
    assert len(read(tmp_path / "link", REGRESSION).clips) == 1


def test_new_clips_never_move_old_ones_to_another_split(write: Write) -> None:
    old = [{"clip_id": f"c{i}", "source": f"person-{i}", "split": ""} for i in range(40)]
    new = [{"clip_id": f"n{i}", "source": f"person-{i + 20}", "split": ""} for i in range(60)]
    before = {c.clip_id: c.split for c in read(write(*old), REGRESSION).clips}
    after = {c.clip_id: c for c in read(write(*new, *reversed(old)), REGRESSION).clips}
    assert {clip_id: after[clip_id].split for clip_id in before} == before
    by_source: dict[str, set[str]] = {}
    for clip in after.values():
        by_source.setdefault(clip.source, set()).add(clip.split)
    assert all(len(splits) == 1 for splits in by_source.values())


def test_drawn_splits_have_the_right_shares_and_never_change() -> None:
    counts = Counter(drawn_split(f"source-{i}") for i in range(5000))
    shares = [counts[split] / 5000 for split in ("train", "valid", "gate", "test")]
    assert shares == pytest.approx([0.60, 0.12, 0.08, 0.20], abs=0.02)
    frozen = {
        "anna": "train",
        "ben": "valid",
        "chloe": "train",
        "dan": "gate",
        "emil": "test",
        "finn": "test",
        "gina": "train",
        "hugo": "test",
    }
    assert {source: drawn_split(source) for source in frozen} == frozen


def test_a_generated_corpus_names_its_generator(write: Write) -> None:
    folder = write({})
    with pytest.raises(UserError, match=r"corpus\.json .*extract\.corpus\.kind"):
        read_generated(folder, REGRESSION)
    (folder / "corpus.json").write_text(json.dumps({"version": GENERATOR_VERSION, "seed": 7}))
    corpus = read_generated(folder, REGRESSION)
    assert corpus.generated
    assert corpus.about == {"corpus": "sample", "version": GENERATOR_VERSION, "seed": 7}
    (folder / "corpus.json").write_text(json.dumps({"version": 99}))
    with pytest.raises(UserError, match=rf"corpus\.json: .*\b99\b.*\b{GENERATOR_VERSION}\b"):
        read_generated(folder, REGRESSION)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_corpus_json_gives_one_sentence(write: Write, content: bytes) -> None:
    folder = write({})
    (folder / "corpus.json").write_bytes(content)
    with pytest.raises(UserError, match=r"corpus\.json .*damaged.*JSON") as raised:
        read_generated(folder, REGRESSION)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "path", ["http://a.example/b.mp4", "concat:media/one.mp4|media/one.mp4", "media/\0.mp4", "m" * 5000, "media/loop"]
)
def test_an_impossible_path_is_rejected(write: Write, path: str) -> None:
    folder = write({"path": path})
    (folder / "media/loop").symlink_to("loop")
    with pytest.raises(UserError, match=re.escape(f"line 2: path {path!r}"[:200])):
        read(folder, REGRESSION)


def test_all_faults_are_collected_and_the_valid_rows_are_read(write: Write) -> None:
    folder = write({}, {"label": "9"}, {"clip_id": "b", "path": "gone.mp4"}, {"clip_id": "c"}, {"clip_id": "c"})
    faults: list[str] = []
    corpus = read(folder, REGRESSION, faults)
    assert [clip.clip_id for clip in corpus.clips] == ["clip-1", "c", "c"]
    manifest = folder / "manifest.csv"
    for fault, (line, value) in zip(faults, ((3, "label 9 "), (4, "'gone.mp4'"), (6, "'c'")), strict=True):
        assert fault.startswith(f"{manifest}, line {line}: ")
        assert value in fault


def test_a_damaged_manifest_is_read_or_rejected_and_undamaged_rows_stay_the_same(write: Write) -> None:
    """Features depend only on media and span, so an unchanged clip keeps its features."""
    texts = ("well", "with, comma", 'with "quotes"', "not bad, I'd say")
    folder = write(*({"clip_id": f"clip-{i}", "source": f"person-{i}", "text": t} for i, t in enumerate(texts)))
    path = folder / "manifest.csv"
    whole = path.read_bytes()
    lines = {f"clip-{i}": line for i, line in enumerate(whole.splitlines()[1:])}
    first = {clip.clip_id: clip for clip in read(folder, REGRESSION).clips}
    rejected = []
    for seed in range(400):
        path.write_bytes(ruined(whole, whole, seed) if seed % 2 else mutated(whole, seed))
        try:
            now = {clip.clip_id: clip for clip in read(folder, REGRESSION).clips}
        except UserError as error:
            rejected.append(str(error))
            continue
        assert all(clip.media and clip.media.path == folder.resolve() / "media/one.mp4" for clip in now.values())
        undamaged = {name for name, line in lines.items() if line in path.read_bytes().splitlines()}
        assert {name: now.get(name) for name in undamaged} == {name: first[name] for name in undamaged}
    assert 200 < len(rejected) < 400
    assert not any("\n" in sentence for sentence in rejected)
