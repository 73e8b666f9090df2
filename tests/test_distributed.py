"""Several gloo processes against one: the same loss, the same gradients."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import stair_kernels as sk
from stair_kernels import VocabHead, reference
from stair_kernels.distributed import all_gather, gather_rows, shard

HERE = Path(__file__)
B, L, D, V, K = 8, 3, 16, 101, 12  # B: of all ranks; V is no multiple of their number
SCALE, FLOPS = 3.0, {"text_flops": 0.3, "image_flops": 0.7}


@pytest.mark.parametrize("ranks", [2, 4])
def test_processes_agree_with_one(ranks: int, tmp_path: Path) -> None:
    """Runs every check of this file in `ranks` processes."""
    env = {**os.environ, "WORLD_SIZE": str(ranks), "OMP_NUM_THREADS": "1", "MEETING": str(tmp_path / "meeting")}
    processes = [
        subprocess.Popen(
            [sys.executable, str(HERE)],
            env={**env, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(ranks)
    ]
    try:
        outputs = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, output in zip(processes, outputs):
        assert process.returncode == 0, output[-3000:]
        assert output.split() == [check.__name__ for check in checks_of(ranks)]


def test_a_group_wants_torch_distributed() -> None:
    rows = sk.SparseRows.from_dense(torch.rand(2, 5))
    with pytest.raises(ValueError, match="group: expected an initialised process group"):
        gather_rows(rows)


@pytest.mark.parametrize("normalize", [False, True])
def test_loss_of_rows_is_that_of_the_dense_rows(normalize: bool) -> None:
    """Values of all parts, and gradients of the values and the scale; every term kept and most cut off."""
    options = {"normalize": normalize, **FLOPS}
    for k in (V, K):
        rows = [sk.topk(torch.randn(B, V).relu(), k) for _ in range(2)]
        values = [side.values.clone().requires_grad_() for side in rows]
        dense = [side.to_dense().requires_grad_() for side in rows]
        scales = [torch.tensor(SCALE, requires_grad=True) for _ in range(2)]
        given = [sk.SparseRows(value, side.indices, None, V) for value, side in zip(values, rows)]
        got = sk.loss_of_rows(*given, logit_scale=scales[0], **options)
        want = reference.loss_of_rows(*dense, logit_scale=scales[1], **options)
        torch.testing.assert_close(tuple(got), tuple(want))
        *grads, of_scale = torch.autograd.grad(got.loss, (*values, scales[0]))
        *wanted, want_of_scale = torch.autograd.grad(want.loss, (*dense, scales[1]))
        torch.testing.assert_close(of_scale, want_of_scale)
        for grad, whole, side in zip(grads, wanted, rows):
            kept = whole.gather(1, side.indices.clamp(min=0).long()) * (side.indices >= 0)
            torch.testing.assert_close(grad, kept, rtol=1e-4, atol=1e-6)


def test_loss_of_rows_names_what_is_wrong() -> None:
    rows = sk.SparseRows.from_dense(torch.rand(2, 5))
    for text, image, message in [
        (rows, rows.values, "image: expected SparseRows, got Tensor"),
        (rows, rows[:1], "image: expected 2 rows like text, got 1"),
        (rows, sk.SparseRows.from_dense(torch.rand(2, 6)), "image: expected vocab_size 5 like text, got 6"),
    ]:
        with pytest.raises(ValueError, match=message):
            sk.loss_of_rows(text, image, logit_scale=1.0)


class Tower(torch.nn.Module):
    """[B, L, D] -> a VocabHead's operands."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.image = torch.nn.Linear(D, D), torch.nn.Linear(D, D)
        self.weight, self.bias = torch.nn.Parameter(torch.randn(V, D) / 4), torch.nn.Parameter(torch.randn(V) / 4)
        self.scale = torch.nn.Parameter(torch.tensor([SCALE]))  # FSDP2 takes no scalars

    def forward(self, text: Tensor, image: Tensor, mask: Tensor, form: str, ranks: int) -> sk.StairLoss:
        group = dist.group.WORLD if ranks > 1 else None
        options = {"logit_scale": self.scale, "normalize": True, "group": group, **FLOPS}
        hidden = self.text(text).tanh(), self.image(image).tanh()
        if form == "rows":
            rows = [sk.vocab_topk(h, self.weight, self.bias, m, k=K) for h, m in zip(hidden, (mask, None))]
            return sk.loss_of_rows(*rows, **options)
        weight, bias = self.weight, self.bias
        if ranks > 1:
            hidden, mask = [all_gather(h) for h in hidden], all_gather(mask)
            weight, bias = shard(weight), shard(bias)
        return sk.stair_loss(VocabHead(hidden[0], weight, bias, mask), VocabHead(hidden[1], weight, bias), **options)


def whole_batch() -> tuple[Tensor, ...]:
    torch.manual_seed(1)
    mask = torch.rand(B, L) > 0.3
    mask[:, 0] = True
    return torch.randn(B, L, D), torch.randn(B, L + 2, D), mask


def own_share() -> list[Tensor]:
    return [part.chunk(dist.get_world_size())[dist.get_rank()] for part in whole_batch()]


def alone(form: str) -> tuple[sk.StairLoss, dict[str, Tensor]]:
    """What a single process gets from the whole batch."""
    torch.manual_seed(0)
    tower = Tower()
    parts = tower(*whole_batch(), form, 1)
    parts.loss.backward()
    return parts, {name: parameter.grad for name, parameter in tower.named_parameters()}


def check_equal(parts: sk.StairLoss, grads: dict[str, Tensor], form: str) -> None:
    want, want_grads = alone(form)
    torch.testing.assert_close(tuple(parts), tuple(want), rtol=1e-5, atol=1e-6)
    assert grads.keys() == want_grads.keys()
    for name, grad in grads.items():
        assert want_grads[name].abs().max() > 0
        torch.testing.assert_close(grad, want_grads[name], rtol=2e-4, atol=2e-6)


def averaged_by_hand() -> None:
    for form in ("rows", "whole"):
        torch.manual_seed(0)
        tower = Tower()
        parts = tower(*own_share(), form, dist.get_world_size())
        parts.loss.backward()
        for parameter in tower.parameters():
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()
        check_equal(parts, {name: parameter.grad for name, parameter in tower.named_parameters()}, form)


def under_ddp_with_accumulated_gradients() -> None:
    for form in ("rows", "whole"):
        torch.manual_seed(0)
        tower = torch.nn.parallel.DistributedDataParallel(Tower())
        share = own_share()
        with tower.no_sync():
            (tower(*share, form, dist.get_world_size()).loss / 2).backward()
        parts = tower(*share, form, dist.get_world_size())
        (parts.loss / 2).backward()
        check_equal(parts, {name: parameter.grad for name, parameter in tower.module.named_parameters()}, form)


def under_fsdp2() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    for form in ("rows", "whole"):
        torch.manual_seed(0)
        tower = Tower()
        fully_shard(tower, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
        parts = tower(*own_share(), form, dist.get_world_size())
        parts.loss.backward()
        check_equal(parts, {name: p.grad.full_tensor() for name, p in tower.named_parameters()}, form)


def each_rank_stores_its_part_of_the_vocabulary() -> None:
    """The whole batch on every rank, and gradients of what is stored there, not averaged."""
    torch.manual_seed(0)
    tower = Tower()
    text, image, mask = whole_batch()
    hidden = tower.text(text).tanh(), tower.image(image).tanh()
    each, rank = -(-V // dist.get_world_size()), dist.get_rank()
    part = slice(each * rank, each * (rank + 1))
    results = []
    for columns, group in ((slice(None), None), (part, dist.group.WORLD)):
        given = (*hidden, tower.weight[columns], tower.bias[columns], tower.scale)
        leaves = [leaf.detach().clone().requires_grad_() for leaf in given]
        head = VocabHead(leaves[0], *leaves[2:4], mask), VocabHead(leaves[1], *leaves[2:4])
        parts = sk.stair_loss(*head, logit_scale=leaves[4], normalize=True, group=group, chunk=7, **FLOPS)
        results.append((tuple(parts), torch.autograd.grad(parts.loss, leaves)))
    (want, want_grads), (got, grads) = results
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    for grad, whole in zip(grads, (*want_grads[:2], *(whole[part] for whole in want_grads[2:4]), want_grads[4])):
        torch.testing.assert_close(grad, whole, rtol=2e-4, atol=2e-6)


def under_torch_compile() -> None:
    share, ranks = own_share(), dist.get_world_size()
    for form in ("rows", "whole"):
        torch.manual_seed(0)
        tower = Tower()
        parts = torch.compile(tower, backend="aot_eager")(*share, form, ranks)
        parts.loss.backward()
        want = alone(form)[0]
        torch.testing.assert_close(tuple(parts), tuple(want), rtol=1e-5, atol=1e-6)


CHECKS = (
    averaged_by_hand,
    each_rank_stores_its_part_of_the_vocabulary,
    under_ddp_with_accumulated_gradients,
    under_fsdp2,
    under_torch_compile,
)


def checks_of(ranks: int) -> tuple[Callable[[], None], ...]:
    """What PyTorch wraps around costs seconds a process: with two."""
    return CHECKS if ranks == 2 else CHECKS[:2]


if __name__ == "__main__":
    meeting, rank, size = os.environ["MEETING"], int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
    for check in checks_of(size):
        check()
        print(check.__name__, flush=True)
    dist.destroy_process_group()
