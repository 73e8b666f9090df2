"""Runs tests in copies of the checkout, each in a fork of this process, which has imported all but stair_kernels.

A request is a line on stdin, {"copy": folder, "nodes": [...], "environment": {...}}; the answer is a line on stdout:
the exit code of pytest, after it has written report.xml and output.txt into the copy. Any other end has another code: a
signal's is negative.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import traceback
from pathlib import Path

import ptx.launch  # noqa: F401
import pytest
import scipy.sparse  # noqa: F401
import torch
from triton.runtime.cache import triton_key

SECONDS = 120
BROKEN = 70  # pytest has no such exit code


def run(copy: Path, nodes: list[str], environment: dict[str, str]) -> int:
    """pytest's exit code; stair_kernels is the copy's, wherever it is installed."""
    output = os.open(copy / "output.txt", os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(output, stream)
    signal.alarm(SECONDS)
    os.chdir(copy)
    os.environ.update(environment)
    sys.path[:0] = [str(copy), str(Path(__file__).parents[1] / "bench")]
    import stair_kernels

    assert Path(stair_kernels.__file__).parent == copy / "stair_kernels", f"{stair_kernels.__file__} is not in {copy}"
    options = ["-q", "--capture=sys", "-p", "no:cacheprovider", f"--rootdir={copy}", "--junitxml=report.xml"]
    return int(pytest.main([*options, *nodes]))


def main() -> None:
    """What takes long and is the same for every copy is done before the first fork."""
    torch.use_deterministic_algorithms(True)  # imports a second's worth
    triton_key()  # reads all of Triton
    gc.freeze()
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            code = BROKEN
            try:
                code = run(Path(request["copy"]), request["nodes"], request["environment"])
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
