"""Items of a command shared over devices by Lightning's `Trainer.predict`."""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import distributed
from torch.utils.data import DataLoader

from triptych.cli.arguments import device_of
from triptych.cli.trainer_flags import external_ranks, launched
from triptych.inference.loading import BAD_VALUES
from triptych.training.ranks import ending_together, several_ranks, take_over, watch_launched
from triptych.utils.errors import UserError
from triptych.utils.parser_errors import plain
from triptych.utils.prompt_files import STDIN_FILE
from triptych.utils.signals import supervisor

# Lightning looks for the rows of a batch in its sampler; our batches hold them.
warnings.filterwarnings("ignore", message="Couldn't infer the batch indices")
warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # as in `triptych.cli.lightning`

RESUME = "the same command resumes where it stopped"


@dataclass(frozen=True)
class Devices:
    """Devices of a prediction.

    Args:
        devices: number of each machine, or the index of one GPU in a list.
    """

    accelerator: str = "auto"
    devices: int | list[int] = 1
    num_nodes: int = 1
    precision: str = "32-true"

    @classmethod
    def of(cls, parsed: argparse.Namespace, precision: str = "32-true") -> Devices:
        """Return the devices of --device, --devices and --num-nodes.

        Raises:
            UserError: the devices do not exist.
        """
        device, devices = device_of(parsed), parsed.devices
        if device.index is not None and devices * parsed.num_nodes > 1:
            raise UserError(
                f"--device {device} is one GPU, and --devices is {devices}; give --device cuda."
            )
        if parsed.num_nodes > 1 and not launched():
            raise UserError(
                f"--num-nodes {parsed.num_nodes} waits for processes on other machines; start one "
                "for each device by torchrun or SLURM."
            )
        if (started := external_ranks()) not in (None, devices * parsed.num_nodes):
            raise UserError(
                f"{started} processes were started for {devices * parsed.num_nodes} devices; "
                "start one for each, and give their number on each machine by --devices."
            )
        accelerator = "gpu" if device.type == "cuda" else device.type
        return cls(
            accelerator,
            devices if device.index is None else [device.index],
            parsed.num_nodes,
            precision,
        )

    def trainer(
        self,
        callbacks: Sequence[Callback] = (),
        max_devices: int | None = None,
        progress_bar: bool = True,
    ) -> Trainer:
        """Create a Trainer for prediction on the devices.

        Args:
            max_devices: number of items, which limits the number of devices.

        Raises:
            UserError: the accelerator, precision or devices do not exist.
        """
        devices = self.devices
        if isinstance(devices, int) and max_devices and self.num_nodes == 1:
            if external_ranks() is None:
                devices = min(devices, max_devices)
        world = (devices if isinstance(devices, int) else 1) * self.num_nodes
        for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
            logging.getLogger(name).setLevel(logging.WARNING)  # no lines on devices and ranks
        try:
            return Trainer(
                accelerator=self.accelerator,
                devices=devices,
                num_nodes=self.num_nodes,
                strategy="ddp" if world > 1 else "auto",
                precision=self.precision,
                callbacks=[*callbacks],
                logger=False,
                enable_checkpointing=False,
                enable_model_summary=False,
                enable_progress_bar=progress_bar,
                use_distributed_sampler=False,
                inference_mode=False,
            )
        except (MisconfigurationException, *BAD_VALUES) as error:
            raise UserError(f"the devices cannot be used: {plain(str(error))}") from error


def predict(
    parsed: argparse.Namespace,
    number: int,
    load: Callable[[Any], Any],
    compute: Callable[[Any, int], Any],
    stdin: str | None = None,
) -> list[Any] | None:
    """Share items over devices, see `devices.for_each`; return None in all ranks but the first."""
    with supervisor.handled(RESUME):
        watch_launched()
        trainer = Devices.of(parsed).trainer(max_devices=number, progress_bar=False)
        take_over(trainer)
        items = Items(number, load, compute)
        with stdin_for_children(stdin), ending_together():
            trainer.predict(items, return_predictions=False)
    return items.results if trainer.is_global_zero else None


class Items(LightningModule):
    """The items of one rank, as a module for `Trainer.predict`.

    Args:
        number: number of items of all ranks.
        load, compute: functions of `devices.for_each`.
    """

    def __init__(
        self, number: int, load: Callable[[Any], Any], compute: Callable[[Any, int], Any]
    ) -> None:
        super().__init__()
        self.number, self.load, self.compute = number, load, compute
        self.results: list[Any] = []
        self._own_results: dict[int, Any] = {}

    def setup(self, stage: str) -> None:
        self._state = self.load(self.trainer.strategy.root_device)

    def predict_dataloader(self) -> DataLoader:
        rank, ranks = self.trainer.global_rank, self.trainer.world_size
        own = list(range(rank, self.number, ranks))
        # ranks need equal numbers of steps, since their hooks are collectives
        own += [self.number] * (-(-self.number // ranks) - len(own))
        return DataLoader(own, batch_size=None)

    def predict_step(self, batch: int, batch_idx: int) -> int:
        if batch < self.number:
            self._own_results[batch] = self.compute(self._state, batch)
        return batch

    def on_predict_end(self) -> None:
        gathered = [self._own_results]
        if several_ranks():
            gathered = [None] * distributed.get_world_size()
            distributed.all_gather_object(gathered, self._own_results)
        by_number = {n: result for results in gathered for n, result in results.items()}
        self.results = [by_number[n] for n in range(self.number)]


@contextmanager
def stdin_for_children(stdin: str | None) -> Iterator[None]:
    """Provide the text that this process read to the processes that Lightning starts."""
    if stdin is None or STDIN_FILE in os.environ:
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "stdin")
        path.write_text(stdin, "utf8", newline="")
        os.environ[STDIN_FILE] = str(path)
        try:
            yield
        finally:
            del os.environ[STDIN_FILE]
