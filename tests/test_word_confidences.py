"""The table of the recogniser's confidence in right and in wrong words, and the program that makes it."""

import csv

import numpy as np

from scripts import word_confidences
from scripts.word_confidences import QUANTILES, TABLE, right_words


def test_the_table_has_quantiles_of_right_and_surer_than_of_wrong_words() -> None:
    with TABLE.open() as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    assert [row["quantile"] for row in rows] == np.linspace(0, 1, QUANTILES).tolist()
    for kind in ("right", "wrong"):
        values = [row[kind] for row in rows]
        assert values == sorted(values)
        assert 0 <= values[0] < values[-1] <= 1
    assert sum(row["right"] for row in rows) > sum(row["wrong"] for row in rows)


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
