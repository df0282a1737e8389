"""The mean loss of a training run, independent of the number of processes and restarts."""

import torch
from accelerate import Accelerator
from transformers import TrainerCallback, TrainerState
from transformers.trainer_callback import ExportableState


class TrainLoss(TrainerCallback, ExportableState):
    """Sum of the losses of all steps; checkpoints keep it in the state of the Trainer."""

    def __init__(self):
        self.total = 0.0
        self.first_step = 0
        self._pending = None  # not added to `total` yet, on its device

    def add(self, loss: torch.Tensor) -> None:
        """Add a step's loss, or a batch's share of it."""
        loss = loss.detach().to(torch.float32 if loss.device.type == "mps" else torch.float64)
        self._pending = loss if self._pending is None else self._pending + loss

    def collect(self, accelerator: Accelerator) -> None:
        """Sum the losses over all processes, each of which must call it."""
        if self._pending is not None:
            self.total += accelerator.reduce(self._pending, "mean").item()
            self._pending = None

    def mean(self, step: int) -> float:
        """Return the mean over the steps up to `step`."""
        return self.total / max(1, step - self.first_step)

    def state(self) -> dict:
        """Return the state for a checkpoint."""
        return {"args": {}, "attributes": {"total": self.total}}

    def restore(self, state: TrainerState) -> None:
        """Restore the sum from a checkpoint's state; without one, the sum starts here."""
        kept = state.stateful_callbacks.get(type(self).__name__)
        self.total = 0.0 if kept is None else kept["attributes"]["total"]
        self.first_step = state.global_step if kept is None else 0
