"""Charts of one line: higher characters for larger numbers, every block in its place."""

from nearplane.report.kinds import kinds
from nearplane.report.layer_lines import layer_lines
from nearplane.report.report_json import layer_row
from nearplane.report.strips import strips
from tests.pages import reports


def lines(losses):
    """Return the kinds of layers of so many blocks with these losses."""
    names = [f"model.layers.{block}.up" for block in range(len(losses))]
    entries = [
        reports.layer(name, i, (8, 8), loss=loss)
        for i, (name, loss) in enumerate(zip(names, losses, strict=True))
        if loss is not None
    ]
    return kinds(layer_lines([layer_row(entry) for entry in entries], {}))


def loss(layer):
    return layer.relative_loss


def test_characters_rise_with_numbers_on_one_scale():
    (strip,) = strips(lines([0.001, 0.01, 0.1, None, 1.0]), loss, 80, True, "abcd")
    assert strip.characters == "abc d" and (strip.least, strip.most) == (0.0001, 0.1)
    (strip,) = strips(lines([1.0, 2.0, 3.0, 4.0]), loss, 80, False, "abcd")
    assert strip.characters == "abcd"


def test_many_blocks_share_characters_and_the_worst_is_seen():
    found = lines([0.001] * 50 + [1.0] + [0.001] * 49)
    (strip,) = strips(found, loss, 20, True, "abcd")
    assert strip.characters == "a" * 10 + "d" + "a" * 9


def test_layers_outside_of_blocks_have_no_strip():
    entry = reports.layer("model.embed_tokens", 0, (8, 8))
    found = kinds(layer_lines([layer_row(entry)], {}))
    assert strips(found, loss, 20, True) == []
