"""Stop training whose loss or weights are no longer finite, before anything is saved."""

import torch

from .arguments import AMESSTrainingArguments, default_learning_rate


class DivergenceGuard:
    """Watch for a loss or a weight that is infinite or not a number.

    The losses are checked on their device, so that the host waits for it only in [`check`].

    Args:
        model ([`AMESSForIntentClassification`]): The model.
        args ([`AMESSTrainingArguments`]): Used to find the likely cause.
    """

    def __init__(self, model: torch.nn.Module, args: AMESSTrainingArguments):
        self.model = model
        self.args = args
        self._first = None  # the first step with such a loss; -1 while there is none

    def add(self, loss: torch.Tensor, step: int) -> None:
        """Record the loss of a step."""
        if self._first is None:
            self._first = torch.full((), -1, device=loss.device)
        no_number = ~torch.isfinite(loss.detach()) & (self._first < 0)
        self._first = torch.where(no_number, step, self._first)

    def check(self, step: int, weights: bool = False) -> None:
        """Stop if a loss up to `step` or, on request, a weight after it is not a finite number.

        Raises:
            ValueError: Naming the step and the likely cause.
        """
        first = -1 if self._first is None else int(self._first)
        if first >= 0:
            raise ValueError(f"the loss of step {first} is not a finite number: {self._cause()}")
        if weights and (names := self._without_number()):
            raise ValueError(f"after step {step} the weights {names[0]} are not finite numbers: {self._cause()}")

    def _without_number(self):
        """Names of the weights with a value that is not finite."""
        weights = {name: getattr(value, "to_local", lambda value=value: value)() for name, value in self._weights()}
        finite = torch.stack([torch.isfinite(value).all() for value in weights.values()]).tolist()
        return [name for name, is_finite in zip(weights, finite, strict=True) if not is_finite]

    def _weights(self):
        # Frozen weights do not change, and are not always on the device of the others.
        return [(name, value.detach()) for name, value in self.model.named_parameters() if value.requires_grad]

    def _cause(self):
        args, usual = self.args, default_learning_rate(self.model.config)
        if args.learning_rate > 10 * usual:
            cause = f"`learning_rate` is {args.learning_rate:g}, usual is {usual:g}"
        elif args.head_learning_rate > 1e-2:
            cause = f"`head_learning_rate` is {args.head_learning_rate:g}, usual is 0.001"
        elif args.fp16:
            cause = "`fp16` overflows above 65504; use `--bf16`"
        elif not args.max_grad_norm:
            cause = "`max_grad_norm` is 0, so gradients are not clipped"
        else:
            cause = "look for extreme values in the features, or lower `learning_rate` and `head_learning_rate`"
        return f"{cause}; training stopped, and nothing was saved since"
