"""README and docs/ point to what exists; `make docs` checks the links of the site itself."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
GUIDES = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *GUIDES]
FENCE = re.compile(r"^```.*?^```$", re.M | re.S)


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text()), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page):
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text())):
        path, _, anchor = link.partition("#")
        if link.startswith(("https://", "http://", "mailto:")):
            continue
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_lists_and_tables_stand_apart(page):
    """MkDocs takes a list or table right under a paragraph for more of the paragraph."""
    lines = FENCE.sub("", page.read_text()).splitlines()
    mark = re.compile(r"[-*] |\d+\. |\||#")
    joined = [
        line
        for above, line in zip(lines, lines[1:], strict=False)
        if re.match(r"[-*] |\|", line) and above and not mark.match(above) and above[0] != " "
    ]
    assert not joined


def test_every_page_is_in_the_navigation():
    named = set(re.findall(r"^ +- (?:\w+: )?(\w+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M))
    assert named == {page.name for page in GUIDES}
    linked = set(re.findall(r"\]\((\w+\.md)\)", (ROOT / "docs" / "index.md").read_text()))
    assert linked == named - {"index.md"}


def test_the_readme_names_existing_files_and_every_package():
    """Paths of the map and of "Where do I" exist; no package is missing from the map."""
    text = (ROOT / "README.md").read_text()
    block = re.search(r"^conf/ .*?(?=^```)", text, re.M | re.S)[0]
    mapped = {line.split()[0].rstrip("/") for line in block.splitlines() if line[0] == " "}
    present = {
        path.name
        for path in (ROOT / "src" / "triptych").iterdir()
        if (path / "__init__.py").exists() or (path.suffix == ".py" and path.stem[0] != "_")
    }
    assert mapped == present | {"assets/tiny"}
    for path in re.findall(r"`((?:src|conf|data_modules|callbacks|docs)/[\w./]*)`", text):
        assert (ROOT / path).exists(), path
