"""Token ids by the tokenizer of a folder: two kinds, each saved here in the layout of `save_pretrained`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from qamoe.errors import UserError
from qamoe.extractors.huggingface import HuggingFace
from qamoe.extractors.minilm import MiniLM, model_folder
from qamoe.extractors.tokens import vocabulary_digest

BERT = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}


def wordpiece(folder: Path, words: str = "真 好 我 ##们 ok", **config: Any) -> Path:
    """Save a tokenizer of BERT's kind, in which Chinese characters are words."""
    tokens = [*BERT.values(), *words.split()]
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return save(tokenizer, folder, BERT | config)


def bytepairs(folder: Path) -> Path:
    """Save one of RoBERTa's kind: bytes as tokens, other names of special tokens, one of them given as a dict."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *sorted(alphabet)]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel()
    tokenizer.enable_truncation(3)
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": {"content": "<pad>"}, "unk_token": "<unk>"}
    return save(tokenizer, folder, names)


def save(tokenizer: Tokenizer, folder: Path, config: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_chinese_words_are_between_cls_and_sep(tmp_path: Path) -> None:
    tokens = HuggingFace(str(wordpiece(tmp_path / "chinese")), 50)
    ids, words = tokens.extract("我们 真 好 吗")
    assert ids.tolist() == [1, 6, 7, 4, 5, 3, 2]
    assert words == ["", "我们", "我们", "真", "好", "吗", ""]
    assert (tokens.special_ids, tokens.unk_id, tokens.vocab_size) == ((0, 1, 2), 3, 9)
    assert tokens.words(ids) == ["", "我们", "我们", "真", "好", "[UNK]", ""]
    assert tokens.vocabulary == "chinese", "not a known vocabulary, so named after its folder"


def test_bytes_can_be_tokens_and_only_the_setting_limits_the_length(tmp_path: Path) -> None:
    tokens = HuggingFace(str(bytepairs(tmp_path / "bytes")), 8)
    ids, words = tokens.extract("so good")
    assert (tokens.special_ids, tokens.unk_id) == ((1, 0, 2), 3)
    assert (ids[0], ids[-1], len(ids)) == (0, 2, 8)
    assert words == ["", "so", "so", *["good"] * 4, ""]


def test_the_vocabulary_of_the_package_is_recognised(tmp_path: Path) -> None:
    same, ours = HuggingFace(str(model_folder()), 50), MiniLM(50)
    text = "The soundtrackish film wasn't Good."
    assert same.extract(text)[0].tolist() == ours.extract(text)[0].tolist()
    assert same.vocabulary == ours.vocabulary == "bert-base-uncased"
    assert same.vocabulary_sha256 == ours.vocabulary_sha256
    one, other = wordpiece(tmp_path / "one"), wordpiece(tmp_path / "other", "真 好 我 ##们 no")
    assert vocabulary_digest(one) != vocabulary_digest(other)


def without_pad(folder: Path) -> Path:
    return wordpiece(folder, pad_token=None)


def with_an_unknown_pad(folder: Path) -> Path:
    return wordpiece(folder, pad_token="<pad>")


def without_config(folder: Path) -> Path:
    (wordpiece(folder) / "tokenizer_config.json").unlink()
    return folder


def damaged(folder: Path) -> Path:
    (wordpiece(folder) / "tokenizer.json").write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda folder: folder, r"extract\.text\.model.*tokenizer\.json"),
        (without_pad, r"tokenizer_config\.json: pad_token is None\b"),
        (with_an_unknown_pad, r"tokenizer_config\.json: pad_token is '<pad>'"),
        (without_config, r"tokenizer_config\.json"),
        (damaged, r"tokenizer\.json"),
    ],
)
def test_a_folder_without_a_usable_tokenizer_is_rejected(
    make: Callable[[Path], Path], named: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=named) as caught:
        HuggingFace(str(make(tmp_path / "folder")), 50)
    assert "\n" not in str(caught.value)
