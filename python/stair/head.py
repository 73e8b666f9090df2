"""The vocabulary head: hidden states to a sparse row over the vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import stair_kernels as sk

HEADS = ("fused", "reference")
TIES = ("none", "text", "both")  # which heads use the word embeddings as their matrix


def eager_pool(head: sk.VocabHead) -> Tensor:  # [B, V]
    """`sk.vocab_pool` as plain PyTorch writes it: [B, L, V] logits in memory. What the fused head is compared with."""
    logits = head.hidden @ head.weight.T
    if head.mask is not None:
        logits = logits.masked_fill(~head.mask[..., None], -torch.inf)
    best = logits.amax(dim=1)
    return torch.log1p(torch.relu(best if head.bias is None else best + head.bias))


class TokenHead(nn.Module):
    """row[b, v] = log(1 + relu(max_l norm(gelu(hidden[b, l] @ dense)) . weight[v] + bias[v])), the k largest kept.

    Args:
        hidden_size: width of the tower's output.
        vocab_size: V, the number of word-pieces; `weight` is [V, D], `bias` [V].
        kind: "fused" for the operators of stair_kernels; "reference" for eager PyTorch, which materialises [B, L, V].
        width: D of `weight` [V, D] where it is not hidden_size: that of the word embeddings.
    """

    def __init__(self, hidden_size: int, vocab_size: int, kind: str = "fused", width: int | None = None) -> None:
        super().__init__()
        if kind not in HEADS:
            raise ValueError(f"head: expected one of {', '.join(HEADS)}, got {kind!r}")
        self.kind = kind
        width = width or hidden_size
        self.dense = nn.Linear(hidden_size, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.weight = nn.Parameter(torch.empty(vocab_size, width))
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        nn.init.normal_(self.weight, std=0.02)

    def inputs(self, hidden: Tensor, mask: Tensor | None = None) -> sk.VocabHead:
        """What sk.vocab_pool, sk.vocab_topk and sk.stair_loss take: (hidden [B, L, D], weight, bias, mask [B, L])."""
        return sk.VocabHead(self.norm(F.gelu(self.dense(hidden))), self.weight, self.bias, mask)

    def forward(self, hidden: Tensor, mask: Tensor | None = None, *, k: int) -> sk.SparseRows:
        """[B, L, D] hidden states to SparseRows [B, k]."""
        head = self.inputs(hidden, mask)
        if self.kind == "reference":
            return sk.topk(eager_pool(head).float(), k)
        return sk.vocab_topk(*head, k=k)
