"""Text as token ids: the word of each id, truncation, and the special ids that degradations need."""

import numpy as np

from qamoe.extractors.minilm import MiniLM, model_folder

CLS, SEP, UNK, PAD = 101, 102, 100, 0


def test_ids_are_between_cls_and_sep_and_have_their_words() -> None:
    ids, words = MiniLM(50).extract("The soundtrackish film wasn't Good.")
    assert ids.dtype == np.int32
    assert (ids[0], ids[-1]) == (CLS, SEP)
    assert len(ids) == len(words)
    assert words[0] == words[-1] == ""
    assert words[1:-1] == ["The", *["soundtrackish"] * 2, "film", "wasn", "'", "t", "Good", "."]


def test_the_vocabulary_is_that_of_bert_base_uncased() -> None:
    tokenizer = MiniLM(50)
    assert tokenizer.vocab_size == 30_522
    assert tokenizer.unk_id == UNK
    assert tokenizer.special_ids == (PAD, CLS, SEP)
    # The same ids as in every corpus with bert-base-uncased's tokens.
    assert tokenizer.extract("good movie")[0].tolist() == [CLS, 2204, 3185, SEP]


def test_case_and_accents_do_not_matter() -> None:
    tokenizer = MiniLM(50)
    assert tokenizer.extract("CAFÉ")[0].tolist() == tokenizer.extract("cafe")[0].tolist()


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


def test_unknown_letters_still_give_one_word_per_id() -> None:
    ids, words = MiniLM(50).extract("\u2603\u2603 ok 好")
    assert len(ids) == len(words)
    assert "ok" in words


def test_the_words_of_ready_ids_join_their_pieces() -> None:
    tokenizer = MiniLM(50)
    ids, _ = tokenizer.extract("the soundtrackish film")
    assert tokenizer.words(ids) == ["", "the", "soundtrackish", "soundtrackish", "film", ""]
    assert tokenizer.words(np.array([CLS, UNK, SEP, PAD])) == ["", "[UNK]", "", ""]
    assert tokenizer.words(np.zeros(0, np.int32)) == []


def test_the_weights_are_in_the_package() -> None:
    assert (model_folder() / "model.safetensors").stat().st_size > 50_000_000
