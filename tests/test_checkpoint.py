"""Save and load: bitwise, frozen, and nothing but safetensors and JSON."""

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

from pyro_arbuf import checkpoint
from pyro_arbuf.checkpoint import CONFIG, WEIGHTS, load, models_folder, save, shipped_models
from pyro_arbuf.config import ModelConfig
from pyro_arbuf.model import ArBufferModel


@pytest.fixture
def model() -> ArBufferModel:
    return tiny.tiny_model(dim_y=3, prior="lines", x_range=(-1.0, 1.0), num_targets=(1, 9))


@pytest.fixture
def folder(model: ArBufferModel, tmp_path: Path) -> Path:
    """A saved model."""
    save(model, tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(checkpoint, "snapshot_download", unreachable)


def test_loaded_model_equals_the_saved_one_bitwise(model: ArBufferModel, folder: Path) -> None:
    loaded = load(folder)
    assert loaded.config == model.config
    weights = loaded.state_dict()
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())


def test_loaded_model_predicts_bitwise_the_same(model: ArBufferModel, folder: Path) -> None:
    x, y = torch.rand(5, 1), torch.randn(5, 3)
    caches = [m.requires_grad_(False).condition(x, y).cache for m in (model, load(folder))]
    assert all(torch.equal(a, b) for a, b in zip(caches[0].keys, caches[1].keys, strict=True))


def test_loaded_model_is_frozen_in_eval_mode_and_single_precision(folder: Path) -> None:
    loaded = load(folder)
    assert not loaded.training
    assert {(p.requires_grad, p.dtype, p.device.type) for p in loaded.parameters()} == {(False, torch.float32, "cpu")}


def test_trainable_model_requires_gradients(folder: Path) -> None:
    loaded = load(folder, trainable=True)
    assert all(p.requires_grad for p in loaded.parameters()) and not loaded.training


def test_double_precision_model_is_saved_and_loads_in_single(model: ArBufferModel, tmp_path: Path) -> None:
    save(model.double(), tmp_path)
    assert {p.dtype for p in load(tmp_path).parameters()} == {torch.float32}


def test_folder_may_be_a_string(folder: Path) -> None:
    assert load(str(folder)).config.prior == "lines"


def test_given_weights_are_saved_in_place_of_the_models(model: ArBufferModel, tmp_path: Path) -> None:
    other = tiny.tiny_model(seed=1, dim_y=3).state_dict()
    save(model, tmp_path, other)
    assert all(torch.equal(value, other[name]) for name, value in load(tmp_path).state_dict().items())


def test_saved_folder_holds_a_configuration_and_weights_alone(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG, WEIGHTS]
    assert json.loads((folder / CONFIG).read_text())["dim_y"] == 3


def test_crash_while_saving_leaves_the_old_files(
    model: ArBufferModel, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*args: object) -> None:
        raise OSError("killed")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="killed"):
        patch.setattr(os, "replace", crash)
        save(tiny.tiny_model(seed=1, dim_y=3), folder)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in load(folder).state_dict().items())


# Names


@pytest.mark.parametrize("name", ["gp-2d", "./nowhere", "a/b/c", Path("nowhere"), Path("owner/repository")])
def test_unknown_name_lists_the_known_models(name: str | Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "shipped_models", lambda: ["gp-1d", "sawtooth"])
    with pytest.raises(ValueError, match=r"must be a shipped model, an existing folder or a Hub id.*gp-1d, sawtooth"):
        load(name)


def test_unreachable_hub_lists_the_known_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "shipped_models", lambda: ["gp-1d", "sawtooth"])
    with pytest.raises(
        ValueError,
        match=r"the Hub gave none .LocalEntryNotFoundError: check the id and the network.; known models: gp-1d, saw",
    ):
        load("owner/repository")


def test_hub_id_is_downloaded_without_pickles(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def download(name: str, **options: object) -> str:
        calls.append((name, options))
        return str(folder)

    monkeypatch.setattr(checkpoint, "snapshot_download", download)
    assert load("owner/repository").config.prior == "lines"
    assert calls == [("owner/repository", {"allow_patterns": [CONFIG, WEIGHTS]})]


def test_shipped_model_is_found_by_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "models_folder", lambda: folder.parent)
    assert shipped_models() == ["saved"]
    assert load("saved").config.prior == "lines"


# Damaged folders


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_missing_file_is_named(name: str, folder: Path) -> None:
    (folder / name).unlink()
    with pytest.raises(
        ValueError, match=f"{name} is missing: a model's folder holds config.json and model.safetensors"
    ):
        load(folder)


def test_folder_without_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        load(tmp_path)


CONFIGURATIONS = {
    "corrupt": (b'{"width": 12,', "is no model configuration"),
    "not_text": (b"\xff\xfe\x00", "is no model configuration"),
    "empty": (b"", "is no model configuration"),
    "another_model": (
        b'{"hidden_size": 768, "width": 12}',
        r"must be an object with the fields.*got \['hidden_size'\]",
    ),
    "a_list": (b"[1, 2]", "must be an object with the fields.*got list"),
    "wrong_type": (b'{"width": "wide"}', "width must be an integer >= 1; got 'wide'"),
    "width_and_heads": (b'{"width": 13, "num_heads": 2}', "width must be a multiple of num_heads = 2; got 13"),
    "unknown_head": (b'{"head": "spline"}', "head must be 'mixture' or 'gaussian'; got 'spline'"),
}


@pytest.mark.parametrize("case", CONFIGURATIONS)
def test_wrong_configuration_is_refused_with_its_path(case: str, folder: Path) -> None:
    content, message = CONFIGURATIONS[case]
    (folder / CONFIG).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        load(folder)
    assert str(folder / CONFIG) in str(caught.value)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def cut_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def huge_header(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 2**60) + b"{}")


@pytest.mark.parametrize("damage", [cut, cut_header, empty, huge_header])
def test_damaged_weights_are_refused(damage: Callable[[Path], None], folder: Path) -> None:
    damage(folder / WEIGHTS)
    with pytest.raises(ValueError, match="is corrupt, truncated or no safetensors file"):
        load(folder)


def test_weights_of_another_shape_are_refused(folder: Path, tmp_path: Path) -> None:
    save(tiny.tiny_model(dim_y=3, width=14), tmp_path / "other")
    os.replace(tmp_path / "other" / WEIGHTS, folder / WEIGHTS)
    with pytest.raises(ValueError, match=r"does not fit config\.json beside it.*take both files from one source"):
        load(folder)


@pytest.mark.parametrize("num_layers", [1, 3])
def test_missing_or_foreign_weights_are_refused(num_layers: int, folder: Path, tmp_path: Path) -> None:
    save(tiny.tiny_model(dim_y=3, num_layers=num_layers), tmp_path / "other")
    os.replace(tmp_path / "other" / WEIGHTS, folder / WEIGHTS)
    with pytest.raises(
        ValueError, match=r"10 tensors are missing, foreign or of another shape, e\.g\. 'backbone.blocks"
    ):
        load(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float, folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    weights["head.out.bias"][1] = value
    save_file(weights, folder / WEIGHTS)
    with pytest.raises(ValueError, match=r"tensor 'head\.out\.bias' holds NaN or infinite values; the file is damaged"):
        load(folder)


class Payload:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("write", [pickle.dump, torch.save])
def test_pickle_under_the_name_of_the_weights_is_refused_unread(write: Callable, folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    with open(folder / WEIGHTS, "wb") as file:
        write(Payload(marker), file)
    with pytest.raises(ValueError, match="is corrupt, truncated or no safetensors file"):
        load(folder)
    assert not marker.exists()


def test_payload_of_the_pickle_test_would_execute(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Payload(tmp_path / "executed")))
    assert (tmp_path / "executed").is_dir()


# ModelConfig


def test_configuration_survives_json() -> None:
    config = ModelConfig(dim_y=2, head="gaussian", x_range=(-2.0, 2.0), num_targets=(1, 9), prior="lines")
    assert ModelConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    "name", ["dim_x", "dim_y", "buffer_size", "width", "num_layers", "num_heads", "num_components"]
)
@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_sizes_of_a_model_are_positive_integers(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{name} must be an integer >= 1; got {value!r}"):
        ModelConfig(**{name: value})


# Shipped models


@pytest.mark.parametrize("name", shipped_models())
def test_shipped_model_loads_and_conditions(name: str) -> None:
    model = load(name)
    assert model.config.prior and model.config.x_range and model.config.y_range and model.config.num_targets
    assert model.condition().num_context == 0


@pytest.mark.parametrize("name", shipped_models())
def test_shipped_model_has_a_card_and_a_training_record(name: str) -> None:
    folder = models_folder() / name
    assert name in (folder / "README.md").read_text()
    assert json.loads((folder / "training.json").read_text())["prior"] == load(name).config.prior
