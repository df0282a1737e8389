"""Sums, means and gathers over the processes of a distributed run, gradient included.

With one process, or outside `torch.distributed`, each function does the same for this process alone. They are used in
training only: there every process takes every step.
"""

import functools
import warnings

import torch
from torch import distributed

from .configuration_amess import OUT_OF_SCOPE_ID


def num_processes() -> int:
    """Return the number of processes of the run (1 outside `torch.distributed`)."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def mean_over_processes(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Average `values` where `mask`, over the clips of all processes.

    Averaging the gradients of the processes, as DistributedDataParallel does, then gives the gradient of one process that
    held all clips.

    Args:
        values (`torch.Tensor` of shape `(batch_size,)`): One value per clip of this process.
        mask (`torch.BoolTensor` of shape `(batch_size,)`): Clips that count.

    Returns:
        `torch.Tensor`, scalar: This process' sum over the processes' mean count; zero where nothing counts. The mean of
        this number over the processes is the mean over all clips.
    """
    count = mask.sum().to(values.dtype)
    world = num_processes()
    if world > 1:
        distributed.all_reduce(count)
    return values.where(mask, 0.0).sum() * world / count.clamp(min=1)


@functools.cache
def _host_group(world: "distributed.ProcessGroup"):
    """Make a group of the same processes as `world` that communicates between hosts, without waiting for a device."""
    return distributed.new_group(backend="gloo")


def largest_over_processes(number: int) -> int:
    """Return the largest of the processes' whole numbers, without waiting for the device."""
    largest = torch.tensor(number)
    distributed.all_reduce(largest, distributed.ReduceOp.MAX, group=_host_group(distributed.group.WORLD))
    return int(largest)


@torch.compiler.disable  # torch refuses to compile this gather
def _gather(tensor: torch.Tensor):
    """Concatenate equally shaped tensors of all processes; the gradient is summed back to their owners."""
    from torch.distributed.nn.functional import all_gather  # not in builds of torch without `torch.distributed`

    with warnings.catch_warnings():
        # Deprecated in torch 2.13 in favour of a function that earlier versions lack.
        warnings.simplefilter("ignore", FutureWarning)
        return torch.cat(all_gather(tensor))


def gather_clips(embeds: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Gather the clips of all processes, with gradient; batches may differ in size.

    Args:
        embeds (`torch.Tensor` of shape `(batch_size, projection_dim)`): This process' clips.
        labels (`torch.LongTensor` of shape `(batch_size,)`): Their labels.

    Returns:
        `tuple`: `all_embeds` and `all_labels`, padded for each process to the longest batch with clips of label -1
        (which no loss counts), and the row at which this process' clips begin.
    """
    if num_processes() == 1:
        return embeds, labels, 0
    missing = largest_over_processes(embeds.shape[0]) - embeds.shape[0]
    embeds = torch.nn.functional.pad(embeds, (0, 0, 0, missing))
    labels = torch.nn.functional.pad(labels, (0, missing), value=OUT_OF_SCOPE_ID)
    return _gather(embeds), _gather(labels), distributed.get_rank() * embeds.shape[0]
