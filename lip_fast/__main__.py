"""``python -m lip_fast`` is ``lip-fast``."""

import sys

from lip_fast.cli import main

if __name__ == "__main__":
    sys.exit(main())
