"""Measure how much of a voice feature is words: `python benchmarks/words_in_voice.py`. Takes some minutes on one core.

The sample's generator speaks each sentence, and a sentence of nonsense with as many syllables in every word, with the
same voice and prosody. Both carry the sentiment of the voice; only the first carries that of the words. A ridge
regression on the mean and deviation of the frames predicts the label, in eight folds by speaker, with the strength
chosen on the fold before. Prints mean error and correlation for an extractor and layer: on words, on nonsense, and
trained on words but asked about nonsense.
"""

import argparse

import numpy as np
from figures import figure

from qamoe.config.extractor_settings import extractor_settings
from qamoe.data.synthetic import corpus, face, voice, words
from qamoe.extractors.level import levelled
from qamoe.extractors.registry import extractor

EXTRACTORS = {
    "whisper, layer 2": {"extractor": "whisper", "rate": 50.0, "model": "whisper-tiny.en", "layer": 2},
    "whisper, layer 4": {"extractor": "whisper", "rate": 50.0, "model": "whisper-tiny.en", "layer": 4},
    "egemaps": {"extractor": "egemaps", "rate": 50.0},
    "logmel": {"extractor": "logmel", "rate": 50.0},
}
STRENGTHS = 10.0 ** np.arange(0, 6, 0.5)
FOLDS = 8
SYLLABLE = 3  # letters
CONSONANTS, VOWELS = "bdfgklmnprstvz", ("a", "e", "i", "o", "oo", "ay")


def nonsense(text: str, random: np.random.Generator) -> str:
    """Return syllables of a consonant and a vowel, about as many as each word of the text has."""
    spoken = []
    for word in text.split():
        count = max(1, round(len(word) / SYLLABLE))
        syllables = [random.choice(list(CONSONANTS)) + random.choice(VOWELS) for _ in range(count)]
        spoken.append("".join(syllables) + ("," if word.endswith(",") else ""))
    return " ".join(spoken)


def speak(planned: corpus.Plan, seed: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Return a clip's audio with its words and with nonsense, and its label, as the generator draws them."""
    source_random = np.random.default_rng([seed, 1, planned.source])
    person = face.invent(source_random)
    speaker = voice.invent(source_random, deep=person.beard > 0)
    random = np.random.default_rng([seed, 2, planned.index])
    sentiment = corpus.draw_sentiment("regression", random)
    text = words.sentence(sentiment.words, sentiment.words_arousal, random)
    with_words, without = (
        voice.say(
            spoken, speaker, sentiment.voice, sentiment.voice_arousal, np.random.default_rng([seed, planned.index])
        )
        for spoken in (text, nonsense(text, random))
    )
    return with_words, without, float(sentiment.label)


def predicted(train: np.ndarray, test: np.ndarray, labels: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Return held-out predictions for the rows of `test`, each from the other folds' rows of `train`."""
    answers = np.zeros(len(labels))
    for fold in range(FOLDS):
        held, valid = folds == fold, folds == (fold + 1) % FOLDS
        inner = ~held & ~valid
        fits = fit(train[inner], labels[inner])
        errors = [np.abs(apply(one, train[valid]) - labels[valid]).mean() for one in fits]
        answers[held] = apply(fit(train[~held], labels[~held])[int(np.argmin(errors))], test[held])
    return answers


Fit = tuple[np.ndarray, np.ndarray, np.ndarray, float]


def fit(rows: np.ndarray, labels: np.ndarray) -> list[Fit]:
    """Fit ridge regressions of all STRENGTHS on standardised columns."""
    mean, deviation = rows.mean(0), rows.std(0) + 1e-6
    left, sizes, right = np.linalg.svd((rows - mean) / deviation, full_matrices=False)
    projected = left.T @ (labels - labels.mean())
    slopes = [right.T @ (sizes / (sizes**2 + strength) * projected) for strength in STRENGTHS]
    return [(mean, deviation, slope, float(labels.mean())) for slope in slopes]


def apply(fitted: Fit, rows: np.ndarray) -> np.ndarray:
    mean, deviation, slope, base = fitted
    return np.asarray((rows - mean) / deviation @ slope + base)


def main(count: int, seed: int, names: list[str]) -> None:
    from scipy.signal import resample_poly

    plans = corpus.plan(count, seed)
    clips = [speak(planned, seed) for planned in plans]
    labels = np.array([label for _, _, label in clips])
    sources = np.array([planned.source for planned in plans])
    folds = np.random.default_rng(seed).permutation(sources.max() + 1)[sources] % FOLDS
    figure("words in the voice: error of the mean", np.abs(labels - labels.mean()).mean())
    for name in names:
        made_by = extractor(extractor_settings("audio", EXTRACTORS[name]))
        rate = voice.RATE if name == "egemaps" else 16_000
        tables = []
        for spoken in (0, 1):
            rows = []
            for clip in clips:
                audio = clip[:2][spoken]
                wave = audio if rate == voice.RATE else resample_poly(audio, 320, 441)
                frames = made_by.describe(levelled(wave.astype(np.float32), rate))
                rows.append(np.concatenate([frames.mean(0), frames.std(0)]))
            tables.append(np.stack(rows).astype(np.float64))
        for what, train, test in (("words", 0, 0), ("nonsense", 1, 1), ("trained on words, nonsense", 0, 1)):
            answers = predicted(tables[train], tables[test], labels, folds)
            figure(f"words in the voice: error, {name}, {what}", np.abs(answers - labels).mean())
            figure(f"words in the voice: correlation, {name}, {what}", float(np.corrcoef(answers, labels)[0, 1]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=960)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--extractors", nargs="+", choices=EXTRACTORS, default=list(EXTRACTORS))
    options = parser.parse_args()
    main(options.clips, options.seed, options.extractors)
