"""The processes of one stage that a launcher started together: how they share work and add up their results.

``accelerate launch --multi_gpu --num_processes N`` (or torchrun) starts them, on GPUs or CPUs. A process that
was started alone has nobody to talk to: every method then returns what it was given, and accelerate is not
even imported.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from offramp.errors import UserError

Items = TypeVar("Items", Tensor, range, Sequence[Any])
"""What a share can be taken of."""
WAIT = timedelta(days=1)
"""Longest wait for another process.

The launcher ends all when one fails, so a shorter limit could only stop a stage in which the main process has
more to do, such as hashing a large artifact.
"""


@dataclass(frozen=True)
class Processes:
    """This process among all of its stage. Every method but ``share`` must be called by all of them."""

    rank: int = 0
    """Number of this process, from 0."""
    count: int = 1
    """Number of processes."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """The device that this process computes on."""

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes results."""
        return self.rank == 0

    @property
    def no_bar(self) -> bool | None:
        """tqdm's ``disable``: one bar for all processes, and none where there is no terminal."""
        return None if self.main else True

    def share(self, items: Items) -> Items:
        """The stretch of ``items`` for this process: in the order of rank, the shares make the whole.

        Their sizes differ by one at most.
        """
        return items[len(items) * self.rank // self.count : len(items) * (self.rank + 1) // self.count]

    def sum(self, values: Sequence[float]) -> list[float]:
        """The sum of each of the values over the processes: the same bits in all of them."""
        if self.count == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(total)
        return total.tolist()

    def sum_gradients(self, parameters: Iterable[nn.Parameter], losses: list[Tensor]) -> list[float]:
        """Sum the gradients of ``parameters`` over the processes, in place, and the scalar ``losses``.

        The sums of the losses are returned.         All of them go in one message, since many small ones
        would cost more than what they carry.
        """
        totals = torch.stack(losses).detach()
        if self.count > 1:
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            message = torch.cat([totals, *(gradient.flatten() for gradient in gradients)])
            distributed.all_reduce(message)
            totals, *sums = message.split([len(losses), *(gradient.numel() for gradient in gradients)])
            for gradient, total in zip(gradients, sums):
                gradient.copy_(total.view_as(gradient))
        return totals.tolist()

    def sum_tensors(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The sum of each of the tensors over the processes, by name: the same bits in all of them."""
        sums = {name: tensor.to(self.device, copy=True) for name, tensor in tensors.items()}
        if self.count > 1:
            for total in sums.values():
                distributed.all_reduce(total)
        return {name: total.to(tensors[name].device) for name, total in sums.items()}

    def gather(self, value: Any) -> list[Any]:
        """The value of every process, in the order of rank, in all of them."""
        values = [value] * self.count
        if self.count > 1:
            distributed.all_gather_object(values, value)
        return values

    def broadcast(self, value: Any) -> Any:
        """The value of the main process, in all of them."""
        values = [value]
        if self.count > 1:
            distributed.broadcast_object_list(values, src=0)
        return values[0]

    def spread(self, tensors: Iterable[Tensor]) -> None:
        """Give the tensors, in place, the values that they have in the main process."""
        if self.count > 1:
            for tensor in tensors:
                distributed.broadcast(tensor, src=0)

    def wait(self) -> None:
        """Return when all processes have called it."""
        if self.count > 1:
            distributed.barrier()

    def leave(self) -> None:
        """End what the processes share: no other method may be called from here on."""
        if self.count > 1:
            distributed.destroy_process_group()


ALONE = Processes()
"""A process that was started alone, on the CPU."""


def join(device: torch.device) -> Processes:
    """Meet the other processes, if a launcher started any; each gets another GPU where ``device`` is a GPU.

    UserError where the device has no way for several processes to talk: only cuda and the CPU have.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started == 1:
        # both are left by a launch that was meant for several
        if "ACCELERATE_USE_CPU" in os.environ and "MASTER_PORT" in os.environ:
            logging.getLogger(__name__).warning(
                "accelerate started one process; --multi_gpu --num_processes N starts N, on CPUs too "
                "(--cpu does not)"
            )
        return Processes(device=device)
    from accelerate import PartialState

    on_cpu = device.type == "cpu"
    state = PartialState(cpu=on_cpu, timeout=WAIT)
    if state.num_processes != started:
        raise UserError(
            f"runtime.device = {device.type!r}: {started} processes were started, which only cuda and cpu "
            "support; "
            "set runtime.device: cpu, or runtime.launcher: python"
        )
    return Processes(state.process_index, started, device if on_cpu else state.device)
