"""The benchmark's cases: which operator, sizes, dtype and inputs; `--set` names a group of them."""

from __future__ import annotations

from dataclasses import dataclass

INPUTS = ("trained", "sparse", "untrained")


@dataclass(frozen=True)
class Case:
    """One benchmark: an operator, its sizes in the order of DIMENSIONS[op], a dtype and a kind of input."""

    op: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    # trained: ragged, sparse, with hot terms and hot tokens; untrained: about every entry active, 10% padding;
    # sparse (of topk): 5% of the entries active
    inputs: str = "trained"

    @property
    def sizes(self) -> dict[str, int]:
        return dict(zip(DIMENSIONS[self.op], self.shape))


DIMENSIONS = {
    "vocab_topk": ("B", "L", "D", "V", "k"),
    "vocab_topk_grad": ("B", "L", "D", "V", "k"),
    "vocab_pool": ("B", "L", "D", "V"),
    "vocab_pool_grad": ("B", "L", "D", "V"),
    "topk": ("B", "V", "k"),
    "sparse_dot": ("Q", "N", "K", "V"),
    "sparse_dot_grad": ("Q", "N", "K", "V"),
    "stair_loss_grad": ("B", "L", "D", "V"),
    "search": ("Q", "N", "K", "V", "k"),
}
MODELS = ("bert", "splade", "sparse_encoder", "vdr", "d2s", "stair_reference")  # that stair.accelerate takes
for _model in MODELS:
    for _suffix in ("", "_grad"):
        _sizes_of = ("B", "D", "V") if _model == "d2s" else ("B", "L", "D", "V", "layers")
        DIMENSIONS[f"accelerate_{_model}{_suffix}"] = _sizes_of

# Width of the vocabulary head, positions and vocabulary of known models, for --model. Lengths: what retrieval uses of a
# text model's (SPLADE-v3 256, CLIP's texts 77), all patches of a 224 x 224 picture.
MODEL_SHAPES = {
    "bert-base": {"L": 512, "D": 768, "V": 30522},
    "distilbert": {"L": 256, "D": 768, "V": 30522},
    "splade-v3": {"L": 256, "D": 768, "V": 30522},
    "modernbert-base": {"L": 512, "D": 768, "V": 50368},
    "xlm-roberta-base": {"L": 512, "D": 768, "V": 250_002},
    "clip-vit-b32": {"L": 49, "D": 768, "V": 49408},
    "clip-vit-b32-text": {"L": 77, "D": 512, "V": 49408},
    "stair-b16": {"L": 196, "D": 768, "V": 30522},
}
MODEL_BATCH = {"B": 8, "k": 256}
MODEL_OPS = ("vocab_topk", "vocab_topk_grad", "vocab_pool", "vocab_pool_grad", "stair_loss_grad")


def of_model(model: str, op: str | None, dtype: str, inputs: str) -> list[Case]:
    """The cases of a known model's head, or the one of `op`."""
    if op not in (None, *MODEL_OPS):
        raise ValueError(f"--op: expected one of {', '.join(MODEL_OPS)} with --model, got {op}")
    sizes = MODEL_BATCH | MODEL_SHAPES[model]
    return [
        Case(name, tuple(sizes[size] for size in DIMENSIONS[name]), dtype, inputs)
        for name in MODEL_OPS
        if op in (None, name)
    ]


STANDARD: tuple[Case, ...] = (
    Case("vocab_topk", (64, 24, 128, 30522, 64)),
    Case("vocab_topk", (64, 49, 128, 30522, 64)),
    Case("vocab_topk", (64, 49, 128, 30522, 64), inputs="untrained"),
    Case("vocab_topk", (16, 64, 768, 30522, 256)),
    Case("vocab_topk", (16, 64, 768, 30522, 256), "bfloat16"),
    Case("vocab_topk_grad", (16, 64, 768, 30522, 256)),
    Case("vocab_pool", (64, 49, 128, 30522)),
    Case("vocab_pool_grad", (64, 49, 128, 30522)),
    Case("stair_loss_grad", (64, 49, 128, 30522)),
    Case("topk", (256, 30522, 64)),
    Case("topk", (256, 30522, 64), inputs="untrained"),
    Case("sparse_dot", (256, 1024, 64, 30522)),
    Case("search", (64, 100_000, 64, 30522, 10)),
)

# One size at a time away from the first case: the curves of the report.
STANDARD += tuple(
    Case("vocab_topk", shape)
    for shape in (
        (8, 24, 128, 30522, 64),
        (256, 24, 128, 30522, 64),
        (64, 8, 128, 30522, 64),
        (64, 96, 128, 30522, 64),
        (64, 24, 128, 8192, 64),
        (64, 24, 128, 100_000, 64),
        (64, 24, 128, 30522, 16),
        (64, 24, 128, 30522, 256),
    )
)
# Where torch.compile is timed on the CPU without being asked for: it takes half a minute to make each.
COMPILED = (
    Case("vocab_topk", (64, 49, 128, 30522, 64)),
    Case("vocab_pool_grad", (64, 49, 128, 30522)),
    Case("stair_loss_grad", (64, 49, 128, 30522)),
)

# What the CPU kernels are held to, on one thread: the hard case (random activations) of a common head.
LIMITS = (
    *(Case("vocab_topk", (16, 64, 512, 30522, 64), dtype, "untrained") for dtype in ("float32", "bfloat16", "float16")),
    *(Case("vocab_topk_grad", (16, 64, 512, 30522, 64), dtype, "untrained") for dtype in ("float32", "bfloat16")),
    *(Case("vocab_pool_grad", (16, 64, 512, 30522), dtype, "untrained") for dtype in ("float32", "bfloat16")),
    *(Case("vocab_topk", (1, 8, 512, 30522, 64), dtype, "untrained") for dtype in ("float32", "bfloat16")),
    *(Case("topk", (256, 30522, 64), inputs=inputs) for inputs in ("sparse", "untrained")),
    Case("sparse_dot", (1024, 1024, 64, 30522)),
    Case("sparse_dot_grad", (1024, 1024, 64, 30522)),
)


def _sizes() -> tuple[Case, ...]:
    """One size at a time away from a common head, and corners of the grid, each in two dtypes."""
    base = {"B": 8, "L": 24, "D": 512, "V": 30522, "k": 64}
    grid = {
        "L": (1, 8, 24, 64, 77, 197, 512),
        "V": (5_000, 30_522, 49_408, 250_002),
        "D": (128, 512, 768, 1024),
        "B": (1, 8, 64, 256),
        "k": (16, 64, 256, 1024),
    }
    shapes: list[tuple[int, ...]] = [
        tuple((base | {name: size}).values()) for name, sizes in grid.items() for size in sizes
    ]
    corners: list[tuple[int, ...]] = [
        (1, 1, 128, 5_000, 16),
        (1, 1, 1024, 250_002, 1024),
        (1, 512, 128, 5_000, 1024),
        (1, 8, 768, 250_002, 16),
        (8, 1, 128, 5_000, 1024),
        (64, 1, 1024, 5_000, 16),
        (256, 1, 128, 30_522, 1024),
        (256, 8, 128, 5_000, 16),
        (64, 77, 128, 49_408, 256),
        (8, 197, 768, 30_522, 256),
    ]
    shapes = list(dict.fromkeys(shapes + corners))
    return tuple(Case("vocab_topk", shape, dtype, "untrained") for shape in shapes for dtype in ("float32", "bfloat16"))


# Whole models, published and accelerated: six layers of BERT's width, two of the demo's.
ACCELERATED = tuple(
    Case(f"accelerate_{model}{suffix}", shape)
    for model, shape in (
        ("bert", (8, 64, 768, 30522, 6)),
        ("splade", (8, 64, 768, 30522, 6)),
        ("sparse_encoder", (8, 64, 768, 30522, 6)),
        ("vdr", (8, 64, 768, 30522, 6)),
        ("d2s", (256, 768, 30522)),
        ("stair_reference", (64, 24, 128, 30522, 2)),
    )
    for suffix in ("", "_grad")
)

SWEPT = ("vocab_pool", "vocab_pool_grad")  # whose tiles --sweep searches
# Common lengths, a tiles.length_class each; random activations, for which every column has a gradient.
TILES = tuple(
    Case(op, (64, length, 768, 30522), dtype, "untrained")
    for dtype in ("bfloat16", "float32")
    for op in SWEPT
    for length in (49, 16, 24, 77, 197)
)
INTERPRETED = tuple(Case(op, (2, 20, 40, 40), "float32", "untrained") for op in SWEPT)  # --sweep without a GPU

# What a training step's loss is held to.
LOSS = tuple(
    Case("stair_loss_grad", (128, 32, 256, 30522), dtype, inputs)
    for dtype in ("float32", "bfloat16")
    for inputs in ("trained", "untrained")
)
SETS = {"standard": STANDARD, "limits": LIMITS, "loss": LOSS, "sizes": _sizes(), "tiles": TILES, "models": ACCELERATED}
