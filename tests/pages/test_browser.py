"""The fixtures themselves: what they must catch in a page is caught."""

import pytest

GOOD = "<!doctype html><html lang=en><title>a page</title><main><h1>a page</h1></main>"


def written(tmp_path, text):
    path = tmp_path / "page.html"
    path.write_text(GOOD + text)
    return path


def test_a_good_page_passes(browser_page, serious_problems, tmp_path):
    page = browser_page(written(tmp_path, "<p>text"), color_scheme="dark")
    assert page.inner_text("h1") == "a page"
    assert page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    assert serious_problems(page) == []


def test_bad_contrast_and_missing_labels_are_found(browser_page, serious_problems, tmp_path):
    page = browser_page(written(tmp_path, "<input><p style='color:#ddd'>hard to read"))
    found = " ".join(serious_problems(page))
    assert "color-contrast" in found and "label" in found


@pytest.mark.parametrize(
    "fault",
    [
        "<script>console.error('x')</script>",
        "<script>throw Error('x')</script>",
        "<img alt='' src='http://192.0.2.1/x.png'>",
        "<img alt='' src='beside.png'>",
    ],
)
def test_faults_are_caught(browser, tmp_path, fault):
    from tests.pages.conftest import browser_page

    opener = browser_page.__wrapped__(browser)
    page = next(opener)(written(tmp_path, fault))
    page.wait_for_timeout(100)
    with pytest.raises(AssertionError):
        next(opener)
