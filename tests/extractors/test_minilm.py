"""Text as token ids: which word each came from, what is cut, and what a degradation needs to know."""

import numpy as np

from qamoe.extractors.minilm import MiniLM, model_folder

CLS, SEP, UNK, PAD = 101, 102, 100, 0


def test_ids_stand_between_cls_and_sep_and_know_their_words() -> None:
    ids, words = MiniLM(50).extract("The soundtrackish film wasn't Good.")
    assert ids.dtype == np.int32
    assert (ids[0], ids[-1]) == (CLS, SEP)
    assert len(ids) == len(words)
    assert words[0] == words[-1] == ""
    assert words[1:-1] == ["The", *["soundtrackish"] * 2, "film", "wasn", "'", "t", "Good", "."]


def test_the_vocabulary_is_that_of_bert_base_uncased() -> None:
    tokeniser = MiniLM(50)
    assert tokeniser.vocab_size == 30_522
    assert tokeniser.unk_id == UNK
    assert tokeniser.special_ids == (PAD, CLS, SEP)
    # Ids as every corpus with bert-base-uncased's tokens has them.
    assert tokeniser.extract("good movie")[0].tolist() == [CLS, 2204, 3185, SEP]


def test_case_and_accents_do_not_matter() -> None:
    tokeniser = MiniLM(50)
    assert tokeniser.extract("CAFÉ")[0].tolist() == tokeniser.extract("cafe")[0].tolist()


def test_a_long_text_loses_its_end_but_not_its_sep() -> None:
    long = " ".join(["word"] * 80)
    ids, words = MiniLM(50).extract(long)
    assert len(ids) == len(words) == 50
    assert (ids[0], ids[-1]) == (CLS, SEP)
    assert len(MiniLM(3).extract(long)[0]) == 3


def test_a_short_text_is_not_padded() -> None:
    assert len(MiniLM(50).extract("good")[0]) == 3


def test_a_text_without_a_token_has_no_ids() -> None:
    for text in ("", "   "):
        ids, words = MiniLM(50).extract(text)
        assert len(ids) == 0
        assert ids.dtype == np.int32
        assert words == []


def test_text_that_names_a_special_token_or_no_known_letter_stays_one_word_an_id() -> None:
    ids, words = MiniLM(50).extract("\u2603\u2603 ok 好")
    assert len(ids) == len(words)
    assert "ok" in words


def test_words_of_ready_ids_join_their_pieces() -> None:
    tokeniser = MiniLM(50)
    ids, _ = tokeniser.extract("the soundtrackish film")
    assert tokeniser.words(ids) == ["", "the", "soundtrackish", "soundtrackish", "film", ""]
    assert tokeniser.words(np.array([CLS, UNK, SEP, PAD])) == ["", "[UNK]", "", ""]
    assert tokeniser.words(np.zeros(0, np.int32)) == []


def test_the_weights_lie_in_the_package() -> None:
    assert (model_folder() / "model.safetensors").stat().st_size > 50_000_000
