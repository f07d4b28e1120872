"""Mixture of experts (the layer): a router, GLU experts, two auxiliary losses, and the fusion built from them.

The models that use this layer are QAMoE (qamoe.py), MoE (baselines.py) and, without Mixture, Paper (paper.py).

Shapes: B batch, M modality, N tokens of a clip, D width, H hidden, E experts. No loop over experts or clips.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qamoe.config import params
from qamoe.models.training_step import Step

_SMALLEST_R = 1e-4
_ALIGNED = 8  # values: the kernel needs rows that are multiples of 16 bytes


class Router(nn.Module):
    """Semantic logits from the token plus quality logits from the clip's reliabilities (two gates in arXiv 2604.05704).

    With `qualities` None there are only semantic logits.
    """

    def __init__(self, width: int, qualities: int | None, experts: int) -> None:
        super().__init__()
        self.semantic = nn.Linear(width, experts)
        self.quality = None if qualities is None else nn.Linear(qualities, experts, bias=False)

    def forward(self, z_BND: Tensor, r_BM: Tensor | None) -> Tensor:
        """Return logits (B, N, E)."""
        logits = self.semantic(z_BND)
        return logits if self.quality is None else logits + self.quality(r_BM)[:, None]


def top_k_weights(logits_BNE: Tensor, active: int) -> Tensor:
    """Return the softmax over the `active` largest logits of each token, zero elsewhere: (B, N, E)."""
    top = logits_BNE.topk(active, dim=-1)
    weights = top.values.softmax(-1)  # float32 also under bfloat16 autocast
    return weights.new_zeros(logits_BNE.shape).scatter(-1, top.indices, weights)


def balance_loss(logits_BNE: Tensor, weights_BNE: Tensor, step: Step | None = None) -> Tensor:
    """Return E * sum over experts of (share of routed tokens) * (mean probability) (Fedus et al. 2022, eq. 4).

    The loss is 1 at balance. The shares are of the step's whole batch and have no gradient, so the loss is linear in
    the probabilities: the clip-weighted mean over the parts of a batch has the loss and gradient of the whole batch.
    """
    chosen_E = (weights_BNE > 0).float().flatten(0, 1).sum(0)
    if step is not None:
        chosen_E = step.summed(chosen_E)
    probability_E = logits_BNE.softmax(-1).flatten(0, 1).mean(0)
    return logits_BNE.shape[-1] * (chosen_E / chosen_E.sum() * probability_E).sum()


def router_z_loss(logits_BNE: Tensor) -> Tensor:
    """Return the mean squared log-sum-exp of the logits, which keeps them small (Zoph et al. 2022, eq. 5)."""
    return logits_BNE.logsumexp(-1).square().mean()


def grouped_matmul(x_SD: Tensor, weight_EDO: Tensor, ends_E: Tensor) -> Tensor:
    """Multiply rows, sorted by expert, by their expert's matrix: (S, O). Rows of expert e end before ends[e]."""
    out, weight_EDO = weight_EDO.shape[2], weight_EDO.to(x_SD.dtype)
    short, narrow = -weight_EDO.shape[1] % _ALIGNED, -out % _ALIGNED
    if short or narrow:
        x_SD, weight_EDO = F.pad(x_SD, (0, short)), F.pad(weight_EDO, (0, narrow, 0, short))
    return F.grouped_mm(x_SD, weight_EDO, offs=ends_E)[:, :out]


class Experts(nn.Module):
    """GLU experts mixed by the routing weights: (B, N, D) -> (B, N, D).

    Tokens are sorted by expert and multiplied only by their own experts; work and memory grow with the active experts.
    In compiled code torch has no such kernel, and in float32 on a GPU its kernel waits for the device: there, all
    experts process all tokens in one product.
    """

    def __init__(self, width: int, hidden: int, experts: int) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.empty(experts, width, 2 * hidden).uniform_(-(width**-0.5), width**-0.5))
        self.down = nn.Parameter(torch.empty(experts, hidden, width).uniform_(-(hidden**-0.5), hidden**-0.5))

    def forward(self, x_BND: Tensor, weights_BNE: Tensor, active: int) -> Tensor:
        """Mix the experts; `weights` are zero except for `active` experts per token."""
        device = x_BND.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x_BND.dtype
        if torch.compiler.is_compiling() or (device == "cuda" and dtype != torch.bfloat16):
            return self.dense_forward(x_BND, weights_BNE)
        return self.routed_forward(x_BND.to(dtype), weights_BNE, active)

    def dense_forward(self, x_BND: Tensor, weights_BNE: Tensor) -> Tensor:
        """Apply every expert to every token."""
        value, glu_gate = torch.einsum("bnd,edh->bneh", x_BND, self.up).chunk(2, dim=-1)
        mixed = value * F.silu(glu_gate) * weights_BNE[..., None]
        return torch.einsum("bneh,ehd->bnd", mixed, self.down)

    def routed_forward(self, x_BND: Tensor, weights_BNE: Tensor, active: int) -> Tensor:
        """Apply to each token its active experts only."""
        top = weights_BNE.flatten(0, 1).topk(active, sorted=False)
        expert, order = top.indices.flatten().sort(stable=True)
        expert_numbers = torch.arange(len(self.up), device=expert.device)
        ends = torch.searchsorted(expert, expert_numbers, right=True, out_int32=True)
        value, glu_gate = grouped_matmul(x_BND.flatten(0, 1)[order // active], self.up, ends).chunk(2, dim=-1)
        mixed = value * F.silu(glu_gate) * top.values.flatten()[order, None]
        unsorted = grouped_matmul(mixed.to(x_BND.dtype), self.down, ends)[order.argsort()]
        return unsorted.unflatten(0, (-1, active)).sum(1).view(x_BND.shape)


class Fused(NamedTuple):
    """The fused vector (B, W), its modality weights (B, M), routing weights (B, N, E), and losses by name."""

    vector: Tensor
    fusion: Tensor
    routing: Tensor
    losses: dict[str, Tensor]


class Mixture(nn.Module):
    """Fuse modality vectors (B, M, D), with or without reliabilities r (B, M), into vectors (B, W) by routed experts.

    Two fusions, both our decision. `tokens` routes each modality as a token, sums the tokens by weight, and adds a
    joint token of all modalities; W = D. `concat` routes the concatenated modalities as one token; W = M D, and its
    fusion weights are only reported.
    """

    def __init__(self, modalities: int, width: int, block: params.MoE, *, quality: bool) -> None:
        super().__init__()
        self.active = block.active
        tokens = block.fusion == "tokens"
        self.width = width if tokens else width * modalities
        self.norm = nn.LayerNorm(self.width)
        self.router = Router(self.width, modalities if quality else None, block.experts)
        self.experts = Experts(self.width, block.hidden, block.experts)
        self.score = nn.Linear(width, 1) if tokens else None
        self.joint = nn.Linear(modalities * width, width) if tokens else None

    def forward(
        self,
        z_BMD: Tensor,
        router_r_BM: Tensor | None,
        fusion_r_BM: Tensor | None,
        step: Step | None = None,
        *,
        labelled: bool = True,
    ) -> Fused:
        """Fuse a batch; the losses are computed only if it is `labelled`.

        `router_r_BM` are the reliabilities that the router reads, `fusion_r_BM` those that weigh the modalities; both
        are r, or None for a model without it.
        """
        log_r_BM = torch.zeros_like(z_BMD[..., 0]) if fusion_r_BM is None else fusion_r_BM.clamp(min=_SMALLEST_R).log()
        z_BND = z_BMD.flatten(1)[:, None]
        if self.joint is not None:
            z_BND = torch.cat([z_BMD, self.joint(z_BND)], 1)
        tokens_BND = self.norm(z_BND)
        logits = self.router(tokens_BND, router_r_BM)
        weights = top_k_weights(logits, self.active)
        y_BND = z_BND + self.experts(tokens_BND, weights, self.active)
        if self.score is None:
            fusion = log_r_BM.softmax(1)
            vector = y_BND[:, 0]
        else:
            y_BMD = y_BND[:, :-1]
            fusion = (self.score(y_BMD)[..., 0] + log_r_BM).softmax(1)
            vector = (fusion[..., None] * y_BMD).sum(1) + y_BND[:, -1]
        losses = {}
        if labelled:
            losses = {"balance": balance_loss(logits, weights, step), "router_z": router_z_loss(logits)}
        return Fused(vector, fusion, weights, losses)
