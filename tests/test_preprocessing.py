"""Standardisation of tables by their contexts: invariance, ranges, missing cells, padding, gradients."""

import pytest
import torch
from scipy.stats import yeojohnson, yeojohnson_llf
from torch.testing import assert_close

from pyro_arbuf.network.preprocessing import (
    POWER_SD,
    POWERS,
    inverse_yeo_johnson,
    table_statistics,
    yeo_johnson,
)

B, N, D, D_Y, M = 3, 40, 5, 2, 7
EXACT = {"rtol": 1e-9, "atol": 1e-9}


@pytest.fixture
def table() -> tuple[torch.Tensor, torch.Tensor]:
    """Skewed, heavy-tailed, discrete, normal columns, with missing cells, and outcomes."""
    torch.manual_seed(2)
    x = torch.randn(B, N, D, dtype=torch.float64)
    x[..., 0], x[..., 1], x[..., 2] = x[..., 0].exp(), x[..., 1] ** 3, (x[..., 2] > 0).double()
    x[torch.rand(B, N, D) < 0.2] = torch.nan
    return x, 3 + 2 * torch.randn(B, N, D_Y, dtype=torch.float64)


@pytest.mark.parametrize("power", [-1.0, 0.0, 1e-6, 0.5, 1.0, 1.7, 2.0, 3.0])
def test_yeo_johnson_is_scipy_s_and_its_derivative_is_positive(power):
    x = torch.linspace(-5, 5, 41, dtype=torch.float64).requires_grad_()
    mapped = yeo_johnson(x, torch.tensor(power, dtype=torch.float64))
    assert_close(mapped.detach(), torch.from_numpy(yeojohnson(x.detach().numpy(), power)), rtol=1e-5, atol=1e-6)
    (slope,) = torch.autograd.grad(mapped.sum(), x)
    assert (slope > 0).all() and slope[20] == 1


@pytest.mark.parametrize("power", [-0.95, 0.0, 1e-6, 0.5, 1.0, 2.0, 2.95])
def test_inverse_gives_back_the_number_and_keeps_what_is_missing(power):
    x = torch.linspace(-4, 4, 33, dtype=torch.float64)
    power = torch.tensor(power, dtype=torch.float64)
    assert_close(inverse_yeo_johnson(yeo_johnson(x, power), power), x, rtol=1e-9, atol=1e-9)
    assert inverse_yeo_johnson(torch.tensor(torch.nan), torch.tensor(1.5)).isnan()


def test_power_is_the_most_likely_one(table):
    x = table[0].nan_to_num(0.3)
    statistics = table_statistics(x, table[1])
    z = (x - statistics.x_loc) / statistics.x_scale
    grid = torch.linspace(*POWERS, 81)
    for b in range(B):
        for d in (0, 1, 3, 4):
            score = [yeojohnson_llf(p, z[b, :, d].numpy()) - 0.5 * ((p - 1) / POWER_SD) ** 2 for p in grid.tolist()]
            assert abs(grid[int(torch.tensor(score).argmax())] - statistics.power[b, 0, d]) < 0.06


def test_affine_changes_of_columns_and_outcomes_change_nothing_that_is_standardised(table):
    x, y = table
    factor = torch.tensor([1e-3, 1.0, 40.0, 7.0, 1e5], dtype=torch.float64)
    other_x, other_y = 5 * factor + factor * x, -100 + 0.01 * y
    one, other = table_statistics(x, y), table_statistics(other_x, other_y)
    assert_close(other.map_x(other_x), one.map_x(x), equal_nan=True, **EXACT)
    assert_close(other.map_y(other_y), one.map_y(y), **EXACT)
    assert_close(other.y_scale, 0.01 * one.y_scale, **EXACT)


def test_standardised_columns_have_mean_0_and_sd_1_and_those_of_others_stay_within_8(table):
    x, y = table
    statistics = table_statistics(x, y)
    z, v = statistics.map_x(x), statistics.map_y(y)
    assert z.nanmean(1).abs().max() < 0.15 and (z.square().nanmean(1) - 1).abs().max() < 0.3  # some are clipped
    assert_close(v.mean(1), torch.zeros(B, D_Y).double(), **EXACT)
    assert_close(v.square().mean(1), torch.ones(B, D_Y).double(), **EXACT)
    far = 1e9 * torch.randn(B, M, D, dtype=torch.float64)
    assert (statistics.map_x(far).abs() <= 8).all()


def test_mapping_is_increasing(table):
    statistics = table_statistics(*table)
    rising = torch.linspace(-3, 6, 200, dtype=torch.float64)[None, :, None].expand(B, -1, D)
    assert (statistics.map_x(rising).diff(dim=1) >= 0).all()


def test_far_inputs_stay_apart_on_a_logarithmic_scale_and_come_back():
    x = torch.linspace(-1, 1, 41, dtype=torch.float64)[None, :, None]
    statistics = table_statistics(x, x)
    scale = statistics.x_scale * statistics.z_scale
    far = torch.linspace(-55, 55, 111, dtype=torch.float64)[None, :, None] * scale
    z = statistics.map_x(far)
    assert (z.diff(dim=1) > 0).all() and z.abs().max() < 8
    assert_close(statistics.restore_x(z), far, rtol=1e-6, atol=1e-9)
    straight = ((far / scale).abs() <= 4).squeeze()
    assert_close(z[:, straight], (far / scale)[:, straight], rtol=0, atol=0.05)  # its power is nearly 1


def test_outcomes_are_restored(table):
    statistics = table_statistics(*table)
    assert_close(statistics.restore_y(statistics.map_y(table[1])), table[1], **EXACT)


def test_missing_cells_stay_missing_and_count_for_nothing(table):
    x, y = table
    statistics = table_statistics(x, y)
    assert torch.equal(statistics.map_x(x).isnan(), x.isnan())
    for b in range(B):
        for d in range(D):
            cells = x[b, ~x[b, :, d].isnan(), d]
            alone = table_statistics(cells[None, :, None], cells[None, :, None])
            for got, expected in zip(statistics[:5], alone[:5], strict=True):
                assert_close(got[b, 0, d], expected[0, 0, 0], **EXACT)


def test_padding_counts_for_nothing(table):
    x, y = table
    length = torch.tensor([0, 1, 17])
    padded = table_statistics(x, y, length)
    for b, n in enumerate(length.tolist()):
        alone = table_statistics(x[b : b + 1, :n], y[b : b + 1, :n])
        for got, expected in zip(padded, alone, strict=True):
            assert_close(got[b : b + 1], expected, **EXACT)


@pytest.mark.parametrize("num_rows", [0, 1])
def test_outcomes_of_fewer_than_two_rows_are_left_as_they_are(table, num_rows):
    statistics = table_statistics(table[0][:, :num_rows], table[1][:, :num_rows])
    assert torch.equal(statistics.map_y(table[1]), table[1])
    assert all(part.isfinite().all() for part in statistics)


def test_constant_and_all_missing_columns_are_0_and_missing():
    x = torch.full((1, N, 2), 0.1, dtype=torch.float64)
    x[..., 1] = torch.nan
    statistics = table_statistics(x, torch.full((1, N, 1), 0.1, dtype=torch.float64))
    z = statistics.map_x(x)
    assert z[..., 0].abs().max() < 1e-12 and z[..., 1].isnan().all()
    other = statistics.map_x(x + 0.5)[..., 0]
    assert_close(other, torch.full_like(other, 0.5), **EXACT)
    assert torch.equal(statistics.map_y(x[..., :1]), x[..., :1])


def test_statistics_and_maps_have_the_derivatives_of_their_values(table):
    x, y = table[0][:, :9, :3], table[1][:, :9]
    x = torch.where(x.isnan(), torch.randn_like(x), x)
    x = x[..., [0, 1]].requires_grad_()
    y = y.clone().requires_grad_()
    new = torch.randn(B, M, 2, dtype=torch.float64).requires_grad_()

    def mapped(x: torch.Tensor, y: torch.Tensor, new: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        statistics = table_statistics(x, y)
        return statistics.map_x(new), statistics.map_y(y)

    assert torch.autograd.gradcheck(mapped, (x, y, new), fast_mode=True)


def test_gradients_of_missing_cells_are_0_and_all_others_finite(table):
    x = table[0].clone().requires_grad_()
    statistics = table_statistics(x, table[1])
    statistics.map_x(x).nan_to_num(0.0).square().sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()
    assert (x.grad[table[0].isnan()] == 0).all()
