"""The program that measures a recogniser's confidence in its right and in its wrong words."""

import numpy as np

from scripts import word_confidences
from scripts.word_confidences import right_words


def test_right_words_are_those_that_were_said_in_order() -> None:
    heard = ["Well,", "the", "film", "is", "grade", "door", "great!"]
    assert right_words("well the film was great", heard).tolist() == [True, True, True, False, False, False, True]
    assert right_words("one two", ["two", "one"]).sum() == 1
    assert right_words("one", []).tolist() == []


def test_noise_has_the_stated_ratio() -> None:
    random = np.random.default_rng(0)
    spoken = random.standard_normal(5000)
    for pink in (True, False):
        noise = word_confidences._noise(spoken, 5, pink, random)
        assert np.isclose(10 * np.log10((spoken**2).mean() / (noise**2).mean()), 5)
