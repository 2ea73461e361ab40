"""How many positions a model has."""

import pytest

from nearplane.model.positions import check_positions, position_limit
from nearplane.types import NearplaneError
from tests.walk.tiny import FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
def test_only_tables_of_positions_limit_a_sequence(family):
    model = FAMILIES[family].model()
    limit = model.config.max_position_embeddings if family in ("gpt2", "opt") else None
    assert position_limit(model) == limit
    check_positions(model, limit or 10**6, "--length")
    if limit is not None:
        model(input_ids=model.dummy_inputs["input_ids"][:1, :limit])
        with pytest.raises(NearplaneError, match=f"more than the {limit} positions .* --length"):
            check_positions(model, limit + 1, "--length")
