"""Roles of latents and trials in training batches: every value says whose it is."""

import dataclasses

import pytest
import tiny
import torch
from program_cases import inputs, line, one_vector

from pyro_arbuf.network.batch import Batch
from pyro_arbuf.network.config import ModelConfig
from pyro_arbuf.network.latents import Latent
from pyro_arbuf.programs.program_batches import Bank, ProgramSource, draw_simulations, make_bank
from pyro_arbuf.programs.simulator import Simulations, Simulator

B, K, M, P, LARGEST = 3, 4, 6, 3, 8
LATENTS = (Latent("a"), Latent("b", (2,)))
CONFIG = dataclasses.replace(tiny.CONFIG, dim_x=2, dim_y=2, buffer_size=K, latents=LATENTS, num_context=(0, LARGEST))
STEPS = range(60)


def numbered(num_datasets: int, num_trials: int, num_latents: int = P, first: int = 0) -> Simulations:
    """Latent p of data set b is 1000 b + p; the two features and two outcomes of its trial i tell b and i."""
    rows = 1000.0 * torch.arange(first, first + num_datasets)[:, None]
    latents = rows + torch.arange(1, num_latents + 1)
    trials = (rows + 100 + torch.arange(num_trials))[:, :, None]
    return Simulations(latents, trials * torch.tensor([1.0, 2.0]), trials * torch.tensor([3.0, 5.0]))


SOURCE = Bank(numbered(50, LARGEST + K + M), numbered(9, LARGEST + K + M, first=50))


def program_source(source: Bank | Simulator = SOURCE, config: ModelConfig = CONFIG, **settings: float) -> ProgramSource:
    return ProgramSource(source, config, B, M, **{"seed": 1} | settings)


def draw(
    step: int, config: ModelConfig = CONFIG, source: Bank | Simulator = SOURCE, process: int = 0, **settings: float
) -> Batch:
    return program_source(source, config, **settings).batch(step, process)


def num_given(batch: Batch) -> int:
    """Latents in the context."""
    return int((batch.x_context[0, :, -1] > 0).sum())


def num_fresh(batch: Batch) -> int:
    """Targets that are not the buffer's pairs, which come last."""
    slots = batch.x_buffer.shape[1]
    assert torch.equal(batch.x_target[:, batch.x_target.shape[1] - slots :], batch.x_buffer)
    assert torch.equal(batch.y_target[:, batch.y_target.shape[1] - slots :], batch.y_buffer)
    return batch.x_target.shape[1] - slots


def everything(batch: Batch) -> torch.Tensor:
    """Decoded pairs of context, buffer and fresh targets, each of which has one role."""
    fresh = num_fresh(batch)
    x = torch.cat([batch.x_context, batch.x_buffer, batch.x_target[:, :fresh]], 1)
    return decode(x, torch.cat([batch.y_context, batch.y_buffer, batch.y_target[:, :fresh]], 1))


def kind(batch: Batch) -> str:
    if num_fresh(batch) == 0:
        return "posterior"
    return "likelihood" if len(batch.x_context) == 4 * B else "data"


BATCHES = [draw(step) for step in STEPS]
KINDS = {name: [batch for batch in BATCHES if kind(batch) == name] for name in ("posterior", "likelihood", "data")}
EACH_KIND = pytest.mark.parametrize("name", KINDS)


def decode(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Data set and number, `(B, T, 2)`: p = 1..P for a latent, 100 + i for a trial; checks that a pair is whole."""
    at_latent = x[..., -1] > 0
    owner = torch.where(at_latent, y[..., 0], x[..., 0])
    trial_whole = (y == owner[..., None] * torch.tensor([3.0, 5.0])).all(-1) & (x[..., 1] == 2 * owner)
    latent_whole = (x[..., :-1] == 0).all(-1) & (y[..., 1] == 0) & (x[..., -1] == owner % 1000)
    assert torch.where(at_latent, latent_whole, trial_whole & (x[..., -1] == 0)).all()
    return torch.stack([owner // 1000, owner % 1000], -1)


def test_all_kinds_of_batches_occur() -> None:
    shares = {name: len(batches) / len(BATCHES) for name, batches in KINDS.items()}
    assert abs(shares["posterior"] - 0.5) < 0.2 and abs(shares["likelihood"] - 0.2) < 0.15 and shares["data"] > 0.1


@pytest.mark.parametrize(("share", "expected"), [(0.0, {"likelihood", "data"}), (1.0, {"posterior"})])
def test_share_of_the_posterior_can_be_chosen(share: float, expected: set[str]) -> None:
    assert {kind(draw(step, posterior_share=share)) for step in STEPS} == expected


@EACH_KIND
def test_every_pair_is_whole_of_one_data_set_and_in_one_role(name: str) -> None:
    for batch in KINDS[name]:
        pairs = everything(batch)
        assert (pairs[..., 0] == pairs[:, :1, 0]).all()
        for numbers in pairs[..., 1]:
            assert len(numbers.unique()) == len(numbers)
            assert sorted(n for n in numbers.tolist() if n < 100) == [1, 2, 3]


def test_posterior_chain_is_the_latents_that_are_not_given() -> None:
    given = []
    for batch in KINDS["posterior"]:
        latents = decode(batch.x_context, batch.y_context)[..., 1] < 100
        given.append(int(latents[0].sum()))
        assert (latents.sum(1) == given[-1]).all() and not latents[:, given[-1] :].any()
        assert (decode(batch.x_buffer, batch.y_buffer)[..., 1] < 100).all()
        assert torch.equal(batch.x_target, batch.x_buffer) and torch.equal(batch.y_target, batch.y_buffer)
        assert batch.prefix_len.tolist() == list(range(P - given[-1]))
    assert set(given) == {0, 1, 2}


def test_latents_come_in_every_order() -> None:
    orders = {tuple(row.tolist()) for batch in KINDS["posterior"] for row in batch.x_buffer[..., -1] if len(row) == P}
    assert len(orders) == 6


def test_number_of_observations_varies_from_none_to_the_largest() -> None:
    counts = [
        int((batch.x_context[0, :, -1] == 0).sum())
        for batch in (draw(step) for step in range(300))
        if kind(batch) == "posterior"
    ]
    assert min(counts) == 0 and max(counts) == LARGEST


def test_likelihood_is_trained_with_all_latents_given_and_no_buffer() -> None:
    for batch in KINDS["likelihood"]:
        assert batch.x_context.shape == (4 * B, P, 3) and batch.x_buffer.shape[1] == 0
        assert (batch.x_context[..., -1] > 0).all() and (batch.x_target[..., -1] == 0).all()
        assert batch.prefix_len.tolist() == [0] * (K + M)


def test_data_are_trained_with_trials_as_buffer_and_free_latents_as_targets() -> None:
    given = set()
    for batch in KINDS["data"]:
        assert batch.x_buffer.shape[1] == K and (batch.x_buffer[..., -1] == 0).all()
        given.add(num_given(batch))
        free, fresh = P - num_given(batch), num_fresh(batch)  # the last K targets are the buffer's pairs
        assert fresh == M + free and ((batch.x_target[:, :fresh, -1] > 0).sum(1) == free).all()
        assert batch.prefix_len[-K:].tolist() == list(range(K))  # a slot does not read its own pair
        assert (batch.prefix_len[: fresh // 2] == 0).all() and (batch.prefix_len[fresh // 2 : -K] > 0).all()
    assert 0 in given and len(given) > 1 and max(given) < P


def test_free_latents_are_predicted_with_and_without_a_buffer() -> None:
    prefixes = torch.cat([b.prefix_len[:-K][b.x_target[0, :-K, -1] > 0] for b in KINDS["data"]])
    assert 0.3 < (prefixes == 0).double().mean() < 0.7


def test_only_latent_is_never_given_in_part() -> None:
    config = dataclasses.replace(CONFIG, latents=LATENTS[:1])
    source = Bank(numbered(50, LARGEST + K + M, 1), numbered(9, LARGEST + K + M, 1))
    for step in STEPS:
        batch = draw(step, config, source)
        assert num_given(batch) == (1 if kind(batch) == "likelihood" else 0)


@pytest.mark.parametrize("source", [SOURCE, Simulator(line, inputs)], ids=["bank", "program"])
def test_batch_is_a_pure_function_of_seed_step_and_process(source) -> None:
    config = CONFIG if source is SOURCE else dataclasses.replace(CONFIG, dim_x=1, dim_y=None, latents=source.latents)
    for step in range(8):
        torch.manual_seed(step)
        state = torch.get_rng_state()
        first = draw(step, config, source)
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(100)
        second = draw(step, config, source)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("change", [{"seed": 2}, {"step": 4}, {"process": 1}])
def test_batch_differs_between_seeds_steps_and_processes(change: dict[str, int]) -> None:
    simulator = Simulator(line, inputs)
    config = dataclasses.replace(CONFIG, dim_x=1, dim_y=None, latents=simulator.latents)
    first, second = (draw(**{"step": 3, "config": config, "source": simulator} | c) for c in ({}, change))
    values = [torch.cat([batch.y_context, batch.y_target], 1).flatten() for batch in (first, second)]
    assert not set(values[0].tolist()) & set(values[1].tolist()) - {0.0}


def test_processes_share_kind_and_sizes() -> None:
    for step in range(20):
        shapes = {tuple(part.shape for part in draw(step, process=process)) for process in range(3)}
        assert len(shapes) == 1


# One observation per data set

ONE = dataclasses.replace(CONFIG, num_context=(0, 1))
ONE_SOURCE = Bank(numbered(50, 1), numbered(9, 1, first=50))


def test_single_observation_is_context_or_target() -> None:
    seen = set()
    for step in STEPS:
        batch = draw(step, ONE, ONE_SOURCE)
        pairs = everything(batch)[..., 1]
        assert (pairs.unique(dim=0).sort(-1).values <= 100).all()
        latents = num_given(batch)
        observed = batch.x_context.shape[1] - latents
        if kind(batch) == "posterior":
            assert batch.prefix_len.tolist() == list(range(P - latents))
        else:
            assert (batch.prefix_len == 0).all() and observed == 0 and batch.x_target.shape[1] == 1 + P - latents
        seen.add((kind(batch), observed, latents == P))
    assert {("posterior", 1, False), ("likelihood", 0, True), ("data", 0, False)} <= seen


# Banks


def test_bank_gives_its_own_simulations_with_random_trials_in_any_order() -> None:
    torch.manual_seed(0)
    latents, x, y = draw_simulations(SOURCE, 400, 5)
    rows = latents[:, 0] // 1000
    assert len(rows.unique()) == 50 and rows.max() < 50
    assert (x[..., 0] // 1000 == rows[:, None]).all() and torch.equal(y[..., 0], 3 * x[..., 0])
    trials = x[..., 0] % 1000 - 100
    assert len(trials.unique()) == LARGEST + K + M and all(len(row.unique()) == 5 for row in trials)
    assert len({tuple(row.tolist()) for row in trials}) > 390


def test_training_batches_of_a_bank_hold_nothing_that_is_held_out() -> None:
    assert max(everything(batch)[..., 0].max() for batch in BATCHES) < 50


def test_bank_is_simulated_from_its_seed_and_split() -> None:
    simulator = Simulator(line, inputs)
    state = torch.get_rng_state()
    bank, again, other = (make_bank(simulator, 150, 4, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert [t.shape for t in bank.drawn] == [(147, 2), (147, 4, 1), (147, 4, 1)]
    assert [len(t) for t in bank.held_out] == [3, 3, 3]
    assert not set(bank.drawn.y.flatten().tolist()) & set(bank.held_out.y.flatten().tolist())
    assert torch.equal(bank.drawn.y, again.drawn.y) and not torch.isin(other.drawn.y, bank.drawn.y).any()


def test_small_bank_holds_one_out_and_a_large_one_a_thousand() -> None:
    simulator = Simulator(one_vector)
    assert len(make_bank(simulator, 2, 1, 0).held_out.y) == 1
    assert len(make_bank(simulator, 60_000, 1, 0).held_out.y) == 1000


@pytest.mark.parametrize("number", [1, 0, -3])
def test_bank_of_fewer_than_two_is_an_error(number: int) -> None:
    with pytest.raises(ValueError, match=f"num_simulations must be at least 2, one of them held out; got {number}"):
        make_bank(Simulator(one_vector), number, 1, 0)


# Validation


def test_validation_asks_for_posterior_likelihood_and_data_at_several_sizes() -> None:
    batches = program_source().validation()
    sizes = [(num_given(b), int((b.x_context[0, :, -1] == 0).sum())) for b in batches]
    assert sizes == [(0, 2), (0, 8), (P, 0), (0, 0), (0, 2), (0, 4)]
    for index, batch in enumerate(batches):
        assert num_fresh(batch) == 0 and batch.prefix_len.tolist() == list(range(batch.x_buffer.shape[1]))
        assert all(len(row.unique()) == len(row) for row in everything(batch)[..., 1])
        assert ((batch.x_buffer[..., -1] > 0) == (index < 2)).all()
        assert batch.x_buffer.shape[1] == (P if index < 2 else K) and len(batch.x_buffer) == 128


def test_validation_of_a_bank_uses_what_is_held_out() -> None:
    for batch in program_source().validation():
        assert (everything(batch)[..., 0] >= 50).all()


def test_validation_is_fixed_and_uses_no_global_randomness() -> None:
    simulator = Simulator(line, inputs)
    config = dataclasses.replace(CONFIG, dim_x=1, dim_y=None, latents=simulator.latents)
    state = torch.get_rng_state()
    first = program_source(simulator, config).validation()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(100)
    second = program_source(simulator, config).validation()
    assert all(torch.equal(a, b) for one, two in zip(first, second, strict=True) for a, b in zip(one, two, strict=True))


def test_validation_of_few_trials_repeats_no_pair() -> None:
    config = dataclasses.replace(CONFIG, num_context=(0, K - 1))
    for batch in program_source(config=config).validation():
        assert all(len(row.unique()) == len(row) for row in everything(batch)[..., 1])
        assert batch.x_buffer.shape[1] in (P, K)


def test_validation_of_one_observation_asks_posterior_likelihood_and_prior() -> None:
    batches = program_source(ONE_SOURCE, ONE).validation()
    assert [(b.x_context.shape[1], b.x_buffer.shape[1]) for b in batches] == [(1, P), (P, 1), (0, 1)]


def test_validation_of_the_posterior_alone_is_of_all_that_is_held_out() -> None:
    (batch,) = program_source(ONE_SOURCE, ONE, posterior_alone=True).validation()
    assert (batch.x_context.shape[1], batch.x_buffer.shape[1]) == (1, P)
    assert len(batch.x_buffer) == len(ONE_SOURCE.held_out.latents)


# Settings


@pytest.mark.parametrize("name", ["batch_size", "num_targets"])
def test_sizes_must_be_positive(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be positive; got 0"):
        dataclasses.replace(program_source(), **{name: 0})


def test_settings_tell_a_bank_from_new_simulations() -> None:
    assert program_source().settings["num_simulations"] == 59
    assert program_source(Simulator(line, inputs)).settings["num_simulations"] is None


def test_latents_are_mostly_in_their_own_order_where_the_configuration_says_so():
    config = dataclasses.replace(CONFIG, ordered_latents=True)
    chains = {True: [], False: []}
    for ordered in chains:
        for step in range(120):
            batch = draw(step, dataclasses.replace(config, ordered_latents=ordered), posterior_share=1.0)
            chains[ordered] += [(row.diff() > 0).all().item() for row in batch.x_target[..., -1] if len(row) == P]
    assert sum(chains[True]) / len(chains[True]) == pytest.approx(0.75 + 0.25 / 6, abs=0.08)
    assert sum(chains[False]) / len(chains[False]) == pytest.approx(1 / 6, abs=0.08)
    validated = program_source(config=config).validation()[0]
    assert bool((validated.x_target[..., -1].diff() > 0).all())
