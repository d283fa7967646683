"""The build of the extension modules, on a small tree of sources that compiles in a second."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from csrc import build_native
from csrc.build_native import CPU, CUDA, Arch, BuildError, Options, parse_archs

ROOT = Path(__file__).parents[1]
BINDINGS = """
#include <Python.h>
#include "core/value.h"
int one();
int two();
static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_native_cpu", nullptr, -1};
PyMODINIT_FUNC PyInit__native_cpu() {
  PyObject* module = PyModule_Create(&definition);
  PyModule_AddStringConstant(module, "__version__", LIP_FAST_VERSION);
  PyModule_AddIntConstant(module, "total", one() + two() + VALUE);
  return module;
}
"""
CUDA_BINDINGS = """
#include <Python.h>
#include <cuda_runtime.h>
cudaError_t kernel();
static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_native_cuda", nullptr, -1};
PyMODINIT_FUNC PyInit__native_cuda() {
  PyObject* module = PyModule_Create(&definition);
  PyModule_AddStringConstant(module, "__version__", LIP_FAST_VERSION);
  PyModule_AddStringConstant(module, "CUDA_ARCHS", LIP_FAST_HELD_ARCHS);
  return module;
}
"""
SOURCES = {
    "csrc/bindings_cpu.cpp": BINDINGS,
    "csrc/bindings_cuda.cpp": CUDA_BINDINGS,
    "csrc/core/value.h": "#pragma once\n#define VALUE 4\n",
    "csrc/cpu/one.cpp": "int one() { return 1; }\n",
    "csrc/cpu/two.cpp": '#include "core/value.h"\nint two() { return 2; }\n',
    "csrc/cuda/kernel.cu": "__global__ void run() {}\n"
    "cudaError_t kernel() { run<<<1, 1>>>(); return cudaGetLastError(); }\n",
    "lip_fast/__init__.py": "",
    "lip_fast/py.typed": "",
}

needs_gxx = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not there")
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not there")


def environment(**variables: str) -> dict[str, str]:
    """The process's own without what steers a build, and without nvcc."""
    steering = {"NVCC", "CUDA_HOME", "CUDA_PATH", "CXX", "CXXFLAGS", "LDFLAGS", "MAX_JOBS"}
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in steering and not name.startswith("LIP_FAST_")
    }
    folders = [folder for folder in kept["PATH"].split(os.pathsep) if not Path(folder, "nvcc").exists()]
    return {**kept, "PATH": os.pathsep.join(folders), "MAX_JOBS": "2", **variables}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A package with the same build, in a folder whose name has to be quoted."""
    root = tmp_path / "a b$c"
    root.mkdir()
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "constraints.txt"):
        shutil.copy(ROOT / name, root)
    for name, text in SOURCES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    shutil.copy(ROOT / "csrc/build_native.py", root / "csrc")
    return root


def build(
    root: Path, **variables: str
) -> tuple[dict[build_native.Module, Path], dict[build_native.Module, str]]:
    options = Options.read(environment(**variables))
    return build_native.build_modules(root, Path("build/it"), "1.2.3", options)


def setup(root: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "setup.py", *command],
        cwd=root,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=300,
    )


def python(script: str, **options: Any) -> str:
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, **options)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def in_place(root: Path) -> list[str]:
    return sorted(path.name.partition(".")[0] for path in (root / "lip_fast").glob("*.so"))


def made(root: Path) -> dict[str, int]:
    """When each object and library was written."""
    return {
        path.name: path.stat().st_mtime_ns
        for path in (root / "build/it").rglob("*")
        if path.suffix in {".o", ".so"}
    }


def changed(before: dict[str, int], after: dict[str, int]) -> set[str]:
    return {name.partition(".")[0] for name in after if after[name] != before.get(name)}


@pytest.mark.process
@pytest.mark.smoke
@needs_gxx
def test_only_what_changed_is_compiled_again(tree: Path) -> None:
    libraries, _ = build(tree)
    first = made(tree)
    build(tree)
    assert made(tree) == first

    (tree / "csrc/cpu/one.cpp").write_text("int one() { return 100; }\n")
    build(tree)
    second = made(tree)
    assert changed(first, second) == {"one", "_native_cpu"}

    (tree / "csrc/core/value.h").write_text("#pragma once\n#define VALUE 1000\n")
    build(tree)
    assert changed(second, made(tree)) == {"two", "bindings_cpu", "_native_cpu"}

    script = "import _native_cpu as module; print(module.total, module.__version__)"
    assert python(script, cwd=libraries[CPU].parent) == "1102 1.2.3"


@pytest.mark.process
@needs_gxx
def test_a_new_version_touches_the_bindings_alone(tree: Path) -> None:
    build(tree)
    before = made(tree)
    options = Options.read(environment())
    build_native.build_modules(tree, Path("build/it"), "1.2.4", options)
    assert changed(before, made(tree)) == {"bindings_cpu", "_native_cpu"}


@pytest.mark.process
@needs_gxx
def test_headers_found_elsewhere_compile_nothing_again(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(tree)
    before = made(tree)
    # As an isolated build does, which unpacks pybind11 into a new folder every time.
    elsewhere = shutil.copytree(
        build_native.find_pybind11(), tmp_path / "pybind11", copy_function=shutil.copyfile
    )
    monkeypatch.setattr(build_native, "find_pybind11", lambda: elsewhere)
    build(tree)
    assert made(tree) == before


@pytest.mark.process
@needs_gxx
def test_builds_without_ninja(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_native, "find_ninja", lambda options: None)
    libraries, problems = build(tree)
    assert list(libraries) == [CPU]
    assert list(problems) == [CUDA]
    (tree / "csrc/cpu/one.cpp").write_text("int one() { return nonsense; }\n")
    libraries, problems = build(tree)
    assert libraries == {}
    assert "nonsense" in problems[CPU]


@pytest.mark.process
def test_a_ninja_that_does_not_run_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_native.importlib.util, "find_spec", lambda name: None)
    ninja = tmp_path / "ninja"
    ninja.write_text("#!/bin/sh\nexit 1\n")
    ninja.chmod(0o755)
    assert build_native.find_ninja(Options.read({"PATH": str(tmp_path)})) is None
    ninja.write_text("#!/bin/sh\nexit 0\n")
    assert build_native.find_ninja(Options.read({"PATH": str(tmp_path)})) == str(ninja)


@pytest.mark.process
@needs_gxx
def test_max_jobs_reaches_ninja(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ninja = tmp_path / "ninja"
    ninja.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/arguments\n')
    ninja.chmod(0o755)
    monkeypatch.setattr(build_native, "find_ninja", lambda options: str(ninja))
    build(tree, MAX_JOBS="3")
    assert " -j 3 " in (tmp_path / "arguments").read_text()


def test_the_ninja_file() -> None:
    step = build_native.Step(
        "cxx", "build/a b.o", ("csrc/a:b.cpp",), ("g++", '-DX="1 $y"', "-c", "csrc/a:b.cpp")
    )
    text = build_native.ninja_text([step], Path("build"))
    assert "rule cxx\n  command = $words\n  depfile = $out.d\n  deps = gcc\n" in text
    assert "build build/a$ b.o: cxx csrc/a$:b.cpp\n" in text
    assert "  words = g++ '-DX=\"1 $$y\"' -c csrc/a:b.cpp\n" in text


@needs_gxx
def test_the_commands_are_what_was_asked_for(tree: Path) -> None:
    options = Options.read(environment(CXX="g++ -m64", CXXFLAGS="-g '-DA=b c'", LDFLAGS="-Wl,-O1"))
    steps = build_native.Planner(tree, Path("build/it"), "1.2.3", options).plan(CPU)
    assert [step.rule for step in steps] == ["cxx", "cxx", "cxx", "link"]
    for step in steps[:-1]:
        assert step.command[:2] == ("g++", "-m64")
        assert {"-std=c++17", "-O3", "-fvisibility=hidden", "-Icsrc", "-DA=b c"} <= set(step.command)
        assert ("-isystem" in step.command) == (step.inputs == ("csrc/bindings_cpu.cpp",))
        assert "-ffast-math" not in step.command
    assert steps[-1].command[-1] == "-Wl,-O1"


@pytest.mark.process
@needs_gxx
def test_off_builds_nothing_and_removes_what_was(tree: Path) -> None:
    assert setup(tree, "build_ext", "--inplace").returncode == 0
    assert in_place(tree) == ["_native_cpu"]
    result = setup(tree, "build_ext", "--inplace", LIP_FAST_EXT="off")
    assert result.returncode == 0, result.stderr
    assert in_place(tree) == []
    # A wheel for every machine, whatever lies in the source folder.
    (tree / "lip_fast/_native_cpu.so").touch()
    assert setup(tree, "bdist_wheel", LIP_FAST_EXT="off").returncode == 0
    wheel = next((tree / "dist").glob("*.whl"))
    assert wheel.name.endswith("-py3-none-any.whl")
    assert not [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so")]


@pytest.mark.process
@needs_gxx
@pytest.mark.parametrize("fault", ["compiler", "source", "absent"])
def test_auto_leaves_out_what_cannot_be_built(tree: Path, fault: str) -> None:
    assert setup(tree, "build_ext", "--inplace").returncode == 0
    assert in_place(tree) == ["_native_cpu"]
    if fault == "source":
        (tree / "csrc/cpu/one.cpp").write_text("int one() { return nonsense; }\n")
    variables = {"compiler": {"CXX": "/bin/false"}, "source": {}, "absent": {"CXX": "no-such-compiler"}}[
        fault
    ]
    result = setup(tree, "build_ext", "--inplace", **variables)
    assert result.returncode == 0, result.stderr
    assert in_place(tree) == [], "an older build must not be taken for this one"
    said = result.stdout + result.stderr
    assert "lip_fast._native_cpu cannot be built" in said
    assert "installed without it" in said
    assert {"compiler": "/bin/false", "source": "nonsense", "absent": "CXX=no-such-compiler"}[fault] in said
    # The wheel, too, holds what could be built, which is nothing.
    assert setup(tree, "bdist_wheel", **variables).returncode == 0
    wheel = next((tree / "dist").glob("*.whl"))
    assert not [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so")]


@pytest.mark.process
@needs_gxx
def test_require_fails_with_what_the_compiler_said(tree: Path) -> None:
    result = setup(tree, "build_ext", "--inplace", LIP_FAST_EXT="require", CXX="/bin/false")
    assert result.returncode != 0
    assert "lip_fast._native_cpu cannot be built" in result.stderr
    assert "/bin/false" in result.stderr
    assert in_place(tree) == []


@pytest.mark.process
@needs_gxx
def test_require_without_nvcc_requires_the_cpu_extension(tree: Path) -> None:
    result = setup(tree, "build_ext", "--inplace", LIP_FAST_EXT="require")
    assert result.returncode == 0, result.stderr
    assert in_place(tree) == ["_native_cpu"]
    assert "lip_fast._native_cuda cannot be built: no nvcc on PATH" in result.stdout + result.stderr


@pytest.mark.process
@needs_gxx
@pytest.mark.parametrize(
    "variables", [{"NVCC": "no-such-nvcc"}, {"CUDA_HOME": "/no/such/folder"}, {"LIP_FAST_CUDA_ARCHS": "90"}]
)
def test_require_fails_where_cuda_was_asked_for_and_is_absent(tree: Path, variables: dict[str, str]) -> None:
    result = setup(tree, "build_ext", "--inplace", LIP_FAST_EXT="require", **variables)
    assert result.returncode != 0
    assert "lip_fast._native_cuda cannot be built" in result.stderr


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"LIP_FAST_EXT": "maybe"}, "LIP_FAST_EXT must be one of auto, off, require, got 'maybe'"),
        ({"MAX_JOBS": "0"}, "MAX_JOBS must be a positive number, got '0'"),
        ({"MAX_JOBS": "many"}, "MAX_JOBS must be a positive number, got 'many'"),
        ({"LIP_FAST_CUDA_ARCHS": "hopper"}, "LIP_FAST_CUDA_ARCHS must list compute capabilities"),
        ({"LIP_FAST_CUDA_ARCHS": "90;sm_80"}, "got 'sm_80' in '90;sm_80'"),
        ({"LIP_FAST_CUDA_ARCHS": ";"}, "got ''"),
        ({"LIP_FAST_CUDA_ARCHS": "75"}, "must be 80 or newer, got '75'"),
    ],
)
def test_a_value_that_means_nothing_is_refused(variables: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Options.read(variables)


@pytest.mark.process
def test_a_refused_value_ends_the_build_in_one_line(tree: Path) -> None:
    result = setup(tree, "build_ext", "--inplace", LIP_FAST_EXT="maybe")
    assert result.returncode != 0
    assert result.stderr == "error: LIP_FAST_EXT must be one of auto, off, require, got 'maybe'\n"


@pytest.mark.parametrize(
    ("text", "archs"),
    [
        ("90", (Arch("90"),)),
        ("80;90a;120+PTX", (Arch("80"), Arch("90a"), Arch("120", ptx=True))),
        (" 80, 90A ;100f+ptx; ", (Arch("80"), Arch("90a"), Arch("100f", ptx=True))),
        ("90;90", (Arch("90"),)),
    ],
)
def test_architectures_are_read(text: str, archs: tuple[Arch, ...]) -> None:
    assert parse_archs(text) == archs


def test_ptx_is_a_second_code_of_an_architecture() -> None:
    assert Arch("120", ptx=True).flags() == [
        "-gencode=arch=compute_120,code=sm_120",
        "-gencode=arch=compute_120,code=compute_120",
    ]


@pytest.mark.process
def test_the_default_is_what_this_nvcc_knows(tmp_path: Path) -> None:
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\nprintf 'compute_80\\ncompute_86\\ncompute_90\\n'\n")
    nvcc.chmod(0o755)
    options = Options.read({"CUDA_HOME": "/no/such/folder", "PATH": str(tmp_path)})
    assert build_native.find_nvcc(options) == str(nvcc)
    assert build_native.choose_archs(str(nvcc), options) == (Arch("80"), Arch("90", ptx=True))
    options = Options.read({"LIP_FAST_CUDA_ARCHS": "90;120"})
    with pytest.raises(BuildError, match=r"LIP_FAST_CUDA_ARCHS names 120: .* knows \[80, 86, 90\]"):
        build_native.choose_archs(str(nvcc), options)
    nvcc.write_text("#!/bin/sh\necho broken >&2\nexit 3\n")
    with pytest.raises(BuildError, match="ended with 3: broken"):
        build_native.choose_archs(str(nvcc), options)


def test_nvcc_of_cuda_home_comes_before_that_on_the_path(tmp_path: Path) -> None:
    for folder in ("home/bin", "path"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "nvcc").touch(mode=0o755)
    home, path = str(tmp_path / "home"), str(tmp_path / "path")
    assert build_native.find_nvcc(Options.read({"CUDA_HOME": home, "PATH": path})) == f"{home}/bin/nvcc"
    assert build_native.find_nvcc(Options.read({"CUDA_PATH": home, "PATH": path})) == f"{home}/bin/nvcc"
    asked = Options.read({"NVCC": f"{path}/nvcc", "CUDA_HOME": home, "PATH": path})
    assert build_native.find_nvcc(asked) == f"{path}/nvcc"


@pytest.mark.process
@needs_gxx
@needs_nvcc
def test_cuda_is_built_where_nvcc_is(tree: Path) -> None:
    nvcc = str(shutil.which("nvcc"))
    libraries, problems = build(tree, NVCC=nvcc, LIP_FAST_CUDA_ARCHS="90+PTX")
    assert problems == {}
    before = made(tree)
    kernel = tree / "csrc/cuda/kernel.cu"
    kernel.write_text(kernel.read_text() + "// changed\n")
    build(tree, NVCC=nvcc, LIP_FAST_CUDA_ARCHS="90+PTX", MAX_JOBS="4")
    assert changed(before, made(tree)) == {"kernel", "_native_cuda"}
    script = (
        "import _native_cuda as module; print(module.__version__, module.CUDA_ARCHS)\n"
        "print('libcuda.so' in open('/proc/self/maps').read())"
    )
    assert python(script, cwd=libraries[CUDA].parent) == "1.2.3 90+PTX\nFalse"


@pytest.mark.process
@needs_gxx
def test_a_wheel_is_built_from_the_source_distribution(tree: Path, tmp_path: Path) -> None:
    result = setup(tree, "sdist")
    assert result.returncode == 0, result.stderr
    clean = tmp_path / "clean"
    with tarfile.open(next((tree / "dist").glob("*.tar.gz"))) as archive:
        archive.extractall(clean, filter="data")
    result = setup(next(clean.iterdir()), "bdist_wheel", LIP_FAST_EXT="require")
    assert result.returncode == 0, result.stderr
    names = zipfile.ZipFile(next(clean.glob("*/dist/*.whl"))).namelist()
    assert [name.partition(".")[0] for name in names if name.endswith(".so")] == ["lip_fast/_native_cpu"]
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"lip_fast"}


@pytest.mark.process
@needs_gxx
def test_an_editable_install_builds_in_place(tree: Path, tmp_path: Path) -> None:
    hook = f"from setuptools import build_meta; build_meta.build_editable({str(tmp_path)!r})"
    python(hook, cwd=tree, env=environment())
    assert in_place(tree) == ["_native_cpu"]
    # The objects stay in the build folder: another install compiles nothing.
    objects = sorted((tree / "build").glob("native.*/csrc/**/*.o"))
    assert [path.name for path in objects] == ["bindings_cpu.cpp.o", "one.cpp.o", "two.cpp.o"]
    python(hook, cwd=tree, env=environment(LIP_FAST_EXT="off"))
    assert in_place(tree) == []


@pytest.mark.process
def test_the_source_distribution_holds_what_builds(tmp_path: Path) -> None:
    left_out = shutil.ignore_patterns("*.so", "__pycache__", "results")
    for name in ("csrc", "lip_fast", "tests", "benchmarks"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=left_out)
    for path in ROOT.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, tmp_path)
    (tmp_path / "lip_fast/_native_cpu.so").touch()
    result = setup(tmp_path, "sdist")
    assert result.returncode == 0, result.stderr
    with tarfile.open(next((tmp_path / "dist").glob("*.tar.gz"))) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    for folder in ("csrc", "lip_fast", "tests"):
        there = {str(path.relative_to(tmp_path)) for path in (tmp_path / folder).rglob("*") if path.is_file()}
        assert {name for name in there if not name.endswith((".so", ".pyc"))} <= held
    assert {"setup.py", "pyproject.toml", "constraints.txt", "Makefile", "README.md", "LICENSE"} <= held
    assert not [name for name in held if name.endswith((".so", ".o", ".pyc"))]


@pytest.mark.process
def test_the_build_imports_no_torch() -> None:
    script = "import sys, csrc.build_native; print('torch' in sys.modules)"
    assert python(script, cwd=ROOT) == "False"


@pytest.mark.process
def test_importing_the_cuda_extension_needs_no_driver() -> None:
    script = (
        "import importlib.util\n"
        "import lip_fast\n"
        "if importlib.util.find_spec('lip_fast._native_cuda') is None:\n"
        "    print('not built')\n"
        "else:\n"
        "    import lip_fast._native_cuda as module\n"
        "    print(module.__version__)\n"
    )
    if (said := python(script)) == "not built":
        pytest.skip("the CUDA extension is not built")
    assert said
