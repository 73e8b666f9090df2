"""What sparse_dot moves on a GPU, counted, and the times that predicts: the numbers of csrc/cuda/sparse_dot.cu.

python bench/sparse_dot_gpu.py    # Q = N = 16,384, K = 64, V = 30,522 on an H100
"""

from __future__ import annotations

from dataclasses import dataclass

RANDOM_TURNS = 3.5  # of 32 banks for 32 lanes at random places: the mean of the fullest bank
ENTRY_BYTES = 8  # an index and a value
SCORE_BYTES = 4


@dataclass(frozen=True)
class Card:
    """Published rates; that of L2 is an assumption, a little above what is commonly measured with plain loads."""

    mem_gbps: float
    l2_gbps: float
    multiprocessors: int
    clock_ghz: float


H100 = Card(3350, 5500, 132, 1.755)


def predicted_ms(Q: int, N: int, touched: float, turns: float, card: Card = H100) -> dict[str, float]:
    """Predicted, not timed: L2, the banks of shared memory and memory, each alone; the bound is the largest.

    `touched` entries are looked at for a pair (query, document), and each takes that many `turns` of the banks for 32.
    """
    entries, scores = float(Q) * N * touched, float(Q) * N
    # a score starts as 0 or NaN, read from L2; it is written to shared memory first and read from there last
    in_l2 = ENTRY_BYTES * entries + SCORE_BYTES * scores
    in_turns = (turns * entries + 2 * scores) / 32
    return {
        "l2": in_l2 / card.l2_gbps / 1e6,
        "banks": in_turns / card.multiprocessors / card.clock_ghz / 1e6,
        "memory": SCORE_BYTES * scores / card.mem_gbps / 1e6,
    }


def lists_ms(Q: int, N: int, shared_terms: float) -> dict[str, float]:
    """Postings of the terms that both hold; a load and a store of the score for each."""
    return predicted_ms(Q, N, shared_terms, 2 * RANDOM_TURNS)


def dense_query_ms(Q: int, N: int, K: int) -> dict[str, float]:
    """The design that was left: the query's terms dense in shared memory, every entry of every document gathers."""
    return predicted_ms(Q, N, K, RANDOM_TURNS)


if __name__ == "__main__":
    from work_sparse import make_rows, match_flops

    rows, K, V = 16384, 64, 30522
    shared_terms = match_flops(make_rows(rows, K, V, 1), make_rows(rows, K, V, 2)) / 2 / rows**2
    print(f"{shared_terms:.2f} terms shared; predicted ms:")
    print("lists", lists_ms(rows, rows, shared_terms))
    print("dense query", dense_query_ms(rows, rows, K))
