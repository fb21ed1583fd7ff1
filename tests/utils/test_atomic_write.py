"""Files and folders are complete or absent, under one spelling of temporary names."""

import ast

import pytest
from builders import ROOT

from triptych.utils.atomic_write import (
    PARTIAL,
    AtomicFile,
    HashingFile,
    new_folder,
    saving,
    temporary_path,
    unique_temporary_path,
    write_text,
)
from triptych.utils.errors import UserError

SOURCES = [
    path
    for folder in ("src", "callbacks", "data_modules")
    for path in (ROOT / folder).rglob("*.py")
    if path.name != "atomic_write.py"
]


def test_files_get_their_names_in_one_module():
    def renames(node):
        return (
            isinstance(node, ast.Attribute)
            and node.attr in ("replace", "rename", "renames")
            and isinstance(node.value, ast.Name)
            and node.value.id == "os"
        )

    found = [
        p for p in SOURCES if any(renames(node) for node in ast.walk(ast.parse(p.read_text())))
    ]
    assert len(SOURCES) > 200 and not found


def test_temporary_names_have_one_ending(tmp_path):
    path = tmp_path / "a.txt"
    names = {temporary_path(path), unique_temporary_path(path), unique_temporary_path(path)}
    assert len(names) == 3 and all(name.name.endswith(PARTIAL) for name in names)


@pytest.mark.parametrize("durable", [True, False])
def test_a_file_has_its_name_when_it_is_committed(tmp_path, durable):
    path = tmp_path / "a.txt"
    file = AtomicFile(path, durable=durable)
    file.file.write(b"new")
    assert not path.exists()
    file.commit()
    file.discard()  # it has its name: nothing is removed
    assert path.read_bytes() == b"new"
    other = AtomicFile(path, temporary_path(path))
    other.file.write(b"other")
    other.discard()
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


def test_a_folder_has_its_name_when_it_is_complete(tmp_path):
    folder = tmp_path / "new" / "set"
    with new_folder(folder) as unfinished:
        write_text(unfinished / "a.txt", "a")
        assert not folder.exists()
    assert [path.name for path in folder.iterdir()] == ["a.txt"]
    with new_folder(folder) as late:  # another process was first: its folder stays
        write_text(late / "b.txt", "b")
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "none"):
        _ = 1 / 0
    assert [path.name for path in folder.iterdir()] == ["a.txt"]
    assert [path.name for path in tmp_path.rglob("*")] == ["new", "set", "a.txt"]


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError, match=r"a could not be written \(Is a directory\); make room"):
        write_text(tmp_path / "a", "text")
    with pytest.raises(ZeroDivisionError), saving(tmp_path / "b"):
        _ = 1 / 0
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_hashing_file_keeps_the_error_of_the_disk():
    class Full:
        def write(self, data):
            raise OSError(28, "No space left on device")

    file = HashingFile(Full())
    with pytest.raises(OSError, match="No space"):
        file.write(b"x")
    assert file.error.errno == 28 and file.note()["size"] == 0
