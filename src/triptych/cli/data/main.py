"""The table of commands on data."""

from __future__ import annotations

import sys
from pkgutil import resolve_name

# Command -> (module:function, line of `triptych data --help`), imported when it is called.
COMMANDS = {
    "pack": ("pack:pack", "packing of images and captions into shards"),
    "index": ("index:index", "indexes of shards, and their unusable samples"),
    "inspect": ("inspect:inspect", "counts, lengths, sizes and duplicates, and an image grid"),
    "votes": ("votes:votes", "pairs of images from the votes of the web page"),
    "features": ("features:features", "image features of shards, computed once"),
}
EXAMPLES = """\
  triptych data pack photos --out data/photos
  triptych data inspect data/photos --out photos.png"""


def overview() -> str:
    """Return the text of `triptych data --help`."""
    lines = [f"  {name:10} {text}" for name, (_, text) in COMMANDS.items()]
    usage = "usage: triptych data COMMAND [--help] ..."
    return "\n".join([usage, "", *lines, "", "examples:", EXAMPLES])


def data(arguments: list[str]) -> None:
    """Run a command on data."""
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print(overview())
        return
    if name not in COMMANDS:
        known = ", ".join(COMMANDS)
        print(f"triptych data: {name!r} is not a command; choose one of {known}.", file=sys.stderr)
        raise SystemExit(2)
    try:
        resolve_name(f"triptych.cli.data.{COMMANDS[name][0]}")(arguments[1:])
    except KeyboardInterrupt:  # 130: what a shell reports of a program that Ctrl-C ended
        print("triptych: interrupted; the same command resumes where it stopped.", file=sys.stderr)
        raise SystemExit(130) from None
