"""MkDocs hook: the API reference, and links that hold on the site as they do in the repository.

The reference has one page for each package. It is made from the docstrings, which griffe reads
without importing anything, so that no page of it is kept by hand. Sources are copied to
build/docs/triptych first, as a wheel lays them out: callbacks/ and data_modules/ are packages of
`triptych`, which only an import would reveal.

Links to sources lead to the reference, links to other files of the repository become plain text,
since the site has no copy of them. A link to a file that does not exist is a warning, an error in
strict mode.
"""

import ast
import logging
import re
import shutil
from pathlib import Path

from griffe import Extension, Object
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
STAGED = ROOT / "build" / "docs"
FOLDERS = {
    "callbacks": "triptych.callbacks",
    "data_modules": "triptych.data_modules",
    "src/triptych": "triptych",
}
JOINT = re.compile(r"^( *)(\w+(?:,\s+\w+)+): (.*(?:\n\1 +.*)*)", re.M)
LINK = re.compile(r"\[([^\]]*)\]\((\.\./[^)\s#]*)(#[^)\s]*)?\)")
ROW = re.compile(r"^ *(\w+)  +(\S.*)$")

log = logging.getLogger("mkdocs.hooks.docs_site")


def on_startup(command, dirty):
    """Stage the sources, before mkdocstrings looks for the folder."""
    shutil.rmtree(STAGED, ignore_errors=True)
    for folder, name in sorted(FOLDERS.items(), key=lambda item: item[1]):
        staged = STAGED.joinpath(*name.split("."))
        for path in sorted((ROOT / folder).rglob("*.py")):
            copy = staged / path.relative_to(ROOT / folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)


def on_config(config):
    """Put the pages of the reference into the navigation."""
    config.nav.append({"API reference": [{name: page_of(name)} for name in packages()]})
    return config


def on_files(files, config):
    """Add the pages of the reference."""
    for name in packages():
        files.append(File.generated(config, page_of(name), content=reference(name)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Rewrite links that leave docs/."""

    def rewritten(match: re.Match) -> str:
        text, path, anchor = match.groups()
        target = (Path(config.docs_dir) / page.file.src_uri).parent.joinpath(path).resolve()
        if target.is_relative_to(config.docs_dir):
            return match[0]
        if not target.is_relative_to(ROOT) or not target.exists():
            log.warning("%s links to %s, which does not exist", page.file.src_uri, path)
        name = module_of(target)
        if name is None:
            return text
        up = "../" * page.file.src_uri.count("/")
        return f"[{text}]({up}{page_of(package_of(name))}#{name})"

    return LINK.sub(rewritten, markdown)


def packages() -> list[str]:
    """Dotted names of all packages, each before those inside it."""
    inits = STAGED.rglob("__init__.py")
    return sorted(".".join(path.parent.relative_to(STAGED).parts) for path in inits)


def modules(package: str) -> list[str]:
    """Dotted names of a package's public modules."""
    folder = STAGED.joinpath(*package.split("."))
    names = [path.stem for path in sorted(folder.glob("*.py")) if not path.stem.startswith("_")]
    return [f"{package}.{name}" for name in names]


def page_of(package: str) -> str:
    """Source path of a package's page in the reference."""
    return f"reference/{package}.md"


def package_of(name: str) -> str:
    """The package that documents `name`, a module or a package."""
    return name if STAGED.joinpath(*name.split(".")).is_dir() else name.rpartition(".")[0]


def module_of(path: Path) -> str | None:
    """Dotted name of a public module or package; None for other files."""
    for folder, name in FOLDERS.items():
        if path.is_relative_to(ROOT / folder) and (path.is_dir() or path.suffix == ".py"):
            parts = path.relative_to(ROOT / folder).parts
            parts = tuple(part.removesuffix(".py") for part in parts)
            while parts and parts[-1].startswith("_"):
                parts = parts[:-1]
            return ".".join([name, *parts])
    return None


def reference(package: str) -> str:
    """A page: the package's docstring, its map as a table with links, then its modules."""
    init = STAGED.joinpath(*package.split("."), "__init__.py")
    lines = (ast.get_docstring(ast.parse(init.read_text())) or "").splitlines()
    page, public, nested = [f"# `{package}` {{ #{package} }}", ""], modules(package), packages()
    for above, line in zip(["", *lines], lines, strict=False):
        row = ROW.match(line)
        if row is None:
            page.append(line)
            continue
        if not ROW.match(above):
            page += ["| module | contents |", "|---|---|"]
        name = f"{package}.{row[1]}"
        where = page_of(name).removeprefix("reference/") if name in nested else ""
        linked = name in public or name in nested
        entry = f"[`{row[1]}`]({where}#{name})" if linked else f"`{row[1]}`"
        page.append(f"| {entry} | {row[2]} |")
    for name in public:
        page += ["", f"::: {name}"]
    return "\n".join(page) + "\n"


class JointEntries(Extension):
    """Splits `width, depth: ...` of an `Args:` section into an entry for each name."""

    def on_object(self, *, obj: Object, **kwargs) -> None:
        if obj.docstring:
            obj.docstring.value = JOINT.sub(self._split, obj.docstring.value)

    @staticmethod
    def _split(match: re.Match) -> str:
        indent, names, text = match.groups()
        return "\n".join(f"{indent}{name}: {text}" for name in re.split(r",\s+", names))
