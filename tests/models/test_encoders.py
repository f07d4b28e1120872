"""Encoders: independent of padding and of other clips; a clip without frames gives a learned vector."""

from typing import Any

import pytest
import torch

from qamoe.config.params import Encoders
from qamoe.models.encoders import ModalityEncoders, SequenceEncoder, any_of


def encoder(stride: int, sizes: Encoders) -> SequenceEncoder:
    torch.manual_seed(0)
    sequence_encoder = SequenceEncoder(4, stride, sizes).eval()
    torch.nn.init.normal_(sequence_encoder.absent)
    return sequence_encoder


@pytest.mark.parametrize("stride", [1, 2, 3, 5])
@pytest.mark.parametrize("layers", [0, 1])
@torch.no_grad()
def test_padding_and_other_clips_change_nothing(sizes: Encoders, stride: int, layers: int) -> None:
    encode = encoder(stride, sizes.model_copy(update={"layers": layers}))
    clips = [torch.randn(length, 4) for length in (1, 2, 3, 4, 5, 6, 7, 13)]
    alone = torch.cat([encode(clip[None], torch.ones(1, len(clip), dtype=torch.bool)) for clip in clips])
    for longest in (13, 14, 15, 40):
        x, mask = torch.full((len(clips), longest, 4), 7.0), torch.zeros(len(clips), longest, dtype=torch.bool)
        for i, clip in enumerate(clips):
            x[i, : len(clip)], mask[i, : len(clip)] = clip, True
        assert torch.allclose(encode(x, mask), alone, atol=1e-5)
    assert (alone[:-1] - alone[1:]).abs().max() > 0.01


@torch.no_grad()
def test_evaluation_is_training_without_dropout(sizes: Encoders) -> None:
    """Training and evaluation use different attention implementations of torch."""
    encode = encoder(2, sizes.model_copy(update={"dropout": 0.0, "layers": 2}))
    x, mask = torch.randn(6, 9, 4), torch.arange(9) < torch.tensor([9, 7, 4, 1, 0, 8])[:, None]
    assert torch.allclose(encode.eval()(x, mask), encode.train()(x, mask), atol=1e-6)


@torch.no_grad()
def test_statistics_are_those_of_the_valid_frames(sizes: Encoders) -> None:
    encode = encoder(2, sizes.model_copy(update={"pooling": "statistics"}))
    x, mask = torch.randn(3, 9, 4), torch.arange(9) < torch.tensor([9, 1, 0])[:, None]
    expected = torch.cat([x[0].mean(0), x[0].std(0, correction=0) - 1])
    assert torch.allclose(encode(x, mask)[0], encode.project(expected), atol=1e-4)
    of_one_frame = torch.cat([x[1, 0], torch.full((4,), 1e-3 - 1)])
    assert torch.allclose(encode(x, mask)[1], encode.project(of_one_frame), atol=1e-4)
    assert torch.equal(encode(x, mask)[2], encode.absent)
    x[1, 1:] = 7.0
    assert torch.allclose(encode(x, mask)[1], encode(x[1:2, :1], mask[1:2, :1])[0], atol=1e-5)


@torch.no_grad()
def test_dropout_adds_little_noise_to_the_statistics_of_standardised_frames(sizes: Encoders) -> None:
    """With deviations around 1, dropout would add more noise than clips differ."""
    encode = encoder(2, sizes.model_copy(update={"pooling": "statistics", "dropout": 0.6}))
    encode.project.weight.fill_(1.0)
    x, mask = torch.randn(200, 100, 4), torch.ones(200, 100, dtype=torch.bool)
    noise = encode.train()(x, mask) - encode.eval()(x, mask)
    assert noise.square().mean().sqrt() < 0.5  # sqrt(4 * 0.6 / 0.4) = 2.4 and more if deviations were around 1


def test_statistics_have_finite_gradients(sizes: Encoders) -> None:
    encode = encoder(2, sizes.model_copy(update={"pooling": "statistics"})).train()
    x, mask = torch.ones(2, 5, 4), torch.tensor([[True] * 5, [False] * 5])
    encode(x, mask).square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in encode.parameters())


@pytest.mark.parametrize("stride", [1, 3])
def test_a_clip_without_frames_gives_the_learned_vector(sizes: Encoders, stride: int) -> None:
    encode = encoder(stride, sizes)
    x, mask = torch.randn(2, 5, 4), torch.tensor([[True] * 5, [False] * 5])
    h = encode(x, mask)
    assert torch.isfinite(h).all()
    assert torch.equal(h[1], encode.absent)
    assert torch.allclose(h[0], encode(x[:1], mask[:1])[0], atol=1e-5)
    h[1].sum().backward()
    assert encode.absent.grad is not None
    assert torch.equal(encode.absent.grad, torch.ones_like(encode.absent))
    others = [p.grad for name, p in encode.named_parameters() if name != "absent" and p.grad is not None]
    assert all(torch.isfinite(grad).all() for grad in others), (
        "no NaN comes from the branch that torch.where does not select"
    )


def test_gradients_are_finite_in_a_batch_with_a_clip_without_frames(sizes: Encoders) -> None:
    encode = encoder(2, sizes).train()
    x, mask = torch.randn(3, 6, 4), torch.tensor([[True] * 6, [False] * 6, [True] * 2 + [False] * 4])
    encode(x, mask).square().sum().backward()
    for name, parameter in encode.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_every_valid_frame_counts(sizes: Encoders) -> None:
    encode = encoder(2, sizes)
    x = torch.randn(1, 9, 4, requires_grad=True)
    mask = torch.tensor([[True] * 7 + [False] * 2])
    encode(x, mask).square().sum().backward()
    assert x.grad is not None
    assert (x.grad[0, :7].abs().sum(-1) > 0).all()
    assert (x.grad[0, 7:] == 0).all()


def test_modalities_keep_their_order(sizes: Encoders, batch_of: Any) -> None:
    torch.manual_seed(0)
    encode = ModalityEncoders({"text": 6, "audio": 3, "vision": 2}, sizes).eval()
    batch = batch_of(range(4))
    h = encode(batch)
    assert h.shape == (4, 3, 8)
    for index, modality in enumerate(("text", "audio", "vision")):
        expected = encode.encoders[modality](batch.x[modality], batch.mask[modality])
        assert torch.equal(h[:, index], expected)


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_a_run_of_frames_is_valid_if_one_of_its_frames_is(stride: int) -> None:
    generator = torch.Generator().manual_seed(stride)
    for time in range(1, 9):
        mask = torch.rand(6, time, generator=generator) < 0.4
        pooled = torch.nn.functional.max_pool1d(mask.float()[:, None], stride, ceil_mode=True)[:, 0] > 0
        assert torch.equal(any_of(mask, stride), pooled)
