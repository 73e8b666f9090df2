"""Operations that compute each lane from its own registers, and which bits of their results are undefined."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ptx.decode import Decoder, Destination, Execute
from ptx.lanes import Lanes, Source, Value
from ptx.operands import Operand
from ptx.scalars import Array, ScalarType

Compute = Callable[..., Array]
# The undefined bits of a result, given the sources, at least one of which has some.
Spread = Callable[[Sequence[Value], ScalarType], Array]


def any_bit(sources: Sequence[Value], result: ScalarType) -> Array:
    """One undefined bit makes the whole result undefined."""
    bad = np.zeros(1, bool)
    for _, undefined in sources:
        if undefined is not None:
            bad = bad | (undefined != 0)
    return np.where(bad, ~result.raw.type(0), result.raw.type(0))


def same_bits(sources: Sequence[Value], result: ScalarType) -> Array:
    """Bit i of the result depends on the bits i of the sources."""
    union = np.zeros(1, result.raw)
    for _, undefined in sources:
        if undefined is not None:
            union = union | undefined
    return union


def moved_by(compute: Compute) -> Spread:
    """The operation only moves the bits of its first source: the undefined ones move likewise."""

    def spread(sources: Sequence[Value], result: ScalarType) -> Array:
        first, *others = sources
        if any(undefined is not None for _, undefined in others):
            return any_bit(sources, result)
        undefined = first[1] if first[1] is not None else np.zeros(1, result.raw)
        moved = compute(undefined.view(first[0].dtype), *(values for values, _ in others))
        return moved.view(result.raw)

    return spread


def both_ways(absorbing: int) -> Spread:
    """and, or: a defined bit that decides the result (and: 0, or: 1) makes it defined, whatever the other one is."""

    def spread(sources: Sequence[Value], result: ScalarType) -> Array:
        (a, a_undefined), (b, b_undefined) = ((values.view(result.raw), undefined) for values, undefined in sources)
        zero = np.zeros(1, result.raw)
        a_open = zero if a_undefined is None else a_undefined
        b_open = zero if b_undefined is None else b_undefined
        if absorbing:
            a, b = ~a, ~b
        return (a_open | b_open) & (a | a_open) & (b | b_open)

    return spread


def selected_bits(sources: Sequence[Value], result: ScalarType) -> Array:
    """selp: the undefined bits of the chosen source."""
    (_, a), (_, b), (condition, condition_undefined) = sources
    zero = np.zeros(1, result.raw)
    chosen = np.where(condition, zero if a is None else a, zero if b is None else b)
    return chosen if condition_undefined is None else np.where(condition_undefined, ~result.raw.type(0), chosen)


def elementwise(
    compute: Compute, destination: Destination, result: ScalarType, sources: Sequence[Source], spread: Spread = any_bit
) -> Execute:
    """destination = compute(*sources)"""

    def execute(lanes: Lanes) -> None:
        values = [source.read(lanes) for source in sources]
        undefined = None
        if any(bits is not None for _, bits in values):
            undefined = spread(values, result)
        destination.write(lanes, compute(*(value for value, _ in values)), undefined)

    return execute


def plain(
    decoder: Decoder, operands: Sequence[Operand], scalar: ScalarType, compute: Compute, spread: Spread = any_bit
) -> Execute:
    """operands[0] = compute(the others), all of one type"""
    sources = [decoder.source(operand, scalar) for operand in operands[1:]]
    return elementwise(compute, decoder.destination(operands[0], scalar), scalar, sources, spread)
