"""Training in several processes (torchrun): who they are, and the few things that they have to agree on."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import stair_kernels as sk
from stair_kernels.distributed import all_gather, shard

CPU = torch.device("cpu")
PATIENCE = timedelta(hours=6)  # the others wait while the first computes image features


def device_of(name: str) -> torch.device:
    """Where to train: "cpu", "cuda", "cuda:N", or "auto", a GPU where torch sees one.

    Raises:
        ValueError: for another device, and for a GPU that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"device: expected auto, cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device: expected one of {torch.cuda.device_count()} CUDA devices, got {name!r}")
    return device


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together; a single one without torchrun."""

    rank: int = 0
    size: int = 1
    device: torch.device = CPU

    @staticmethod
    def join(device: str = "cpu") -> Ranks:
        """The process group that torchrun's environment describes, joined once: gloo on the CPU, NCCL on GPUs.

        Args:
            device: as `device_of` takes it; with "cuda" each process has the GPU of its local rank.
        """
        place = device_of(device)
        if int(os.environ.get("WORLD_SIZE", "1")) < 2:
            return Ranks(device=place)
        if place.type == "cuda":
            place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(place)
        if not dist.is_initialized():
            backend = "cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=PATIENCE)
        return Ranks(dist.get_rank(), dist.get_world_size(), place)

    @property
    def group(self) -> dist.ProcessGroup | None:
        return dist.group.WORLD if self.size > 1 else None

    @property
    def first(self) -> bool:
        """Whether this process writes and reports."""
        return self.rank == 0

    def part(self, batch: int) -> slice:
        """This process's rows of a batch of all."""
        each = batch // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def sum(self, values: Iterable[float]) -> list[float]:
        """Each value's sum over the processes."""
        total = torch.tensor(list(values), dtype=torch.float64)
        if self.size > 1:
            dist.all_reduce(total)
        return total.tolist()

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """Each value's mean over the processes."""
        if self.size == 1:
            return values
        return {name: total / self.size for name, total in zip(values, self.sum(values.values()))}

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Every gradient becomes its mean over the processes, in one message a dtype."""
        grads = [p.grad for p in parameters if p.grad is not None]
        if self.size == 1:
            return
        for dtype in {grad.dtype for grad in grads}:
            alike = [grad for grad in grads if grad.dtype == dtype]
            flat = torch.cat([grad.flatten() for grad in alike])
            dist.all_reduce(flat)
            flat /= self.size
            for grad, mean in zip(alike, flat.split([grad.numel() for grad in alike])):
                grad.copy_(mean.view_as(grad))

    def same(self, module: nn.Module) -> None:
        """The first process's parameters and buffers for all."""
        if self.size > 1:
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, 0)

    def gather(self, thing: Any) -> list[Any]:
        """What every process gives, by rank."""
        if self.size == 1:
            return [thing]
        things: list[Any] = [None] * self.size
        dist.all_gather_object(things, thing)
        return things

    def leave(self) -> None:
        """Ends the process group: what follows is for one process alone."""
        if self.size > 1:
            self.wait()
            dist.destroy_process_group()

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            dist.barrier()


def spread(head: sk.VocabHead, group: dist.ProcessGroup) -> sk.VocabHead:
    """The head's side of the whole batch and of this process's columns of the vocabulary, for sk.stair_loss(group=)."""

    def gathered(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else all_gather(tensor, group)

    bias = None if head.bias is None else shard(head.bias, group)
    return sk.VocabHead(all_gather(head.hidden, group), shard(head.weight, group), bias, gathered(head.mask))
