"""Every tile of the GPU kernels, and the pure functions that choose one: no driver, no autotuner, unit-tested anywhere.

`arch` is 10 * major + minor of the compute capability. A tile of the head multiplies `columns` of the vocabulary with
rows * positions tokens, `depth` of D at a time. A tile that was measured to be faster (MEASURED) wins over the rules.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

SHARED_BYTES = {
    80: 163 << 10,
    86: 99 << 10,
    89: 99 << 10,
    90: 227 << 10,
    100: 227 << 10,
    120: 99 << 10,
}  # a block's limit
ARCHITECTURES = tuple(SHARED_BYTES)
REGISTERS = 64 << 10  # of a multiprocessor


@dataclass(frozen=True)
class Tile:
    """How one program of a head kernel is shaped, and how it is compiled."""

    rows: int  # of the batch, side by side: short sequences share a tile
    positions: int  # of each of these rows
    columns: int  # of the vocabulary
    depth: int  # of D: a step of the forward's product, a program's share in the backward
    warps: int
    stages: int  # loads in flight
    boxes: bool = False  # whether operands come through tensor descriptors (TMA)

    @property
    def tokens(self) -> int:
        return self.rows * self.positions

    @property
    def programs(self) -> int:
        """Programs that share a multiprocessor: while one takes its maxima, another keeps the tensor cores busy."""
        return max(1, 8 // self.warps)

    @property
    def registers(self) -> int:
        """What a thread may use, so that `programs` fit."""
        return min(255, REGISTERS // (self.programs * self.warps * 32))

    def operand_bytes(self, itemsize: int) -> int:
        """Shared memory of the staged operands of the forward."""
        return self.stages * (self.tokens + self.columns) * self.depth * itemsize


# What a tile of the forward has by the positions of a row in it: columns, bytes of D a step, warps. 128 tokens by 128
# columns read an operand byte for every 64 multiply-adds in bfloat16. Less where registers would spill (seen in the
# compiled kernels, docs/gpu.md): several rows side by side have a maximum each. With 4 warps two programs share a
# multiprocessor, and one multiplies while the other takes its maxima.
_Shapes = dict[int, tuple[int, int, int]]
_FORWARD: dict[int, _Shapes] = {
    80: {128: (128, 64, 4), 64: (64, 128, 4), 32: (64, 64, 4), 16: (64, 128, 8)},
    86: {128: (128, 128, 8), 64: (128, 128, 8), 32: (64, 128, 8), 16: (64, 128, 8)},
    89: {128: (128, 128, 8), 64: (128, 128, 8), 32: (64, 128, 8), 16: (64, 128, 8)},
    90: {128: (128, 128, 4), 64: (128, 128, 4), 32: (128, 128, 4), 16: (128, 128, 8)},
    100: {128: (128, 128, 4), 64: (128, 128, 4), 32: (128, 128, 4), 16: (128, 128, 8)},
    120: {128: (128, 128, 8), 64: (64, 128, 8), 32: (64, 128, 8), 16: (32, 128, 8)},
}
_BOXES = (90, 100)  # sm_120 has descriptors too; with them its tiles spill
_EXACT: _Shapes = dict.fromkeys((128, 64, 32, 16), (64, 128, 8))  # no tensor core multiplies float32 exactly
_SHORT_COST = 1.3  # of a token in a tile of 16 positions, whose epilogue is not hidden, in those of a longer one


class Call(NamedTuple):
    """What a measured tile is for: a kernel on one architecture, and what else its rule looks at."""

    kernel: str  # forward; hidden or weight, the gradients; gather, the weight's of long rows
    arch: int
    length: int  # of length_class; 0 of gather, which takes all alike
    itemsize: int
    exact: bool = False
    masked: bool = False  # of the forward


MEASURED: dict[Call, Tile] = {
    # nothing has been measured yet; bench/run.py --sweep prints lines for here
}


def length_class(length: int) -> int:
    """The lengths that share a measured tile, and waste the same on padding: up to a multiple of 16, or beyond 512."""
    return min(512, -(-max(length, 1) // 16) * 16)


def limits_of(arch: int) -> int:
    """Shared memory a block may have, of the newest known architecture not newer than `arch`."""
    return SHARED_BYTES[_known(arch)]


def fits(tile: Tile, itemsize: int, arch: int) -> bool:
    """Whether the forward's programs of a multiprocessor have room in its shared memory."""
    return tile.programs * (tile.operand_bytes(itemsize) + _REDUCTION_BYTES) <= limits_of(arch)


def not_deeper(tile: Tile, D: int) -> Tile:
    """The tile for rows of D, which may be narrower than its depth."""
    return replace(tile, depth=min(tile.depth, max(16, _power_of_two(D))))


def has_boxes(arch: int) -> bool:
    """Whether operands come through tensor descriptors."""
    return _known(arch) in _BOXES


def forward(batch: int, length: int, itemsize: int, arch: int, *, masked: bool = True, exact: bool) -> Tile:
    """The forward's tile for `batch` sequences of `length` positions (on average) and elements of itemsize bytes.

    exact: float32 products in float32. Of the tiles, 128 tokens each, that which wastes the fewest on padding: 77
    positions are three times 32, not 128.
    """
    call = Call("forward", arch, length_class(length), itemsize, exact, masked)
    if call in MEASURED:
        return MEASURED[call]
    known = _known(arch)
    boxes = has_boxes(arch) and not exact
    shapes = _EXACT if exact else _FORWARD[known]

    def cost(positions: int) -> float:
        rows = 128 // positions
        tokens = -(-batch // rows) * rows * -(-max(length, 1) // positions) * positions
        return tokens * (_SHORT_COST if positions == 16 else 1.0)

    positions = min(shapes, key=cost)  # the longest of equals
    columns, depth_bytes, warps = shapes[positions]
    if known == 100 and boxes and not masked:
        warps = 8  # each thread of 4 would hold 128 sums and recompute which of them count
    for stages in (2,) if exact else (4, 3, 2):
        tile = Tile(128 // positions, positions, columns, depth_bytes // itemsize, warps, stages, boxes)
        if fits(tile, itemsize, arch):
            return tile
    raise ValueError(f"arch: no tile of {itemsize}-byte elements fits sm_{arch}")


def backward(
    length: int, D: int, itemsize: int, *, exact: bool, arch: int | None = None, kernel: str = "hidden"
) -> Tile:
    """The tile of the gradient of `hidden` or `weight`: a product `tokens` by `columns` by `depth` of D.

    The rule is the same for all architectures; without `arch` it alone decides. The one-hot factor costs about as many
    instructions as 200 of depth: a program that builds it uses it for 512 bytes of a row. Exact products fill the
    registers with their operands, and Triton 3.7 would round those 64 tokens high to TF32 on sm_100, asked for or not.
    """
    if arch is not None and (call := Call(kernel, arch, length_class(length), itemsize, exact)) in MEASURED:
        return not_deeper(MEASURED[call], D)
    tokens, warps = (32, 4) if exact else (64, 8)
    positions = backward_positions(length, tokens)
    columns, depth = (32, 32) if exact else (64, 512 // itemsize)
    tile = Tile(tokens // positions, positions, columns, depth, warps, stages=2)
    return tile if exact else not_deeper(tile, D)


def backward_positions(length: int, tokens: int) -> int:
    """How many of a tile's `tokens` are of one row."""
    return min(tokens, max(16, _power_of_two(length)))


def gather(D: int, itemsize: int, *, arch: int | None = None) -> Tile:
    """The tile of the weight's gradient when it gathers tokens: several small programs hide the latency of loads."""
    if arch is not None and (call := Call("gather", arch, 0, itemsize)) in MEASURED:
        return not_deeper(MEASURED[call], D)
    return not_deeper(Tile(rows=1, positions=16, columns=32, depth=256 // itemsize, warps=4, stages=2), D)


def gathers(length: int) -> bool:
    """Whether the weight's gradient gathers the token that won instead of multiplying by a one-hot matrix.

    For 64 columns of a row of the batch the product reads the row's ceil(length / 64) tiles of 64 tokens, the gathering
    64 tokens: both are bound by these reads, from L2.
    """
    return length > 64


def sorts(length: int) -> bool:
    """Whether the columns are sorted for hidden's gradient by the tile of 64 positions that they flow to.

    Unsorted, a row of the batch reads the weight ceil(length / 64) times, sorted once, and the sort takes about as long
    as reading a weight of D = 512 from L2 (predicted for an H100: 0.9 ms for B = 256, V = 30,522): from 3 tiles on.
    """
    return length > 128


# What Triton's reductions over the positions may take of shared memory beside the operands.
_REDUCTION_BYTES = 2 << 10


def _known(arch: int) -> int:
    return max((known for known in ARCHITECTURES if known <= arch), default=min(ARCHITECTURES))


def _power_of_two(n: int) -> int:
    """The smallest power of two that is not below n."""
    return 1 << max(0, n - 1).bit_length()
