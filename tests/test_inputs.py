"""Inputs of programs as users have them: functions that return tensors, arrays and tables, and the rows of a design."""

import numpy as np
import pandas as pd
import pytest
import torch
from program_cases import inputs, line
from series_programs import one_event

import pyro_arbuf
from pyro_arbuf import Simulator

ROWS = np.linspace(0.0, 3.0, 7)


@pytest.mark.parametrize(
    "function",
    [
        lambda n: torch.rand(n),
        lambda n: torch.randint(5, (n, 1)),
        lambda n: np.random.rand(n, 1),
        lambda n: np.random.rand(n).astype(np.float16),
        lambda n: pd.DataFrame({"intensity": np.random.rand(n)}),
        lambda n: pd.Series(np.random.randint(5, size=n), dtype="Int64"),
    ],
)
def test_functions_may_return_vectors_whole_numbers_arrays_and_tables(function):
    simulator = Simulator(line, function)
    torch.manual_seed(0), np.random.seed(0)
    drawn = simulator.draw(4, 5).x
    torch.manual_seed(0), np.random.seed(0)
    expected = np.stack([np.asarray(function(5), dtype=np.float32).reshape(5, 1) for _ in range(4)])
    assert drawn.dtype == torch.float32 and len(drawn.unique()) > 1
    assert (drawn.numpy() == expected).all()


@pytest.mark.parametrize(
    "design",
    [ROWS, torch.from_numpy(ROWS).float()[:, None], pd.DataFrame({"intensity": ROWS}), pd.Series(ROWS)],
)
def test_rows_of_a_design_are_drawn_with_replacement(design):
    simulator = Simulator(line, design)
    assert simulator.dim_x == 1
    drawn = simulator.draw(2_000, 9).x
    rows, counts = drawn.unique(return_counts=True)
    assert torch.allclose(rows, torch.from_numpy(ROWS).float())
    expected = drawn.numel() / len(rows)
    assert ((counts - expected).abs() < 5 * expected**0.5).all()
    assert any(len(each.unique()) < 9 for each in drawn)


def test_a_design_that_is_changed_later_on_does_not_change_the_simulator():
    design = torch.arange(5.0)[:, None]
    simulator = Simulator(line, design)
    design.fill_(99.0)
    assert simulator.draw(10, 3).x.max() <= 4


def test_inputs_in_blocks_stand_in_an_order():
    levels = Simulator(line, lambda n: torch.randint(0, 3, (n, 1)).float().sort(0).values)
    mixed = Simulator(line, lambda n: torch.randint(0, 3, (n, 1)).float())
    assert levels.has_ordered_inputs and not mixed.has_ordered_inputs


def test_columns_of_a_design_stay_together():
    design = pd.DataFrame({"level": [0, 1, 2], "intensity": [0.0, 0.1, 0.2]})
    drawn = Simulator(line, design).draw(50, 4).x
    assert drawn.shape == (50, 4, 2) and torch.allclose(drawn[..., 0], 10 * drawn[..., 1])


def test_network_of_a_design_takes_its_table():
    design = pd.DataFrame({"intensity": ROWS})
    net = pyro_arbuf.amortize(line, inputs=design, steps=2, report=False, num_context=(0, 8))
    assert net.condition(design, np.zeros(7)).num_context == 7
    again = pyro_arbuf.amortize(line, inputs=design.to_numpy(), steps=2, report=False, num_context=(0, 8))
    pairs = zip(net.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda n: torch.zeros(5, 1), r"inputs\(num_trials\) must be .* for 7 trials; got torch.float32 \(5, 1\)"),
        (lambda n: torch.zeros(n, 1, 1), r"inputs\(num_trials\) must be .* got torch.float32 \(7, 1, 1\)"),
        (lambda n: [0.0] * n, "for 7 trials; got list"),
        (lambda: torch.zeros(7, 1), r"inputs must be a function of the number of trials alone, .*; got one of \(\)"),
        (lambda n: torch.full((n, 1), torch.nan), r"inputs\(num_trials\) must be finite; got NaN"),
        ([[0.0], [1.0]], "inputs must be a tensor, an array or a table .* the rows of a design; got list"),
        (torch.zeros(0, 1), r"inputs must be .* got torch.float32 \(0, 1\)"),
        (np.array([0.0, np.nan]), "inputs must be finite; got NaN"),
        (pd.DataFrame({"arm": ["left", "right"]}), "column 'arm' of inputs must hold numbers"),
        (pd.DataFrame({"day": pd.date_range("2026-01-01", periods=3)}), "inputs must hold numbers, .* got dates"),
        (pd.DataFrame({"d": pd.to_timedelta([1, 2], unit="h")}), r"got dates or durations; .* \(t - t\[0\]\)"),
    ],
)
def test_other_inputs_are_explained(wrong, message):
    for call in (Simulator, pyro_arbuf.amortize):
        with pytest.raises(ValueError, match=message):
            call(line, wrong)


def test_mistakes_within_a_function_are_its_own():
    with pytest.raises(TypeError, match=r"must be|unsupported"):
        Simulator(line, lambda n: torch.rand(n, 1) + "a")


def test_series_have_no_random_rows():
    with pytest.raises(ValueError, match="inputs of a series must be a function of the number of trials"):
        Simulator(one_event, ROWS)


def test_function_of_floating_tensors_is_called_as_it_is():
    assert Simulator(line, inputs).inputs is inputs
