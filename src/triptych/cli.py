"""The composition root: `triptych fit|validate|test|predict` and the project's own commands."""

from __future__ import annotations

import os
import sys

import jsonargparse
from lightning.pytorch.cli import LightningCLI
from omegaconf.errors import OmegaConfBaseException

from triptych.contracts import UserError

# `${data.init_args.x}` then works from any --config file, although the command is a subcommand.
jsonargparse.set_parsing_settings(omegaconf_absolute_to_relative_paths=True)

LIGHTNING_COMMANDS = ("fit", "validate", "test", "predict")


class TriptychCLI(LightningCLI):
    """Lightning's command line, with UnifiedModule as the fixed root."""

    def _parse_ckpt_path(self) -> None:
        # Lightning merges a checkpoint's hyper-parameters over the command line here, silently:
        # `--model.x` would be ignored on resume. The configuration is what the user says.
        return


def lightning_main() -> None:
    """Run fit, validate, test or predict."""
    import triptych.callbacks  # noqa: F401 - makes short class names work
    import triptych.data_modules  # noqa: F401
    from lightning import LightningDataModule
    from triptych.modules import UnifiedModule

    TriptychCLI(
        UnifiedModule,
        LightningDataModule,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        save_config_kwargs={"overwrite": True},
        parser_kwargs={"parser_mode": "omegaconf+", "exit_on_error": False},
    )


def main(args: list[str] | None = None) -> None:
    """Entry point of the `triptych` command."""
    if args is not None:
        sys.argv[1:] = args
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # a user's own module, from the user's own folder
    try:
        lightning_main()
    except (jsonargparse.ArgumentError, OmegaConfBaseException) as error:
        sys.exit(f"config error: {error}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
