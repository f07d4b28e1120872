"""One encoder per modality. All models have the same encoders, so that comparisons are between fusions.

Shapes: B batch, T time, M modality, D width, F features of a frame.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qamoe.config.params import Encoders
from qamoe.data.batch import Batch
from qamoe.models.text_encoder_finetuned import FinetunedEncoder


class Layer(nn.TransformerEncoderLayer):
    """torch's pre-norm layer, with the fused attention kernel in evaluation.

    torch's own fast path for evaluation computes all T x T weights of a padded batch, which takes four times as long
    at T = 500. Training applies dropout to these weights, so it uses torch's own forward.
    """

    def __init__(self, sizes: Encoders) -> None:
        width = sizes.width
        super().__init__(width, sizes.heads, 2 * width, sizes.dropout, "gelu", batch_first=True, norm_first=True)

    def forward(self, x_BTD: Tensor, mask_BT: Tensor) -> Tensor:  # type: ignore[override]
        """Every clip needs a valid frame in `mask_BT`: attention over nothing is NaN."""
        if self.training:
            return super().forward(x_BTD, src_key_padding_mask=~mask_BT)
        attention = self.self_attn
        projected = F.linear(self.norm1(x_BTD), attention.in_proj_weight, attention.in_proj_bias)  # type: ignore[arg-type]
        query, key, value = projected.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value, mask_BT[:, None, None])
        x_BTD = x_BTD + attention.out_proj(attended.transpose(1, 2).flatten(2))
        return x_BTD + self.linear2(F.gelu(self.linear1(self.norm2(x_BTD))))


class SequenceEncoder(nn.Module):
    """Projection, temporal convolution with stride, pre-norm transformer, attention pooling: (B, T, F) -> (B, D).

    With pooling `statistics`, a projection of the mean and the standard deviation of the valid frames, and nothing else
    (our decision: with a few hundred clips, the rest overfits).
    """

    def __init__(self, features: int, stride: int, sizes: Encoders) -> None:
        super().__init__()
        width = sizes.width
        self.stride = stride
        self.statistics = sizes.pooling == "statistics"
        self.project = nn.Linear(2 * features if self.statistics else features, width)
        if not self.statistics:
            self.convolve = nn.Conv1d(width, width, kernel_size=2 * stride + 1, stride=stride, padding=stride)
            self.layers = nn.ModuleList(Layer(sizes) for _ in range(sizes.layers))
            self.norm = nn.LayerNorm(width)
            self.score = nn.Linear(width, 1)
        self.absent = nn.Parameter(torch.zeros(width))
        self.dropout = nn.Dropout(sizes.dropout)

    def forward(self, x_BTF: Tensor, mask_BT: Tensor) -> Tensor:
        has_frames_B = mask_BT.any(1)
        if self.statistics:
            vector = self.project(self.dropout(statistics(x_BTF, mask_BT)))
            return torch.where(has_frames_B[:, None], vector, self.absent)
        x = self.project(self.dropout(x_BTF)) * mask_BT[..., None]
        x = F.gelu(self.convolve(x.transpose(1, 2))).transpose(1, 2) + x[:, :: self.stride]
        mask = any_of(mask_BT, self.stride)
        mask = torch.cat([mask[:, :1] | ~has_frames_B[:, None], mask[:, 1:]], dim=1)  # every clip needs a valid frame
        for layer in self.layers:
            x = layer(x, mask)
        x = self.norm(x)
        weight = self.score(x)[..., 0].masked_fill(~mask, float("-inf")).softmax(1)
        pooled = (weight[..., None] * x).sum(1)
        return torch.where(has_frames_B[:, None], pooled, self.absent)


class FlaggedEncoder(SequenceEncoder):
    """A sequence encoder whose vector ends in 1 for a clip without a valid frame, else in 0: (B, T, F) -> (B, D + 1).

    Only an empty mask is flagged, so a model is not told of a modality that was lost without a notice.
    """

    def forward(self, x_BTF: Tensor, mask_BT: Tensor) -> Tensor:
        vector = super().forward(x_BTF, mask_BT)
        return torch.cat([vector, (~mask_BT.any(1, keepdim=True)).to(vector.dtype)], 1)


def statistics(x_BTF: Tensor, mask_BT: Tensor) -> Tensor:
    """Return the mean and the standard deviation, less 1, of each clip's valid frames: (B, 2 F).

    Standardised frames have a mean of 0 and a deviation of 1, so both parts lie around 0: dropout then hides what tells
    clips apart, and adds no noise of the common part. States of text encoders are not standardised. A clip without a
    frame has a mean of 0 and a deviation near 0, which is -1 here.
    """
    valid = mask_BT[..., None].to(x_BTF.dtype)
    count = valid.sum(1).clamp(min=1)
    mean = (x_BTF * valid).sum(1) / count
    variance = (((x_BTF - mean[:, None]) * valid) ** 2).sum(1) / count
    return torch.cat([mean, (variance + 1e-6).sqrt() - 1], 1)


def any_of(mask_BT: Tensor, stride: int) -> Tensor:
    """Return whether each run of `stride` frames has a valid one, (B, ceil(T / stride)); the last run may be shorter.

    max_pool1d does the same, but an exported model would then have a fixed T.
    """
    time = mask_BT.shape[1]
    padded = F.pad(mask_BT, (0, stride - 1))
    return torch.stack([padded[:, offset : time + offset : stride] for offset in range(stride)]).any(0)


class ModalityEncoders(nn.Module):
    """All encoders of a corpus: a batch -> h (B, M, D).

    Text is states of the frozen text encoder, or token ids if there is a `reader`, a text encoder that is fine-tuned
    with the model. `encoder` is the class of the encoders. With `reads_confidence`, text has a further column: 1 less
    the confidence of a recogniser in each word, 0 for typed words.
    """

    def __init__(
        self, features: dict[str, int], sizes: Encoders, encoder: type[SequenceEncoder] = SequenceEncoder
    ) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(
            {m: encoder(size, getattr(sizes.stride, m), sizes) for m, size in features.items()}
        )
        self.reader: FinetunedEncoder | None = None  # weights.safetensors has this name in its keys
        self.reads_confidence = False

    def vectors(self, batch: Batch) -> dict[str, Tensor]:
        """Return the vectors (B, D) of the batch's modalities, each independent of the others."""
        vectors = {}
        for modality, encode in self.encoders.items():
            if modality not in batch.x:
                continue
            x, mask = batch.x[modality], batch.mask[modality]
            if modality == "text":
                x, mask = self.words(x, mask, batch.confidence)
            vectors[modality] = encode(x, mask)
        return vectors

    def words(self, x: Tensor, mask_BT: Tensor, confidence_BT: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return frames (B, T, F) of text and their mask, from states (B, T, W), or from ids (B, T) for a reader."""
        doubt = x.new_zeros(mask_BT.shape, dtype=torch.float32) if confidence_BT is None else 1 - confidence_BT
        doubt = doubt * mask_BT
        if self.reader is not None:
            x, mask = self.reader(x, mask_BT)
            if mask.shape != mask_BT.shape:
                doubt = doubt.sum(1, keepdim=True) / mask_BT.sum(1, keepdim=True).clamp(min=1)
            mask_BT = mask
        return torch.cat([x, doubt[..., None].to(x.dtype)], 2) if self.reads_confidence else x, mask_BT

    def forward(self, batch: Batch) -> Tensor:
        return self.together(self.vectors(batch), len(batch))

    def together(self, vectors: dict[str, Tensor], clips: int) -> Tensor:
        """Stack the vectors of all modalities that the model reads: (B, M, D), or (B, 0, 0) if it reads none."""
        if not self.encoders:
            return torch.zeros(clips, 0, 0)
        return torch.stack([vectors[m] for m in self.encoders], dim=1)
