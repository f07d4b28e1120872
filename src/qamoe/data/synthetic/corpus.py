"""Generate the sample corpus, raw clips that anyone may use: `python -m qamoe.data.synthetic.corpus --out data`.

A latent sentiment drives the words, the voice and the face of each clip. Every modality is informative, none is
sufficient, and text is the most informative. In some clips the words are sarcastic and contradict voice and face. The
person is invented, the voice synthetic and the face drawn, so no real person appears. The same arguments give the same
bytes, whatever the number of processes.
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
from qamoe.data.synthetic import face, video, voice, words
from qamoe.errors import UserError
from qamoe.files import remove_abandoned, write_text

GENERATOR = "qamoe-sample"
LOW, HIGH = -3.0, 3.0
CLASSES = ("angry", "sad", "neutral", "happy")
TASKS = ("regression", "four-classes")
FEWEST = 4  # one source per split

# Standard deviation of each modality from the true sentiment, in units of the label, and the share of sarcastic clips.
WORDS_STRAY, VOICE_STRAY, FACE_STRAY = 0.25, 1.5, 1.6
SARCASM = 0.12
_IRONY = -0.6  # factor of sarcastic words: the opposite, a little milder
_PLAIN = 0.5  # clips with a sentiment weaker than this are never sarcastic
_SPREAD = 1.8  # deviation of a normal distribution; truncated to the label's range, its deviation is about 1.4
# Mean and deviation of valence, then of arousal, for each class.
_CLASS_SENTIMENT = {
    "angry": ((-1.9, 0.5), (1.0, 0.25)),
    "sad": ((-1.7, 0.5), (-1.0, 0.25)),
    "neutral": ((0.0, 0.4), (-0.2, 0.3)),
    "happy": ((1.8, 0.6), (0.4, 0.3)),
}
_AROUSAL_STRAY = {
    "regression": {"words": 0.5, "voice": 0.5, "face": 0.5},
    "four-classes": {"words": 0.5, "voice": 0.5, "face": 1.2},
}
_SPLIT_SHARES = {"valid": (0.12, 3), "gate": (0.08, 3), "test": (0.20, 13)}  # share of the sources, least number
_ENOUGH_SOURCES = 48
_CLIPS_PER_SOURCE = 20  # in a large corpus
# Streams of random numbers; the draws of a clip or source depend only on seed, stream and its number.
_SOURCE, _CLIP, _SPLIT = 1, 2, 3


@dataclass(frozen=True)
class Plan:
    """One clip to be generated: its index in the corpus, its person (source) and its split."""

    index: int
    clip_id: str
    source: int
    source_id: str
    split: str


@dataclass(frozen=True)
class Sentiment:
    """The label of a clip, and the valence and arousal shown by its words, voice and face."""

    label: str
    words: float
    words_arousal: float | None
    voice: float
    face: float
    voice_arousal: float
    face_arousal: float


def plan(clips: int, seed: int) -> list[Plan]:
    """Assign each clip a source, and each source a split; splits never share a source."""
    if clips < FEWEST:
        raise UserError(f"clips is {clips}, must be at least {FEWEST}, one for each split.")
    sources = max(FEWEST, min(_ENOUGH_SOURCES, clips // 2), clips // _CLIPS_PER_SOURCE)
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


def draw_sentiment(task: str, random: np.random.Generator) -> Sentiment:
    """Draw a label and the sentiment that each modality shows."""
    if task == "regression":
        valence, arousal = _truncated_normal(_SPREAD, random), random.normal(0, 0.35)
        label = f"{valence:.2f}"
    else:
        label = CLASSES[random.integers(len(CLASSES))]
        (mean, spread), (arousal_mean, arousal_spread) = _CLASS_SENTIMENT[label]
        valence = float(np.clip(random.normal(mean, spread), LOW, HIGH))
        arousal = random.normal(arousal_mean, arousal_spread)
    sarcastic = abs(valence) > _PLAIN and random.random() < SARCASM
    words_valence = _IRONY * valence if sarcastic else valence
    stray = _AROUSAL_STRAY[task]
    words_arousal = random.normal(arousal, stray["words"])
    return Sentiment(
        label=label,
        words=words_valence + random.normal(0, WORDS_STRAY),
        words_arousal=None if task == "regression" else words_arousal,
        voice=valence + random.normal(0, VOICE_STRAY),
        face=valence + random.normal(0, FACE_STRAY),
        voice_arousal=random.normal(arousal, stray["voice"]),
        face_arousal=float(np.clip(random.normal(arousal, stray["face"]), -2, 2)),
    )


def _truncated_normal(spread: float, random: np.random.Generator) -> float:
    while True:
        value = random.normal(0, spread)
        if LOW <= value <= HIGH:
            return float(value)


def make(planned: Plan, media: Path, seed: int, task: str) -> dict[str, str]:
    """Write the video of one clip into the folder `media` and return its row of the manifest."""
    source_random = np.random.default_rng([seed, _SOURCE, planned.source])
    person = face.invent(source_random)
    speaker = voice.invent(source_random, deep=person.beard > 0)
    random = np.random.default_rng([seed, _CLIP, planned.index])
    sentiment = draw_sentiment(task, random)
    text = words.sentence(sentiment.words, sentiment.words_arousal, random)
    wave = video.pad_to_frames(voice.say(text, speaker, sentiment.voice, sentiment.voice_arousal, random))
    expressions = video.expressions(wave, sentiment.face, sentiment.face_arousal, random)
    portrait = face.Portrait(person)
    video.write(media / f"{planned.clip_id}.mp4", wave, map(portrait.draw, expressions))
    return {
        "clip_id": planned.clip_id,
        "source": planned.source_id,
        "path": f"{media.name}/{planned.clip_id}.mp4",
        "start_s": "0",
        "end_s": f"{len(expressions) / video.FRAME_RATE:.1f}",
        "text": text,
        "label": sentiment.label,
        "split": planned.split,
    }


def generate(out: Path, clips: int, seed: int, task: str, processes: int = 1) -> None:
    """Write a corpus of `clips` clips into the folder `out`: manifest.csv, corpus.json and media/*.mp4.

    `task` is one of TASKS. Everything is written to a temporary folder that is then renamed. Raises UserError if `out`
    is not empty, an argument is out of range, or espeak-ng is not installed.
    """
    if task not in TASKS:
        raise UserError(f"task is {task!r}, must be {' or '.join(TASKS)}.")
    if processes < 1:
        raise UserError(f"processes is {processes}, must be an integer of at least 1.")
    if seed < 0:
        raise UserError(f"seed is {seed}, must be an integer of at least 0.")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out} exists and is not an empty folder; choose a new folder for the sample corpus.")
    plans = plan(clips, seed)
    voice.library_folder()  # fail early without espeak-ng
    remove_abandoned(out.resolve().parent, f".{out.resolve().name}.[0-9]*")
    temporary = out.resolve().with_name(f".{out.resolve().name}.{os.getpid()}")
    try:
        (temporary / "media").mkdir(parents=True)
        rows = list(_progress(_make_all(plans, temporary / "media", seed, task, processes), len(plans)))
        with (temporary / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        write_text(temporary / "corpus.json", json.dumps(_about(clips, seed, task), indent=2) + "\n")
        if out.exists():
            out.rmdir()
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _about(clips: int, seed: int, task: str) -> dict[str, object]:
    description: dict[str, object] = {"kind": "regression", "low": LOW, "high": HIGH}
    if task == "four-classes":
        description = {"kind": "classification", "classes": list(CLASSES)}
    return {
        "generator": GENERATOR,
        "version": GENERATOR_VERSION,
        "seed": seed,
        "clips": clips,
        "task": description,
    }


def _make_all(plans: list[Plan], media: Path, seed: int, task: str, processes: int) -> Iterator[dict[str, str]]:
    count = len(plans)
    arguments = (plans, [media] * count, [seed] * count, [task] * count)
    if processes == 1:
        yield from map(make, *arguments)
        return
    # Spawned processes: a fork would inherit threads that the caller's libraries have started.
    ignore = (signal.SIGINT, signal.SIG_IGN)  # the caller handles Ctrl-C
    with ProcessPoolExecutor(processes, get_context("spawn"), signal.signal, ignore) as pool:
        yield from pool.map(make, *arguments, chunksize=4)


def _progress(rows: Iterator[dict[str, str]], total: int) -> Iterator[dict[str, str]]:
    from rich.console import Console
    from rich.progress import track

    console = Console(file=sys.stderr)
    return iter(track(rows, "sample corpus", total, console=console, disable=not console.is_terminal))


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m qamoe.data.synthetic.corpus", description="Make a sample corpus.")
    parser.add_argument("--out", type=Path, default=Path("data"), help="new folder to write to (default: data)")
    parser.add_argument("--clips", type=int, default=240, help="number of clips (default: 240)")
    parser.add_argument("--seed", type=int, default=7, help="random seed (default: 7)")
    parser.add_argument("--task", choices=TASKS, default=TASKS[0], help="kind of labels (default: regression)")
    parser.add_argument("--processes", type=int, help="parallel processes (default: all cores)")
    options = parser.parse_args(arguments)
    try:
        processes = settings.workers() if options.processes is None else options.processes
        generate(options.out, options.clips, options.seed, options.task, processes)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; nothing was written.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
