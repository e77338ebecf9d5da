"""What is installed, how each way of installing it finds it, and what importing it costs."""

from __future__ import annotations

import email
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest

import fastres
from fastres import errors
from tests.support import ROOT, cxx

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

# Where the files of the packages outside of fastres/ lie.
MAPPED = {"fastres.kernels": ROOT / "kernels", "fastres.export": ROOT / "export"}

HEAVY = {
    *("triton", "onnx", "onnxruntime", "onnxscript", "openvino", "ray", "torchvision", "timm"),
    *("matplotlib", "sklearn", "skimage", "scipy", "pandas", "psutil", "pyarrow"),
    *("safetensors", "sympy", "rich", "statistics"),
}

PUBLIC = {
    "ArtifactError",
    "CaptureError",
    "FastresError",
    "FastresWarning",
    "InputError",
    "ModelError",
    "NotOptimizedError",
    "OptimizedModule",
    "OptionError",
    "OutOfMemory",
    "Report",
    "TargetError",
    "Verification",
    "VerificationError",
    "__version__",
    "load",
    "models",
    "optimize",
    "sensitivity",
    "verify",
}


def package_folders() -> dict[str, Path]:
    """Every package in the tree, by full name."""
    folders = {"fastres": ROOT / "fastres", **MAPPED}
    found = {}
    for package, top in folders.items():
        for init in top.rglob("__init__.py"):
            inner = init.parent.relative_to(top).parts
            name = ".".join([package, *inner])
            if not (package == "fastres" and name in MAPPED):  # seen through its link
                found[name] = init.parent
    return found


def run(*command: str | Path, cwd: Path) -> str:
    """The standard output of a command that has to succeed."""
    # Whatever the tests run under must not decide what a fresh interpreter finds.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=kept, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_list_of_packages_is_the_tree() -> None:
    assert sorted(PROJECT["tool"]["setuptools"]["packages"]) == sorted(package_folders())


@pytest.mark.parametrize("name", MAPPED)
def test_mapped_packages_are_linked_for_the_repository_root(name: str) -> None:
    short = name.removeprefix("fastres.")
    assert PROJECT["tool"]["setuptools"]["package-dir"][name] == short
    link = ROOT / "fastres" / short
    assert link.is_symlink()
    assert link.readlink() == Path("..", short)


def test_public_names() -> None:
    assert set(fastres.__all__) == PUBLIC
    assert all(hasattr(fastres, name) for name in PUBLIC)


def test_every_error_is_public() -> None:
    assert set(errors.__all__) <= PUBLIC


def test_version() -> None:
    assert fastres.__version__ == PROJECT["project"]["version"]


def test_importing_takes_nothing_heavy_along() -> None:
    code = "import json, sys, fastres; print(json.dumps(list(sys.modules)))"
    modules = json.loads(run(sys.executable, "-W", "error", "-c", code, cwd=ROOT))
    assert "fastres" in modules
    assert sorted(HEAVY & {name.split(".")[0] for name in modules}) == []
    for_gpus = ("fastres.runtime.triton", "fastres.kernels.tuning", "fastres.kernels.launch")
    assert [name for name in modules if name.startswith(for_gpus)] == []


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository's files: building leaves traces in the folder it builds from."""
    copy = tmp_path_factory.mktemp("checkout") / "fastres"
    ignored = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info", "*.so")
    return Path(shutil.copytree(ROOT, copy, symlinks=True, ignore=ignored))


@pytest.fixture(scope="module")
def wheel(checkout: Path) -> Path:
    out = checkout.parent / "wheel"
    pip(sys.executable, "wheel", "--wheel-dir", out, checkout)
    (file,) = out.glob("*.whl")
    return file


def pip(python: str | Path, command: str, *arguments: str | Path) -> None:
    """Run this environment's pip for the environment of ``python``, without asking an index."""
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    run(sys.executable, "-m", "pip", "--python", python, command, *options, *arguments, cwd=ROOT)


@pytest.mark.campaign
def test_the_wheel_has_the_packages_and_nothing_else(wheel: Path) -> None:
    expected = {"fastres/py.typed"}
    for name, folder in package_folders().items():
        target = name.replace(".", "/")
        expected |= {f"{target}/{path.name}" for path in folder.glob("*.py")}
    if cxx.COMPILER:
        expected.add("fastres/kernels/cpu/_native.abi3.so")
    info = f"fastres-{PROJECT['project']['version']}.dist-info"
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in names if not name.startswith(info)} == expected
    assert {f"{info}/licenses/LICENSE", f"{info}/entry_points.txt"} <= names


@pytest.mark.campaign
def test_the_wheel_is_for_one_platform_and_any_version(wheel: Path) -> None:
    assert wheel.name.startswith(f"fastres-{PROJECT['project']['version']}-cp310-abi3-")


@pytest.mark.campaign
def test_the_wheel_says_what_it_needs(wheel: Path) -> None:
    info = f"fastres-{PROJECT['project']['version']}.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        metadata = email.message_from_bytes(archive.read(f"{info}/METADATA"))
        scripts = archive.read(f"{info}/entry_points.txt").decode()
    needed = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert sorted(needed) == sorted(PROJECT["project"]["dependencies"])
    assert metadata["License-Expression"] == "Apache-2.0"
    assert "fastres = fastres.cli:main" in scripts


class Environment:
    """A virtual environment that shares this one's packages, except fastres itself."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder)
        self.python = folder / "bin" / "python"
        (self.site,) = folder.glob("lib/python*/site-packages")
        shared = folder / "shared"
        shared.mkdir()
        for scheme in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
            for entry in Path(scheme).iterdir():
                if "fastres" not in entry.name:
                    (shared / entry.name).symlink_to(entry)
        (self.site / "shared.pth").write_text(f"{shared}\n", encoding="utf-8")

    def find(self, *names: str, cwd: Path) -> dict[str, str | None]:
        """Import each module in one fresh interpreter: its file, or None where that fails."""
        code = (
            "import importlib, json, sys\n"
            "files = {}\n"
            "for name in sys.argv[1:]:\n"
            "    try:\n"
            "        files[name] = importlib.import_module(name).__file__\n"
            "    except ImportError:\n"
            "        files[name] = None\n"
            "print(json.dumps(files))\n"
        )
        files: dict[str, str | None] = json.loads(run(self.python, "-c", code, *names, cwd=cwd))
        return files


@pytest.fixture(scope="module", params=["wheel", "editable"])
def installed(request: pytest.FixtureRequest, checkout: Path, wheel: Path) -> Environment:
    environment = Environment(checkout.parent / request.param)
    if request.param == "wheel":
        pip(environment.python, "install", wheel)
    else:
        pip(environment.python, "install", "--editable", checkout)
    return environment


@pytest.mark.campaign
@pytest.mark.parametrize("place", ["root", "elsewhere"])
def test_all_parts_are_found(
    installed: Environment, checkout: Path, place: str, tmp_path: Path
) -> None:
    found = installed.find(
        *("fastres", "fastres.kernels.reference", "fastres.export"),
        *("kernels", "kernels.reference", "export", "fastres.tests"),
        cwd=checkout if place == "root" else tmp_path,
    )
    # In the root Python takes the checkout, also when a wheel is installed: all of it or nothing.
    from_wheel = installed.python.parent.parent.name == "wheel" and place == "elsewhere"
    home = installed.site / "fastres" if from_wheel else checkout / "fastres"
    assert found == {
        "fastres": str(home / "__init__.py"),
        "fastres.kernels.reference": str(home / "kernels" / "reference.py"),
        "fastres.export": str(home / "export" / "__init__.py"),
        # These names belong to other packages.
        "kernels": None,
        "kernels.reference": None,
        "export": None,
        "fastres.tests": None,
    }


@pytest.mark.campaign
@cxx.needs_compiler
def test_the_library_is_found(installed: Environment, checkout: Path, tmp_path: Path) -> None:
    code = "from fastres.runtime.native.library import find; print(find())"
    found = Path(run(installed.python, "-c", code, cwd=tmp_path).strip())
    home = installed.site if installed.python.parent.parent.name == "wheel" else checkout
    assert found == home / "fastres" / "kernels" / "cpu" / "_native.abi3.so"
    assert found.exists()
