"""YAML and JSON documents: invalid ones are refused at once, in one sentence."""

import json
import os
import socket
import time

import pytest

from triptych.utils.documents import (
    DEPTH,
    open_regular,
    parse_json,
    parse_yaml,
    read_bytes,
    read_json,
    read_yaml,
)
from triptych.utils.errors import UserError


def nested_aliases(merge: bool = False) -> str:
    """Ten lines that stand for ten thousand million values."""
    lines = ["a0: &a0 {k: 1}" if merge else "a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for n in range(9):
        aliases = ", ".join([f"*a{n}"] * 10)
        lines.append(
            f"a{n + 1}: &a{n + 1} " + (f"{{<<: [{aliases}]}}" if merge else f"[{aliases}]")
        )
    return "\n".join(lines)


YAML = {
    "empty": ("", "empty"),
    "comment": ("# nothing", "empty"),
    "list": ("- 1", "a list"),
    "number": ("7", "a number"),
    "text": ("model", "a text"),
    "broken": ("model: {", "line 2"),
    "two colons": ("a: b: c", "line 1"),
    "tab": ("a:\n\tb: 1", "line 2"),
    "tag": ("a: !!python/object/apply:os.system [true]", "python/object"),
    "date": ("a: 2020-99-99", "month"),
    "digits": ("a: " + "9" * 5000, "4300"),
    "key": ("{[1]: 2}", "unhashable"),
    "number as key": ("1: 2", "1 is no name"),
    "twice": ("a: 1\nb: 2\na: 3", "'a' at line 3"),
    "unknown alias": ("a: *b", "alias"),
    "NUL": ("a: \x00", "control"),
    "two documents": ("a: 1\n---\nb: 1", "document"),
    "itself": ("a: &a [*a]", "holds itself"),
    "aliases": (nested_aliases(), "aliases"),
    "merged aliases": (nested_aliases(merge=True), "aliases"),
    "long text, many aliases": ("a: &a " + "x" * 500_000 + "\nb: [" + "*a," * 900 + "]", "aliases"),
    "deep list": ("[" * 100_000, f"{DEPTH} levels"),
    "deep mapping": ("{a: " * 100_000, f"{DEPTH} levels"),
    "deep dashes": ("- " * 100_000, f"{DEPTH} levels"),
    "many": ("a: [" + "[]," * 200_000 + "]", "values"),
}
JSON = {
    "empty": ("", "line 1"),
    "broken": ('{"a": 1\n"b"', "line 2"),
    "list": ("[1]", "no JSON object"),
    "number": ("1", "no JSON object"),
    "deep": ("[" * 100_000, "levels"),
    "deep and closed": ("[" * 100_000 + "]" * 100_000, "levels"),
    "just too deep": ('{"a":' * (DEPTH + 2) + "1" + "}" * (DEPTH + 2), "levels"),
    "deep objects": ('{"a":' * 100_000, "levels"),
    "digits": ("9" * 5000, "4300"),
    "twice": ('{"a": 1, "a": 2}', "'a' is there twice"),
    "surrogate": ('{"a": "\\ud800"}', "half a character"),
    "bytes": (b'{"a": "\xff"}', "UTF-8"),
}


@pytest.mark.parametrize("name", YAML)
def test_yaml_that_is_refused(name):
    text, said = YAML[name]
    started = time.monotonic()
    with pytest.raises(UserError) as refused:
        parse_yaml(text, "model.yaml")
    assert time.monotonic() - started < 2
    assert str(refused.value).startswith("model.yaml") and said in str(refused.value)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 300


@pytest.mark.parametrize("name", JSON)
def test_json_that_is_refused(name):
    text, said = JSON[name]
    with pytest.raises(UserError) as refused:
        parse_json(text, "index.json")
    assert str(refused.value).startswith("index.json") and said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_valid_documents_are_read():
    text = "a: &a {x: 1.5, <<: &b {y: [1]}}\nb: {<<: *a, x: null}\nc: [*b, *b]\n"
    assert parse_yaml("\ufeff" + text, "x") == {
        "a": {"x": 1.5, "y": [1]},
        "b": {"x": None, "y": [1]},
        "c": [{"y": [1]}, {"y": [1]}],
    }
    assert parse_json(b'\xef\xbb\xbf{"a": "\\ud83d\\ude00"}', "x") == {"a": "\U0001f600"}
    assert parse_json("[" * DEPTH + "]" * DEPTH, "x", list)
    assert parse_json("null", "x", object) is None


@pytest.fixture(params=["pipe", "socket", "folder", "device", "missing", "empty name", "NUL"])
def no_file(request, tmp_path):
    path = tmp_path / "model.yaml"
    if request.param == "pipe":
        os.mkfifo(path)
    elif request.param == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(os.path.relpath(path))  # the whole path may be too long for a socket
            yield path
        return
    elif request.param == "folder":
        path.mkdir()
    yield {"device": "/dev/zero", "empty name": "", "NUL": "a\0b"}.get(request.param, path)


@pytest.mark.parametrize("read", [open_regular, read_yaml, read_json])
def test_no_regular_file(read, no_file):
    started = time.monotonic()
    with pytest.raises(UserError):
        read(no_file)
    assert time.monotonic() - started < 1


def test_sizes(tmp_path):
    large = tmp_path / "large.json"
    with large.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(UserError, match="at most"):
        read_json(large)
    large.write_text(json.dumps({"a": "x" * 50}))
    assert len(read_bytes(large, 59)) == 59
    with pytest.raises(UserError, match="59 bytes"):
        read_bytes(large, 58)
    with pytest.raises(UserError, match="at most 32"):  # says that it is empty, and is not
        read_bytes("/proc/self/maps", 32)
