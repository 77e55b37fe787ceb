"""Training of a program begins at the weights of a shipped network, in the layers that fit."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from program_cases import inputs, line

import pyro_arbuf
from pyro_arbuf import amortize
from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.network.config import ModelConfig
from pyro_arbuf.programs.warm_start import AUTO, OF_INPUTS, copy_weights, start_of

SETS, ONE, SERIES, CHOICES = (
    pyro_arbuf.load(name).config for name in ("gaussian", "gaussian-linear", "ar1", "rescorla-wagner")
)


@pytest.fixture(autouse=True)
def _fresh_accelerator():
    """accelerate keeps one state per process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (SETS, "ddm"),
        (ONE, None),
        (SERIES, "ar1"),
        (CHOICES, "rescorla-wagner"),
        (replace(SETS, width=32), None),
        (replace(SETS, num_layers=3), None),
    ],
)
def test_a_shipped_network_of_the_same_kind_is_chosen_where_its_blocks_fit(config, name):
    assert start_of(config, AUTO) == name
    assert start_of(config, None) is None


def test_a_network_that_was_named_must_fit():
    assert start_of(SETS, "psychometric") == "psychometric"
    with pytest.raises(ValueError, match=r"start_from must name a network with the sizes .*'width': 64.*'gp-1d'"):
        start_of(SETS, "gp-1d")
    with pytest.raises(ValueError, match="name must be a shipped network"):
        start_of(SETS, "nothing-like-it")


def test_layers_of_other_shapes_and_those_of_inputs_stay_as_they_are():
    torch.manual_seed(0)
    model, source = ArBufferModel(SETS), pyro_arbuf.load("ddm").state_dict()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    copy_weights(model, "ddm")
    copied = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    fitting = {name for name, value in before.items() if name in source and source[name].shape == value.shape}
    assert copied == {name for name in fitting if not name.startswith(OF_INPUTS)}
    assert all(torch.equal(model.state_dict()[name], source[name]) for name in copied)
    assert all(name in copied for name in before if name.startswith(("backbone.", "head.", "latent_head.")))


def test_a_network_of_the_same_program_gives_all_weights():
    model, source = ArBufferModel(SETS), pyro_arbuf.load("gaussian").state_dict()
    copy_weights(model, "gaussian")
    assert all(torch.equal(value, source[name]) for name, value in model.state_dict().items())


def test_amortize_says_where_it_begins_and_goes_on_with_a_run(tmp_path, capsys):
    options = {"num_context": (0, 5), "report": False, "batch_size": 2}
    begun = amortize(line, inputs, steps=1, folder=tmp_path, **options)
    assert "from the weights of the network 'ddm' where they fit" in capsys.readouterr().out
    shipped, name = pyro_arbuf.load("ddm").state_dict(), "backbone.blocks.0.value.weight"
    apart = (begun.state_dict()[name] - shipped[name]).norm() / shipped[name].norm()
    assert 0 < apart < 0.05  # one step away
    resumed = amortize(line, inputs, steps=2, folder=tmp_path, resume=True, **options)
    assert not torch.equal(resumed.state_dict()[name], shipped[name])
    amortize(line, inputs, steps=1, start_from=None, **options)
    assert "from random weights" in capsys.readouterr().out


def test_amortize_begins_at_a_network_of_the_users(tmp_path):
    config = {"num_context": (0, 5), "report": False, "batch_size": 2, "width": 8, "num_heads": 2, "steps": 1}
    amortize(line, inputs, folder=tmp_path, **config)
    assert isinstance(amortize(line, inputs, start_from=Path(tmp_path), **config).config, ModelConfig)
    with pytest.raises(ValueError, match="start_from must name a network"):
        amortize(line, inputs, start_from=tmp_path, **config | {"num_layers": 2})
