"""The build of the native extensions: a ninja file of compiler commands, run for setuptools.

What is built is decided by the compilers that are there, never by the device of the machine that builds.
Neither torch nor its headers are used, so the same commands serve an isolated build, an editable install
and a machine without a network. Objects stay in the build folder: only what changed is compiled again.

The environment:
    LIP_FAST_EXT: ``auto`` (an extension that cannot be built is left out, with a warning), ``require`` (that
        is an error; without nvcc, and where nothing asks for CUDA, the CPU extension alone is required) or
        ``off``.
    LIP_FAST_CUDA_ARCHS: the compute capabilities to hold code for, as in ``90`` or ``80;90a;120+PTX``.
    CXX, NVCC, CUDA_HOME, CUDA_PATH: the compilers. nvcc takes CXX as its host compiler.
    CXXFLAGS, LDFLAGS: added to the C++ compiler's commands; nvcc itself reads NVCC_APPEND_FLAGS.
    MAX_JOBS: how many commands run at once; by default one for each core.
"""

import contextlib
import filecmp
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from setuptools import Extension
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

__all__ = ["MODULES", "Build", "BuildError", "BuildNative", "Module", "Options", "Step", "extensions"]

ROOT = Path(__file__).resolve().parents[1]
MODES = ("auto", "off", "require")
# Ampere, Hopper and both Blackwells; the PTX is what later devices start from.
DEFAULT_ARCHS = "80;90;100;120+PTX"
MINIMUM_ARCH = 80  # the kernels copy asynchronously and multiply in tf32
CXX_FLAGS = (
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-fopenmp-simd",
    "-Wall",
    "-Wextra",
    "-Wno-psabi",
)
NVCC_FLAGS = ("-std=c++17", "-O3", "-lineinfo", "--expt-relaxed-constexpr")
NVCC_HOST_FLAGS = ("-fPIC", "-fvisibility=hidden")


class BuildError(Exception):
    """An extension cannot be built; the message says why."""


@dataclass(frozen=True)
class Module:
    """One extension module of the package ``lip_fast``.

    Attributes:
        name: its name in the package.
        bindings: the source file with Python's headers.
        kernels: pattern of the other source files.
    """

    name: str
    bindings: str
    kernels: str

    def sources(self, root: Path) -> list[str]:
        """The source files, relative to ``root``, the bindings first."""
        found = sorted(path.relative_to(root).as_posix() for path in root.glob(self.kernels))
        return [self.bindings, *found]


CPU = Module("_native_cpu", "csrc/bindings_cpu.cpp", "csrc/cpu/*.cpp")
CUDA = Module("_native_cuda", "csrc/bindings_cuda.cpp", "csrc/cuda/*.cu")
MODULES = (CPU, CUDA)


@dataclass(frozen=True)
class Arch:
    """A compute capability to hold code for, e.g. ``90a``, and whether its PTX goes with it."""

    name: str
    ptx: bool = False

    def __str__(self) -> str:
        return f"{self.name}+PTX" if self.ptx else self.name

    @property
    def number(self) -> int:
        """The capability without its suffix: 90 of ``90a``."""
        return int(self.name.rstrip("af"))

    def flags(self) -> list[str]:
        """What tells nvcc."""
        codes = [f"sm_{self.name}", *([f"compute_{self.name}"] if self.ptx else [])]
        return [f"-gencode=arch=compute_{self.name},code={code}" for code in codes]


def parse_archs(text: str) -> tuple[Arch, ...]:
    """The architectures that ``LIP_FAST_CUDA_ARCHS`` lists.

    Raises:
        ValueError: an entry is none, or is older than what the kernels need.
    """
    archs = []
    for entry in re.split(r"[;,\s]+", text.strip("; ,\t\n")):
        match = re.fullmatch(r"(\d{2,3}[af]?)(\+PTX)?", entry, re.IGNORECASE)
        if match is None:
            raise ValueError(
                "LIP_FAST_CUDA_ARCHS must list compute capabilities, as in '90' or '80;90a;120+PTX', "
                f"got {entry!r} in {text!r}"
            )
        arch = Arch(match[1].lower(), match[2] is not None)
        if arch.number < MINIMUM_ARCH:
            raise ValueError(f"LIP_FAST_CUDA_ARCHS must be {MINIMUM_ARCH} or newer, got {entry!r}")
        archs.append(arch)
    return tuple(dict.fromkeys(archs))


@dataclass(frozen=True)
class Options:
    """What the environment asks of the build.

    Attributes:
        mode: one of ``MODES``.
        archs: the architectures asked for; None for those of ``DEFAULT_ARCHS`` that nvcc knows.
        jobs: how many commands run at once.
        environment: where the compilers are looked for.
    """

    mode: str
    archs: tuple[Arch, ...] | None
    jobs: int
    environment: Mapping[str, str]

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> "Options":
        """Check and take over the environment; an empty variable counts as unset.

        Raises:
            ValueError: a variable has a value that means nothing.
        """
        mode = environment.get("LIP_FAST_EXT") or "auto"
        if mode not in MODES:
            raise ValueError(f"LIP_FAST_EXT must be one of {', '.join(MODES)}, got {mode!r}")
        archs = environment.get("LIP_FAST_CUDA_ARCHS")
        jobs = environment.get("MAX_JOBS") or str(_cores())
        if not jobs.isdecimal() or int(jobs) < 1:
            raise ValueError(f"MAX_JOBS must be a positive number, got {jobs!r}")
        return cls(mode, parse_archs(archs) if archs else None, int(jobs), environment)

    @property
    def asks_for_cuda(self) -> bool:
        """Whether anything but nvcc's presence says that there should be a CUDA extension."""
        names = ("NVCC", "CUDA_HOME", "CUDA_PATH", "LIP_FAST_CUDA_ARCHS")
        return any(self.environment.get(name) for name in names)


def _cores() -> int:
    # A container's share, where the system tells it.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def find_cxx(options: Options) -> list[str]:
    """The command of the C++ compiler: CXX, else g++, else c++.

    Raises:
        BuildError: there is none.
    """
    if os.name != "posix":
        raise BuildError("the commands are those of g++ on Linux and macOS")
    path = options.environment.get("PATH")
    asked = shlex.split(options.environment.get("CXX", ""))
    if asked and shutil.which(asked[0], path=path) is None:
        raise BuildError(f"CXX={shlex.join(asked)}: there is no such compiler")
    for command in [asked] if asked else [["g++"], ["c++"]]:
        if shutil.which(command[0], path=path):
            return command
    raise BuildError("no C++ compiler: neither g++ nor c++ is on PATH and CXX is not set")


def find_nvcc(options: Options) -> str:
    """The path of nvcc: NVCC, else that of CUDA_HOME or CUDA_PATH, else the one on PATH.

    Raises:
        BuildError: there is none.
    """
    environment = options.environment
    path = environment.get("PATH")
    asked = environment.get("NVCC")
    homes = [environment[name] for name in ("CUDA_HOME", "CUDA_PATH") if environment.get(name)]
    for candidate in [asked] if asked else [*(os.path.join(home, "bin", "nvcc") for home in homes), "nvcc"]:
        found = shutil.which(candidate, path=path)
        if found is not None:
            return found
    if asked:
        raise BuildError(f"NVCC={asked}: there is no such compiler")
    raise BuildError("no nvcc on PATH, nor in the bin folder of CUDA_HOME or CUDA_PATH")


def choose_archs(nvcc: str, options: Options) -> tuple[Arch, ...]:
    """The architectures asked for, or those of the default that this nvcc knows.

    Raises:
        BuildError: nvcc does not know one that was asked for, or cannot be run.
    """
    try:
        result = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True)
    except OSError as error:
        raise BuildError(f"{nvcc}: {error}") from error
    known = sorted({int(number) for number in re.findall(r"compute_(\d+)", result.stdout)})
    if result.returncode != 0 or not known:
        output = (result.stdout + result.stderr).strip()
        raise BuildError(f"{nvcc} --list-gpu-arch ended with {result.returncode}: {output or 'no output'}")
    if options.archs is None:
        archs = [arch for arch in parse_archs(DEFAULT_ARCHS) if arch.number in known]
        if not archs:
            raise BuildError(f"{nvcc} knows none of {DEFAULT_ARCHS}: it knows {known}")
        return (*archs[:-1], Arch(archs[-1].name, ptx=True))
    unknown = [str(arch) for arch in options.archs if arch.number not in known]
    if unknown:
        raise BuildError(f"LIP_FAST_CUDA_ARCHS names {', '.join(unknown)}: {nvcc} knows {known}")
    return options.archs


def find_pybind11() -> Path:
    """The folder of pybind11's headers: its own package's, else the copy inside torch, which is not imported.

    Raises:
        BuildError: there are none.
    """
    for package in ("pybind11", "torch"):
        spec = importlib.util.find_spec(package)
        for location in (spec.submodule_search_locations or []) if spec is not None else []:
            headers = Path(location) / "include" / "pybind11"
            if (headers / "pybind11.h").is_file():
                return headers
    raise BuildError("pybind11's headers are missing: pip install pybind11")


def mirror_headers(source: Path, target: Path) -> None:
    """Copy the headers that changed.

    An isolated build finds pybind11 in a new folder every time; through a copy that stays, its commands and
    the dates of what they read stay too, and the bindings are not compiled anew.
    """
    for header in source.rglob("*.h"):
        copy = target / header.relative_to(source)
        if not copy.exists() or not filecmp.cmp(header, copy, shallow=False):
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(header, copy)


@dataclass(frozen=True)
class Step:
    """One command: a line of the ninja file.

    Attributes:
        rule: ``cxx``, ``nvcc`` or ``link``.
        output: the file it makes.
        inputs: the files it reads, without the headers, which the compiler lists in ``output``.d.
        command: program and arguments.
    """

    rule: str
    output: str
    inputs: tuple[str, ...]
    command: tuple[str, ...]


@dataclass
class Planner:
    """Turns modules into steps.

    Attributes:
        root: folder of setup.py; commands run there and name sources relative to it.
        folder: where objects, libraries and the copy of pybind11's headers go.
        version: the package's, which each module carries.
        options: what the environment asks for.
    """

    root: Path
    folder: Path
    version: str
    options: Options

    def library(self, module: Module) -> str:
        """The path of the extension module in the build folder."""
        return str(self.folder / f"{module.name}{sysconfig.get_config_var('EXT_SUFFIX')}")

    def plan(self, module: Module) -> list[Step]:
        """The steps that build a module.

        Raises:
            BuildError: a compiler or header is missing.
        """
        return self._cuda() if module is CUDA else self._cpu(module)

    def _cpu(self, module: Module) -> list[Step]:
        cxx = find_cxx(self.options)
        extra = shlex.split(self.options.environment.get("CXXFLAGS", ""))
        compile_command = [*cxx, *CXX_FLAGS, "-Icsrc", *extra]
        bindings = self._bindings_flags()
        steps = [
            self._compile("cxx", [*compile_command, *(bindings if source == module.bindings else [])], source)
            for source in module.sources(self.root)
        ]
        link = [*cxx, "-shared", *(["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else [])]
        flags = shlex.split(self.options.environment.get("LDFLAGS", ""))
        return [*steps, self._link(link, module, steps, [*extra, *flags])]

    def _cuda(self) -> list[Step]:
        nvcc = find_nvcc(self.options)
        archs = choose_archs(nvcc, self.options)
        host = [word for word in find_cxx(self.options) if not word.startswith("-")]
        # Only where it was asked for: nvcc finds its own otherwise. The last word, for "ccache g++".
        command = [nvcc, *(["-ccbin", host[-1]] if self.options.environment.get("CXX") else [])]
        compile_command = [*command, *NVCC_FLAGS, f"-Xcompiler={','.join(NVCC_HOST_FLAGS)}", "-Icsrc"]
        gencode = [flag for arch in archs for flag in arch.flags()]
        held = _macro("LIP_FAST_HELD_ARCHS", ";".join(map(str, archs)))
        # nvcc compiles and links the bindings too: it knows where CUDA's headers and libraries are.
        steps = [
            self._compile("nvcc", [*compile_command, *flags], source)
            for source in CUDA.sources(self.root)
            for flags in [[*self._bindings_flags(), held] if source == CUDA.bindings else gencode]
        ]
        # The runtime's own symbols stay inside: torch brings another copy of them.
        link = [*command, "-shared", "--cudart=static", "-Xlinker=--exclude-libs=ALL", *gencode]
        return [*steps, self._link(link, CUDA, steps, [])]

    def _bindings_flags(self) -> list[str]:
        headers = find_pybind11()
        mirror_headers(headers, self.root / self.folder / "include" / "pybind11")
        paths = dict.fromkeys(sysconfig.get_path(name) for name in ("include", "platinclude"))
        includes = [str(self.folder / "include"), *paths]
        flags = [word for include in includes for word in ("-isystem", include)]
        return [*flags, _macro("LIP_FAST_VERSION", self.version)]

    def _compile(self, rule: str, command: list[str], source: str) -> Step:
        output = str(self.folder / f"{source}.o")
        files = ("-MD", "-MF", f"{output}.d", "-c", source, "-o", output)
        return Step(rule, output, (source,), (*command, *files))

    def _link(self, command: list[str], module: Module, steps: list[Step], flags: list[str]) -> Step:
        objects = tuple(step.output for step in steps)
        output = self.library(module)
        return Step("link", output, objects, (*command, "-o", output, *objects, *flags))


def _macro(name: str, text: str) -> str:
    return f'-D{name}="{text}"'


def ninja_text(steps: Iterable[Step], folder: Path) -> str:
    """The ninja file of the steps."""
    lines = [
        "# Written by setup.py at every build.",
        "ninja_required_version = 1.5",
        f"builddir = {_escape(str(folder))}",
        "",
    ]
    for rule in ("cxx", "nvcc"):
        lines += [
            f"rule {rule}",
            "  command = $words",
            "  depfile = $out.d",
            "  deps = gcc",
            f"  description = {rule} $in",
            "",
        ]
    lines += ["rule link", "  command = $words", "  description = link $out", ""]
    for step in steps:
        inputs = " ".join(_escape(path, in_path=True) for path in step.inputs)
        lines += [
            f"build {_escape(step.output, in_path=True)}: {step.rule} {inputs}",
            f"  words = {_escape(shlex.join(step.command))}",
        ]
    return "\n".join(lines) + "\n"


def _escape(text: str, in_path: bool = False) -> str:
    if "\n" in text:
        raise BuildError(f"a line break cannot be part of a path or flag: {text!r}")
    text = text.replace("$", "$$")
    return text.replace(" ", "$ ").replace(":", "$:") if in_path else text


def find_ninja(options: Options) -> str | None:
    """A ninja that runs: that of the package ``ninja``, else the one on PATH, else None."""
    candidates = []
    if importlib.util.find_spec("ninja") is not None:
        from ninja import BIN_DIR

        candidates.append(os.path.join(BIN_DIR, "ninja"))
    on_path = shutil.which("ninja", path=options.environment.get("PATH"))
    for candidate in [*candidates, *([on_path] if on_path else [])]:
        # A launcher may be left over from a package that is gone.
        with contextlib.suppress(OSError):
            if subprocess.run([candidate, "--version"], capture_output=True).returncode == 0:
                return candidate
    return None


class Runner:
    """Runs steps, by ninja where there is one.

    Args:
        planner: where the steps come from.
        plans: the steps of every module.
    """

    def __init__(self, planner: Planner, plans: Mapping[Module, list[Step]]) -> None:
        self._root, self._options, self._plans = planner.root, planner.options, plans
        self._ninja = find_ninja(planner.options)
        self._file = planner.folder / "build.ninja"
        steps = [step for plan in plans.values() for step in plan]
        text = ninja_text(steps, planner.folder)
        (planner.root / self._file).write_text(text)
        self._environment = dict(self._options.environment)
        threads = self._nvcc_threads(steps)
        if threads > 1:
            # Not in the commands: another number of cores must not make every object stale.
            given = self._environment.get("NVCC_APPEND_FLAGS", "")
            self._environment["NVCC_APPEND_FLAGS"] = f"{given} --threads={threads}".strip()

    def run(self) -> dict[Module, str]:
        """Build everything.

        Returns:
            What the compiler said of each module that could not be built.
        """
        outputs: dict[Module, str | None] = {}
        if self._ninja is None:
            outputs = {module: self._one_by_one(module) for module in self._plans}
        else:
            everything = self._ninja_command(self._ninja, self._plans)
            if subprocess.run(everything, cwd=self._root, env=self._environment).returncode != 0:
                # Again one by one, to tell whose output is whose; what was compiled is not compiled anew.
                for module in self._plans:
                    result = self._call(self._ninja_command(self._ninja, [module]))
                    outputs[module] = result.stdout if result.returncode != 0 else None
        return {module: output for module, output in outputs.items() if output is not None}

    def _nvcc_threads(self, steps: list[Step]) -> int:
        """Threads of one nvcc, which compiles for one architecture each: the cores that are left idle."""
        kernels = sum(step.inputs[0].endswith(".cu") for step in steps)
        at_once = max(1, kernels if self._ninja is not None else 1)
        return self._options.jobs // at_once if kernels else 1

    def _ninja_command(self, ninja: str, modules: Iterable[Module]) -> list[str]:
        targets = [self._plans[module][-1].output for module in modules]
        return [ninja, "-f", str(self._file), "-j", str(self._options.jobs), "-k", "0", *targets]

    def _call(self, command: Iterable[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            list(command),
            cwd=self._root,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def _one_by_one(self, module: Module) -> str | None:
        for step in self._plans[module]:
            print(f"{step.rule} {step.output}", flush=True)
            (self._root / step.output).parent.mkdir(parents=True, exist_ok=True)
            result = self._call(step.command)
            if result.returncode != 0:
                said = result.stdout or f"ended with {result.returncode} and no output\n"
                return f"{shlex.join(step.command)}\n{said}"
        return None


def build_modules(
    root: Path, folder: Path, version: str, options: Options
) -> tuple[dict[Module, Path], dict[Module, str]]:
    """Build what can be built.

    Args:
        root: folder of setup.py.
        folder: the build folder, relative to ``root`` or absolute; kept between builds.
        version: the package's.
        options: what the environment asks for.

    Returns:
        The library of each module that is there now, and for each other why it is not.
    """
    planner = Planner(root, folder, version, options)
    plans: dict[Module, list[Step]] = {}
    problems: dict[Module, str] = {}
    (root / folder).mkdir(parents=True, exist_ok=True)
    with _locked(root / folder / ".lock"):
        for module in MODULES:
            try:
                plans[module] = planner.plan(module)
            except BuildError as error:
                problems[module] = str(error)
        if plans:
            problems |= Runner(planner, plans).run()
    return {module: root / planner.library(module) for module in plans if module not in problems}, problems


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep a second build of the same folder waiting."""
    if os.name != "posix":
        yield
        return
    import fcntl

    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class BuildNative(build_ext):
    """``build_ext`` by ninja; what is not built is removed where an earlier build left it."""

    def run(self) -> None:
        """Build, and copy into the source folder for an editable install."""
        self._built: set[str] = set()  # names of modules
        super().run()
        if self.inplace:
            # Left from an earlier build, it would be loaded for what this one leaves out.
            self._remove_others(Path(self.get_finalized_command("build_py").get_package_dir("lip_fast")))

    def build_extensions(self) -> None:
        """Build every extension that can be.

        Raises:
            CompileError: one that is required cannot.
        """
        options = Options.read(os.environ)
        self.force = True  # of the copies below: what lies there may be newer and broken
        base = Path(self.get_finalized_command("build").build_base)
        folder = base / f"native.{sysconfig.get_config_var('SOABI')}"
        libraries, problems = build_modules(ROOT, folder, self.distribution.get_version(), options)
        for module, problem in problems.items():
            text = f"lip_fast.{module.name} cannot be built: {problem.rstrip()}"
            # Without nvcc a CPU-only install is what most mean.
            if options.mode == "require" and (module is CPU or options.asks_for_cuda or _has_nvcc(options)):
                raise CompileError(f"{text}\n(LIP_FAST_EXT=require; with auto it would be left out)")
            self.warn(f"{text}\nlip_fast is installed without it and runs on plain torch in its place.")
        self._built = {module.name for module in libraries}
        # What setuptools goes on with: it takes for granted that each is there.
        self.extensions: list[Extension] = [
            ext for ext in self.extensions if ext.name.rpartition(".")[2] in self._built
        ]
        for module, library in libraries.items():
            target = Path(self.get_ext_fullpath(f"lip_fast.{module.name}"))
            target.parent.mkdir(parents=True, exist_ok=True)
            self.copy_file(str(library), str(target))
        self._remove_others(Path(self.build_lib) / "lip_fast")

    def _remove_others(self, package: Path) -> None:
        for module in MODULES:
            if module.name not in self._built:
                library = Path(self.get_ext_filename(f"lip_fast.{module.name}"))
                (package / library.name).unlink(missing_ok=True)


class Build(build):
    """``build`` that runs ``build_ext`` even where nothing is to be built: it then removes what was."""

    sub_commands = tuple(  # setuptools only reads it
        (name, None if name == "build_ext" else needed) for name, needed in build.sub_commands
    )


def _has_nvcc(options: Options) -> bool:
    try:
        return bool(find_nvcc(options))
    except BuildError:
        return False


def extensions(options: Options) -> list[Extension]:
    """What setuptools is told of: all modules, of which a build may leave some out; none with ``off``."""
    if options.mode == "off":
        return []
    return [Extension(f"lip_fast.{module.name}", module.sources(ROOT), optional=True) for module in MODULES]
