"""``lip-fast doctor``: what it prints, and what it ends with where something does not fit together."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from warm import python

import lip_fast
from lip_fast import backends
from lip_fast.backends import triton
from lip_fast.backends.native import library
from lip_fast.cli import doctor, main, version

CPU_ONLY = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder that holds lip_fast 1.2.3 without extension modules."""
    source = Path(lip_fast.__file__).parent
    shutil.copytree(source, tmp_path / "lip_fast", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    metadata = tmp_path / "lip_fast-1.2.3.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.4\nName: lip-fast\nVersion: 1.2.3\n")
    # The finder of an editable install would look for what is missing here in the folder it serves.
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "for finder in [*sys.meta_path]:\n"
        "    if '__editable__' in getattr(finder, '__module__', ''):\n"
        "        sys.meta_path.remove(finder)\n"
    )
    return tmp_path


def environment(folder: Path, **variables: str) -> dict[str, str]:
    ours = ("LIP_FAST_", "TRITON_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**kept, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", **variables}


def run(folder: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    words = command or ("-m", "lip_fast", "doctor")
    return python("torch").run(*words, cwd=folder, env=environment(folder, **variables), timeout=120)


def problems(report: str) -> list[str]:
    """The lines of the last section."""
    _, _, section = report.rstrip().rpartition("\n\n")
    heading, *lines = section.splitlines()
    assert heading == f"{len(lines)} problem{'s' * (len(lines) > 1)}"
    return [line.strip() for line in lines]


@pytest.mark.process
def test_a_healthy_installation_without_extensions(installed: Path) -> None:
    script = (
        "import sys\n"
        "sys.modules |= dict.fromkeys(['sklearn', 'matplotlib', 'jsonargparse', 'tqdm', 'yaml', 'triton'])\n"
        "from lip_fast.cli import main\n"
        "sys.exit(main(['doctor']))\n"
    )
    result = run(installed, "-c", script)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["lip_fast", "1.2.3"] in lines
    assert ["Python", "{}.{}.{}".format(*sys.version_info)] in lines
    assert ["_native_cpu", "not", "built"] in lines
    assert ["_native_cuda", "not", "built"] in lines
    assert ["triton", "not", "used:", "Triton", "is", "not", "installed"] in lines
    assert ["OMP_NUM_THREADS", "1"] in lines
    assert ["warm_svd", "cpu", "default"] in [line[:3] for line in lines]
    assert lines[-1] == ["no", "problem", "found"]


@pytest.mark.process
def test_a_broken_file_is_named(installed: Path) -> None:
    (installed / f"lip_fast/_native_cpu{SUFFIX}").write_text("no library")
    (installed / f"lip_fast/_native_cuda{SUFFIX}").write_text("no library")
    # The one that is a process from its start.
    command = [sys.executable, "-m", "lip_fast", "doctor"]
    options = {"cwd": installed, "env": environment(installed), "timeout": 120}
    result = subprocess.run(command, capture_output=True, text=True, **options)
    assert result.returncode == 1, result.stderr
    said = problems(result.stdout)
    assert [line.partition(" ")[0] for line in said] == ["lip_fast._native_cpu", "lip_fast._native_cuda"]
    for line in said:
        assert "is there and does not load (ImportError" in line
        assert "install lip_fast again" in line


@pytest.mark.process
def test_another_version_is_named_and_not_used(installed: Path) -> None:
    (installed / "lip_fast/_native_cpu.py").write_text("__version__ = '1.2.2'\n")
    result = run(installed)
    assert result.returncode == 1, result.stderr
    (said,) = problems(result.stdout)
    assert said.startswith("lip_fast._native_cpu was built for lip_fast 1.2.2, installed is 1.2.3: ")
    script = "from lip_fast.backends.native import library; print(library.cpu(), library.problems())"
    used = run(installed, "-c", script).stdout
    assert used.startswith("None")
    assert "built for lip_fast 1.2.2, installed is 1.2.3" in used


@pytest.mark.process
@pytest.mark.skipif(triton.problem() is not None, reason=str(triton.problem()))
def test_what_triton_serves_is_listed(installed: Path) -> None:
    result = run(installed, LIP_FAST_BACKEND="triton", TRITON_INTERPRET="1")
    assert result.returncode == 0, result.stdout + result.stderr
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["triton", triton.version()] in lines
    assert ["triton", "used"] in lines
    (ops,) = [line[1:] for line in lines if line[:1] == ["serves"]]
    assert {op.rstrip(",") for op in ops} == {
        op for op in backends.declared() if backends.kernel(op, "triton", "cpu") is not None
    }
    assert ["TRITON_INTERPRET", "1"] in lines
    assert ["rebuild_", "cpu", "triton", "LIP_FAST_BACKEND=triton"] in lines


@pytest.mark.process
@pytest.mark.parametrize("backend", ["native", "triton", "warp"])
@pytest.mark.parametrize("command", ["module", "script"])
def test_a_forced_backend_that_is_not_there(installed: Path, backend: str, command: str) -> None:
    if torch.cuda.is_available() and backend != "warp":
        pytest.skip("a GPU is there")
    script = installed / "lip-fast"
    script.write_text("import sys\nfrom lip_fast.cli import main\nsys.exit(main())\n")
    words = {"module": ("-m", "lip_fast"), "script": (str(script),)}[command]
    result = run(installed, *words, "doctor", LIP_FAST_BACKEND=backend)
    assert result.returncode == 1, result.stderr
    (said,) = problems(result.stdout)
    assert said.startswith("LIP_FAST_BACKEND")
    assert repr(backend) in said
    assert "unset LIP_FAST_BACKEND" in said
    assert ["LIP_FAST_BACKEND", backend] in [line.split() for line in result.stdout.splitlines()]
    # Everything else is refused outright.
    result = run(installed, *words, "repair", LIP_FAST_BACKEND=backend)
    assert result.returncode != 0
    assert "LIP_FAST_BACKEND" in result.stderr.splitlines()[-1]


@pytest.mark.process
@CPU_ONLY
def test_the_cuda_extension_is_left_alone_without_a_device(installed: Path) -> None:
    (installed / "lip_fast/_native_cuda.py").write_text("raise AssertionError('loaded')\n")
    result = run(installed, "-c", "import lip_fast, lip_fast.backends.native.library as l; print(l.cuda())")
    assert result.stdout == "None\n", result.stderr


def cuda_module(**changes: object) -> SimpleNamespace:
    held = {
        "__version__": version.installed(),
        "CUDART_VERSION": 13000,
        "CUDA_ARCHS": "80;90;120+PTX",
        "driver_version": lambda: 13000,
    }
    return SimpleNamespace(**{**held, **changes})


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if torch saw a device of capability 9.0."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    properties = SimpleNamespace(name="NVIDIA Test", major=9, minor=0, total_memory=2**37)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(backends, "served", lambda: [backends.Served("warm_svd", "cuda", "default", "why")])


def with_cuda_module(monkeypatch: pytest.MonkeyPatch, module: SimpleNamespace) -> None:
    monkeypatch.setitem(sys.modules, "lip_fast._native_cuda", module)
    find_spec = doctor.importlib.util.find_spec
    monkeypatch.setattr(
        doctor.importlib.util,
        "find_spec",
        lambda name: SimpleNamespace(origin="x.so") if name == "lip_fast._native_cuda" else find_spec(name),
    )
    monkeypatch.setattr(library, "_problems", {})
    monkeypatch.setattr(library, "cuda", library.cuda.__wrapped__)  # asked anew


@pytest.mark.usefixtures("device")
def test_a_device_that_is_served(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with_cuda_module(monkeypatch, cuda_module())
    assert main(["doctor"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "_native_cuda loaded" in lines
    assert f"version {version.installed()}, CUDA 13.0, code for 80;90;120+PTX" in lines
    assert "GPU 0 NVIDIA Test, sm_90, 128 GiB" in lines


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"driver_version": lambda: 12080}, ["CUDA 13.0", "12.8", "driver to 580 or newer", "nvcc 12"]),
        ({"CUDA_ARCHS": "80;120+PTX"}, []),
        ({"CUDA_ARCHS": "100;120+PTX"}, ["100;120+PTX", "sm_90", "LIP_FAST_CUDA_ARCHS=90"]),
        ({"__version__": "0"}, ["built for lip_fast 0"]),
    ],
    ids=["driver", "older code", "newer code", "version"],
)
def test_a_device_that_is_not_served(
    changes: dict[str, object],
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with_cuda_module(monkeypatch, cuda_module(**changes))
    assert main(["doctor"]) == 1
    (said,) = problems(capsys.readouterr().out)
    assert said.startswith("lip_fast._native_cuda")
    for word in words:
        assert word in said


def test_a_driver_too_old_for_torch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(doctor, "_driver", lambda: 12040)
    assert main(["doctor"]) == 1
    (said,) = problems(capsys.readouterr().out)
    assert "torch is for CUDA 13.0, the driver knows 12.4" in said
    assert "driver to 580 or newer" in said


@pytest.mark.parametrize(
    ("archs", "capability", "held"),
    [
        ("90", (9, 0), True),
        ("90a", (9, 0), True),
        ("80", (8, 6), True),
        ("86", (8, 0), False),
        ("80", (9, 0), False),
        ("80+PTX", (9, 0), True),
        ("100a", (10, 3), False),
        ("100f", (10, 3), True),
        ("90a+PTX", (10, 0), False),
        ("80;90;120+PTX", (12, 1), True),
        ("80;90;120+PTX", (10, 0), False),
        ("unknown", (9, 0), None),
    ],
)
def test_which_devices_code_runs_on(archs: str, capability: tuple[int, int], held: bool | None) -> None:
    assert library.covers(archs, capability) is held


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--quickly"], "unknown option '--quickly': known are -h, --help, --head, --rank"),
        (["--head", "10"], "argument --head: expected classes x features, as 1000x2048, got '10'"),
        (["extra"], "expected no further argument, got 'extra'"),
    ],
)
def test_arguments_are_refused(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["doctor", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"lip-fast doctor: {message}")
    assert error.count("\n") == 1
