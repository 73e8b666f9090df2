"""The head's peak memory beside its result, forward and backward, measured in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

B, L, D, V = 64, 64, 256, 30522

MEASURE = """
import sys, torch, stair_kernels as sk
B, L, D, V = map(int, sys.argv[3:])
dtype = getattr(torch, sys.argv[2])

def operator(hidden, weight):
    if sys.argv[1] == "vocab_topk":
        return sk.vocab_topk(hidden, weight, k=64).values
    return sk.vocab_pool(hidden, weight)

def peak_kib():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

def step(hidden, weight, upstream):
    out = operator(hidden.requires_grad_(), weight.requires_grad_())
    out.backward(upstream)
    return out.nbytes

torch.set_num_threads(2)
def make(B, L, V):
    columns = 64 if sys.argv[1] == "vocab_topk" else V
    return torch.randn(B, L, D, dtype=dtype), torch.randn(V, D, dtype=dtype), torch.ones(B, columns)

step(*make(2, 3, 200))  # what is loaded and made once
inputs = make(B, L, V)
before = peak_kib()
result = step(*inputs)
print((peak_kib() - before) * 1024 - result)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("operator", ["vocab_topk", "vocab_pool"])
def test_forward_and_backward_stay_below_an_eighth_of_the_logits(operator: str, dtype: str) -> None:
    sizes = [str(size) for size in (B, L, D, V)]
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, operator, dtype, *sizes], capture_output=True, text=True, check=True
    )
    grown, logits = int(result.stdout), B * L * V * (4 if dtype == "float32" else 2)
    assert 0 < grown < logits / 8, f"{grown / 2**20:.1f} MiB of {logits / 2**20:.1f} MiB"


@pytest.mark.skipif(sys.platform != "linux", reason="counts malloc where it is glibc's")
def test_a_step_of_the_loss_stays_below_half_of_the_two_dense_rows() -> None:
    from loss_memory import measured

    extra, rows = measured(512, 8, 128, V, "float32", "none"), 2 * 512 * V * 4
    assert 0 < extra <= rows / 2, f"{extra / 2**20:.1f} MiB of {rows / 2**20:.1f} MiB"
