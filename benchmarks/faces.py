"""Which face is read, and how long: `python benchmarks/faces.py`.

Reads the films of GRID in ../shared/data/grid (or QAMOE_SHARED_DATA): 18, of which 15 show one speaker and three show
others, 3 s at 25 frames a second. They are not in the repository, so the numbers cannot be reproduced from it alone.

Thirty pairs of different people stand side by side with the sound of one of them, who is on the left in half of the
pairs; then the same pairs with the other one frozen on the first frame. Prints the shares of frames with a face, of
pairs where one face is held, and of pairs where the speaker is read. Takes about five minutes on two cores.
"""

import os
from collections.abc import Iterator
from fractions import Fraction
from itertools import repeat
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from figures import figure

from qamoe.errors import UserError, exit_on_user_error
from qamoe.extractors.landmarks import COLUMNS, Landmarks
from qamoe.media.decode import read_audio, read_frames, reading

PAIRS = 30
RATE = 25
SOUND_HZ = 16_000
HELD_IN = COLUMNS.index("face_found")
ACROSS = COLUMNS.index("head_x")  # below 0 on the left half of the picture


def main() -> None:
    source = Path(os.environ.get("QAMOE_SHARED_DATA") or Path(__file__).parents[2] / "shared" / "data") / "grid"
    films = sorted(source.glob("*.mpg"))
    if not films:
        raise UserError(f"{source} has no film of GRID (*.mpg); QAMOE_SHARED_DATA names the folder above it.")
    alone = np.concatenate([Landmarks(RATE).extract(film) for film in films])
    figure("faces: frames of GRID with a face", float(alone[:, HELD_IN].mean()), at_least=0.95)
    for frozen in (False, True):
        rows = [measure(*pair, frozen) for pair in pairs(films)]
        held, several, right = np.array(rows, float).mean(0).tolist()
        what = "the other one frozen" if frozen else "both moving"
        figure(f"faces: pairs with one face in every frame, {what}", held, at_least=1)
        figure(f"faces: pairs with the reason that several were seen, {what}", several, at_least=1)
        figure(f"faces: pairs in which the speaker is read, {what}", right, at_least=0.9 if frozen else 0.75)


def pairs(films: list[Path]) -> list[tuple[Path, Path, bool]]:
    """Return who speaks, who does not, and whether the speaker is on the left."""
    random = np.random.default_rng(0)
    one = [film for film in films if film.stem.startswith("pushpakgote_")]
    different = [(a, b) for a in films for b in films if a != b and not (a in one and b in one)]
    chosen = random.permutation(len(different))[:PAIRS]
    return [(*different[number], place % 2 == 0) for place, number in enumerate(chosen)]


def measure(speaker: Path, other: Path, left: bool, frozen: bool) -> tuple[bool, bool, bool]:
    """Return whether one face is read in every frame, whether several are reported, and whether the speaker is read."""
    with TemporaryDirectory() as folder, reading() as notes:
        film = Path(folder) / "pair.mp4"
        write(film, side_by_side(speaker, other, left, frozen), read_audio(speaker, SOUND_HZ))
        frames = Landmarks(5).extract(film)
    sides = frames[:, ACROSS] < 0
    held = bool(frames[:, HELD_IN].all() and (sides.all() or not sides.any()))
    print(f"{speaker.stem} {other.stem} {'left' if left else 'right'} {frozen}: {held} {sides.mean():.2f} {notes}")
    return held, any("2 faces" in sentence for sentence in notes), bool(sides.mean() > 0.5) == left


def side_by_side(speaker: Path, other: Path, left: bool, frozen: bool) -> Iterator[np.ndarray]:
    shown = read_frames(other, RATE)
    still = repeat(next(shown)) if frozen else shown
    for a, b in zip(read_frames(speaker, RATE), still, strict=False):
        yield np.hstack([a, b] if left else [b, a])


def write(path: Path, images: Iterator[np.ndarray], wave: np.ndarray) -> None:
    import av

    with av.open(str(path), "w", format="mp4") as container:
        video = container.add_stream("libx264", rate=RATE)
        video.pix_fmt, video.codec_context.thread_count = "yuv420p", 1
        video.options = {"crf": "20", "preset": "veryfast", "x264-params": "asm=0:threads=1"}
        audio = container.add_stream("aac", rate=SOUND_HZ, layout="mono")
        for number, image in enumerate(images):
            if not number:
                video.height, video.width = image.shape[:2]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        spoken = av.AudioFrame.from_ndarray(wave.reshape(1, -1), format="fltp", layout="mono")
        spoken.sample_rate, spoken.pts, spoken.time_base = SOUND_HZ, 0, Fraction(1, SOUND_HZ)
        container.mux(audio.encode(spoken))
        container.mux(audio.encode(None))


if __name__ == "__main__":
    with exit_on_user_error("faces.py"):
        main()
