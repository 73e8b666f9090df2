"""The tiles that bench/run.py --sweep tries: first shapes, each with loads in flight as the rules have them, then the
other ways to feed the best shapes. Powers of two, held to shared memory and to the accumulators of a thread."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from stair_kernels import tiles
from stair_kernels.tiles import Call, Tile

WARPS = (4, 8)
STAGES = (4, 3, 2)
# A thread has 255 registers: more sums than 128 leave too few for operands, fewer than 16 are not worth loading them.
SUMS = range(16, 129)


def shapes(call: Call, D: int) -> list[Tile]:
    """Tiles that differ in what a program computes."""
    if call.kernel == "forward":
        return list(_forward_shapes(call))
    return list(dict.fromkeys(tiles.not_deeper(tile, D) for tile in _gradient_shapes(call)))


def feeds(call: Call, tile: Tile) -> list[Tile]:
    """The same shape with other numbers of loads in flight; in the forward with other steps of D and other loads."""
    if call.kernel != "forward":
        return [replace(tile, stages=stages) for stages in STAGES if stages != tile.stages]
    depths = [step // call.itemsize for step in (64, 128, 256)]
    kinds = sorted({False, _has_boxes(call)})
    fed = [
        replace(tile, depth=depth, stages=stages, boxes=boxes)
        for boxes in kinds
        for depth in depths
        for stages in STAGES
    ]
    return [other for other in fed if other != tile and tiles.fits(other, call.itemsize, call.arch)]


def _forward_shapes(call: Call) -> Iterator[Tile]:
    for positions in (16, 32, 64, 128, 256):  # a length of 77 may want 32
        for tokens in (64, 128, 256):
            for columns in (32, 64, 128, 256):
                for warps in WARPS:
                    if positions <= tokens and tokens * columns // (32 * warps) in SUMS:
                        shape = tokens // positions, positions, columns, 128 // call.itemsize, warps
                        yield from _deepest(call, Tile(*shape, stages=0, boxes=_has_boxes(call)))


def _deepest(call: Call, tile: Tile) -> Iterator[Tile]:
    """The tile with the most loads in flight that fit, if any do."""
    staged = (replace(tile, stages=stages) for stages in STAGES)
    yield from [tile for tile in staged if tiles.fits(tile, call.itemsize, call.arch)][:1]


def _gradient_shapes(call: Call) -> Iterator[Tile]:
    """Sums are tokens by depth (hidden) or columns by depth (weight); what gathers has no tile of tokens."""
    for depth in [step // call.itemsize for step in (128, 256, 512, 1024)]:
        for tokens in (16,) if call.kernel == "gather" else (32, 64, 128):
            for columns in (32, 64, 128):
                for warps in WARPS:
                    height, loaded = (tokens, columns) if call.kernel == "hidden" else (columns, tokens)
                    mem_bytes = (2 * loaded * depth + tokens * columns) * call.itemsize
                    if height * depth // (32 * warps) in SUMS and mem_bytes <= tiles.limits_of(call.arch):
                        positions = tokens if call.kernel == "gather" else tiles.backward_positions(call.length, tokens)
                        yield Tile(tokens // positions, positions, columns, depth, warps, stages=2)


def _has_boxes(call: Call) -> bool:
    return tiles.has_boxes(call.arch) and not call.exact
