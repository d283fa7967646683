"""What happened over the steps, counted where it happened: on the device of the weight."""

import torch
from torch import Tensor

from lip_fast import status
from lip_fast.directions import StepReport
from lip_fast.ops import Step
from lip_fast.validation import check_like

__all__ = ["Counters"]

# What is summed: replays of a captured step, steps that LIP acted on, what they reported, and the status word
# once for each of its bits.
_REPLAYED, _ACTED, _APPLIED, _CLIPPED, _MASKED, _REASONS = range(6)
# So many reports wait to be counted at most.
_AT_ONCE = 256


class Counters:
    """Sums over the reports of steps, at one address: a captured step adds to them at each replay.

    Args:
        device: of the weight.
    """

    def __init__(self, device: torch.device) -> None:
        bits = list(status.NAMES.values())
        # A report and the masks have one entry a sum: all of a number, or one bit of the status word.
        self._masks = torch.tensor([-1] * _REASONS + bits, device=device)
        self._sums = torch.zeros_like(self._masks)
        self._zero, self._one = torch.zeros_like(self._sums[0]), torch.ones_like(self._sums[0])
        # Of steps that are not counted yet: a few small operations for many of them instead of for each.
        self._reports: list[StepReport] = []
        # Of steps whose reports are numbers: how many there were, and what these add up to.
        self._steps = self._clipped = self._masked = 0

    @property
    def device(self) -> torch.device:
        """Where the sums are."""
        return self._sums.device

    def add(self, report: StepReport | Step) -> None:
        """Count a step that was taken."""
        if isinstance(report, Step):
            self._steps += 1
            self._clipped += report.clipped
            self._masked += report.masked
            return
        reports = self._reports
        reports.append(report)
        # On another device than those before, since the model was moved.
        if len(reports) >= _AT_ONCE or report.ok.device != reports[0].ok.device:
            self.flush()

    def capture(self, report: StepReport | None, *, step: bool) -> None:
        """Count a step at each replay of the graph that is being captured.

        Args:
            report: of what LIP did; None where it did not act.
            step: whether it was a step of the optimizer.
        """
        replayed = self._one if step else self._zero
        if report is None:
            self._sums[_REPLAYED].add_(replayed)
        else:
            self._sums += self._rows(replayed, self._one, report)

    def move(self, device: torch.device) -> None:
        """Follow the weight to another device; not to be called under capture."""
        if self._sums.device != device:
            self._masks, self._sums = self._masks.to(device), self._sums.to(device)
            self._zero, self._one = self._zero.to(device), self._one.to(device)

    def values(self) -> dict[str, int]:
        """Every count by its name; waits for the device."""
        self.flush()
        sums = self._sums.tolist()
        counts = {
            "replayed": sums[_REPLAYED],
            "applied": sums[_APPLIED],
            "skipped": sums[_ACTED] - sums[_APPLIED],
            "clipped": sums[_CLIPPED],
            "masked": sums[_MASKED],
        }
        reasons = zip(status.NAMES.items(), sums[_REASONS:], strict=True)
        # Each summand was the bit itself, not 1.
        return counts | {name: total // bit for (name, bit), total in reasons}

    def _rows(self, replayed: Tensor, acted: Tensor, report: StepReport) -> Tensor:
        ok, word, clipped, masked = report
        words = [word] * len(status.NAMES)
        return torch.stack([replayed, acted, ok.long(), clipped, masked, *words], -1) & self._masks

    def flush(self) -> None:
        """Add up what was counted."""
        if self._steps:
            added = dict.fromkeys((_ACTED, _APPLIED), self._steps) | {
                _CLIPPED: self._clipped,
                _MASKED: self._masked,
            }
            self._sums += torch.tensor([added.get(i, 0) for i in range(len(self._sums))], device=self.device)
            self._steps = self._clipped = self._masked = 0
        if self._reports:
            # Of a model that was moved, the sums and the reports before follow the last one.
            self.move(self._reports[-1].ok.device)
            parts = zip(*self._reports, strict=True)
            reports = StepReport(*(torch.stack([x.to(self.device) for x in part]) for part in parts))
            self._reports.clear()
            ones = torch.ones_like(reports.status)
            self._sums += self._rows(ones - 1, ones, reports).sum(0)

    def state_dict(self) -> Tensor:
        """The sums, without the replays: whoever counts steps has added them to the others."""
        self.flush()
        sums = self._sums.clone()
        sums[_REPLAYED] = 0
        return sums

    def check_state_dict(self, sums: Tensor) -> None:
        """ValueError where ``sums`` are not what :meth:`state_dict` returns."""
        check_like("counters", sums, self._sums)

    def load_state_dict(self, sums: Tensor) -> None:
        """Restore the sums in place."""
        self._reports.clear()
        self._steps = self._clipped = self._masked = 0
        self._sums.copy_(sums)
