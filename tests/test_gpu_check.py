"""make gpu-check, and the adapter that it runs the operators' tests through, where there is no GPU."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import gpu_check
import pytest
import torch
from on_device import moved, require_kernel

ROOT = Path(__file__).resolve().parents[1]


def check(*arguments: str) -> subprocess.CompletedProcess[str]:
    """tests/gpu_check.py where no CUDA device can be seen."""
    command = [sys.executable, str(ROOT / "tests" / "gpu_check.py"), *arguments]
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, env=hidden, capture_output=True, text=True, timeout=600, cwd=ROOT)


def test_without_a_device_one_line_says_what_is_missing() -> None:
    done = check("cuda")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("gpu-check: torch ")
    assert done.stderr.count("\n") == 1


def test_on_the_cpu_a_part_runs_to_its_end() -> None:
    done = check("cpu", "tests/test_flops.py", "-k", "float64")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("cpu: ")
    assert " passed" in done.stdout
    assert "compute-sanitizer: not run" in done.stdout


def test_a_failing_test_fails_the_check(tmp_path: Path) -> None:
    (tmp_path / "test_wrong.py").write_text("def test_wrong():\n    assert False\n")
    assert check("cpu", str(tmp_path / "test_wrong.py")).returncode == 1


def test_make_passes_device_and_arguments() -> None:
    command = ["make", "-n", "-C", str(ROOT), "gpu-check", "DEVICE=cuda:1", "ARGS=tests/test_topk.py -x"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "python tests/gpu_check.py cuda:1 tests/test_topk.py -x\n" in done.stdout


def refuse(*_: object) -> None:
    raise OSError


def test_what_is_missing_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "is built without CUDA; install a build with it" in gpu_check.missing(cuda)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(ctypes, "CDLL", refuse)
    assert gpu_check.missing(cuda) == "no NVIDIA driver (libcuda.so.1); install one for CUDA 13.0 or newer"
    monkeypatch.setattr(ctypes, "CDLL", lambda name: None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    assert "finds no device that it can use" in gpu_check.missing(cuda)
    assert "CUDA_VISIBLE_DEVICES is '7'" in gpu_check.missing(cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert gpu_check.missing(torch.device("cuda:2")) == "there is no cuda:2, but 2 CUDA devices from cuda:0 on"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert gpu_check.missing(cuda).startswith("no Triton; install it")
    assert gpu_check.missing(torch.device("cpu")) is None


def test_sanitizers_run_where_they_are_and_their_findings_count(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []

    def run(device: torch.device, *command: str, **environment: str) -> int:
        ran.append((command, environment))
        return 1 if "memcheck" in command else 0

    monkeypatch.setattr(gpu_check, "run", run)
    monkeypatch.setattr(gpu_check.shutil, "which", lambda name: f"/cuda/{name}")
    assert gpu_check.sanitized(torch.device("cuda"), ["pytest"]) == 1
    assert [command[2] for command, _ in ran] == ["memcheck", "racecheck", "initcheck", "synccheck"]
    assert all(environment == gpu_check.UNCACHED for _, environment in ran)


def test_an_operator_without_a_kernel_is_skipped_by_name() -> None:
    with pytest.raises(pytest.skip.Exception, match="stair::vocab_pool has no kernel on the key XPU"):
        require_kernel("vocab_pool", "xpu")
    require_kernel("vocab_pool", "cuda")
    require_kernel("stair_loss", "cuda:1")


def test_arguments_keep_strides_offsets_and_gradients() -> None:
    leaf = torch.randn(4, 6, requires_grad=True)
    for view in (leaf[1:, ::2], leaf.T, leaf[:1].expand(4, 6)):
        (there,), other = moved(([view], {"mask": None}), torch.device("cpu"))
        assert other == {"mask": None}
        assert torch.equal(there, view)
        assert there.untyped_storage().data_ptr() != view.untyped_storage().data_ptr()
        assert (there.stride(), there.storage_offset()) == (view.stride(), view.storage_offset())
        (grad,) = torch.autograd.grad(there.square().sum(), leaf)
        assert torch.equal(grad, torch.autograd.grad(view.square().sum(), leaf)[0])
