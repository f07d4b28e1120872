"""bge-small's own weights, frozen and fine-tuned; skipped where they were not fetched."""

import numpy as np
import pytest
import torch

from qamoe.config.params import TextEncoder
from qamoe.extractors.bge_small import BgeSmall
from qamoe.extractors.minilm import MiniLM
from qamoe.models import text_encoder_bert, text_encoder_finetuned, text_encoder_frozen
from qamoe.weights import store

pytestmark = [
    pytest.mark.integration,  # loads the encoder
    pytest.mark.skipif(store.place("bge-small") is None, reason="qamoe weights fetch bge-small was not run"),
]
TEXTS = ("a lovely film", "a dull film", "kids are talking by the door")
ONNX_RUNTIME = (0.663, 0.427, 0.416)  # cosines of the int8 file's CLS states: 1 with 2, 1 with 3, 2 with 3


def states(encoder: str) -> list[torch.Tensor]:
    ids = [torch.from_numpy(BgeSmall(50).extract(text)[0].astype(np.int64))[None] for text in TEXTS]
    return [text_encoder_frozen.encode(one, torch.ones_like(one, dtype=torch.bool), encoder)[0] for one in ids]


def test_its_ids_are_those_of_minilm() -> None:
    bge, minilm = BgeSmall(50), MiniLM(50)
    assert bge.vocabulary_sha256 == minilm.vocabulary_sha256
    for text in (*TEXTS, "The soundtrackish film wasn't Good.", "umm 好 naïve CO2 £5"):
        assert bge.extract(text)[0].tolist() == minilm.extract(text)[0].tolist()


def test_its_states_lie_to_each_other_as_onnx_runtime_has_them() -> None:
    one, two, three = (state[0] / state[0].norm() for state in states("bge-small"))
    np.testing.assert_allclose([one @ two, one @ three, two @ three], ONNX_RUNTIME, atol=0.02)
    minilm = [state[0] / state[0].norm() for state in states("minilm")]
    assert minilm[0] @ minilm[1] > 0.8


def test_a_fine_tuned_encoder_starts_from_the_same_weights() -> None:
    folder = text_encoder_frozen.folder_of("bge-small")
    assert text_encoder_bert.load(folder, "cpu") is not None, "the frozen one needs no transformers"
    sizes = TextEncoder(finetune=True, encoder="bge-small", lr=5e-5, dropout=0.1, pooling="attention")
    architecture = text_encoder_finetuned.architecture(sizes, 50, MiniLM(50).vocabulary_sha256)
    reader = text_encoder_finetuned.FinetunedEncoder(architecture, sizes)
    reader.load_pretrained(sizes)
    ids = torch.from_numpy(BgeSmall(50).extract(TEXTS[0])[0].astype(np.int64))[None]
    with torch.no_grad():
        read, _ = reader.eval()(ids, torch.ones_like(ids, dtype=torch.bool))
    torch.testing.assert_close(read[0], states("bge-small")[0], atol=2e-5, rtol=0)
