"""hub/make.py: the project for Hugging Face's kernel-builder, as far as it can be held without that builder."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import stair_kernels

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli", reason="Python 3.10 has no tomllib")

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = Path(stair_kernels.__file__).with_name("_C.so")

# What kernel-builder generates, here for the library of the checkout, whose namespace is `stair`.
OPS = f"""
import torch
torch.ops.load_library({str(LIBRARY)!r})
ops = torch.ops.stair
def add_op_namespace_prefix(name):
    return f"stair::{{name}}"
"""
REGISTRATION = """
#pragma once
#define STABLE_TORCH_LIBRARY_EXPAND(NAME, M) STABLE_TORCH_LIBRARY(NAME, M)
#define STABLE_TORCH_LIBRARY_IMPL_EXPAND(NAME, KEY, M) STABLE_TORCH_LIBRARY_IMPL(NAME, KEY, M)
#define REGISTER_EXTENSION(NAME)
"""
PROGRAM = """
import importlib.util, sys, torch
spec = importlib.util.spec_from_file_location("unique_name", sys.argv[1])
sk = importlib.util.module_from_spec(spec)
sys.modules["unique_name"] = sk
spec.loader.exec_module(sk)
assert not [name for name in sys.modules if name.split(".")[0] in ("stair_kernels", "scipy")]
hidden, weight, bias = torch.randn(4, 9, 32, requires_grad=True), torch.randn(300, 32), torch.randn(300)
mask = torch.rand(4, 9) > 0.3
rows = sk.vocab_topk(hidden, weight, bias, mask, k=16)
torch.testing.assert_close(rows.values, sk.reference.vocab_topk(hidden, weight, bias, mask, k=16).values)
(sk.sparse_dot(rows, rows).sum() + sk.flops(rows)).backward()
assert hidden.grad.abs().sum() > 0
head = sk.VocabHead(hidden, weight, bias, mask)
assert sk.stair_loss(head, head, logit_scale=2.0).loss.isfinite()
arguments = (hidden, weight, bias, mask, None, None, 16, "log_relu", False)
torch.library.opcheck(sk.ops.ops.vocab_topk.default, arguments, test_utils=("test_schema", "test_faketensor"))
print(sk.__version__, *sk.__all__)
"""


def make() -> ModuleType:
    """hub/make.py"""
    spec = importlib.util.spec_from_file_location("hub_make", ROOT / "hub" / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("hub") / "stair-kernels"
    assert make().main(["--out", str(out)]) == 0
    return out


def test_build_toml_names_every_source(project: Path) -> None:
    build = tomllib.loads((project / "build.toml").read_text())
    named = [*build["torch"]["src"], *(file for kernel in build["kernel"].values() for file in kernel["src"])]
    there = {
        str(path.relative_to(project)) for path in [*project.glob("csrc/**/*.*"), *project.glob("torch-ext/*.cpp")]
    }
    assert set(named) == there
    assert {kernel["backend"] for kernel in build["kernel"].values()} == {*build["general"]["backends"]}
    assert build["kernel"]["stair_amx"]["cxx-flags"][-2] == "-mamx-bf16"
    assert (project / "csrc/cpu/simd/amx.cpp").read_text().startswith("#define STAIR_ISA amx\n")


def test_the_builders_own_parser_takes_build_toml(project: Path) -> None:
    rust = pytest.importorskip("kernels._rust", reason="pip install kernels")
    assert [str(backend) for backend in rust.Build.open(project).general.backends] == ["cpu", "cuda"]
    (project / "build.toml").rename(project / "whole.toml")
    (project / "build.toml").write_text((project / "whole.toml").read_text().replace('"torch"', '"other"'))
    with pytest.raises(ValueError, match="other"):
        rust.Build.open(project)
    (project / "whole.toml").rename(project / "build.toml")


def test_python_is_relative_and_needs_torch_only(project: Path) -> None:
    """What kernels requires: Python 3.9's grammar, imports of the kernel itself relative, no others but torch's."""
    package = project / "torch-ext" / "stair_kernels"
    assert {path.name for path in package.glob("*.py")} >= {"__init__.py", "ops.py", "autograd.py", "loss.py"}
    for path in package.rglob("*.py"):
        tree = ast.parse(path.read_text(), feature_version=(3, 9))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                roots = {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                roots = set() if node.level else {str(node.module).split(".")[0]}
            else:
                continue
            later = node.col_offset > 0  # rows of SciPy and NumPy matrices are converted where those are installed
            assert roots <= {*sys.stdlib_module_names, "torch", "triton", *(["numpy", "scipy"] if later else [])}, path
        code = ast.unparse(tree)
        assert "ops.stair." not in code
        assert "stair::" not in "".join(line for line in code.splitlines() if '"""' not in line), path


def test_the_package_runs_under_another_name(project: Path) -> None:
    """In a process without stair_kernels, on the library of the checkout."""
    package = project / "torch-ext" / "stair_kernels"
    (package / "_ops.py").write_text(OPS)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, package / "__init__.py"], capture_output=True, text=True, cwd=project
    )
    (package / "_ops.py").unlink()
    assert done.returncode == 0, done.stderr
    version, *names = done.stdout.split()
    assert version == stair_kernels.__version__
    assert {*names} == {*stair_kernels.__all__} - {"SparseIndex", "semantic_search_stair"}


def test_operators_are_registered_in_the_builds_namespace(project: Path, tmp_path: Path) -> None:
    (tmp_path / "registration.h").write_text(REGISTRATION)
    include = Path(torch.__file__).parent / "include"
    flags = ["-std=c++17", "-fsyntax-only", "-DTORCH_EXTENSION_NAME=_stair_kernels_cpu_1a2b", "-I", str(tmp_path)]
    flags += ["-isystem", str(include), "-I", str(project / "csrc"), "-DTORCH_TARGET_VERSION=0x020a000000000000"]
    for source in ("torch-ext/torch_binding.cpp", "csrc/cpu/pack_vocab.cpp"):
        done = subprocess.run(["c++", *flags, project / source], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    for path in [*project.glob("csrc/**/*.c*"), project / "torch-ext/torch_binding.cpp"]:
        assert "LIBRARY(stair" not in path.read_text()
        assert "LIBRARY_IMPL(stair" not in path.read_text()


def test_a_rule_that_no_longer_applies_is_an_error() -> None:
    with pytest.raises(ValueError, match="'absent' is in no source any more"):
        make().replaced("text", ("absent", ""))
    sources = [*(ROOT / "stair_kernels").rglob("*.py")]
    for old, _ in make().RULES:
        assert any(old in path.read_text() for path in sources), old
