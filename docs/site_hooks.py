"""What the site has beside docs/: the pages at the repository's root, with links that fit."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from nearplane.pages.explore import page as explorer

PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
FOLDER = "project"
EXPLORER = "explore.html"
STYLE = "width: 100%; height: 48rem; border: 0"
FRAME = f"""<p><a href="{EXPLORER}">Open it in a page of its own.</a></p>
<iframe src="{EXPLORER}" title="Lattice explorer" style="{STYLE}"></iframe>"""
LINK = re.compile(r"\]\((?!\w+:|#)([^)\s]+)\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages at the root of the repository to the site."""
    root = Path(config["config_file_path"]).parent
    files.append(File.generated(config, EXPLORER, content=explorer()))
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
    """Put the explorer in its page; lead links of notebooks to pages, as mkdocs does others."""
    if page.file.src_uri == "EXPLORE.md":
        html = html.replace("</h1>", f"</h1>{FRAME}", 1)
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
