"""What the site shows beside `docs/pages`: files of the repository, read where they lie, so that nothing is copied.

Pages and files keep their paths from the root, so that links between them hold as they are; `docs/pages` stands at the
root too, and includes pieces of the README. Notebooks become pages, and numbers like [M4] links to METHOD.md.
"""

import logging
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url

import notebooks  # beside this file, where mkdocs looks too

ROOT = Path(__file__).parents[1]
SHOWN = (
    *("METHOD.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.png"),
    *("notebooks/*.py", "notebooks/*.ipynb", "tests/oracles/test_*.py"),
)
SUFFIXES = {".md", ".py", ".json", ".svg"}  # of what is shown of the experiments
NUMBER = re.compile(r"\[(M\d+)\]")
UNTOUCHED = re.compile(r"(<pre.*?</pre>|<code.*?</code>|<a\s.*?</a>|<[^>]*>)", re.DOTALL)
METHOD = "METHOD.md"
DEFINED = set(re.findall(r"^\*\*\[(M\d+)\]", (ROOT / METHOD).read_text(encoding="utf-8"), re.MULTILINE))
log = logging.getLogger("mkdocs.hooks.curvjax")


def repository_files() -> list[Path]:
    """All files outside `docs/pages` that the site shows."""
    named = [path for pattern in SHOWN for path in ROOT.glob(pattern)]
    return sorted([*named, *(path for path in (ROOT / "experiments").rglob("*") if path.suffix in SUFFIXES)])


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Put the repository's files beside the pages."""
    for path in repository_files():
        uri = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, uri, abs_src_path=str(path)))
        if uri.startswith("notebooks/") and uri.endswith(".py"):
            files.append(
                File.generated(config, uri.replace(".py", ".md"), content=notebooks.page(path, config.repo_url))
            )
    return files


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Link every [M4] in prose and docstrings to where METHOD.md defines it."""
    here = page.file.src_uri == METHOD
    target = "" if here else get_relative_url(files.src_uris[METHOD].url, page.url)
    if here:
        html = re.sub(r"<strong>\[(M\d+)\]", r'<strong id="\1"><code>\1</code>', html)

    def link(match: re.Match[str]) -> str:
        if match[1] not in DEFINED:
            log.warning("%s cites [%s], which METHOD.md does not define.", page.file.src_uri, match[1])
        return f'<a href="{target}#{match[1]}">{match[0]}</a>'

    parts = UNTOUCHED.split(html)
    parts[::2] = [NUMBER.sub(link, part) for part in parts[::2]]
    # A bar in a table is escaped for GitHub, in code too, where this reader of Markdown shows the backslash
    parts[1::2] = [part.replace("\\|", "|") if part.startswith("<code") else part for part in parts[1::2]]
    return "".join(parts)
