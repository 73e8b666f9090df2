"""Every tile of the GPU kernels, and the pure functions that choose one: no driver, no autotuner, unit-tested anywhere.

`arch` is 10 * major + minor of the compute capability. A tile of the head multiplies rows * positions tokens with
`columns` vocabulary columns, `depth` of D at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

SHARED_BYTES = {
    80: 163 << 10,
    86: 99 << 10,
    89: 99 << 10,
    90: 227 << 10,
    100: 227 << 10,
    120: 99 << 10,
}  # a block's limit
ARCHITECTURES = tuple(SHARED_BYTES)


@dataclass(frozen=True)
class Tile:
    """How one program of a head kernel is shaped, and how it is compiled."""

    rows: int  # of the batch, side by side: short sequences share a tile
    positions: int  # of each of these rows
    columns: int  # of the vocabulary
    depth: int  # of D: a step of the forward's product, a program's share in the backward
    warps: int
    stages: int  # loads in flight

    @property
    def tokens(self) -> int:
        """The tile's height in the product."""
        return self.rows * self.positions

    def operand_bytes(self, itemsize: int) -> int:
        """Shared memory of the staged operands of the forward."""
        return self.stages * (self.tokens + self.columns) * self.depth * itemsize


def limits_of(arch: int) -> int:
    """Shared memory a block may have, of the newest known architecture not newer than `arch`."""
    return SHARED_BYTES[max((known for known in ARCHITECTURES if known <= arch), default=min(ARCHITECTURES))]


def forward(length: int, itemsize: int, arch: int) -> Tile:
    """The forward's tile for sequences of `length` positions (on average) and elements of itemsize bytes.

    128 tokens by 128 columns: 64 sums a thread of 8 warps. Where several rows share the tile, each with its own maxima,
    half as many columns, or registers spill on sm_90 and sm_120 (seen in the compiled kernels); on sm_100, where sums
    come from tensor memory, always. 128 bytes of D a step is one swizzled row of shared memory.
    """
    positions = min(128, max(16, _power_of_two(length)))
    columns, depth = 128 if positions == 128 and arch < 100 else 64, 128 // itemsize
    for stages in (4, 3, 2):
        tile = Tile(128 // positions, positions, columns, depth, warps=8, stages=stages)
        if tile.operand_bytes(itemsize) <= limits_of(arch) - _REDUCTION_BYTES:
            return tile
    raise ValueError(f"arch: no tile of {itemsize}-byte elements fits sm_{arch}")


def backward(length: int, itemsize: int) -> Tile:
    """The tile of both gradients: a product of depth 64 (columns for hidden's, tokens for weight's), 64 wide in D."""
    positions = min(64, max(16, _power_of_two(length)))
    return Tile(64 // positions, positions, columns=64, depth=64 if itemsize == 2 else 32, warps=8, stages=2)


# What Triton's reductions over the positions may take of shared memory beside the operands.
_REDUCTION_BYTES = 2 << 10


def _power_of_two(n: int) -> int:
    """The smallest power of two that is not below n."""
    return 1 << max(0, n - 1).bit_length()
