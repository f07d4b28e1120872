"""The random numbers of a training step depend on the clip, not on its position in a batch or its process."""

from itertools import product

import pytest
import torch

from qamoe.models.heads import Classes
from qamoe.models.training_step import Step
from qamoe.rng import MODALITIES, STREAMS, TRAINING_STREAMS, Draws, clip_key

KEYS = torch.tensor([clip_key(f"clip-{i}") for i in range(7)])


def step(keys: torch.Tensor = KEYS, seed: int = 1, epoch: int = 1) -> Step:
    return Step(seed, epoch, keys, lambda count: count, torch.zeros(len(keys), 3))


def test_a_clip_draws_the_same_in_every_batch() -> None:
    whole = step().normal("sample", 3, 8)
    assert whole.shape == (7, 3, 8)
    for rows in ([3], [6, 0], [5, 4, 3, 2, 1]):
        assert torch.equal(step(KEYS[rows]).normal("sample", 3, 8), whole[rows])


def test_seed_epoch_clip_and_stream_change_a_draw() -> None:
    draws = {
        tuple(step(KEYS[clip : clip + 1], seed, epoch).normal(stream, 4)[0].tolist())
        for seed, epoch, clip, stream in product((1, 2), (1, 2), (0, 1), TRAINING_STREAMS)
    }
    assert len(draws) == 2 * 2 * 2 * len(TRAINING_STREAMS)


def test_degradations_do_not_share_draws_with_training() -> None:
    of_training = [Draws(1, KEYS, None, stream, 1).words(4) for stream in TRAINING_STREAMS]
    for modality, stream in product(MODALITIES, STREAMS):
        words = Draws(1, KEYS, modality, stream, 1).words(4)
        assert not any(torch.equal(words, other) for other in of_training)


def test_draws_are_standard_normal_and_independent_between_modalities() -> None:
    keys = torch.tensor([clip_key(f"clip-{i}") for i in range(2000)])
    drawn = step(keys).normal("sample", 3, 16).double()
    assert drawn.mean().item() == pytest.approx(0.0, abs=0.01)
    assert drawn.std().item() == pytest.approx(1.0, abs=0.01)
    related = torch.corrcoef(drawn.transpose(0, 1).flatten(1)) - torch.eye(3)
    assert related.abs().max().item() < 0.02


@pytest.mark.parametrize("training", [True, False])
def test_perturbed_logits_belong_to_their_clips(training: bool) -> None:
    """The loss of a batch is the mean over its clips, each with the noise that it has alone in a batch."""
    classes = Classes([0.25, 0.5, 0.25])
    guess, log_variance = torch.randn(7, 3), torch.zeros(7)
    target = torch.tensor([0, 1, 2, 0, 1, 2, 0])

    def loss(rows: list[int]) -> torch.Tensor:
        batch_step = step(KEYS[rows]) if training else None
        return classes.prediction(guess[rows], log_variance[rows], target[rows], batch_step).losses["task"]

    alone = torch.stack([loss([row]) for row in range(7)])
    assert torch.allclose(loss(list(range(7))), alone.mean(), atol=1e-6) == training
