"""One encoder a modality, the same for every model, so that a comparison is between fusions.

Shapes: B batch, T time, M modality, D width, F features of a frame.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qamoe.config.params import Encoders
from qamoe.data.batch import Batch
from qamoe.models.text_encoder_finetuned import FinetunedEncoder


class Layer(nn.TransformerEncoderLayer):
    """torch's pre-norm layer, with attention by the fused kernel in evaluation.

    torch's own shortcut for evaluation makes all T x T weights of a padded batch, which takes four times as long at
    T 500. Training drops such weights, so it needs them, and stays torch's own.
    """

    def __init__(self, sizes: Encoders) -> None:
        width = sizes.width
        super().__init__(width, sizes.heads, 2 * width, sizes.dropout, "gelu", batch_first=True, norm_first=True)

    def forward(self, x_BTD: Tensor, mask_BT: Tensor) -> Tensor:  # type: ignore[override]
        """No clip's mask may be empty: attention over nothing is NaN."""
        if self.training:
            return super().forward(x_BTD, src_key_padding_mask=~mask_BT)
        attention = self.self_attn
        projected = F.linear(self.norm1(x_BTD), attention.in_proj_weight, attention.in_proj_bias)  # type: ignore[arg-type]
        query, key, value = projected.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(query, key, value, mask_BT[:, None, None])
        x_BTD = x_BTD + attention.out_proj(seen.transpose(1, 2).flatten(2))
        return x_BTD + self.linear2(F.gelu(self.linear1(self.norm2(x_BTD))))


class SequenceEncoder(nn.Module):
    """Projection, temporal convolution with stride, pre-norm transformer, attention pooling: (B, T, F) -> (B, D)."""

    def __init__(self, features: int, stride: int, sizes: Encoders) -> None:
        super().__init__()
        width = sizes.width
        self.stride = stride
        self.project = nn.Linear(features, width)
        self.convolve = nn.Conv1d(width, width, kernel_size=2 * stride + 1, stride=stride, padding=stride)
        self.layers = nn.ModuleList(Layer(sizes) for _ in range(sizes.layers))
        self.norm = nn.LayerNorm(width)
        self.score = nn.Linear(width, 1)
        self.absent = nn.Parameter(torch.zeros(width))
        self.dropout = nn.Dropout(sizes.dropout)

    def forward(self, x_BTF: Tensor, mask_BT: Tensor) -> Tensor:
        here_B = mask_BT.any(1)
        x = self.project(self.dropout(x_BTF)) * mask_BT[..., None]
        x = F.gelu(self.convolve(x.transpose(1, 2))).transpose(1, 2) + x[:, :: self.stride]
        mask = any_of(mask_BT, self.stride)
        mask = torch.cat([mask[:, :1] | ~here_B[:, None], mask[:, 1:]], dim=1)  # never attend to nothing
        for layer in self.layers:
            x = layer(x, mask)
        x = self.norm(x)
        weight = self.score(x)[..., 0].masked_fill(~mask, float("-inf")).softmax(1)
        pooled = (weight[..., None] * x).sum(1)
        return torch.where(here_B[:, None], pooled, self.absent)


def any_of(mask_BT: Tensor, stride: int) -> Tensor:
    """Whether each run of `stride` frames has one that is there; the last run may be shorter: (B, ceil(T / stride)).

    max_pool1d does the same, but fixes T where a model is exported.
    """
    time = mask_BT.shape[1]
    longer = F.pad(mask_BT, (0, stride - 1))
    return torch.stack([longer[:, place : time + place : stride] for place in range(stride)]).any(0)


class ModalityEncoders(nn.Module):
    """All encoders of a corpus: a batch -> h (B, M, D).

    Text is states of the frozen text encoder, or token ids where there is a `reader`, which is trained with the rest.
    """

    def __init__(self, features: dict[str, int], sizes: Encoders) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(
            {m: SequenceEncoder(size, getattr(sizes.stride, m), sizes) for m, size in features.items()}
        )
        self.reader: FinetunedEncoder | None = None

    def vectors(self, batch: Batch) -> dict[str, Tensor]:
        """The vectors (B, D) of those modalities that the batch has; each is made without a look at the others."""
        here = {}
        for modality, encode in self.encoders.items():
            if modality not in batch.x:
                continue
            x, mask = batch.x[modality], batch.mask[modality]
            if modality == "text" and self.reader is not None:
                x, mask = self.reader(x, mask)
            here[modality] = encode(x, mask)
        return here

    def forward(self, batch: Batch) -> Tensor:
        return self.together(self.vectors(batch), len(batch))

    def together(self, vectors: dict[str, Tensor], clips: int) -> Tensor:
        """Vectors of all modalities that are read -> (B, M, D); (B, 0, 0) where none is."""
        if not self.encoders:
            return torch.zeros(clips, 0, 0)
        return torch.stack([vectors[m] for m in self.encoders], dim=1)
