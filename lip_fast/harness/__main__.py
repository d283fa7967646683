"""``python -m lip_fast.harness`` is ``lip-fast``."""

import runpy

if __name__ == "__main__":
    # As a program: nothing of the harness imports the command line.
    runpy.run_module("lip_fast", run_name="__main__", alter_sys=True)
