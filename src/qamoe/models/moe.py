"""Mixture of experts: a router, GLU experts, the two auxiliary losses, each by itself, and the fusion that they make.

Shapes: B batch, M modality, N tokens of a clip, D width, H hidden, E experts. No loop over experts or clips.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qamoe.config.params import MoE as Block
from qamoe.models.training_step import Step

_SMALLEST_R = 1e-4
_ALIGNED = 8  # numbers: rows of a grouped product begin on 16 bytes


class Router(nn.Module):
    """Semantic logits of the token plus quality logits of the clip's reliabilities (arXiv 2604.05704: two gates).

    Without `qualities` the semantic gate stands alone.
    """

    def __init__(self, width: int, qualities: int | None, experts: int) -> None:
        super().__init__()
        self.semantic = nn.Linear(width, experts)
        self.quality = None if qualities is None else nn.Linear(qualities, experts, bias=False)

    def forward(self, z_BND: Tensor, r_BM: Tensor | None) -> Tensor:
        """Logits (B, N, E)."""
        logits = self.semantic(z_BND)
        return logits if self.quality is None else logits + self.quality(r_BM)[:, None]


def top_k_weights(logits_BNE: Tensor, active: int) -> Tensor:
    """Softmax over the `active` largest logits of each token, zero elsewhere: (B, N, E)."""
    top = logits_BNE.topk(active, dim=-1)
    weights = top.values.softmax(-1)  # in float32, where a GPU computes the logits in bfloat16
    return weights.new_zeros(logits_BNE.shape).scatter(-1, top.indices, weights)


def balance_loss(logits_BNE: Tensor, weights_BNE: Tensor, step: Step | None = None) -> Tensor:
    """E * sum of (share of routed tokens) * (mean probability) an expert, 1 at balance (Fedus et al. 2022, eq. 4).

    The shares are those of the step's whole batch. They have no gradient, so that the loss is linear in the
    probabilities: the mean over parts, weighted by their clips, is the loss of the whole, and so is its gradient.
    """
    chosen_E = (weights_BNE > 0).float().flatten(0, 1).sum(0)
    if step is not None:
        chosen_E = step.summed(chosen_E)
    probability_E = logits_BNE.softmax(-1).flatten(0, 1).mean(0)
    return logits_BNE.shape[-1] * (chosen_E / chosen_E.sum() * probability_E).sum()


def router_z_loss(logits_BNE: Tensor) -> Tensor:
    """Mean squared log-sum-exp of the logits, which keeps them small (Zoph et al. 2022, eq. 5)."""
    return logits_BNE.logsumexp(-1).square().mean()


def grouped_matmul(x_SD: Tensor, weight_EDO: Tensor, ends_E: Tensor) -> Tensor:
    """Rows sorted by expert, each times its expert's matrix: (S, O). Those of expert e end before ends[e] (int32)."""
    out, weight_EDO = weight_EDO.shape[2], weight_EDO.to(x_SD.dtype)
    short, narrow = -weight_EDO.shape[1] % _ALIGNED, -out % _ALIGNED
    if short or narrow:
        x_SD, weight_EDO = F.pad(x_SD, (0, short)), F.pad(weight_EDO, (0, narrow, 0, short))
    return F.grouped_mm(x_SD, weight_EDO, offs=ends_E)[:, :out]


class Experts(nn.Module):
    """GLU experts mixed by the routing weights: (B, N, D) -> (B, N, D).

    Tokens are sorted by expert and multiplied by their own alone, so that work and memory grow with the active experts.
    Where torch has no such kernel (compiled) or one that waits for the device (float32 on a GPU), all experts see all
    tokens in one product.
    """

    def __init__(self, width: int, hidden: int, experts: int) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.empty(experts, width, 2 * hidden).uniform_(-(width**-0.5), width**-0.5))
        self.down = nn.Parameter(torch.empty(experts, hidden, width).uniform_(-(hidden**-0.5), hidden**-0.5))

    def forward(self, x_BND: Tensor, weights_BNE: Tensor, active: int) -> Tensor:
        """`weights` are zero but for `active` experts a token."""
        device = x_BND.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x_BND.dtype
        if torch.compiler.is_compiling() or (device == "cuda" and dtype != torch.bfloat16):
            return self.dense_forward(x_BND, weights_BNE)
        return self.routed_forward(x_BND.to(dtype), weights_BNE, active)

    def dense_forward(self, x_BND: Tensor, weights_BNE: Tensor) -> Tensor:
        """Every expert on every token."""
        value, gate = torch.einsum("bnd,edh->bneh", x_BND, self.up).chunk(2, dim=-1)
        mixed = value * F.silu(gate) * weights_BNE[..., None]
        return torch.einsum("bneh,ehd->bnd", mixed, self.down)

    def routed_forward(self, x_BND: Tensor, weights_BNE: Tensor, active: int) -> Tensor:
        """The experts of each token."""
        top = weights_BNE.flatten(0, 1).topk(active, sorted=False)
        expert, order = top.indices.flatten().sort(stable=True)
        every = torch.arange(len(self.up), device=expert.device)
        ends = torch.searchsorted(expert, every, right=True, out_int32=True)
        value, gate = grouped_matmul(x_BND.flatten(0, 1)[order // active], self.up, ends).chunk(2, dim=-1)
        mixed = value * F.silu(gate) * top.values.flatten()[order, None]
        back = grouped_matmul(mixed.to(x_BND.dtype), self.down, ends)[order.argsort()]
        return back.unflatten(0, (-1, active)).sum(1).view(x_BND.shape)


class Fused(NamedTuple):
    """A clip as one vector (B, W), the modalities' weights in it (B, M), routing (B, N, E), losses by name."""

    vector: Tensor
    fusion: Tensor
    routing: Tensor
    losses: dict[str, Tensor]


class Mixture(nn.Module):
    """Modality vectors (B, M, D), and their reliabilities (B, M) where there are such -> one vector, by routed experts.

    Two fusions: `tokens` routes each modality, sums them by weight, and adds a further token for what they say
    together, W = D; `concat` takes one route for all of them beside each other, W = M D, and its fusion weights are
    only shown. Both are our decision.
    """

    def __init__(self, modalities: int, width: int, block: Block, *, quality: bool) -> None:
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
        gate_BM: Tensor | None,
        trust_BM: Tensor | None,
        step: Step | None = None,
        *,
        labelled: bool = True,
    ) -> Fused:
        """The reliabilities that the router sees, and those that weigh the modalities, are the same or None.

        There are losses for clips that are `labelled` only.
        """
        scores = torch.zeros_like(z_BMD[..., 0]) if trust_BM is None else trust_BM.clamp(min=_SMALLEST_R).log()
        z_BND = z_BMD.flatten(1)[:, None]
        if self.joint is not None:
            z_BND = torch.cat([z_BMD, self.joint(z_BND)], 1)
        tokens_BND = self.norm(z_BND)
        logits = self.router(tokens_BND, gate_BM)
        weights = top_k_weights(logits, self.active)
        y_BND = z_BND + self.experts(tokens_BND, weights, self.active)
        if self.score is None:
            fusion = scores.softmax(1)
            vector = y_BND[:, 0]
        else:
            y_BMD = y_BND[:, :-1]
            fusion = (self.score(y_BMD)[..., 0] + scores).softmax(1)
            vector = (fusion[..., None] * y_BMD).sum(1) + y_BND[:, -1]
        losses = {}
        if labelled:
            losses = {"balance": balance_loss(logits, weights, step), "router_z": router_z_loss(logits)}
        return Fused(vector, fusion, weights, losses)
