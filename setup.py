"""Build entry point; everything static is in pyproject.toml, the compiling in csrc/build_native.py."""

import os
import sys
from pathlib import Path

from setuptools import setup

# Build front ends run this file without its folder on the path.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from csrc.build_native import Build, BuildNative, Options, extensions

if __name__ == "__main__":
    try:
        options = Options.read(os.environ)
    except ValueError as error:
        sys.exit(f"error: {error}")
    setup(ext_modules=extensions(options), cmdclass={"build": Build, "build_ext": BuildNative})
