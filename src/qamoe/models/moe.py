"""Mixture of experts: a router, GLU experts, and the two auxiliary losses, each by itself.

Shapes: B batch, N tokens of a clip, D width, H hidden, E experts. No loop over experts or clips.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Router(nn.Module):
    """Semantic logits of the token plus quality logits of the clip's reliabilities (arXiv 2604.05704: two gates)."""

    def __init__(self, width: int, qualities: int, experts: int) -> None:
        super().__init__()
        self.semantic = nn.Linear(width, experts)
        self.quality = nn.Linear(qualities, experts, bias=False)

    def forward(self, z_BND: Tensor, r_BM: Tensor) -> Tensor:
        """Logits (B, N, E)."""
        return self.semantic(z_BND) + self.quality(r_BM)[:, None]


def top_k_weights(logits_BNE: Tensor, active: int) -> Tensor:
    """Softmax over the `active` largest logits of each token, zero elsewhere: (B, N, E)."""
    top = logits_BNE.topk(active, dim=-1)
    return torch.zeros_like(logits_BNE).scatter(-1, top.indices, top.values.softmax(-1))


def balance_loss(logits_BNE: Tensor, weights_BNE: Tensor) -> Tensor:
    """E * sum of (share of routed tokens) * (mean probability) an expert, 1 at balance (Fedus et al. 2022, eq. 4)."""
    share_E = (weights_BNE > 0).float().flatten(0, 1).mean(0)
    probability_E = logits_BNE.softmax(-1).flatten(0, 1).mean(0)
    return logits_BNE.shape[-1] * (share_E / share_E.sum() * probability_E).sum()


def router_z_loss(logits_BNE: Tensor) -> Tensor:
    """Mean squared log-sum-exp of the logits, which keeps them small (Zoph et al. 2022, eq. 5)."""
    return logits_BNE.logsumexp(-1).square().mean()


class Experts(nn.Module):
    """GLU experts applied to every token and mixed by the routing weights: (B, N, D) -> (B, N, D)."""

    def __init__(self, width: int, hidden: int, experts: int) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.empty(experts, width, 2 * hidden).uniform_(-(width**-0.5), width**-0.5))
        self.down = nn.Parameter(torch.empty(experts, hidden, width).uniform_(-(hidden**-0.5), hidden**-0.5))

    def forward(self, x_BND: Tensor, weights_BNE: Tensor) -> Tensor:
        value, gate = torch.einsum("bnd,edh->bneh", x_BND, self.up).chunk(2, dim=-1)
        mixed = value * F.silu(gate) * weights_BNE[..., None]
        return torch.einsum("bneh,ehd->bnd", mixed, self.down)
