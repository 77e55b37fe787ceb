"""Densities of shipped networks stay what they were, to 1e-6, whatever happens to the code."""

import json
import warnings

import kept_numbers
import pytest

KEPT = json.loads(kept_numbers.FILE.read_text())


def test_every_shipped_network_is_kept() -> None:
    assert set(KEPT) == {*kept_numbers.FUNCTIONS, *kept_numbers.PROGRAMS}


def test_densities_in_float64_are_those_of_before() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # ranges
        found = kept_numbers.numbers()
    for name, kept in KEPT.items():
        weights, kept = kept["weights"], {key: value for key, value in kept.items() if key != "weights"}
        assert weights == kept_numbers.weights_hash(name), "new weights: run python tests/kept_numbers.py"
        assert found[name] == pytest.approx(kept, abs=1e-6, rel=0), name
