"""The composition root: `triptych fit|validate|test|predict`, and the project's own commands.

Exit status: 0 done, 1 failed (one sentence says why), 2 the command line or a configuration is
wrong, 128 + N a training ended by signal N.
"""

from __future__ import annotations

import os
import sys

from triptych.commands import COMMANDS
from triptych.version import __version__

LIGHTNING_COMMANDS = {
    "fit": "train: triptych fit --config conf/base.yaml --config conf/model/tiny.yaml "
    "--config conf/stage2.yaml",
    "validate": "the losses on validation data",
    "test": "the losses on validation data, logged as test",
    "predict": "pictures for the captions of the validation data",
}


def alone(arguments: list[str]) -> bool:
    """Whether --model names a class: then that panel is the root, trained alone."""
    for name, value in zip(arguments, [*arguments[1:], ""], strict=True):
        name, _, joined = name.partition("=")
        given = joined or value
        if name == "--model" and not given.endswith((".yaml", ".yml")):
            return True
    return False


def run_lightning(arguments: list[str]) -> None:
    """fit, validate, test or predict, as one of several ranks or alone."""
    from triptych.signals import supervisor

    # where a rank dies, torch's C++ would print its stack for each connection that breaks
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    with supervisor.handled():  # from here on: importing torch takes seconds
        from triptych.ranks import ending_together, watch_launched

        watch_launched()
        with ending_together():
            _run_lightning(arguments)


def _run_lightning(arguments: list[str]) -> None:
    from lightning import LightningDataModule

    import triptych.callbacks  # registers the short class names
    import triptych.data_modules  # noqa: F401
    from triptych.lightning_cli import TriptychCLI
    from triptych.modules import UnifiedModule

    sys.argv[1:] = arguments
    single = alone(arguments)
    TriptychCLI(
        None if single else UnifiedModule,
        LightningDataModule,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        save_config_kwargs={"overwrite": True},
        parser_kwargs={"parser_mode": "omegaconf+", "exit_on_error": False},
    )


def overview() -> str:
    """The text of `triptych --help`."""
    own = {name: command.__doc__.strip().splitlines()[0] for name, command in COMMANDS.items()}
    lines = [f"  {name:10} {text}" for name, text in {**LIGHTNING_COMMANDS, **own}.items()]
    return "\n".join(
        [
            f"triptych {__version__}: unified multimodal models in PyTorch Lightning",
            "",
            "usage: triptych COMMAND [--help] ...",
            "",
            *lines,
        ]
    )


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the `triptych` command."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)  # a user's own module, from the user's own folder
    command = arguments[0] if arguments else "--help"
    if command in ("-h", "--help"):
        print(overview())
    elif command == "--version":
        print(__version__)
    elif command not in COMMANDS and command not in LIGHTNING_COMMANDS:
        known = ", ".join([*LIGHTNING_COMMANDS, *COMMANDS])
        stop(2, f"{command!r} is no command; choose one of {known}.")
    else:
        guarded(command, arguments)


def guarded(command: str, arguments: list[str]) -> None:
    """Run a command; what the user got wrong becomes one sentence and an exit status."""
    import jsonargparse
    from omegaconf.errors import OmegaConfBaseException

    from triptych.errors import UserError

    try:
        if command in COMMANDS:
            COMMANDS[command](arguments[1:])
        else:
            run_lightning(arguments)
    except UserError as error:
        stop(1, str(error))
    except (jsonargparse.ArgumentError, OmegaConfBaseException) as error:
        stop(2, plain(str(error)))
    except ValueError as error:
        if not str(error).startswith("Does not validate"):
            raise
        stop(2, plain(str(error)))


def plain(message: str) -> str:
    """The cause alone, in one line, where the parser lists every type that a value did not fit."""
    causes: list[list[str]] = []
    for line in (line.strip() for line in message.splitlines()):
        if line.startswith("- "):
            causes.append([line[2:]])
        elif line.startswith("Given value"):
            causes.append([])  # ends the cause before it
        elif causes and causes[-1]:
            causes[-1].append(line)
    sentences = [" ".join(cause) for cause in causes if cause]
    sentences = [each for each in sentences if not each.startswith("Expected a <class 'NoneType'>")]
    return sentences[-1] if sentences else " ".join(message.split())


def stop(status: int, sentence: str) -> None:
    """Say what is wrong on standard error and exit."""
    print(f"triptych: {sentence}", file=sys.stderr)
    sys.exit(status)
