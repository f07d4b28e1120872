"""Text as token ids: the word of each id, truncation, and the special ids that degradations need."""

import numpy as np
import pytest

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


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("😀😀😀", ""),
        ("🙂 :-)", ""),
        ("我很高兴今天", "Chinese"),
        ("我爱 iPhone 的颜色", "Chinese"),
        ("私はとても嬉しい", "Japanese"),
        ("カタカナ", "Japanese"),
        ("나는 행복해요", "Korean"),
        ("Привет, как дела", "Cyrillic"),
        ("γεια σου κόσμε", "Greek"),
        ("مرحبا بالعالم", "Arabic"),
        ("नमस्ते दुनिया", "Devanagari"),
        ("สวัสดีชาวโลก", "Thai"),
        ("שלום עולם", "Hebrew"),
        ("x" * 200, ""),
        ("\u200f", ""),
        ("\x00", ""),
    ],
)
def test_a_text_that_the_encoder_does_not_read_has_no_ids_but_a_reason(text: str, script: str) -> None:
    reading = MiniLM(50).read(text)
    assert (len(reading.ids), reading.words, reading.script) == (0, [], script)
    assert reading.reason
    assert script in reading.reason
    assert len(MiniLM(50).extract(text)[0]) == 0


@pytest.mark.parametrize(
    "text",
    ["hello 😀 world this is fine", "great 👍🔥 ❤️", "she said привет to me", "Ich freue mich", "hola qué tal", "...",
     "123", "a\x00b", "\u200fso good", "α and β are fine"],
)  # fmt: skip
def test_mostly_latin_text_keeps_all_of_its_ids(text: str) -> None:
    tokenizer = MiniLM(50)
    reading = tokenizer.read(text)
    assert reading.reason == ""
    assert reading.ids[1:-1].tolist() == tokenizer._tokenizer.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize(
    ("limit", "kept", "words"), [(39, None, (37, 60)), (50, 38, (37, 60)), (50, 4, (3, 60)), (62, 61, None)]
)
def test_words_beyond_the_limit_are_counted(limit: int, kept: int | None, words: tuple[int, int] | None) -> None:
    reading = MiniLM(limit).read(" ".join(["word"] * 60), kept)
    assert reading.words_in_text == 60
    assert [int(word) for word in reading.reason.split() if word.isdecimal()] == list(words or ())


def test_words_are_counted_and_not_their_pieces() -> None:
    reading = MiniLM(7).read("The soundtrackish film wasn't good.")  # soundtrackish has two pieces, wasn't three
    assert [int(word) for word in reading.reason.split() if word.isdecimal()] == [3, 5]


def test_half_a_pair_of_surrogates_is_no_character() -> None:
    assert len(MiniLM(50).read("so \ud83d good").ids) == 5
