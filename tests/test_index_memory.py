"""The search engine where memory runs out."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# Every allocation of a search over threads fails once.
SEARCH = """
import ctypes
import numpy as np
import scipy.sparse
from stair_kernels import _index

library = ctypes.CDLL(None)
csr = scipy.sparse.random(2000, 50, 0.2, "csr", np.float32, np.random.default_rng(0))
rows = _index.Rows(csr.indptr, csr.indices, csr.data, 50, False)
queries = _index.Rows(csr.indptr[:9], csr.indices, csr.data, 50, False)
arrays = _index.build(rows, np.arange(2000), False)
expected = _index.Index(arrays).search(queries, 10, 1)
failed = right = 0
while True:
    engine = _index.Index(arrays)
    library.fail_after(failed + right)
    try:
        found = engine.search(queries, 10, 4)
    except MemoryError:
        failed += 1
        assert not library.did_not_fail()
        continue
    ended = library.did_not_fail()
    assert all(map(np.array_equal, found, expected))
    if ended:
        break
    right += 1
print(failed, right)
"""


@pytest.mark.skipif("LD_PRELOAD" in os.environ, reason="a sanitizer has an operator new of its own")
def test_an_allocation_that_fails_is_a_memory_error_or_changes_nothing(tmp_path: Path) -> None:
    library = tmp_path / "failing_new.so"
    compiler = os.environ.get("CXX") or sysconfig.get_config_var("CXX").split()[0]
    source = str(HERE / "failing_new.cpp")
    subprocess.run([compiler, "-std=c++17", "-O2", "-shared", "-fPIC", source, "-o", str(library)], check=True)
    environment = {**os.environ, "LD_PRELOAD": str(library)}
    result = subprocess.run([sys.executable, "-c", SEARCH], env=environment, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr[-3000:]
    failed, right = map(int, result.stdout.split())
    assert failed > 40, "every thread's searcher has a dozen arrays"
    assert right >= 3, "threads that could not be started"
