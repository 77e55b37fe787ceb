"""What training on tables draws: sizes, standardisation by the context, splits along a column."""

import dataclasses
from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor
from torch.testing import assert_close

from pyro_arbuf.network.preprocessing import table_statistics
from pyro_arbuf.priors.tabular import tabular
from pyro_arbuf.training.loop import fit, make_optimizers
from pyro_arbuf.training.sources import check_finite
from pyro_arbuf.training.tables import FARTHEST, TableSource, along_column, draw_num_rows, standardised

B, K, M, MAX_D = 3, 4, 5, 6
CONFIG = dataclasses.replace(
    tiny.CONFIG, inputs="rows", dim_x=MAX_D, column_width=8, scaled_queries=True, num_context=(8, 40)
)


@pytest.fixture
def source() -> TableSource:
    return TableSource(tabular, CONFIG, B, M)


def test_numbers_of_rows_are_log_uniform_or_0_or_1():
    generator = torch.Generator().manual_seed(0)
    drawn = torch.tensor([draw_num_rows((8, 512), generator) for _ in range(4000)]).double()
    few = drawn < 8
    assert set(drawn[few].tolist()) == {0, 1} and abs(few.double().mean() - 0.05) < 0.015
    assert drawn.max() <= 512 and drawn[~few].min() == 8
    assert abs(drawn[~few].log2().mean() - 6) < 0.15  # halfway between 2^3 and 2^9
    assert draw_num_rows((8, 8), generator) in (0, 1, 8)


def test_columns_range_from_1_to_the_largest_number(source):
    assert {source.batch(step).x_context.shape[-1] for step in range(60)} == set(range(1, MAX_D + 1))


def test_batches_are_standardised_by_their_contexts(source):
    for step in range(12):
        batch = source.batch(step)
        assert batch.x_context.nan_to_num(0.0).abs().max() <= 8 if batch.x_context.shape[1] else True
        if batch.x_context.shape[1] < 2:
            continue
        assert_close(batch.y_context.mean(1), torch.zeros(B, 1), rtol=0, atol=1e-4)
        assert_close(batch.y_context.square().mean(1), torch.ones(B, 1), rtol=0, atol=1e-3)
        assert batch.y_target.abs().max() <= FARTHEST


def test_targets_do_not_enter_the_standardisation():
    generator = torch.Generator().manual_seed(0)
    context = torch.randn(B, 9, 2), torch.randn(B, 9, 1)
    one, other = (torch.randn(B, M, 2), torch.randn(B, M, 1)), (3 * torch.randn(B, M, 2), torch.randn(B, M, 1))
    first, second = (standardised([context, part], generator) for part in (one, other))
    assert all(torch.equal(a, b) for a, b in zip(first[0], second[0], strict=True))
    assert_close(second[1][1], table_statistics(*context).map_y(other[1]))


def test_table_with_an_outcome_far_beyond_its_context_is_replaced():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(B, 9, 2), torch.randn(B, 9, 1)
    target = torch.randn(B, M, 1)
    target[1, 2] = 1e4
    (x_context, y_context), (x_target, y_target) = standardised([(x, y), (x[:, :M], target)], generator)
    assert y_target.abs().max() < FARTHEST
    whole = torch.cat([x_context[..., 0], y_context[..., 0], x_target[..., 0], y_target[..., 0]], 1)
    assert any(torch.equal(whole[1], whole[b]) for b in (0, 2)) and not torch.equal(whole[0], whole[2])


def test_split_along_a_column_has_its_targets_beyond_the_context():
    generator = torch.Generator().manual_seed(0)
    x, y, n = torch.randn(40, 30, 4), torch.arange(30.0).view(1, 30, 1).expand(40, -1, -1), 20
    new_x, new_y = along_column(x, y, n, generator)
    rows = new_y[..., 0].long()
    assert_close(new_x, x.gather(1, rows.unsqueeze(-1).expand(-1, -1, 4)))
    assert all(sorted(each.tolist()) == list(range(30)) for each in rows)
    beyond = new_x[:, :n].amax(1) <= new_x[:, n:].amin(1)
    column = beyond.float().argmax(1)
    assert (beyond.sum(1) == 1).all() and set(column.tolist()) == {0, 1, 2, 3} and (column == 0).sum() > 25
    ordered = new_x[:, n:].diff(dim=1) > 0
    assert not ordered.all(1).any()


def test_prior_of_wrong_shapes_is_an_error(source):
    def wrong(*sizes: object) -> tuple[Tensor, Tensor]:
        x, y = tabular(*sizes)  # pyright: ignore[reportArgumentType]
        return x, y.squeeze(-1)

    with pytest.raises(ValueError, match=r"must return x and y of shapes .* mend it, or dim_y"):
        dataclasses.replace(source, prior=wrong).batch(0)
    with pytest.raises(ValueError, match="batch_size must be positive"):
        TableSource(tabular, CONFIG, 0)


def test_only_inputs_of_tables_may_be_missing(source):
    batch = source.batch(1)
    batch = batch._replace(x_context=batch.x_context.nan_to_num(0.0), x_buffer=batch.x_buffer.nan_to_num(0.0))
    missing = torch.full_like(batch.x_target, torch.nan)
    with pytest.raises(ValueError, match="x_target holds NaN"):
        check_finite(batch._replace(x_target=missing), "the batch")
    check_finite(batch._replace(x_target=missing), "the batch", missing_x=True)
    for changed in (
        batch._replace(x_target=missing.nan_to_num(torch.inf)),
        batch._replace(y_target=batch.y_target / 0),
    ):
        with pytest.raises(ValueError, match="holds NaN or infinite"):
            check_finite(changed, "the batch", missing_x=True)


def test_matrices_of_all_blocks_are_muon_s(tmp_path: Path):
    net = tiny.tiny_model(**{name: getattr(CONFIG, name) for name in ("inputs", "dim_x", "column_width")})
    muon = {id(p) for group in make_optimizers(net)[0].param_groups for p in group["params"]}
    names = {name for name, p in net.named_parameters() if id(p) in muon}
    assert "embedder.rows.gather.key.weight" in names and "embedder.rows.blocks.1.up.weight" in names
    assert "backbone.blocks.0.out.weight" in names and "embedder.rows.rank" not in names
    only = tiny.tiny_model()
    assert make_optimizers(only)[0].param_groups[0]["params"] == [p for p in only.backbone.parameters() if p.dim() == 2]


def test_training_on_tables_raises_the_density_of_other_tables(source, tmp_path: Path):
    source = dataclasses.replace(source, config=dataclasses.replace(CONFIG, num_context=(8, 12)), batch_size=4)
    object.__setattr__(source, "validation", lambda: [source.batch(1000)])  # six sets of 64 tables take seconds
    net = tiny.tiny_model(**{name: getattr(source.config, name) for name in ("inputs", "dim_x", "column_width")})
    state = fit(net, source, tmp_path / "state.safetensors", steps=30, validate_every=10)
    scores = [entry["validation"] for entry in state.history]
    assert state.step == 30 and max(scores) > scores[0]
