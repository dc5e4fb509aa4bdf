"""The processes of one stage that a launcher started together: how they share work and add up what they find.

``accelerate launch --multi_gpu --num_processes N`` (or torchrun) starts them, on GPUs or CPUs. A process that was started
alone has nobody to talk to: everything below then hands back what it was given, and accelerate is not even imported.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn

from offramp.errors import UserError

WAIT = timedelta(days=1)
"""Longest wait for another process. The launcher ends all when one fails, so a limit could only stop a stage in which
the main process has more to do, as hashing a large artifact."""


@dataclass(frozen=True)
class Processes:
    """This process among the ``count`` of its stage. Every method but ``share`` must be called by all of them."""

    rank: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def main(self) -> bool:
        """Whether this is the one that writes results."""
        return self.rank == 0

    @property
    def no_bar(self) -> bool | None:
        """``disable`` of tqdm: one bar for all, and none where there is no terminal."""
        return None if self.main else True

    def share(self, items: Sequence) -> Sequence:
        """This process's stretch of ``items``: in the order of rank the shares make the whole, of sizes within one."""
        return items[len(items) * self.rank // self.count : len(items) * (self.rank + 1) // self.count]

    def sum(self, values: Sequence[float]) -> list[float]:
        """Each of the values added up over the processes: the same bits in all of them."""
        if self.count == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(total)
        return total.tolist()

    def sum_gradients(self, parameters: Iterable[nn.Parameter], losses: list[Tensor]) -> list[float]:
        """Add the gradients of ``parameters`` up over the processes, in place, and return the sums of the scalar ``losses``.

        All in one message, since many small ones would cost more than what they carry.
        """
        found = torch.stack(losses).detach()
        if self.count > 1:
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            message = torch.cat([found, *(gradient.flatten() for gradient in gradients)])
            distributed.all_reduce(message)
            found, *sums = message.split([len(losses), *(gradient.numel() for gradient in gradients)])
            for gradient, total in zip(gradients, sums):
                gradient.copy_(total.view_as(gradient))
        return found.tolist()

    def gather(self, value: Any) -> list[Any]:
        """The value of every process, in the order of rank, in all of them."""
        values = [value] * self.count
        if self.count > 1:
            distributed.all_gather_object(values, value)
        return values

    def broadcast(self, value: Any) -> Any:
        """The main process's value, in all of them."""
        values = [value]
        if self.count > 1:
            distributed.broadcast_object_list(values, src=0)
        return values[0]

    def spread(self, tensors: Iterable[Tensor]) -> None:
        """Tensors become, in place, what they are in the main process."""
        if self.count > 1:
            for tensor in tensors:
                distributed.broadcast(tensor, src=0)

    def wait(self) -> None:
        """Until all have come this far."""
        if self.count > 1:
            distributed.barrier()

    def leave(self) -> None:
        """Nothing is shared from here on."""
        if self.count > 1:
            distributed.destroy_process_group()


ALONE = Processes()


def join(device: torch.device) -> Processes:
    """Meet the other processes, if a launcher started any; each gets a GPU of its own where ``device`` is a GPU.

    Raises UserError where the device has no way for several processes to talk.
    """
    wanted = int(os.environ.get("WORLD_SIZE", "1"))
    if wanted == 1:
        if (
            "ACCELERATE_USE_CPU" in os.environ and "MASTER_PORT" in os.environ
        ):  # left by a launch meant for several
            logging.getLogger(__name__).warning(
                "accelerate started one process; --multi_gpu --num_processes N starts N, on CPUs too (--cpu does not)"
            )
        return Processes(device=device)
    from accelerate import PartialState

    on_cpu = device.type == "cpu"
    state = PartialState(cpu=on_cpu, timeout=WAIT)
    if state.num_processes != wanted:
        raise UserError(
            f"runtime.device = {device.type!r}: {wanted} processes were started, which only cuda and cpu support; "
            "set runtime.device: cpu, or runtime.launcher: python"
        )
    return Processes(state.process_index, wanted, device if on_cpu else state.device)
