"""Handle SIGTERM, with which schedulers announce the end: a checkpoint is saved, and training stops."""

import os
import signal
import threading
from types import FrameType

import torch
from accelerate import Accelerator
from transformers.utils import logging


logger = logging.get_logger(__name__)

EXIT_CODE = 128 + signal.SIGTERM
# Steps between two checks whether another process was told to stop; each sends one number.
_STEPS_BETWEEN_QUESTIONS = 10


class Preemption:
    """Context in which SIGTERM does not end the process but is recorded, so that the training loop stops after a step."""

    def __init__(self):
        self.received = False
        self._previous = None
        self._process = os.getpid()

    def __enter__(self) -> "Preemption":
        # Python handles signals in the main thread only.
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def _note(self, number: int, frame: FrameType | None):
        if os.getpid() == self._process:
            self.received = True
        else:  # a process that was forked from this one, which makes batches
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)

    def is_due(self, accelerator: Accelerator, step: int) -> bool:
        """Return whether to stop after this step, the same on every process."""
        if accelerator.num_processes == 1:
            return self.received
        if step % _STEPS_BETWEEN_QUESTIONS:
            return False
        told = torch.tensor(float(self.received), device=accelerator.device)
        return accelerator.reduce(told, "sum").item() > 0

    def stop(self, checkpoint: str | None) -> None:
        """End the process with one line and the exit code of SIGTERM."""
        if checkpoint is None:
            logger.warning("SIGTERM: training stopped; nothing was saved (`save_only_model`)")
        else:
            logger.warning(
                f"SIGTERM: training stopped, {checkpoint} is saved; continue with `--resume_from_checkpoint`"
            )
        raise SystemExit(EXIT_CODE)
