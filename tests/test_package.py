"""The distribution: what a wheel holds, that it works elsewhere, what importing needs, that its names are explained."""

from __future__ import annotations

import importlib.metadata
import inspect
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import stair_kernels as sk

ROOT = Path(__file__).resolve().parents[1]
ONE_OP = """
import torch, stair_kernels as sk
rows = sk.topk(torch.tensor([[0.0, 3.0, 1.0]]), k=2)
assert rows.indices.tolist() == [[1, 2]], rows.indices
scores, ids = sk.SparseIndex.build(rows).search(rows, k=1)
assert (scores.tolist(), ids.tolist()) == ([[10.0]], [[0]])
"""


def run(*command: object, **options: object) -> subprocess.CompletedProcess[str]:
    words = [str(word) for word in command]
    return subprocess.run(words, capture_output=True, text=True, timeout=600, **options)  # type: ignore[call-overload]


def python(code: str, interpreter: object = sys.executable, **options: object) -> str:
    done = run(interpreter, "-c", code, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the checkout, in the build tree that `make setup` left."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-deps", "--no-build-isolation"]
    done = run(*pip, "--no-index", "-w", folder, ROOT, env={**os.environ, "STAIR_CUDA": "OFF"})
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.mark.parametrize(("extra", "brings"), [("ray", "grpcio"), ("spark", "pyspark")])
def test_an_extra_of_a_cluster_brings_the_command_line(wheel: Path, extra: str, brings: str) -> None:
    """By the environment of the tests, which has everything."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--dry-run", "--no-index"]
    done = run(*pip, f"{wheel}[{extra}]")
    assert done.returncode == 0, done.stderr
    for name in ("typer", "transformers", brings):
        assert re.search(rf"already satisfied: {name}\b", done.stdout), name


def test_the_wheel_holds_both_packages_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    index = f"stair_kernels/_index{sysconfig.get_config_var('EXT_SUFFIX')}"
    for name in ("stair_kernels/_C.so", index, "stair_kernels/py.typed", "stair/py.typed", "stair/templates/demo.html"):
        assert name in names
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "stair_kernels").rglob("*.py")}
    sources |= {str(path.relative_to(ROOT / "python")) for path in (ROOT / "python" / "stair").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == sources
    assert {name.split("/")[0].removesuffix(".dist-info") for name in names} == {
        "stair_kernels",
        "stair",
        f"stair_kernels-{sk.__version__}",
    }
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.endswith((".cpp", ".h", ".cu"))]


def test_the_wheel_works_in_another_environment(wheel: Path, tmp_path: Path) -> None:
    """An environment of its own that sees this one's torch, not this checkout."""
    venv.create(tmp_path / "env", with_pip=False)
    interpreter = tmp_path / "env" / "bin" / "python"
    purelib = python("import sysconfig; print(sysconfig.get_path('purelib'))", interpreter).strip()
    done = run(sys.executable, "-m", "pip", "--python", interpreter, "install", "--no-deps", "--no-index", wheel)
    assert done.returncode == 0, done.stdout + done.stderr
    Path(purelib, "torch.pth").write_text(sysconfig.get_path("purelib") + "\n")
    where = python(ONE_OP + "print(sk.__file__)", interpreter, cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(purelib)
    done = run(tmp_path / "env" / "bin" / "stair", "--version", cwd=tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, f"stair-kernels {sk.__version__}"), done.stderr


def test_the_kernels_need_neither_the_model_nor_triton() -> None:
    blocked = ("transformers", "triton", "stair", "tokenizers", "typer", "rich", "PIL", "matplotlib")
    python(f"import sys; sys.modules.update(dict.fromkeys({blocked!r}))" + ONE_OP)


def test_a_missing_library_says_how_to_build_it(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "stair_kernels", tmp_path / "stair_kernels", ignore=shutil.ignore_patterns("_C*.so"))
    done = run(sys.executable, "-c", "import stair_kernels", cwd=tmp_path)
    assert done.returncode == 1
    assert "_C.so is not built; run `make setup` or `pip install -e .`" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("MAYBE", "STAIR_CUDA: expected one of AUTO, ON, OFF, got 'MAYBE'"),
        ("ON", "STAIR_CUDA=ON needs nvcc (CUDA toolkit 12.8 or newer) on PATH or in CUDACXX; none was found"),
    ],
)
def test_a_cuda_choice_that_cannot_be_met_is_refused(choice: str, message: str) -> None:
    without_nvcc = "import runpy, shutil; shutil.which = lambda name: None; runpy.run_path('setup.py')"
    done = run(sys.executable, "-c", without_nvcc, cwd=ROOT, env={**os.environ, "STAIR_CUDA": choice})
    assert (done.returncode, done.stderr.strip()) == (1, message)


def test_the_version_is_the_same_everywhere() -> None:
    (newest, *_) = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest == sk.__version__ == importlib.metadata.version("stair-kernels")


def test_every_public_name_is_documented() -> None:
    missing = []
    for name in sk.__all__:
        value = getattr(sk, name)
        parts = {name: value} if callable(value) or inspect.ismodule(value) else {}
        if inspect.isclass(value):
            parts |= {f"{name}.{member}": part for member, part in vars(value).items() if not member.startswith("_")}
        documentable = (property, staticmethod, classmethod)
        missing += [
            full
            for full, part in parts.items()
            if (callable(part) or inspect.ismodule(part) or isinstance(part, documentable)) and not inspect.getdoc(part)
        ]
    assert missing == []


def test_every_operator_has_its_reference_under_the_same_name_and_arguments() -> None:
    for name in ("vocab_topk", "vocab_pool", "topk", "sparse_dot", "flops", "stair_loss", "loss_of_rows"):
        ours = list(inspect.signature(getattr(sk, name)).parameters)
        specified = list(inspect.signature(getattr(sk.reference, name)).parameters)
        # matters of memory, of layout and of where the batch is, not of meaning
        common = [parameter for parameter in ours if parameter not in ("chunk", "save", "sparse_grad", "group")]
        assert [parameter for parameter in specified if parameter != "compute_dtype"] == common, name
