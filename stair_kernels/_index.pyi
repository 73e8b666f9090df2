"""The search engine compiled from csrc/index."""

import numpy as np

RANGE: int
CHUNK: int
CHUNK_BLOCKS: int
CHUNK_GROUPS: int
NARROW_TERMS: int
NARROW_POSTINGS: int

class Rows:
    vocab_size: int
    def __init__(
        self, starts: np.ndarray, terms: np.ndarray, weights: np.ndarray, vocab_size: int, padded: bool
    ) -> None: ...
    def row(self, number: int) -> tuple[np.ndarray, np.ndarray]: ...
    def __len__(self) -> int: ...

class Index:
    def __init__(self, arrays: dict[str, np.ndarray]) -> None: ...
    def search(
        self, queries: Rows, k: int, n_threads: int, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]: ...

def build(rows: Rows, order: np.ndarray, compact: bool) -> dict[str, np.ndarray]: ...
def cluster(rows: Rows) -> np.ndarray: ...
def sort_names(starts: np.ndarray, bytes: np.ndarray) -> np.ndarray: ...
def find_names(
    starts: np.ndarray, bytes: np.ndarray, order: np.ndarray, wanted_starts: np.ndarray, wanted_bytes: np.ndarray
) -> np.ndarray: ...
