"""CUDA C++ compiled by nvcc for sm_80 and run from its PTX, with no GPU."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from ptx.handwritten import Array
from ptx.machine import ORDERS, Order, Program
from ptx.memory import GlobalMemory

SOURCE = Path(__file__).parent / "ptx" / "kernels.cu"


@pytest.fixture(scope="module")
def ptx(tmp_path_factory: pytest.TempPathFactory) -> str:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc: nothing compiles CUDA C++ to PTX")
    target = tmp_path_factory.mktemp("nvcc") / "kernels.ptx"
    subprocess.run([nvcc, "-arch=compute_80", "-ptx", str(SOURCE), "-o", str(target)], check=True)
    return target.read_text()


def launch(
    ptx: str, entry: str, arguments: list[Array | int | float], threads: int, ctas: int = 1, order: Order | None = None
) -> None:
    """Arrays become pointers, the others 32-bit numbers."""
    memory, packed = GlobalMemory(), b""
    for number, argument in enumerate(arguments):
        if isinstance(argument, np.ndarray):
            packed += struct.pack("<Q", memory.add(argument, f"argument {number}"))
        else:
            packed += struct.pack("<f" if isinstance(argument, float) else "<i", argument)
    Program(ptx, entry).launch((ctas,), (threads,), packed, memory, order=order)


def test_activation(ptx: str) -> None:
    x = torch.randn(100) * 10
    out = np.full(100, np.nan, np.float32)
    launch(ptx, "activation", [x.numpy(), out, 100], threads=64, ctas=2)
    x = x.double()
    expected = x.relu().log1p() / 3 + x.floor() + x.fmod(float(np.float32(0.7))) + torch.exp(-x.abs())
    np.testing.assert_allclose(out, expected.numpy(), rtol=1e-6, atol=1e-6)


def test_local_array(ptx: str) -> None:
    x, place = np.random.default_rng(0).standard_normal((40, 20)).astype(np.float32), np.arange(20, dtype=np.int32) * 3
    out = np.full((40, 8), np.nan, np.float32)
    launch(ptx, "scatter", [x, place, out, 20], threads=40)
    expected = np.zeros_like(out)
    for i in range(20):
        expected[:, place[i] % 8] += x[:, i]
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("name", ORDERS)
def test_votes_of_a_cta(ptx: str, name: str) -> None:
    x, out = np.random.default_rng(0).standard_normal((5, 96)).astype(np.float32), np.zeros(5, np.int32)
    launch(ptx, "count_positive", [x, out], threads=96, ctas=5, order=Order(name))
    assert out.tolist() == ((x > 0).sum(1) + 1000 * (x[:, 0] > 0)).tolist()


@pytest.mark.parametrize("name", ORDERS)
def test_shuffles_and_shared_atomics(ptx: str, name: str) -> None:
    x = np.random.default_rng(0).integers(0, 1000, (4, 77)).astype(np.int32)
    largest, histogram = np.zeros(4, np.int32), np.zeros(16, np.int32)
    launch(ptx, "row_statistics", [x, largest, histogram, 77], threads=128, order=Order(name))
    assert largest.tolist() == x.max(1).tolist()
    assert histogram.tolist() == np.bincount(x.ravel() % 13, minlength=16).tolist()


def test_bfloat16(ptx: str) -> None:
    x = torch.randn(64).bfloat16()
    out = np.zeros(64, np.int16)
    launch(ptx, "scale_bf16", [x.view(torch.int16).numpy(), out, 1.7], threads=64)
    expected = (x.float() * torch.tensor(1.7)).bfloat16()
    assert torch.equal(torch.from_numpy(out).view(torch.bfloat16), expected)
