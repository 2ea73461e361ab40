"""Check that every link and picture of the built site leads somewhere: `make docs` runs this.

mkdocs checks pages in Markdown; this also reads notebooks, docstrings and what plugins write.
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

SCRIPTED = {"explore.html"}  # its script makes the places that links name: tests/pages
SITE = Path(__file__).resolve().parents[1] / "build" / "site"


class Page(HTMLParser):
    """The links of a page, and the places in it that links can name."""

    def __init__(self, path: Path):
        super().__init__()
        self.links: list[str] = []
        self.places = {""}
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value and tag in ("a", "img", "script", "link"):
                self.links.append(value)
            elif name in ("id", "name") and value:
                self.places.add(value)


def main() -> int:
    pages = {path: Page(path) for path in sorted(SITE.rglob("*.html"))}
    wrong, count = [], 0
    for path, page in pages.items():
        # its own links begin at the root of a server
        if path.name == "404.html":
            continue
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            count += 1
            there = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not there.is_file():
                wrong.append(f"{path.relative_to(SITE)}: {link}")
            elif there.name in SCRIPTED:
                continue
            elif there in pages and unquote(parts.fragment) not in pages[there].places:
                wrong.append(f"{path.relative_to(SITE)}: {link} names no place there")
    print("\n".join(wrong) or f"{len(pages)} pages, {count} links: all lead somewhere")
    return bool(wrong) or not count


if __name__ == "__main__":
    sys.exit(main())
