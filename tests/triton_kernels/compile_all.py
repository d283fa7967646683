"""Compile every listed form of every Triton kernel for a device that need not be there.

Run as ``python tests/triton_kernels/compile_all.py 90 90-plain [--only FILE] [--jobs N]``, without
TRITON_INTERPRET. Prints a JSON list: per form its name and registers, stack, local memory (both nonzero where
registers spill) and shared memory in bytes.
"""

import argparse
import importlib
import json
import multiprocessing
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import lip_fast
from lip_fast import backends
from lip_fast.backends.triton.configuration import Configuration

FILES = sorted(
    {each.file for kernels in backends.declared().values() for each in kernels if each.backend == "triton"}
)
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
# Triton compiles in that an address or a number is a multiple of 16, as those of whole tensors mostly are.
DIVISIBLE = [["tt.divisibility", 16]]


def describe(form: Configuration) -> str:
    """A name that tells the forms of a kernel apart."""
    types = ",".join(f"{name}:{kind}" for name, kind in form.signature.items() if kind.startswith("*"))
    constants = ",".join(f"{name}={value}" for name, value in form.constexprs.items())
    return f"{form.kernel.__name__}[{types};{constants};warps={form.num_warps};stages={form.num_stages}]"


def compile_form(form: Configuration, arch: int, aligned: bool) -> dict[str, Any]:
    """Compile one form; what it takes of a multiprocessor."""
    names = form.kernel.arg_names
    signature = {name: form.signature.get(name, "constexpr") for name in names}
    assert set(form.signature) | set(form.constexprs) == set(names), (describe(form), names)
    attributes = {}
    if aligned:
        # Those that a launch does not look at either.
        kept = {name for name in names if name in ("seed",)}
        attributes = {
            (i,): DIVISIBLE
            for i, name in enumerate(names)
            if re.match(r"\*|i\d", signature[name]) and name not in kept
        }
    source = ASTSource(form.kernel, signature, dict(form.constexprs), attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=form.options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        report = subprocess.run(
            [CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    usage = {name: int(re.search(rf"\b{name}:(\d+)", report)[1]) for name in ("REG", "STACK", "LOCAL")}
    return {"name": describe(form), **usage, "shared": compiled.metadata.shared}


def compile_nth(case: str, file: str, number: int) -> dict[str, Any]:
    """One form by its place, which other processes know it by."""
    arch, _, plain = case.partition("-")
    form = importlib.import_module(f"{lip_fast.__name__}.backends.triton.{file}").CONFIGURATIONS[number]
    return {"case": case, "file": file, **compile_form(form, int(arch), not plain)}


def main() -> None:
    """Compile and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "cases",
        nargs="+",
        help="compute capabilities, e.g. 90; 90-plain for addresses and numbers that nothing is known of",
    )
    parser.add_argument("--only", choices=FILES, action="append", help="a file of kernels")
    parser.add_argument("--jobs", type=int, default=1, help="how many to compile at once")
    arguments = parser.parse_args()
    tasks = []
    for file in arguments.only or FILES:
        forms = importlib.import_module(f"{lip_fast.__name__}.backends.triton.{file}").CONFIGURATIONS
        tasks += [(case, file, number) for case in arguments.cases for number in range(len(forms))]
    # As forks, which have all that is imported; whichever is free takes the next.
    with multiprocessing.get_context("fork").Pool(arguments.jobs) as pool:
        print(json.dumps(pool.starmap(compile_nth, tasks, chunksize=1)))


if __name__ == "__main__":
    main()
