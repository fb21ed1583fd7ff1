"""Items shared out over devices by Lightning's `Trainer.predict`."""

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

# Lightning wants to know which rows of a data set a batch has; our batches say so themselves.
warnings.filterwarnings("ignore", message="Couldn't infer the batch indices")
warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # as in lightning_cli

RESUME = "the same command goes on where it stopped"


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
        """The devices of --device, --devices and --num-nodes.

        Raises:
            UserError: there are no such devices.
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
        most: int | None = None,
        progress_bar: bool = True,
    ) -> Trainer:
        """A Trainer that predicts on the devices.

        Args:
            most: number of items, beyond which no device is started.

        Raises:
            UserError: Lightning has no such accelerator or precision, or there are no such devices.
        """
        devices = self.devices
        if isinstance(devices, int) and most and self.num_nodes == 1 and external_ranks() is None:
            devices = min(devices, most)
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
            raise UserError(f"the devices cannot be used so: {plain(str(error))}") from error


def predict(
    parsed: argparse.Namespace,
    number: int,
    load: Callable[[Any], Any],
    perform: Callable[[Any, int], Any],
    stdin: str | None = None,
) -> list[Any] | None:
    """Share items out over devices, see `devices.for_each`; None in all processes but the first."""
    with supervisor.handled(RESUME):
        watch_launched()
        trainer = Devices.of(parsed).trainer(most=number, progress_bar=False)
        take_over(trainer)
        items = Items(number, load, perform)
        with handed_on(stdin), ending_together():
            trainer.predict(items, return_predictions=False)
    return items.results if trainer.is_global_zero else None


class Items(LightningModule):
    """The items of one rank, as a module for `Trainer.predict`.

    Args:
        number: items of all ranks.
        load, perform: see `devices.for_each`.
    """

    def __init__(
        self, number: int, load: Callable[[Any], Any], perform: Callable[[Any, int], Any]
    ) -> None:
        super().__init__()
        self.number, self.load, self.perform = number, load, perform
        self.results: list[Any] = []
        self._own: dict[int, Any] = {}

    def setup(self, stage: str) -> None:
        self._state = self.load(self.trainer.strategy.root_device)

    def predict_dataloader(self) -> DataLoader:
        rank, ranks = self.trainer.global_rank, self.trainer.world_size
        mine = list(range(rank, self.number, ranks))
        # ranks take equally many steps, for their hooks are collectives
        mine += [self.number] * (-(-self.number // ranks) - len(mine))
        return DataLoader(mine, batch_size=None)

    def predict_step(self, batch: int, batch_idx: int) -> int:
        if batch < self.number:
            self._own[batch] = self.perform(self._state, batch)
        return batch

    def on_predict_end(self) -> None:
        parts = [self._own]
        if several_ranks():
            parts = [None] * distributed.get_world_size()
            distributed.all_gather_object(parts, self._own)
        found = {n: result for part in parts for n, result in part.items()}
        self.results = [found[n] for n in range(self.number)]


@contextmanager
def handed_on(stdin: str | None) -> Iterator[None]:
    """Let the processes that Lightning starts read the text that this one read."""
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
