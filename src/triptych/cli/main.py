"""Entry point: `triptych fit|validate|test|predict` by Lightning, and the other commands.

Exit status: 0 success, 1 failure (reported in one sentence), 2 invalid command line or
configuration, 128 + N training ended by signal N, 141 the reader of standard output left early.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from pkgutil import resolve_name

from triptych import __version__
from triptych.utils.errors import ConfigurationError, UserError
from triptych.utils.standard_streams import run

# System errors of user-given paths that no reader or writer reports itself.
PATH_ERRORS = (
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOSPC, errno.EDQUOT, errno.EIO),
)
MAX_SHOWN_PATH = 200
"""Maximum length of a path in a message."""
# Command -> (module:function, line of `triptych --help`), imported when it is called.
COMMANDS = {
    "generate": (
        "generate:generate",
        'images of prompts: triptych generate "a photo of a red circle" -n 4',
    ),
    "chat": ("chat:chat", 'answers about images: triptych chat image.png "what is it?"'),
    "edit": ("generate:edit", 'edited images: triptych edit image.png "make the circle blue"'),
    "reconstruct": (
        "generate:reconstruct",
        "reconstructions by encoder and decoder: triptych reconstruct x.png",
    ),
    "eval": ("eval.main:evaluate", "scores of a model: triptych eval shapes --out scores.json"),
    "demo": ("demo:demo", "page of images, edits, stories and answers: triptych demo"),
    "app": ("app:app", "web page to generate, chat, edit and compare: triptych app"),
    "serve": ("serve:serve", "OpenAI's HTTP interface to a model: triptych serve --port 8000"),
    "convert": (
        "checkpoints:convert",
        "conversion of published checkpoints: triptych convert SOURCE TARGET",
    ),
    "export": (
        "checkpoints:export",
        "weights of a training checkpoint: triptych export last.ckpt --ema",
    ),
    "data": (
        "data.main:data",
        "preparation of data (pack, index, inspect, features): triptych data --help",
    ),
    "parity": (
        "parity:parity",
        "comparison with published code: triptych parity tests/data/parity",
    ),
    "plan": (
        "plan.main:plan",
        "memory, time and largest batch of a run: triptych plan --preset tiny --stage stage2",
    ),
    "pretrain": (
        "pretrain_tiny:pretrain",
        "training of the tiny preset from scratch: triptych pretrain",
    ),
}
LIGHTNING_COMMANDS = {
    "fit": "training: triptych fit --preset tiny --stage stage2",
    "validate": "losses on validation data",
    "test": "losses on validation data, logged as test",
    "predict": "images for the captions of the validation data",
}


def trains_one_panel(arguments: list[str]) -> bool:
    """Whether --model names a class, a panel that is trained as the root, without the others."""
    return any(
        name == "--model" and not value.endswith((".yaml", ".yml"))
        for name, value in named_values(arguments)
    )


def run_lightning(arguments: list[str]) -> None:
    """Run fit, validate, test or predict, as one of several ranks or the only process."""
    from triptych.cli.recipes import expand
    from triptych.utils.signals import supervisor

    expanded = expand(arguments)

    # if a rank dies, torch's C++ would print a stack for each broken connection
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
        exit_with(2, str(error))
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
    single = trains_one_panel(arguments)
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
        raise UserError(f"the configuration is invalid: {plain(str(error))}") from error


def overview() -> str:
    """Return the text of `triptych --help`."""
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
    """Run the `triptych` command, with `arguments` if called from Python."""
    if arguments is None:
        run(lambda: dispatch(sys.argv[1:]))
    else:
        dispatch(list(arguments))


def dispatch(arguments: list[str]) -> None:
    """Run the command named by the first argument."""
    command = arguments[0] if arguments else "--help"
    if takes_classes(command, arguments) and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last: a file there must not shadow a module
    if command in ("-h", "--help"):
        print(overview())
    elif command == "--version":
        print(__version__)
    elif command not in COMMANDS and command not in LIGHTNING_COMMANDS:
        names = ", ".join([*LIGHTNING_COMMANDS, *COMMANDS])
        exit_with(2, f"{command!r} is not a command; choose one of {names}.")
    else:
        run_command(command, arguments)


def takes_classes(command: str, arguments: list[str]) -> bool:
    """Whether the arguments may name classes of modules in the current folder."""
    return command in LIGHTNING_COMMANDS or any(
        argument.startswith(("--model.", "--trust-class")) for argument in arguments
    )


def require_documents(arguments: list[str]) -> None:
    """Refuse files that are not configurations, before the parser opens them.

    Raises:
        UserError: a --config is missing, not a YAML mapping or of an older version, or a value
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
    """Return (flag, value) pairs of the arguments, with values after = or as the next argument."""
    pairs = []
    for argument, after in zip(arguments, [*arguments[1:], ""], strict=True):
        name, joined, value = argument.partition("=")
        if name.startswith("--"):
            pairs.append((name, value if joined else after))
    return pairs


def run_command(command: str, arguments: list[str]) -> None:
    """Run a command; report a user's error in one sentence, with an exit status."""
    try:
        if command in COMMANDS:
            resolve_name(f"triptych.cli.{COMMANDS[command][0]}")(arguments[1:])
        else:
            run_lightning(arguments)
    except Exception as error:
        if (report := report_of(error)) is None:
            raise
        exit_with(*report)


def report_of(error: Exception) -> tuple[int, str] | None:
    """Return the exit status and the sentence for a user's error; None for other errors."""
    if isinstance(error, UserError):
        return (2 if isinstance(error, ConfigurationError) else 1), str(error)
    omegaconf = sys.modules.get("omegaconf.errors")  # slow to import, and needed by few commands
    refused = (argparse.ArgumentError, *([omegaconf.OmegaConfBaseException] if omegaconf else []))
    refused_value = isinstance(error, ValueError) and str(error).startswith("Does not validate")
    if isinstance(error, refused) or refused_value:
        from triptych.utils.parser_errors import plain

        return 2, plain(str(error))
    if isinstance(error, OSError) and error.errno in PATH_ERRORS and error.filename is not None:
        name = os.fsdecode(error.filename)
        name = name if len(name) <= MAX_SHOWN_PATH else f"{name[:MAX_SHOWN_PATH]}..."
        return 1, f"{name} cannot be read or written ({error.strerror}); give another path."
    return None


def exit_with(status: int, sentence: str) -> None:
    """Print an error on standard error and exit."""
    print(f"triptych: {sentence}", file=sys.stderr)
    sys.exit(status)
