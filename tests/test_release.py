"""What a release names: one version, in the code, the citation and the list of changes."""

import re
from pathlib import Path

from nearplane.version import __version__

ROOT = Path(__file__).parent.parent


def test_the_citation_is_of_this_version():
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_changes_are_listed_by_release_the_newest_first():
    found = re.findall(r"^## (\d+)\.(\d+)\.(\d+) \(", (ROOT / "CHANGELOG.md").read_text(), re.M)
    releases = [tuple(map(int, parts)) for parts in found]
    assert releases == sorted(releases, reverse=True)
    assert tuple(map(int, __version__.split("."))) in releases
