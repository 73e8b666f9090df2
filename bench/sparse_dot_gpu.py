"""What sparse_dot moves on a GPU, counted, and the times that this predicts: the numbers of csrc/cuda/sparse_dot.cu.

`python bench/sparse_dot_gpu.py` prints them: Q = N = 16,384, K = 64, V = 30,522 on an H100.
"""

from __future__ import annotations

from dataclasses import dataclass

RANDOM_TURNS = 3.5  # of 32 banks for 32 lanes at random places: the mean of the fullest bank
ENTRY_BYTES = 8  # an index and a value
SCORE_BYTES = 4
RANGE, WARPS = 4096, 4  # of a block: documents and warps (csrc/cuda/lists.cuh)
BOUNDS_TURNS = 3  # the bounds, half a warp at a time, and the weight


@dataclass(frozen=True)
class Card:
    """Published rates, of L2 an assumption."""

    mem_gbps: float
    l2_gbps: float
    multiprocessors: int
    clock_ghz: float


H100 = Card(3350, 5500, 132, 1.755)


def lists_turns(Q: int, N: int, K: int, shared_terms: float) -> float:
    """Of the banks: a load and a store for each posting, every list's bounds and weight by each warp, the scores."""
    scores = float(Q) * N
    lists = Q * K * -(-N // RANGE)
    return (2 * RANDOM_TURNS * scores * shared_terms + 2 * scores) / 32 + BOUNDS_TURNS * WARPS * lists


def lists_ms(Q: int, N: int, K: int, shared_terms: float, card: Card = H100) -> dict[str, float]:
    """The kernel's parts, each alone; the largest bounds it."""
    scores = float(Q) * N  # their first values, 0 or NaN, come from L2
    return _ms(scores * (ENTRY_BYTES * shared_terms + SCORE_BYTES), lists_turns(Q, N, K, shared_terms), scores, card)


def dense_query_ms(Q: int, N: int, K: int, card: Card = H100) -> dict[str, float]:
    """The design that was left: a query's terms dense in shared memory, where all entries of all documents gather."""
    scores = float(Q) * N
    return _ms(scores * ENTRY_BYTES * K, scores * K * RANDOM_TURNS / 32, scores, card)


def _ms(l2_bytes: float, turns: float, scores: float, card: Card) -> dict[str, float]:
    return {
        "l2": l2_bytes / card.l2_gbps / 1e6,
        "banks": turns / card.multiprocessors / card.clock_ghz / 1e6,
        "memory": SCORE_BYTES * scores / card.mem_gbps / 1e6,
    }


if __name__ == "__main__":
    from work_sparse import make_rows, match_flops

    rows, K, V = 16384, 64, 30522
    shared_terms = match_flops(make_rows(rows, K, V, 1), make_rows(rows, K, V, 2)) / 2 / rows**2
    print(f"{shared_terms:.2f} terms shared; predicted ms:")
    print("lists", lists_ms(rows, rows, K, shared_terms))
    print("dense query", dense_query_ms(rows, rows, K))
