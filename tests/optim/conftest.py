"""What the tests of the optimizers report, as those of the contract do."""

from contract.conftest import weights

__all__ = ["weights"]
