"""What accesses cost: sectors and turns of the banks, counted by hand."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from ptx.handwritten import HEADER, entry
from ptx.machine import ORDERS, Order, Program
from ptx.shared_memory import Rows
from ptx.traffic import Cost, add_global, add_shared, measured

LANES = np.arange(32)


@pytest.mark.parametrize(
    ("stride", "size_bytes", "paid", "least"),
    [
        (1, 4, 1, 1),
        (0, 4, 1, 1),  # one word for all lanes
        (2, 4, 2, 1),
        (32, 4, 32, 1),
        (33, 4, 1, 1),
        (1, 8, 2, 2),  # half a warp at a time
        (2, 8, 4, 2),
        (1, 16, 4, 4),
        (5, 16, 4, 4),
    ],
)
def test_turns_of_the_banks(stride: int, size_bytes: int, paid: int, least: int) -> None:
    cost, place = Cost(), LANES * stride
    add_shared(cost, Rows(place, place * size_bytes, LANES, LANES * 0, size_bytes))
    assert (cost.paid, cost.least) == (paid, least)


@pytest.mark.parametrize(
    ("first", "stride_bytes", "size_bytes", "paid", "least"),
    [(0, 4, 4, 4, 4), (4, 4, 4, 5, 4), (0, 16, 16, 16, 16), (0, 32, 4, 32, 4), (0, 0, 4, 1, 1), (16, 16, 16, 17, 16)],
)
def test_sectors(first: int, stride_bytes: int, size_bytes: int, paid: int, least: int) -> None:
    cost = Cost()
    add_global(cost, first + LANES * stride_bytes, LANES, size_bytes)
    assert (cost.paid, cost.least) == (paid, least)


def test_every_warp_pays_for_itself() -> None:
    lanes = np.arange(64)
    shared, sectors = Cost(), Cost()
    add_shared(shared, Rows(lanes % 32, lanes % 32 * 4, lanes, lanes // 32, 4))
    add_global(sectors, lanes % 32 * 4, lanes, 4)
    assert (shared.paid, shared.least, sectors.paid, sectors.least) == (2, 2, 8, 8)
    assert shared.ratio == 1


@pytest.mark.parametrize("order", ORDERS)
def test_instructions_of_warps(order: str) -> None:
    """A warp whose lanes part goes both ways; one that stays together goes one."""
    body = """
	setp.lt.u32 %p0, %i, 16;
	@%p0 bra low;
	mov.u32 %r0, 1;
	mov.u32 %r1, 2;
	bra end;
low:
	mov.u32 %r0, 3;
end:"""
    with measured() as (memory, traffic):
        parameters = struct.pack("<Q", memory.add(np.zeros(1, np.int32), "out"))
        Program(HEADER + entry("kernel", ["out"], body)).launch((2,), (64,), parameters, memory, order=Order(order))
    common, high, low = 4, 3, 1
    parted, together = common + high + low, common + high
    assert traffic.instructions == 2 * (parted + together)
