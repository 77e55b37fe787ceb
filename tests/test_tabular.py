"""The prior of tables: what its docstrings say of columns, functions, noise and missing cells."""

import importlib

import pytest
import torch
from torch.testing import assert_close

from pyro_arbuf.priors.scm import NUM_ROOTS, draw_scm
from pyro_arbuf.priors.table_columns import (
    LONGEST,
    along_index,
    draw_causes,
    draw_index,
    draw_paths,
    rescale_and_lose,
    unit_scale,
    write_down,
)
from pyro_arbuf.priors.table_functions import draw_relevance, smooth_function, stepped_function
from pyro_arbuf.priors.tabular import tabular

B, T, D = 64, 50, 5
tabular_prior = importlib.import_module("pyro_arbuf.priors.tabular")  # the package's attribute is the function


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@pytest.mark.parametrize("num_columns", [1, 7, 16])
def test_tables_are_finite_but_for_cells_that_are_missing(generator, num_columns):
    x, y = tabular(B, T, generator, num_columns)
    assert x.shape == (B, T, num_columns) and y.shape == (B, T, 1) and x.dtype == y.dtype == torch.float32
    assert y.isfinite().all() and not x.isinf().any()
    assert 0 < x.isnan().flatten(1).any(1).float().mean() < 0.5


def test_number_of_columns_is_drawn_between_1_and_16(generator):
    drawn = [tabular(1, 2, generator)[0].shape[-1] for _ in range(200)]
    assert set(drawn) == set(range(1, 17))


def test_tables_are_drawn_from_the_generator_alone(generator):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = tabular(3, 20, generator)
    assert torch.equal(torch.get_rng_state(), state)
    second = tabular(3, 20, torch.Generator().manual_seed(3))
    for one, two in zip(first, second, strict=True):
        assert torch.equal(one.nan_to_num(7.0), two.nan_to_num(7.0))


def test_outcome_is_about_of_scale_1_and_its_location_says_nothing(generator):
    _, y = tabular(400, T, generator)
    assert 0.7 < y.std(1).log().mean().exp() < 1.4
    assert y.mean(1).std() > 0.3 and y.std(1).log().std() > 0.2


def test_noise_is_from_tiny_to_dominant(generator):
    """Of stepped functions of one column, neighbours differ by the noise where no threshold lies between them."""
    x, y = tabular(200, 300, generator, 1)
    ordered = y.gather(1, x.nan_to_num(0.0).argsort(1))
    difference = ordered.diff(dim=1).abs().median(1).values.squeeze(-1) / y.std(1).squeeze(-1)
    assert difference.min() < 0.03 and difference.max() > 0.7


def noise_alone(monkeypatch, generator, uneven=0.0, heavy=0.0):
    """One column `(100, 4000)` and outcomes of noise alone; all or none of the tables are uneven, or heavy-tailed."""
    for name, share in (("UNEVEN", uneven), ("HEAVY", heavy), ("BENT", 0.0)):
        monkeypatch.setattr(tabular_prior, name, share)
    x = torch.randn(100, 4000, 1, generator=generator)
    return x.squeeze(-1), tabular_prior._with_noise(torch.zeros(100, 4000, 1), x, generator).squeeze(-1)


def kurtosis(values):
    return ((values - values.mean(1, keepdim=True)) / values.std(1, keepdim=True)).pow(4).mean(1)


def test_noise_is_uneven_along_a_column_where_it_is_drawn_so(monkeypatch, generator):
    ratios = {}
    for share in (0.0, 1.0):
        x, y = noise_alone(monkeypatch, generator, uneven=share)
        size = (y - y.median(1, keepdim=True).values).abs()
        above, below = (size.masked_fill(~rows, torch.nan).nanmedian(1).values for rows in (x > 0, x <= 0))
        ratios[share] = (above / below).log().abs()
    assert ratios[0.0].max() < 0.2
    assert 0.3 < (ratios[1.0] > 0.3).float().mean() < 0.6  # the other half is uneven along the function, here constant


def test_noise_is_heavy_tailed_where_it_is_drawn_so(monkeypatch, generator):
    assert (kurtosis(noise_alone(monkeypatch, generator)[1]) - 3).abs().max() < 0.5
    assert kurtosis(noise_alone(monkeypatch, generator, heavy=1.0)[1]).min() > 4.5


def test_columns_are_from_uniform_to_heavy_tailed_and_clustered(generator):
    observed = write_down(draw_causes(300, 1000, 4, generator), generator).observed
    found = kurtosis(observed.permute(0, 2, 1).reshape(1200, 1000))
    assert found.min() < 1.5 and ((found - 1.8).abs() < 0.1).float().mean() > 0.03 and (found > 8).float().mean() > 0.05
    plain = kurtosis(draw_causes(300, 1000, 1, generator).squeeze(-1)) - 3
    assert 0.1 < (plain.abs() > 0.6).float().mean() < 0.35  # of clustered tables, which are 0.3 of all


def test_written_columns_are_monotone_functions_of_what_they_were(generator):
    columns = write_down(draw_causes(B, T, D, generator), generator)
    rank = columns.causes.argsort(1)
    assert (columns.observed.gather(1, rank).diff(dim=1) > -1e-4).all()
    assert (columns.observed[:, :, 0].sort(1).values.diff(dim=1) == 0).float().mean(1).gt(0.7).any()  # discrete ones
    assert_close(unit_scale(columns.observed).square().mean(1).amax(), torch.tensor(1.0), rtol=1e-3, atol=0)


def test_lost_cells_are_the_only_ones_that_change_but_for_the_unit(generator):
    observed = unit_scale(torch.randn(B, T, D, generator=generator))
    table = rescale_and_lose(observed, generator)
    here = ~table.isnan()
    for b in range(B):
        for d in range(D):
            kept = here[b, :, d]
            pair = torch.stack([observed[b, kept, d], table[b, kept, d]])
            assert torch.corrcoef(pair)[0, 1] > 1 - 1e-5


def test_index_has_random_order_and_is_even_in_half_of_the_tables(generator):
    index = draw_index(400, T, generator)
    assert index.abs().max() <= LONGEST * (1 + 1e-6) and index.diff(dim=1).gt(0).float().mean().sub(0.5).abs() < 0.02
    spacing = index.sort(1).values.diff(dim=1)
    even = (spacing.amax(1) - spacing.amin(1) < 1e-5).float().mean()
    assert 0.4 < even < 0.6
    assert draw_index(2, 1, generator).isfinite().all()


def test_paths_are_functions_of_the_index_from_nearly_noise_to_nearly_lines(generator):
    index = draw_index(300, T, generator)
    paths = draw_paths(index, 2, 32, generator)
    assert_close(paths.square().mean(1), torch.ones(300, 2), rtol=1e-3, atol=0)
    ordered = paths.gather(1, index.argsort(1).expand(-1, -1, 2))
    roughness = ordered.diff(dim=1).square().mean(1).flatten()  # 2 of noise, nearly 0 of a line
    assert roughness.min() < 0.01 and roughness.max() > 1.0
    twice = draw_paths(index[:, :1].expand(-1, T, -1) + torch.linspace(0, 1e-6, T)[:, None], 1, 32, generator)
    assert twice.isfinite().all()


def test_columns_along_an_index_are_it_and_what_follows_it(generator):
    causes, index = draw_causes(200, T, D, generator), draw_index(200, T, generator)
    along = along_index(causes, index, generator)
    assert_close(along[..., :1], unit_scale(index))
    own = (along * unit_scale(causes)).mean(1)[:, 1:]  # correlation with what a column was
    assert 0.2 < (own > 0.999).float().mean() < 0.5 and (own.abs() < 0.5).float().mean() > 0.2


def test_neighbours_along_the_index_of_a_series_share_what_columns_do_not_say(generator):
    x, y = tabular(300, 200, generator, 1)
    x, y = x.nan_to_num(0.0), unit_scale(y)
    shared = 1 - 0.5 * y.gather(1, x.argsort(1)).diff(dim=1).square().mean(1).flatten()
    spacing = x.sort(1).values.diff(dim=1)
    series = (spacing.amax(1) < 1.01 * spacing.amin(1)).flatten()  # those of an even index
    assert 0.1 < series.float().mean() < 0.3
    assert shared[series].median() > 0.5


def test_at_least_one_column_is_relevant_and_seldom_all(generator):
    relevant = draw_relevance(2000, D, generator)
    assert relevant.any(1).all() and 0.1 < relevant.all(1).float().mean() < 0.5


@pytest.mark.parametrize("function", [smooth_function, stepped_function])
def test_functions_ignore_irrelevant_columns(function, generator, monkeypatch):
    only = torch.zeros(B, D, dtype=torch.bool)
    only[:, 2] = True
    monkeypatch.setattr("pyro_arbuf.priors.table_functions.draw_relevance", lambda *_: only)
    causes = torch.randn(B, T, D, generator=generator)
    other = torch.randn(B, T, D, generator=generator)
    other[..., 2] = causes[..., 2]
    first, second = (function(x, torch.Generator().manual_seed(5)) for x in (causes, other))
    assert first.std(1).max() > 0.1
    assert_close(first, second)


def test_smooth_function_has_variance_1_over_functions(generator):
    values = smooth_function(torch.randn(1, 20, D, generator=generator).expand(4000, -1, -1), generator)
    without_trend = values[:, 0].std()
    assert 0.9 < without_trend < 1.6


def test_functions_are_finite_where_a_normal_number_is_exactly_0(generator, monkeypatch):
    causes, index = torch.rand(B, T, D, generator=generator), draw_index(B, T, generator)
    monkeypatch.setattr(torch, "randn", lambda *size, generator: torch.zeros(*size))
    assert smooth_function(causes, generator).isfinite().all()
    assert draw_paths(index, 2, 8, generator).isfinite().all()


def test_stepped_function_takes_few_values(generator):
    values = stepped_function(torch.randn(B, 400, 1, generator=generator), generator)
    assert min(len(table.unique()) for table in values) <= 4
    assert max(len(table.unique()) for table in values) <= 1 + 12 * 4


def test_causal_outcome_is_no_column_and_depends_on_some(generator):
    roots = draw_causes(B, 400, NUM_ROOTS, generator)
    columns, outcome = draw_scm(B, 400, 16, roots, generator)
    table = torch.cat([columns, outcome], -1) - torch.cat([columns, outcome], -1).mean(1, keepdim=True)
    correlation = (table.mT @ table / 400)[:, :16, 16].abs()
    assert (correlation.amax(1) > 0.2).float().mean() > 0.7
    assert (correlation > 1 - 1e-4).float().mean() < 0.01
