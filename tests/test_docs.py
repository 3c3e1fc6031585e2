"""The pages: links lead somewhere, what is made from results and docstrings is up to date, examples run."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    path for folder in (".", "docs", "assets", "python/ape_sr/weights") for path in sorted((ROOT / folder).glob("*.md"))
]
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(
        r"^#+ (.+)$", CODE.sub(lambda code: code[0] if "\n" not in code[0] else "", page.read_text()), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link in LINK.findall(CODE.sub("", page.read_text())):
        if re.match(r"\w+:", link):  # of the web: not looked up, so that the test needs none
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{link}: no such file"
        assert not anchor or anchor in anchors(target), f"{link}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_are_named_exist(page):
    """Paths of this repository in backquotes."""
    for name in re.findall(r"`((?:docs|csrc|bench|assets|tests|python|ape_kernels)/[\w/.\-]+\.\w+)`", page.read_text()):
        assert (ROOT / name).exists(), name


def test_made_parts_are_up_to_date():
    """To mend a failure, run: python docs/generate.py"""
    done = subprocess.run([sys.executable, ROOT / "docs" / "generate.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= 800


def test_the_first_example_runs(tmp_path):
    (example, *_) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (tmp_path / "assets").symlink_to(ROOT / "assets")
    done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "of the computation" in done.stdout and (tmp_path / "large.png").is_file()
