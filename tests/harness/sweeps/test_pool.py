import dataclasses
from pathlib import Path

from harness.sample_files import write_npz

from lip_fast.harness.settings.train import TrainConfig
from lip_fast.harness.sweeps.pool import unit_warnings
from lip_fast.harness.sweeps.rows import Unit


def test_what_labels_may_not_be_is_said_once_for_all_runs(tmp_path: Path) -> None:
    config = TrainConfig(data=str(write_npz(tmp_path / "mine.npz")), noise="pair")
    configs = [config, dataclasses.replace(config, lr=0.1), dataclasses.replace(config, noise="own")]
    (warning,) = unit_warnings([Unit(Path(str(i)), config) for i, config in enumerate(configs)])
    assert warning.startswith("mine does not say which of its labels are clean: --noise pair makes")
