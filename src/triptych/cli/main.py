"""The composition root: `triptych fit|validate|test|predict`, and the project's own commands.

Exit status: 0 done, 1 failed (one sentence says why), 2 the command line or a configuration is
wrong, 128 + N a training ended by signal N, 141 the reader of standard output left before its end.
"""

from __future__ import annotations

import errno
import os
import sys
from pkgutil import resolve_name

from triptych import __version__
from triptych.utils.errors import ConfigurationError, UserError
from triptych.utils.standard_streams import run

# System errors of a path that the user gave, where no reader or writer has put them in words.
OF_THE_SYSTEM = (
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOSPC, errno.EDQUOT, errno.EIO),
)
MAX_SHOWN_PATH = 200  # characters of a path in a message
# Command -> (module:function, line of `triptych --help`), imported when it is called.
COMMANDS = {
    "generate": (
        "generate:generate",
        'images of prompts: triptych generate "a photo of a red circle" -n 4',
    ),
    "chat": ("chat:chat", 'answers about images: triptych chat image.png "what is it?"'),
    "edit": ("generate:edit", 'changed images: triptych edit image.png "make the circle blue"'),
    "reconstruct": (
        "generate:reconstruct",
        "images through encoder and decoder: triptych reconstruct x.png",
    ),
    "eval": ("eval.main:evaluate", "scores of a model: triptych eval shapes --out scores.json"),
    "demo": ("demo:demo", "a page of images, answers and reconstructions: triptych demo"),
    "app": ("app:app", "a web page to generate, chat, edit and compare: triptych app"),
    "serve": ("serve:serve", "OpenAI's HTTP interface to a model: triptych serve --port 8000"),
    "convert": (
        "checkpoints:convert",
        "published checkpoints to our files: triptych convert SOURCE TARGET",
    ),
    "export": (
        "checkpoints:export",
        "weights of a training checkpoint: triptych export last.ckpt --ema",
    ),
    "data": (
        "data.main:data",
        "data before training (pack, index, inspect, features): triptych data --help",
    ),
    "parity": (
        "parity:parity",
        "recorded values of published code against ours: triptych parity FOLDER",
    ),
    "pretrain": (
        "pretrain_tiny:pretrain",
        "all weights of the tiny preset from nothing: triptych pretrain",
    ),
}
LIGHTNING_COMMANDS = {
    "fit": "train: triptych fit --preset tiny --stage stage2",
    "validate": "the losses on validation data",
    "test": "the losses on validation data, logged as test",
    "predict": "images for the captions of the validation data",
}


def alone(arguments: list[str]) -> bool:
    """Whether --model names a class: then that panel is the root, trained without others."""
    return any(
        name == "--model" and not value.endswith((".yaml", ".yml"))
        for name, value in named_values(arguments)
    )


def run_lightning(arguments: list[str]) -> None:
    """Run fit, validate, test or predict, as one of several ranks or the only process."""
    from triptych.cli.recipes import expand
    from triptych.utils.signals import supervisor

    expanded = expand(arguments)

    # where a rank dies, torch's C++ would print its stack for each connection that breaks
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    with supervisor.handled():  # from here on: importing torch takes seconds
        from triptych.training.ranks import ending_together, watch_launched

        watch_launched()
        with ending_together():
            _run_lightning(expanded.arguments())


def _run_lightning(arguments: list[str]) -> None:
    try:
        require_documents(arguments)
    except UserError as error:
        stop(2, str(error))
    from lightning import LightningDataModule
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    import triptych.callbacks  # registers the short class names
    import triptych.data_modules  # noqa: F401
    from triptych.cli.lightning import TriptychCLI
    from triptych.cli.recipes import HELP
    from triptych.modules import UnifiedModule
    from triptych.utils.parser_errors import plain
    from triptych.utils.parser_settings import MODE

    sys.argv[1:] = arguments
    single = alone(arguments)
    try:
        TriptychCLI(
            None if single else UnifiedModule,
            LightningDataModule,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"parser_mode": MODE, "exit_on_error": False, "epilog": HELP},
        )
    except MisconfigurationException as error:
        raise UserError(f"the run cannot be as it is configured: {plain(str(error))}") from error


def overview() -> str:
    """The text of `triptych --help`."""
    own = {name: text for name, (_, text) in COMMANDS.items()}
    lines = [f"  {name:12} {text}" for name, text in {**LIGHTNING_COMMANDS, **own}.items()]
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
    """Entry point of the `triptych` command; with `arguments`, inside another process."""
    if arguments is None:
        run(lambda: dispatch(sys.argv[1:]))
    else:
        dispatch(list(arguments))


def dispatch(arguments: list[str]) -> None:
    """Run the command named by the first argument."""
    command = arguments[0] if arguments else "--help"
    if takes_classes(command, arguments) and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last: a file there is in the place of no other module
    if command in ("-h", "--help"):
        print(overview())
    elif command == "--version":
        print(__version__)
    elif command not in COMMANDS and command not in LIGHTNING_COMMANDS:
        known = ", ".join([*LIGHTNING_COMMANDS, *COMMANDS])
        stop(2, f"{command!r} is no command; choose one of {known}.")
    else:
        guarded(command, arguments)


def takes_classes(command: str, arguments: list[str]) -> bool:
    """Whether the user may name classes of modules in the current folder."""
    return command in LIGHTNING_COMMANDS or any(
        argument.startswith(("--model.", "--trust-class")) for argument in arguments
    )


def require_documents(arguments: list[str]) -> None:
    """Refuse configurations that are none, before the parser opens them.

    Raises:
        UserError: a --config is missing, no mapping in YAML or of an older version, or a value
            names a pipe or device.
    """
    from triptych.utils.config_versions import require_current
    from triptych.utils.documents import open_regular, read_yaml

    for name, value in named_values(arguments):
        if "\n" in value:
            continue  # a document itself, see `triptych.cli.recipes.panel_arguments`
        if name == "--config":
            require_current(read_yaml(value), value)
        elif os.path.exists(value) and not os.path.isdir(value):
            open_regular(value).close()


def named_values(arguments: list[str]) -> list[tuple[str, str]]:
    """(flag, value) of the arguments, the value given with = or as the next one."""
    pairs = []
    for argument, after in zip(arguments, [*arguments[1:], ""], strict=True):
        name, joined, value = argument.partition("=")
        if name.startswith("--"):
            pairs.append((name, value if joined else after))
    return pairs


def guarded(command: str, arguments: list[str]) -> None:
    """Run a command; a user's error becomes one sentence and an exit status."""
    import jsonargparse
    from omegaconf.errors import OmegaConfBaseException

    from triptych.utils.parser_errors import plain

    try:
        if command in COMMANDS:
            resolve_name(f"triptych.cli.{COMMANDS[command][0]}")(arguments[1:])
        else:
            run_lightning(arguments)
    except UserError as error:
        stop(2 if isinstance(error, ConfigurationError) else 1, str(error))
    except (jsonargparse.ArgumentError, OmegaConfBaseException) as error:
        stop(2, plain(str(error)))
    except OSError as error:
        if error.errno not in OF_THE_SYSTEM or error.filename is None:
            raise
        name = os.fsdecode(error.filename)
        name = name if len(name) <= MAX_SHOWN_PATH else f"{name[:MAX_SHOWN_PATH]}..."
        stop(1, f"{name} cannot be read or written ({error.strerror}); give another path.")
    except ValueError as error:
        if not str(error).startswith("Does not validate"):
            raise
        stop(2, plain(str(error)))


def stop(status: int, sentence: str) -> None:
    """Print an error on standard error and exit."""
    print(f"triptych: {sentence}", file=sys.stderr)
    sys.exit(status)
