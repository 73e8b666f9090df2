"""What only a device can show: streams, graphs, waiting, memory, offsets past 2^31, TF32. Skipped without one.

STAIR_TEST_DEVICE=cpu runs what needs no CUDA; sizes past 2^31 are small there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from conftest import DEVICE
from heads import DTYPES, make_head
from on_device import require_kernel
from steps import STEPS, Step, Tensors, V, forward, with_gradients
from tolerance import assert_close, max_error
from torch import Tensor

import stair_kernels as sk
from stair_kernels import reference


@pytest.fixture
def device() -> str:
    if DEVICE is None:
        pytest.skip("no CUDA device, and STAIR_TEST_DEVICE names none")
    return DEVICE


@pytest.fixture
def cuda(device: str) -> Iterator[torch.device]:
    """The CUDA device, while it is the current one."""
    if torch.device(device).type != "cuda":
        pytest.skip(f"streams, graphs and the allocator's count are CUDA's; this device is {device}")
    with torch.cuda.device(device):
        yield torch.device("cuda", torch.cuda.current_device())


@pytest.fixture(params=STEPS, ids=lambda step: step.name or step.operator)
def step(request: pytest.FixtureRequest, device: str) -> Step:
    require_kernel(request.param.operator, device)
    # as users run it: conftest's poisoned outputs come with other algorithms of PyTorch's
    torch.use_deterministic_algorithms(False)
    return request.param


@pytest.fixture
def precision() -> Iterator[Callable[[str], None]]:
    before = torch.get_float32_matmul_precision()
    yield torch.set_float32_matmul_precision
    torch.set_float32_matmul_precision(before)


def on(device: str | torch.device, tensors: Tensors) -> Tensors:
    return tuple(tensor.to(device) for tensor in tensors)


def same(a: Tensors, b: Tensors) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b))


def test_same_bits_on_repeats(step: Step, device: str) -> None:
    inputs = on(device, step.make())
    first = with_gradients(step, inputs)
    assert all(same(with_gradients(step, inputs), first) for _ in range(4))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("operator", ["vocab_pool", "vocab_topk"])
def test_same_bits_whatever_else_is_in_the_batch(device: str, operator: str, dtype: torch.dtype) -> None:
    require_kernel(operator, device)
    head = make_head("masked", dtype, 37, 33, 64, V).to(device)
    upstream = torch.randn(37, V, device=device)

    def run(rows: slice) -> Tensors:
        hidden = head.hidden[rows].detach().requires_grad_()
        args = hidden, head.weight, head.bias, head.mask[rows]
        out = sk.vocab_pool(*args) if operator == "vocab_pool" else sk.vocab_topk(*args, k=50).values
        return out.detach(), torch.autograd.grad(out, hidden, upstream[rows, : out.shape[1]])[0]

    whole = run(slice(None))
    for rows in (slice(0, 1), slice(5, 6), slice(3, 20)):
        assert same(run(rows), tuple(result[rows] for result in whole))


def test_never_waits_for_the_device(step: Step, cuda: torch.device) -> None:
    inputs = on(cuda, step.make())
    with_gradients(step, inputs)  # compiles
    torch.cuda.synchronize(cuda)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with_gradients(step, inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("run", [forward, with_gradients])
def test_a_captured_graph_gives_the_same_bits(step: Step, cuda: torch.device, run: Callable) -> None:
    inputs = on(cuda, step.make())
    side = torch.cuda.Stream(cuda)
    side.wait_stream(torch.cuda.current_stream(cuda))
    with torch.cuda.stream(side):
        for _ in range(3):
            run(step, inputs)
    torch.cuda.current_stream(cuda).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(step, inputs)
    for _ in range(2):
        fresh = on(cuda, step.make())
        for old, new in zip(inputs, fresh):
            old.copy_(new)
        graph.replay()
        assert same(captured, run(step, fresh))


def test_runs_on_the_current_stream(step: Step, cuda: torch.device) -> None:
    inputs, fresh = (on(cuda, step.make()) for _ in range(2))
    want = with_gradients(step, fresh)
    with_gradients(step, inputs)
    torch.cuda.synchronize(cuda)
    side = torch.cuda.Stream(cuda)
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)  # cycles; a kernel on another stream reads the old inputs meanwhile
        for old, new in zip(inputs, fresh):
            old.copy_(new)
        got = with_gradients(step, inputs)
    side.synchronize()
    assert same(got, want)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_second_device_while_the_first_is_current(step: Step, cuda: torch.device) -> None:
    first, second = torch.device("cuda", 0), torch.device("cuda", 1)
    inputs = on(second, step.make())
    with torch.cuda.device(first):
        got = with_gradients(step, inputs)
        assert torch.cuda.current_device() == 0
    with torch.cuda.device(second):
        want = with_gradients(step, inputs)
    assert all(result.device == second for result in got)
    assert same(got, want)


def rows_around(limit: int, width: int, B: int) -> Tensor:
    """The first rows, those on both sides of element `limit` of [B, width], and the last."""
    edge = limit // width
    rows = torch.tensor([0, 1, edge - 1, edge, edge + 1, B - 2, B - 1])
    return rows.unique()


def need_memory(device: str, size_bytes: int) -> None:
    if torch.device(device).type != "cuda":
        return
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info(torch.device(device))[0]
    if free < size_bytes:
        pytest.skip(f"needs {size_bytes / 2**30:.0f} GiB of the device's memory, {free / 2**30:.0f} are free")


@pytest.mark.parametrize(
    ("operator", "L", "D", "vocab", "dtype"),
    [
        ("vocab_pool", 1, 16, 30522, torch.float32),
        ("vocab_pool", 64, 1024, 64, torch.bfloat16),
        ("vocab_topk", 64, 1024, 64, torch.bfloat16),
    ],
    ids=["vocab_pool-outputs", "vocab_pool-tokens", "vocab_topk-tokens"],
)
def test_offsets_past_2_31(device: str, operator: str, L: int, D: int, vocab: int, dtype: torch.dtype) -> None:
    """B * V outputs or B * L * D inputs; the rows around the limit, and all their gradients, against the reference."""
    require_kernel(operator, device)
    torch.use_deterministic_algorithms(False)  # no second pass over so much memory
    limit, width = 2**31 if torch.device(device).type == "cuda" else 2**19, max(L * D, vocab)
    B = limit // width + 5
    need_memory(device, 16 * B * width)
    hidden = torch.randn(B, L, D, dtype=dtype, device=device, requires_grad=True)
    weight = torch.randn(vocab, D, dtype=dtype, device=device, requires_grad=True)
    rows = rows_around(limit, width, B)
    upstream = torch.zeros(B, vocab, device=device)
    upstream[rows.to(device)] = torch.randn(len(rows), vocab).to(device)
    full = sk.vocab_pool(hidden, weight) if operator == "vocab_pool" else None
    out = sk.vocab_topk(hidden, weight, k=vocab).to_dense() if full is None else full
    grads = torch.autograd.grad(out, (hidden, weight), upstream)
    got = out[rows.to(device)], grads[0][rows.to(device)], grads[1]

    def expected(compute_dtype: torch.dtype, wide: bool) -> Tensors:
        leaves = [t.detach().cpu() for t in (hidden[rows.to(device)], weight)]
        leaves = [(t.double() if wide else t).requires_grad_() for t in leaves]
        want = reference.vocab_pool(*leaves, compute_dtype=compute_dtype)
        return want.detach(), *torch.autograd.grad(want, leaves, upstream[rows.to(device)].cpu().to(want.dtype))

    for ours, truth, eager in zip(got, expected(torch.float64, True), expected(torch.float32, False)):
        assert_close(ours.detach().cpu(), truth, eager)
    others = torch.ones(B, dtype=torch.bool, device=device)
    others[rows.to(device)] = False
    assert float(grads[0].abs().amax(dim=(1, 2))[others].max()) == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("operator", ["vocab_topk", "vocab_pool"])
def test_peak_memory_stays_below_an_eighth_of_the_logits(cuda: torch.device, operator: str, dtype: torch.dtype) -> None:
    """As tests/test_memory.py on the CPU, and its sizes."""
    torch.use_deterministic_algorithms(False)
    B, L, D, vocab = 64, 64, 256, 30522
    leaves = [torch.randn(*shape, dtype=dtype, device=cuda).requires_grad_() for shape in ((B, L, D), (vocab, D))]
    columns = 64 if operator == "vocab_topk" else vocab
    upstream = torch.ones(B, columns, device=cuda)
    torch.cuda.reset_peak_memory_stats(cuda)
    before = torch.cuda.memory_allocated(cuda)
    out = sk.vocab_topk(*leaves, k=columns).values if operator == "vocab_topk" else sk.vocab_pool(*leaves)
    torch.autograd.grad(out, leaves, upstream)
    grown = torch.cuda.max_memory_allocated(cuda) - before - out.nbytes
    logits = B * L * vocab * dtype.itemsize
    assert 0 < grown < logits / 8, f"{grown / 2**20:.1f} MiB of {logits / 2**20:.1f} MiB"


def test_float32_products_follow_the_matmul_precision(device: str, precision: Callable[[str], None]) -> None:
    require_kernel("vocab_pool", device)
    head = make_head("padded", torch.float32, 5, 9, 300, 2000)
    truth = reference.vocab_pool(head.hidden.double(), head.weight.double(), compute_dtype=torch.float64)
    single = reference.vocab_pool(head.hidden, head.weight)
    hidden, weight = on(device, (head.hidden, head.weight))
    factors = ((t.view(torch.int32) & ~0x1FFF).view(torch.float32) for t in (head.hidden, head.weight))
    in_tf32 = reference.vocab_pool(*factors)  # 10 bits of each factor, the others cut off
    precision("highest")
    exact = sk.vocab_pool(hidden, weight).cpu()
    assert_close(exact, truth, single)
    precision("high")
    got = sk.vocab_pool(hidden, weight).cpu()
    assert_close(got, truth, in_tf32)
    if torch.device(device).type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0):
        assert max_error(got, truth) > 4 * max_error(exact, truth), "TF32 was not used"


def test_tf32_is_exact_on_small_integers(device: str, precision: Callable[[str], None]) -> None:
    """Forward and backward: 10 bits hold the factors, and every sum is exact."""
    require_kernel("vocab_pool", device)
    head = make_head("padded", torch.float32, 5, 9, 70, 500, integers=True)
    upstream, results = torch.randint(-2, 3, (5, 500)).float(), []
    precision("high")
    for where, operator in ((device, sk.vocab_pool), ("cpu", reference.vocab_pool)):
        each = head.to(where).leaves()
        out = operator(*each.args()[0], activation="relu")
        leaves = each.hidden, each.weight, each.bias
        results.append(on("cpu", (out.detach(), *torch.autograd.grad(out, leaves, upstream.to(where)))))
    assert same(*results)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_has_the_bits_of_its_dtype(step: Step, device: str, dtype: torch.dtype) -> None:
    """What is multiplied is cast; biases, masks, scales and what was narrow before are left as they are."""
    if step.operator not in ("vocab_pool", "vocab_topk", "stair_loss"):
        pytest.skip(f"{step.operator} multiplies nothing that autocast would cast")
    inputs = on(device, tuple(t.float() if t.is_floating_point() else t for t in step.make()))
    with torch.autocast(torch.device(device).type, dtype=dtype):
        got = forward(step, inputs)
    low = tuple(t.to(dtype) if t.is_floating_point() and t.dim() > 1 else t for t in inputs)
    assert same(got, forward(step, low))
