"""The sample corpus: raw clips that anyone may have, made by `python -m qamoe.data.synthetic.corpus --out data`.

A latent sentiment drives what is said, how it is said and how the face looks while it is said. Every modality tells
something, none enough, the words most; in some clips the words say the opposite of what is felt, and voice and face
tell. The person is invented, the voice synthetic, the face drawn: nobody is made to say what they did not say.
The same arguments give the same bytes, whatever the number of processes.
"""

import argparse
import csv
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from qamoe.config import settings
from qamoe.data.manifest import COLUMNS, GENERATOR_VERSION
from qamoe.data.synthetic import face as sample_face
from qamoe.data.synthetic import video
from qamoe.data.synthetic import voice as sample_voice
from qamoe.data.synthetic import words as sample_words
from qamoe.errors import UserError
from qamoe.files import write_text

GENERATOR = "qamoe-sample"
LOW, HIGH = -3.0, 3.0
CLASSES = ("angry", "sad", "neutral", "happy")
TASKS = ("regression", "four-classes")
FEWEST = 4  # a source for each split

# How far each modality strays from what is felt, in units of the label, and how often the words say the opposite.
WORDS_STRAY, VOICE_STRAY, FACE_STRAY = 0.25, 1.5, 1.6
SARCASM = 0.12
_IRONY = -0.6  # the opposite, said a little milder than it is felt
_PLAIN = 0.5  # below this strength of feeling there is nothing to be sarcastic about
_SPREAD = 1.8  # of the normal distribution that, cut to the label's range, has a deviation of about 1.4
# What each class feels: mean and deviation of valence, then of arousal.
_FELT = {
    "angry": ((-1.9, 0.5), (1.0, 0.25)),
    "sad": ((-1.7, 0.5), (-1.0, 0.25)),
    "neutral": ((0.0, 0.4), (-0.2, 0.3)),
    "happy": ((1.8, 0.6), (0.4, 0.3)),
}
_AROUSAL_STRAY = {
    "regression": {"words": 0.5, "voice": 0.5, "face": 0.5},
    "four-classes": {"words": 0.5, "voice": 0.5, "face": 1.2},
}
_SPLIT_SHARES = {"valid": (0.12, 3), "gate": (0.08, 3), "test": (0.20, 13)}  # of the sources; at least
_ENOUGH_SOURCES = 48
_CLIPS_A_SOURCE = 20  # in a large corpus
# Streams of random numbers; a clip's or a source's draws depend on nothing else.
_SOURCE, _CLIP, _SPLIT = 1, 2, 3


@dataclass(frozen=True)
class Plan:
    """One clip to be made: who (a number), which split, and its place in the corpus."""

    index: int
    clip_id: str
    source: int
    source_id: str
    split: str


@dataclass(frozen=True)
class Felt:
    """What drives a clip: the label, and what words, voice and face each show of valence and arousal."""

    label: str
    words: float
    words_arousal: float | None
    voice: float
    face: float
    voice_arousal: float
    face_arousal: float


def plan(clips: int, seed: int) -> list[Plan]:
    """Who speaks in which clip, and in which split: sources first, since splits never share one."""
    if clips < FEWEST:
        raise UserError(f"clips is {clips}, allowed is {FEWEST} or more, one for each split.")
    sources = max(FEWEST, min(_ENOUGH_SOURCES, clips // 2), clips // _CLIPS_A_SOURCE)
    enough = sources >= _ENOUGH_SOURCES
    held = {
        split: max(least if enough else 1, round(share * sources)) for split, (share, least) in _SPLIT_SHARES.items()
    }
    names = [split for split, count in held.items() for _ in range(count)]
    names = ["train"] * (sources - len(names)) + names
    splits = [names[i] for i in np.random.default_rng([seed, _SPLIT]).permutation(sources)]
    bounds = np.arange(sources + 1) * clips // sources
    digits = max(3, len(str(sources)))
    plans: list[Plan] = []
    for source, split in enumerate(splits):
        person = f"person-{source + 1:0{digits}}"
        for number in range(bounds[source + 1] - bounds[source]):
            plans.append(Plan(len(plans), f"{person}-{number + 1:03}", source, person, split))
    return plans


def feel(task: str, random: np.random.Generator) -> Felt:
    """Draw a label and what each modality shows of it."""
    if task == "regression":
        valence, arousal = _cut_normal(_SPREAD, random), random.normal(0, 0.35)
        label = f"{valence:.2f}"
    else:
        label = CLASSES[random.integers(len(CLASSES))]
        (mean, spread), (arousal_mean, arousal_spread) = _FELT[label]
        valence = float(np.clip(random.normal(mean, spread), LOW, HIGH))
        arousal = random.normal(arousal_mean, arousal_spread)
    sarcastic = abs(valence) > _PLAIN and random.random() < SARCASM
    said = _IRONY * valence if sarcastic else valence
    stray = _AROUSAL_STRAY[task]
    said_arousal = random.normal(arousal, stray["words"])
    return Felt(
        label=label,
        words=said + random.normal(0, WORDS_STRAY),
        words_arousal=None if task == "regression" else said_arousal,
        voice=valence + random.normal(0, VOICE_STRAY),
        face=valence + random.normal(0, FACE_STRAY),
        voice_arousal=random.normal(arousal, stray["voice"]),
        face_arousal=float(np.clip(random.normal(arousal, stray["face"]), -2, 2)),
    )


def _cut_normal(spread: float, random: np.random.Generator) -> float:
    while True:
        value = random.normal(0, spread)
        if LOW <= value <= HIGH:
            return float(value)


def make(made: Plan, media: Path, seed: int, task: str) -> dict[str, str]:
    """Make one clip's film in the folder `media`; returns its row of the manifest."""
    person = np.random.default_rng([seed, _SOURCE, made.source])
    face = sample_face.invent(person)
    voice = sample_voice.invent(person, deep=face.beard > 0)
    random = np.random.default_rng([seed, _CLIP, made.index])
    felt = feel(task, random)
    text = sample_words.sentence(felt.words, felt.words_arousal, random)
    wave = video.fitted(sample_voice.say(text, voice, felt.voice, felt.voice_arousal, random))
    moves = video.expressions(wave, felt.face, felt.face_arousal, random)
    portrait = sample_face.Portrait(face)
    video.write(media / f"{made.clip_id}.mp4", wave, (portrait.picture(move) for move in moves))
    return {
        "clip_id": made.clip_id,
        "source": made.source_id,
        "path": f"{media.name}/{made.clip_id}.mp4",
        "start_s": "0",
        "end_s": f"{len(moves) / video.PICTURE_RATE:.1f}",
        "text": text,
        "label": felt.label,
        "split": made.split,
    }


def generate(out: Path, clips: int, seed: int, task: str, processes: int = 1) -> None:
    """Write a corpus of `clips` clips into the folder `out`: manifest.csv, corpus.json and media/*.mp4.

    `task` is one of TASKS. Everything is written aside and renamed. Raises UserError for an `out` that is not empty,
    for arguments out of range, and where espeak-ng is not installed.
    """
    if task not in TASKS:
        raise UserError(f"task is {task!r}, allowed are {' and '.join(TASKS)}.")
    if processes < 1:
        raise UserError(f"processes is {processes}, allowed is 1 or more.")
    if seed < 0:
        raise UserError(f"seed is {seed}, allowed is 0 or more.")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out} exists and is not an empty folder; the sample corpus is written into a new one.")
    plans = plan(clips, seed)
    sample_voice.library_folder()
    aside = out.resolve().with_name(f".{out.resolve().name}.{os.getpid()}")
    try:
        (aside / "media").mkdir(parents=True)
        rows = list(_progress(_made(plans, aside / "media", seed, task, processes), len(plans)))
        with (aside / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        write_text(aside / "corpus.json", json.dumps(_about(clips, seed, task), indent=2) + "\n")
        if out.exists():
            out.rmdir()
        aside.rename(out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _about(clips: int, seed: int, task: str) -> dict[str, object]:
    described: dict[str, object] = {"kind": "regression", "low": LOW, "high": HIGH}
    if task == "four-classes":
        described = {"kind": "classification", "classes": list(CLASSES)}
    return {
        "generator": GENERATOR,
        "version": GENERATOR_VERSION,
        "seed": seed,
        "clips": clips,
        "task": described,
    }


def _made(plans: list[Plan], media: Path, seed: int, task: str, processes: int) -> Iterator[dict[str, str]]:
    count = len(plans)
    arguments = (plans, [media] * count, [seed] * count, [task] * count)
    if processes == 1:
        yield from map(make, *arguments)
        return
    # Fresh processes: a fork would inherit whatever threads the caller's libraries have started.
    ignore = (signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the caller
    with ProcessPoolExecutor(processes, get_context("spawn"), signal.signal, ignore) as pool:
        yield from pool.map(make, *arguments, chunksize=4)


def _progress(rows: Iterator[dict[str, str]], total: int) -> Iterator[dict[str, str]]:
    from rich.console import Console
    from rich.progress import track

    console = Console(file=sys.stderr)
    return iter(track(rows, "sample corpus", total, console=console, disable=not console.is_terminal))


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m qamoe.data.synthetic.corpus", description="Make a sample corpus.")
    parser.add_argument("--out", type=Path, default=Path("data"), help="a new folder (default: data)")
    parser.add_argument("--clips", type=int, default=240, help="how many (default: 240)")
    parser.add_argument("--seed", type=int, default=7, help="another seed, another corpus (default: 7)")
    parser.add_argument("--task", choices=TASKS, default=TASKS[0], help="what the labels are")
    parser.add_argument("--processes", type=int, help="side by side (default: all cores)")
    given = parser.parse_args(arguments)
    try:
        processes = settings.workers() if given.processes is None else given.processes
        generate(given.out, given.clips, given.seed, given.task, processes)
    except UserError as refusal:
        print(refusal, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; nothing was written.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
