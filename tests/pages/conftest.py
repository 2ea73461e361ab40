"""A real browser for tests of the pages: Debian's chromium, driven by playwright."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
AXE = Path(__file__).parent / "axe.min.js"
# without the sandbox root may start it; WebGL is drawn by the processor
ARGUMENTS = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader"]
ARGUMENTS += ["--enable-unsafe-swiftshader", "--disable-dev-shm-usage"]
PATIENCE_MS = 10_000  # on a busy machine


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Return a browser that is started once for a file of tests; skip where there is none.

    It is no longer there than that: playwright's event loop stands in the way of asyncio's.
    """
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("no browser: pages are tested where chromium is (apt-get install chromium)")
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="pages are tested where playwright is: pip install playwright"
    )
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield started
        started.close()


@pytest.fixture
def browser_page(browser) -> Iterator[Callable[..., Any]]:
    """Return a function that opens a file in a tab of its own and returns playwright's Page.

        page = browser_page(path, fragment="bound", color_scheme="dark")

    Other keywords are those of playwright's `new_context`: viewport, has_touch, is_mobile.

    The test fails if any page wrote an error or a warning to its console, raised an exception or
    asked for anything but the file itself.
    """
    contexts, wrong = [], []

    def open_page(path: Path, fragment: str = "", **options: Any) -> Any:
        context = browser.new_context(offline=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        address = path.resolve().as_uri()
        page.on("pageerror", lambda error: wrong.append(f"exception: {error}"))
        page.on("console", lambda said: wrong.append(said.text) if bad(said) else 0)
        page.on("request", lambda request: wrong.append(request.url) if leads_out(request) else 0)

        def leads_out(request: Any) -> bool:
            return not request.url.startswith((address, "data:", "blob:"))

        page.goto(f"{address}#{fragment}" if fragment else address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not wrong, "\n".join(wrong)


def bad(said: Any) -> bool:
    """Whether a line on the console is a fault; one on drawing without a GPU is none."""
    return said.type in ("error", "warning") and "GPU stall" not in said.text


@pytest.fixture(scope="session")
def serious_problems() -> Callable[[Any], list[str]]:
    """Return a function that lists what axe finds serious or critical in a page, by its rules."""

    def found(page: Any) -> list[str]:
        if not page.evaluate("() => 'axe' in window"):
            page.evaluate(AXE.read_text())
        result = page.evaluate("() => axe.run(document, {resultTypes: ['violations']})")
        return [
            f"{each['id']}: {node['target']}: {node.get('failureSummary', '')}"
            for each in result["violations"]
            if each["impact"] in ("serious", "critical")
            for node in each["nodes"]
        ]

    return found
