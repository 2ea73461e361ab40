"""What the site has beside docs/: the pages at the repository's root, with links that fit."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
FOLDER = "project"
LINK = re.compile(r"\]\((?!\w+:|#)([^)\s]+)\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages at the root of the repository to the site."""
    root = Path(config["config_file_path"]).parent
    for name in PAGES:
        text = LINK.sub(lambda link: f"]({from_page(link[1])})", (root / name).read_text())
        files.append(File.generated(config, f"{FOLDER}/{name}", content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead links of docs/ to pages at the root to where the site has them."""
    if page.file.generated_by:
        return markdown
    up = "../" * page.file.src_uri.count("/")
    for name in PAGES:
        markdown = markdown.replace(f"]({up}../{name}", f"]({up}{FOLDER}/{name}")
    return markdown


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Lead links of notebooks to pages, which mkdocs does for Markdown only."""
    if page.file.src_uri.endswith(".ipynb"):
        html = re.sub(r'href="(?!\w+:)([^"#]+)\.md', r'href="\1.html', html)
    return html


def from_page(link: str) -> str:
    """Return where a link from the root of the repository leads from a page in FOLDER."""
    if link.startswith("docs/"):
        path = link.removeprefix("docs/")
        # a folder has no page of its own
        return f"../{path}record.md" if path.endswith("/") else f"../{path}"
    return link
