"""Seeds of our own are given back: also those that wait for a GPU that is not used yet."""

import pytest
import torch

from pyro_arbuf.random_state import checked_seed, restored_random_state, seeded


def test_draws_after_a_seed_of_ours_are_those_without_it() -> None:
    torch.manual_seed(3)
    with seeded(5):
        inside = torch.rand(3)
    after = torch.rand(3)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(3), after)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), inside)


@pytest.mark.skipif(torch.cuda.is_initialized(), reason="the seed of a GPU in use is in its state")
@pytest.mark.parametrize("used_inside", [False, True])
def test_a_gpu_that_is_used_first_later_on_has_the_users_seed(
    used_inside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", waiting.append)
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", lambda states: None)
    torch.manual_seed(3)
    with seeded(5), seeded(7):
        if used_inside:
            monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
            monkeypatch.setattr(torch.cuda, "get_rng_state_all", list)
    assert waiting[0] == 3 and waiting[-1] == 3 and 7 in waiting


@pytest.mark.skipif(torch.cuda.is_initialized(), reason="the seed of a GPU in use is in its state")
def test_states_that_are_given_back_leave_a_seed_of_a_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", waiting.append)
    with restored_random_state(), seeded(None):
        torch.rand(3)
    assert waiting == []


@pytest.mark.parametrize("seed", [-1, 2**32, 0.5, True, "1"])
def test_wrong_seeds_are_explained(seed: object) -> None:
    with pytest.raises(ValueError, match="seed must be an integer in 0"):
        checked_seed(seed)
