"""Help of every command: noun phrases, defaults, examples; and it imports nothing heavy."""

import argparse
import re
import subprocess
import sys
from pkgutil import resolve_name

import pytest

from triptych.cli import recipes
from triptych.cli.data import main as data_main
from triptych.cli.eval import main as eval_main
from triptych.cli.main import COMMANDS, LIGHTNING_COMMANDS, main

GROUPS = {"data": data_main.COMMANDS, "eval": eval_main.BENCHMARKS}
FUNCTIONS = {
    name: f"triptych.cli.{place}" for name, (place, _) in COMMANDS.items() if name not in GROUPS
}
for group, members in GROUPS.items():
    for name, (place, _) in members.items():
        FUNCTIONS[f"{group} {name}"] = f"triptych.cli.{group}.{place}"
RIDDLE = re.compile(
    r"(what|how|who|whose|where|of|a|an|the|add|compare|generate|keep|load|make|print|read|score|"
    r"store|train|use|write)\b",
    re.I,
)
"""Beginnings that no noun phrase without an article has."""
HEAVY = {"torch", "lightning", "transformers", "gradio", "fastapi", "numpy", "diffusers"}


class ParserBuilt(Exception):
    """Carries the parser of a command, in place of parsing."""


def parser_of(command: str, monkeypatch) -> argparse.ArgumentParser:
    def parse(self, *arguments, **options):
        raise ParserBuilt(self)

    for name in ("parse_args", "parse_known_args", "parse_known_intermixed_args"):
        monkeypatch.setattr(argparse.ArgumentParser, name, parse)
    with pytest.raises(ParserBuilt) as built:
        resolve_name(FUNCTIONS[command])([])
    return built.value.args[0]


def shown_help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """The help of one argument, with its default filled in."""
    return parser._get_formatter()._expand_help(action)


def shows_default(action: argparse.Action, text: str) -> bool:
    if action.default in (None, False, []):
        return "default" in text
    return str(action.default) in text.partition("default ")[2] or "default 1/1" in text


@pytest.mark.parametrize("command", FUNCTIONS)
def test_every_flag_is_a_noun_phrase_with_its_default(command, monkeypatch):
    parser = parser_of(command, monkeypatch)
    for group in parser._action_groups:
        for action in group._group_actions:
            if isinstance(action, argparse._HelpAction):
                continue
            text = shown_help(parser, action)
            assert text and not RIDDLE.match(text) and not text.endswith("."), (action.dest, text)
            if not action.option_strings:
                continue
            if action.required or "required" in text:
                assert "required" in text, (action.dest, text)
            elif action.nargs != 0 and "default of each" not in group.title:
                assert shows_default(action, text), (action.dest, text)


@pytest.mark.parametrize("command", FUNCTIONS)
def test_every_help_ends_with_examples_that_its_parser_knows(command, monkeypatch):
    parser = parser_of(command, monkeypatch)
    examples = parser.epilog.partition("examples:\n")[2]
    calls = re.findall(rf"^  .*?\btriptych {command}\b.*", examples, re.M)
    assert calls, "no example"
    known = {flag for action in parser._actions for flag in action.option_strings}
    for call in calls:
        words = call.partition(f"triptych {command}")[2].replace("\\\n", " ").split()
        flags = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        assert flags <= known, (call, flags - known)
    assert parser.description.partition("\n\n")[0].endswith("."), "the description is a sentence"


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_of_commands_has_examples_too(group, capsys):
    main([group, "--help"])
    text = capsys.readouterr().out
    assert re.search(rf"^examples:\n  triptych {group} \w+", text, re.M)
    for name in GROUPS[group]:
        assert re.search(rf"^  {name} +\w", text, re.M)


def test_the_overview_describes_every_command_by_a_noun_phrase():
    tables = [*COMMANDS.values(), *data_main.COMMANDS.values(), *eval_main.BENCHMARKS.values()]
    for text in [*LIGHTNING_COMMANDS.values(), *(text for _, text in tables)]:
        assert not RIDDLE.match(text), text


def test_training_has_examples():
    flags, _, examples = recipes.HELP.partition("\nexamples:\n")
    for line in flags.splitlines():
        assert not RIDDLE.match(re.split(r"  +", line)[1]), line
    for line in examples.splitlines():
        assert line.startswith("  triptych fit --preset ")


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["app", "--help"], ["serve", "-h"]])
def test_help_imports_nothing_heavy(words):
    code = (
        "import atexit, sys\n"
        f"atexit.register(lambda: print('imported', *sorted({HEAVY!r} & {{*sys.modules}})))\n"
        f"from triptych.cli.main import main; main({words!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "imported"
