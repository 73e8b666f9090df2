"""Sparse kernels for STAIR (Sparse Text And Image Representation).

Fused vocabulary projection, max-pool, log-ReLU and top-k, sparse dot products, their gradients, the exact training
loss, and an exact sparse search index.

    import stair_kernels as sk
    rows = sk.vocab_topk(hidden, weight, bias, mask, k=64)     # SparseRows; neither [B, L, V] nor [B, V] is written
    score = sk.sparse_dot(rows, other)                         # [Q, N]

Every operator is specified in plain PyTorch under the same name in `stair_kernels.reference`.
"""

from pathlib import Path

import torch

from stair_kernels.version import __version__

_HERE = Path(__file__).parent


def _load(name: str) -> None:
    path = _HERE / f"{name}.so"
    if not path.exists():
        raise ImportError(
            f"stair_kernels: {path.name} is not built; run `make setup` or `pip install -e .` in the checkout"
        )
    torch.ops.load_library(path)


_load("_C")
if torch.cuda.is_available() and (_HERE / "_C_cuda.so").exists():
    _load("_C_cuda")

from stair_kernels import autograd, cuda, distributed, reference  # noqa: E402, F401
from stair_kernels.index import SparseIndex  # noqa: E402
from stair_kernels.loss import stair_loss  # noqa: E402
from stair_kernels.ops import (  # noqa: E402
    PackedVocab,
    cpu_isa,
    flops,
    pack_vocab,
    sparse_dot,
    topk,
    vocab_pool,
    vocab_topk,
)
from stair_kernels.reference import StairLoss, VocabHead  # noqa: E402
from stair_kernels.rows import SparseRows  # noqa: E402
from stair_kernels.rows_loss import loss_of_rows  # noqa: E402
from stair_kernels.semantic_search import semantic_search_stair  # noqa: E402

__all__ = [
    "PackedVocab",
    "SparseIndex",
    "SparseRows",
    "StairLoss",
    "VocabHead",
    "__version__",
    "cpu_isa",
    "distributed",
    "flops",
    "loss_of_rows",
    "pack_vocab",
    "reference",
    "semantic_search_stair",
    "sparse_dot",
    "stair_loss",
    "topk",
    "vocab_pool",
    "vocab_topk",
]
