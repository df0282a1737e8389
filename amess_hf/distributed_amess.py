"""
Sums, means and gathers over the processes of a distributed run, gradient included.

With one process, or outside `torch.distributed`, each function does the same for this process alone. They are used in
training only: there every process takes every step.
"""

import functools

import torch
from torch import distributed


def num_processes():
    """Number of processes of the run (1 outside `torch.distributed`)."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def mean_over_processes(values, mask):
    """
    Mean of `values` where `mask`, over the clips of all processes, such that averaging the *gradients* of the
    processes (as DistributedDataParallel does) gives the gradient of one process that held all clips.

    Args:
        values (`torch.Tensor` of shape `(batch_size,)`): One value per clip of this process.
        mask (`torch.BoolTensor` of shape `(batch_size,)`): Clips that count.

    Returns:
        `torch.Tensor`, scalar: this process' sum over the processes' mean count; zero where nothing counts. The mean of
        this number over the processes is the mean over all clips.
    """
    count = mask.sum().to(values.dtype)
    world = num_processes()
    if world > 1:
        distributed.all_reduce(count)
    return values.where(mask, 0.0).sum() * world / count.clamp(min=1)


@functools.cache
def _host_group(world):
    """A group of the same processes as `world` that talks between hosts, so that no device has to be waited for."""
    return distributed.new_group(backend="gloo")


def largest_over_processes(number):
    """The largest of the processes' whole numbers, known on the host without waiting for the device."""
    largest = torch.tensor(number)
    distributed.all_reduce(largest, distributed.ReduceOp.MAX, group=_host_group(distributed.group.WORLD))
    return int(largest)


class _GatherWithGradient(torch.autograd.Function):
    """Concatenate equally shaped tensors of all processes; the gradient is summed back to their owners."""

    @staticmethod
    def forward(ctx, tensor):
        gathered = tensor.new_empty(num_processes() * tensor.shape[0], *tensor.shape[1:])
        distributed.all_gather_into_tensor(gathered, tensor.contiguous())
        return gathered

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.contiguous()
        distributed.all_reduce(gradient)
        rows = gradient.shape[0] // num_processes()
        first = distributed.get_rank() * rows
        return gradient[first : first + rows]


def gather_clips(embeds, labels):
    """
    The clips of all processes, with gradient; batches may differ in size.

    Args:
        embeds (`torch.Tensor` of shape `(batch_size, projection_dim)`): This process' clips.
        labels (`torch.LongTensor` of shape `(batch_size,)`): Their labels.

    Returns:
        `tuple`: `all_embeds` and `all_labels`, filled up for each process to the longest batch with clips of label -1
        (which no loss counts), and the row at which this process' clips begin.
    """
    if num_processes() == 1:
        return embeds, labels, 0
    missing = largest_over_processes(embeds.shape[0]) - embeds.shape[0]
    embeds = torch.nn.functional.pad(embeds, (0, 0, 0, missing))
    labels = torch.nn.functional.pad(labels, (0, missing), value=-1)
    all_labels = labels.new_empty(num_processes() * labels.shape[0])
    distributed.all_gather_into_tensor(all_labels, labels)
    return _GatherWithGradient.apply(embeds), all_labels, distributed.get_rank() * embeds.shape[0]
