"""MulT (Tsai et al., ACL 2019), as a reference for training time. It is not a control of the study.

Follows section 3 of the paper: one temporal convolution per modality; for each of the six pairs of modalities, a
crossmodal transformer with queries of one modality and with keys and values from the projected (not the attended)
frames of the other; for each modality, a transformer over its two concatenated results; a residual layer over the last
states. Sizes are the defaults of the authors' code: width 30, 5 heads, 5 layers, kernels of 1, causal attention.

Shapes: B batch, T time, D width, F features of a frame.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, HEADS, LAYERS = 30, 5, 5
DROPOUT = 0.1


def _positions(length: int, width: int, device: torch.device) -> Tensor:
    """Return sinusoidal position encodings (T, D) as in Vaswani et al. (2017)."""
    time = torch.arange(length, device=device)[:, None]
    rate = torch.exp(torch.arange(0, width, 2, device=device) * (-math.log(10000.0) / width))
    return torch.stack(((time * rate).sin(), (time * rate).cos()), -1).flatten(1)[:, :width]


class Block(nn.Module):
    """One pre-norm layer: attention to the given keys or self-attention, then a feed-forward of 4 D."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(width, HEADS, DROPOUT, batch_first=True)
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x_BTD: Tensor, keys_BTD: Tensor | None, later: Tensor) -> Tensor:
        query = self.before(x_BTD)
        keys = query if keys_BTD is None else self.before(keys_BTD)
        x_BTD = x_BTD + self.dropout(self.attend(query, keys, keys, attn_mask=later, need_weights=False)[0])
        return x_BTD + self.dropout(self.down(self.dropout(F.relu(self.up(self.between(x_BTD))))))


class Transformer(nn.Module):
    """Layers over one modality; all of them use the frames of another modality as keys if they are given."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(width) for _ in range(LAYERS))
        self.norm = nn.LayerNorm(width)

    def forward(self, x_BTD: Tensor, keys_BTD: Tensor | None = None) -> Tensor:
        length, width = x_BTD.shape[1:]
        reach = length if keys_BTD is None else keys_BTD.shape[1]
        x = math.sqrt(width) * x_BTD + _positions(length, width, x_BTD.device)
        keys = None if keys_BTD is None else math.sqrt(width) * keys_BTD + _positions(reach, width, x_BTD.device)
        later = torch.ones(length, reach, dtype=torch.bool, device=x.device).triu(1 + abs(reach - length))
        for layer in self.layers:
            x = layer(x, keys, later)
        return self.norm(x)


class MulT(nn.Module):
    """Frames of each modality (B, T, F) -> a value (B,)."""

    def __init__(self, features: dict[str, int]) -> None:
        super().__init__()
        self.project = nn.ModuleDict({m: nn.Conv1d(size, WIDTH, 1, bias=False) for m, size in features.items()})
        pairs = [f"{m}_{other}" for m in features for other in features if other != m]
        self.across = nn.ModuleDict({pair: Transformer(WIDTH) for pair in pairs})
        self.within = nn.ModuleDict({m: Transformer(WIDTH * (len(features) - 1)) for m in features})
        width = WIDTH * len(features) * (len(features) - 1)
        self.up, self.down, self.out = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, 1)

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        low = {m: project(x[m].transpose(1, 2)).transpose(1, 2) for m, project in self.project.items()}
        last = []
        for m, within in self.within.items():
            seen = [self.across[f"{m}_{other}"](low[m], low[other]) for other in self.project if other != m]
            last.append(within(torch.cat(seen, -1))[:, -1])
        fused = torch.cat(last, -1)
        return self.out(fused + self.down(F.relu(self.up(fused))))[:, 0]
