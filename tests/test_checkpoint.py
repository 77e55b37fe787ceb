"""Save and load: bitwise, frozen, and nothing but safetensors and JSON."""

import dataclasses
import json
import os
import pickle
import re
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import tiny
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

import pyro_arbuf
from pyro_arbuf import checkpoint, hub
from pyro_arbuf.checkpoint import CONFIG, WEIGHTS, load, models_folder, save, shipped_models
from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.network.config import ADDED_LATER, PARTS, ModelConfig, names_of
from pyro_arbuf.network.latents import Latent


@pytest.fixture
def model() -> ArBufferModel:
    return tiny.tiny_model(dim_y=3, chained=False, prior="lines", x_range=(-1.0, 1.0), num_targets=(1, 9))


@pytest.fixture
def folder(model: ArBufferModel, tmp_path: Path) -> Path:
    """A saved model."""
    save(model, tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)


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


def test_what_is_no_table_of_weights_or_no_truth_value_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="trainable must be True or False; got 'yes'"):
        load(folder, trainable="yes")
    with pytest.raises(ValueError, match="weights must be a dict of tensors"):
        save(load(folder), tmp_path / "other", [torch.zeros(1)])


def test_trainable_model_requires_gradients(folder: Path) -> None:
    loaded = load(folder, trainable=True)
    assert all(p.requires_grad for p in loaded.parameters()) and not loaded.training


def test_double_precision_model_is_saved_and_loads_in_single(model: ArBufferModel, tmp_path: Path) -> None:
    save(model.double(), tmp_path)
    assert {p.dtype for p in load(tmp_path).parameters()} == {torch.float32}


def test_folder_may_be_a_string(folder: Path) -> None:
    assert load(str(folder)).config.prior == "lines"


def test_given_weights_are_saved_in_place_of_the_models(model: ArBufferModel, tmp_path: Path) -> None:
    other = tiny.tiny_model(seed=1, dim_y=3, chained=False).state_dict()
    save(model, tmp_path, other)
    assert all(torch.equal(value, other[name]) for name, value in load(tmp_path).state_dict().items())


def test_saved_folder_holds_a_configuration_and_weights_alone(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG, WEIGHTS]
    assert json.loads((folder / CONFIG).read_text())["architecture"]["dim_y"] == 3


def test_crash_while_saving_leaves_the_old_files(
    model: ArBufferModel, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*args: object) -> None:
        raise OSError("killed")

    with monkeypatch.context() as patch, pytest.raises(ValueError, match=r"cannot be written \(killed\)"):
        patch.setattr(os, "replace", crash)
        save(tiny.tiny_model(seed=1, dim_y=3, chained=False), folder)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in load(folder).state_dict().items())


def test_saved_network_round_trips_through_the_public_functions(model: ArBufferModel, tmp_path: Path) -> None:
    pyro_arbuf.save(model, str(tmp_path / "a" / "b"))
    loaded = pyro_arbuf.load(tmp_path / "a" / "b")
    assert loaded.config == model.config
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
    pyro_arbuf.save(loaded, tmp_path / "a" / "b")  # a network in the folder is replaced


@pytest.mark.parametrize("folder", [None, 3, "", "a\0b", b"bytes"])
def test_folder_that_is_no_path_is_not_saved_to(folder: object, model: ArBufferModel) -> None:
    with pytest.raises(ValueError, match="folder must be a string or a Path, not empty"):
        save(model, folder)


def test_what_is_no_network_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="net must be an ArBufferModel; got Linear"):
        save(torch.nn.Linear(2, 2), tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_network_is_not_saved_over_a_file(model: ArBufferModel, tmp_path: Path) -> None:
    (tmp_path / "o").write_text("mine")
    with pytest.raises(ValueError, match="folder must be a folder, or not exist yet; got the file"):
        save(model, tmp_path / "o")
    with pytest.raises(ValueError, match="cannot be written"):
        save(model, tmp_path / "o" / "below")
    assert (tmp_path / "o").read_text() == "mine"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_weights_that_load_would_refuse_are_not_saved(value: float, folder: Path) -> None:
    before = (folder / WEIGHTS).read_bytes()
    broken = tiny.tiny_model(dim_y=3, chained=False).double()
    with torch.no_grad():
        broken.head.out.bias[1] = value
    with pytest.raises(ValueError, match=r"weights must be finite in float32; 'head\.out\.bias' is not"):
        save(broken, folder)
    assert (folder / WEIGHTS).read_bytes() == before


def test_weights_of_another_network_are_not_saved(model: ArBufferModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="weights must have the names and shapes of the network's"):
        save(model, tmp_path / "o", tiny.tiny_model().state_dict())


def test_saving_does_not_write_through_links(model: ArBufferModel, folder: Path, tmp_path: Path) -> None:
    for name in (CONFIG, WEIGHTS, f"{CONFIG}.tmp", f"{WEIGHTS}.tmp"):
        (tmp_path / name).write_text("mine")
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(tmp_path / name)
    save(model, folder)
    assert [(tmp_path / name).read_text() for name in (CONFIG, WEIGHTS)] == ["mine", "mine"]
    assert [(tmp_path / f"{name}.tmp").read_text() for name in (CONFIG, WEIGHTS)] == ["mine", "mine"]
    assert load(folder).config == model.config


# Names


@pytest.mark.parametrize(
    "name", ["gp-2d", "./nowhere", "a/b", "a/b/c", "..b", Path("nowhere"), Path("owner/repository")]
)
def test_unknown_name_lists_the_known_models(name: str | Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "shipped_models", lambda: ["gp-1d", "sawtooth"])
    with pytest.raises(
        ValueError, match=r"must be a shipped network, an existing folder, or 'hf:owner/name'.*gp-1d, saw"
    ):
        load(name)


def test_unreachable_hub_says_why_and_what_else_to_do() -> None:
    message = (
        r"Hub did not give config.json and model.safetensors of 'owner/name' \(LocalEntryNotFoundError: offline\); "
        r"check the name and the network, or run `hf download owner/name --local-dir FOLDER`"
    )
    with pytest.raises(ValueError, match=message):
        load("hf:owner/name")


@pytest.mark.parametrize("name", ["hf:", "hf:name", "hf:/name", "hf:owner/", "hf:a/b/c"])
def test_hub_name_has_an_owner_and_a_name(name: str) -> None:
    with pytest.raises(ValueError, match="must be named 'hf:owner/name'"):
        load(name)


@pytest.mark.parametrize("name", ["a/b", "./a", Path("a/b")])
def test_missing_folder_does_not_go_to_the_network(name: str | Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", None)
    with pytest.raises(ValueError, match="an existing folder, or 'hf:owner/name'"):
        load(name)


def test_server_that_never_answers_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    done = threading.Event()
    monkeypatch.setattr(hub, "SECONDS", 0.1)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *args, **options: done.wait(60))
    with pytest.raises(ValueError, match=r"did not give .* of 'owner/name' \(no end after 0\.1 seconds\)"):
        load("hf:owner/name")
    done.set()


def test_hub_id_is_downloaded_without_pickles(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def download(name: str, file: str, revision: str | None, etag_timeout: float) -> str:
        calls.append((name, file, revision))
        return str(folder / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert load("hf:owner/name").config.prior == "lines"
    assert calls == [("owner/name", CONFIG, None), ("owner/name", WEIGHTS, folder.name)]  # both of one revision


@pytest.fixture
def shipped_here(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user stands in a folder that has a model of the name of the only shipped one."""
    monkeypatch.setattr(checkpoint, "models_folder", lambda: folder.parent)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    save(tiny.tiny_model(prior="mine"), "saved")
    return tmp_path / "work"


@pytest.mark.parametrize("name", [Path("saved"), "./saved"])
def test_path_is_a_folder_though_a_shipped_model_has_its_name(name: str | Path, shipped_here: Path) -> None:
    assert load(name).config.prior == "mine"


def test_name_of_a_shipped_model_and_of_a_folder_is_an_error_that_names_both(shipped_here: Path) -> None:
    with pytest.raises(
        ValueError, match=r"write '\./saved' for the folder, or '(.*/saved)' for the shipped one"
    ) as caught:
        load("saved")
    assert str(checkpoint.models_folder() / "saved") in str(caught.value)
    assert load(str(checkpoint.models_folder() / "saved")).config.prior == "lines"


def test_folder_that_holds_no_network_does_not_hide_the_shipped_one(shipped_here: Path) -> None:
    for path in Path("saved").iterdir():
        path.unlink()
    assert load("saved").config.prior == "lines"
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        load(Path("saved"))


def test_shipped_models_load_by_name_in_their_own_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "models_folder", lambda: folder.parent)
    monkeypatch.chdir(folder.parent)
    assert load("saved").config.prior == "lines"


NAMES = [None, 3, 2.5, b"gp-1d", ["gp-1d"], "", "a\0b", "x" * 5000, "x/" * 3000, ".", "..", "~", "model.safetensors"]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: repr(name)[:20])
def test_name_that_is_none_is_a_value_error(name: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / WEIGHTS).touch()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"must be|is missing"):
        load(name)


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
        r"must have the fields .* missing are \['buffer_size', .* unknown are \['hidden_size'\]",
    ),
    "a_list": (b"[1, 2]", "must be an object; got list"),
    "nested": (b"[" * 100_000, "is no model configuration"),
    "endless": (b" " * 2**24, "it has more than"),
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
        ValueError, match=f"does not fit config.json beside it: it holds {num_layers} layers, num_layers"
    ):
        load(folder)


def test_missing_tensor_is_named(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    del weights["head.out.bias"]
    save_file(weights, folder / WEIGHTS)
    with pytest.raises(
        ValueError, match=r"1 tensors are missing, foreign or of another shape, e\.g\. 'head\.out\.bias'"
    ):
        load(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_weights_that_are_not_finite_in_single_precision_are_refused(value: float, folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    weights["head.out.bias"] = weights["head.out.bias"].double()
    weights["head.out.bias"][1] = value
    save_file(weights, folder / WEIGHTS)
    with pytest.raises(
        ValueError, match=r"'head\.out\.bias' holds NaN or infinite values in float32; the file is damaged"
    ):
        load(folder)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_weights_that_are_no_floating_numbers_are_refused(dtype: torch.dtype, folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    weights["head.out.bias"] = weights["head.out.bias"].to(dtype)
    save_file(weights, folder / WEIGHTS)
    with pytest.raises(ValueError, match=r"tensor 'head\.out\.bias' must hold floating numbers"):
        load(folder)


def fields_of(folder: Path) -> dict[str, object]:
    """The fields of all parts of config.json: what a file of before there were parts holds."""
    parts = json.loads((folder / CONFIG).read_text())
    return {name: value for part in parts.values() for name, value in part.items()}


def write_fields(folder: Path, values: dict[str, object], in_parts: bool = False) -> None:
    """Writes config.json, in parts or as it was before there were any."""
    parts = {part: {n: v for n, v in values.items() if n in names_of(kind)} for part, kind in PARTS.items()}
    (folder / CONFIG).write_text(json.dumps(parts if in_parts else values))


def change(folder: Path, **fields: object) -> None:
    """Overwrites fields of config.json; a dict is merged into the first latent."""
    values = fields_of(folder)
    if isinstance(fields.get("latents"), dict):
        fields["latents"] = [values["latents"][0] | fields["latents"]]
    write_fields(folder, values | fields, in_parts=True)


@pytest.fixture
def latent_folder(tmp_path: Path) -> Path:
    """A saved model of a program, whose configuration has every field filled."""
    latent = Latent("rate", (2,), 0.0, 1.0, False, (0.5, 0.1), (1.0, 2.0))
    scales = {"x_loc": (0.5,), "x_scale": (2.0,), "y_loc": (0.1,), "y_scale": (3.0,), "evidence_rmse": 0.5}
    save(tiny.tiny_model(latents=(latent,), num_y_frequencies=2, **scales), tmp_path / "program")
    return tmp_path / "program"


@pytest.mark.parametrize("in_parts", [False, True], ids=["flat", "parts"])
@pytest.mark.parametrize("field", dataclasses.fields(ModelConfig), ids=lambda field: field.name)
def test_missing_field_is_no_default(field: dataclasses.Field, in_parts: bool, latent_folder: Path) -> None:
    values = fields_of(latent_folder)
    del values[field.name]
    write_fields(latent_folder, values, in_parts)
    if any(set(added) == {field.name} for added in ADDED_LATER):  # then it is an older file
        assert getattr(load(latent_folder).config, field.name) == field.default
        return
    with pytest.raises(ValueError, match=rf"must have the fields .* missing are \['{field.name}'\]"):
        load(latent_folder)


def test_older_file_without_the_fields_added_later_loads(folder: Path) -> None:
    values, expected = fields_of(folder), load(folder).config
    for added in ADDED_LATER:
        for name in added:
            del values[name]
    write_fields(folder, values)
    assert load(folder).config == expected


def test_file_of_before_there_were_parts_loads(latent_folder: Path) -> None:
    expected = load(latent_folder).config
    write_fields(latent_folder, fields_of(latent_folder))
    assert load(latent_folder).config == expected


def test_weights_of_before_a_part_had_its_present_name_load(folder: Path) -> None:
    expected, weights = load(folder).state_dict(), load_file(folder / WEIGHTS)
    weights["embedder.slot"] = weights.pop("embedder.positions.slot")
    save_file(weights, folder / WEIGHTS)
    assert all(torch.equal(value, expected[name]) for name, value in load(folder).state_dict().items())


def test_parts_of_a_configuration_are_checked(latent_folder: Path) -> None:
    parts = json.loads((latent_folder / CONFIG).read_text())
    for broken, message in (
        ({"architecture": parts["architecture"]}, "config.json must have the fields .* missing are"),
        (parts | {"units": 3}, "units in config.json must be an object; got 3"),
        (parts | {"measured": {"width": 8}}, r"measured in config.json must have the fields .*; got \['width'\]"),
    ):
        (latent_folder / CONFIG).write_text(json.dumps(broken))
        with pytest.raises(ValueError, match=message):
            load(latent_folder)


NAN, INFINITE = float("nan"), float("inf")
FIELDS = {
    "true_for_a_number": ({"num_heads": True}, "num_heads must be an integer >= 1; got True"),
    "text_for_a_number": ({"width": "wide"}, "width must be an integer >= 1; got 'wide'"),
    "heads": ({"num_heads": 5}, "width must be a multiple of num_heads = 5; got 12"),
    "head": ({"head": "spline"}, "head must be 'mixture' or 'gaussian'; got 'spline'"),
    "head_list": ({"head": ["mixture"]}, "head must be 'mixture' or 'gaussian'"),
    "number_for_text": ({"prior": 3}, "prior must be a string; got 3"),
    "no_outcome": ({"outcome": None}, "outcome must be a string, or a tuple of 1, .*; got None"),
    "number_for_true": ({"sequential": 0}, "sequential must be True or False; got 0"),
    "huge": ({"width": 2**40}, "width must be at most"),
    "frequency": ({"max_frequency": INFINITE}, "max_frequency must be a positive number; got inf"),
    "x_nan": ({"x_range": [NAN, 1.0]}, r"x_range must be a pair \(low, high\) of finite numbers"),
    "x_inverted": ({"x_range": [2.0, -2.0]}, "x_range must be a pair .* low <= high"),
    "x_bool": ({"x_range": [False, True]}, "x_range must be a pair"),
    "x_overflow": ({"x_range": [0.0, 1e300]}, "x_range must be a pair"),
    "y_empty": ({"y_range": [1.0, 1.0]}, "y_range must be a pair .* low < high"),
    "context": ({"num_context": [8, 0]}, "num_context must be a pair .* integers, 0 <= low <= high"),
    "context_half": ({"num_context": [0, 7.5]}, "num_context must be a pair"),
    "context_negative": ({"num_context": [-1, 8]}, "num_context must be a pair"),
    "targets": ({"num_targets": [0, 8]}, "num_targets must be a pair .* integers, 1 <= low <= high"),
    "scale_zero": ({"y_scale": [0.0]}, "y_scale must hold 1 positive numbers"),
    "scale_vanishes": ({"y_scale": [1e-60]}, "y_scale must hold 1 positive numbers"),
    "scale_nan": ({"x_scale": [NAN]}, "x_scale must hold 1 positive numbers"),
    "loc_infinite": ({"y_loc": [-INFINITE]}, "y_loc must hold 1 finite numbers"),
    "loc_alone": ({"y_scale": None}, "y_loc and y_scale must both be given or both be None"),
    "loc_number": ({"x_loc": 0.5}, "x_loc must hold 1 finite numbers"),
    "rmse": ({"evidence_rmse": -1.0}, "evidence_rmse must be a number >= 0"),
    "latents_number": ({"latents": 3}, "latents must be a list"),
    "latents_text": ({"latents": ["rate"]}, "each of latents must be an object"),
    "latents_fields": ({"latents": [{"name": "rate"}]}, r"each of latents must have the fields .* missing are \['loc'"),
    "latent_name": ({"latents": {"name": 1}}, "the name of a latent must be a string"),
    "latent_shape": ({"latents": {"shape": [-2]}}, "shape of latent 'rate' must be a tuple of positive integers"),
    "latent_bounds": ({"latents": {"lower": 1.0, "upper": 0.0}}, "lower and upper of latent 'rate' must be finite"),
    "latent_nan": ({"latents": {"lower": NAN}}, "lower and upper of latent 'rate' must be finite"),
    "latent_simplex": ({"latents": {"simplex": 1}}, "simplex of latent 'rate' must be True or False"),
    "latent_loc": ({"latents": {"loc": [NAN, 0.0]}}, "loc of latent 'rate' must hold 2 finite numbers"),
    "latent_scale": ({"latents": {"scale": [1.0, -1.0]}}, "scale of latent 'rate' must hold 2 positive numbers"),
}


@pytest.mark.parametrize("case", FIELDS)
def test_impossible_value_in_a_configuration_is_refused(case: str, latent_folder: Path) -> None:
    fields, message = FIELDS[case]
    change(latent_folder, **fields)
    with pytest.raises(ValueError, match=message) as caught:
        load(latent_folder)
    assert str(latent_folder / CONFIG) in str(caught.value)


@pytest.mark.parametrize("fields", [{"num_layers": 60_000}, {"buffer_size": 60_000}, {"head_width": 60_000}])
def test_sizes_that_the_weights_do_not_have_are_refused_before_a_model_is_built(
    fields: dict[str, int], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []
    init = ArBufferModel.__init__

    def spy(self: ArBufferModel, config: ModelConfig) -> None:
        init(self, config)
        built.append({parameter.device.type for parameter in self.parameters()})

    monkeypatch.setattr(ArBufferModel, "__init__", spy)
    change(folder, **fields)
    with pytest.raises(ValueError, match=r"does not fit config\.json beside it"):
        load(folder)
    assert built in ([], [{"meta"}])


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


def rewrite(name: str, tensor: str = "head.out.bias", **changes: object) -> Callable[[Path], None]:
    """Applies a change to one tensor of the weights."""

    def damage(folder: Path) -> None:
        weights = load_file(folder / WEIGHTS)
        value = weights.pop(tensor)
        new = {
            "dtype": lambda: {tensor: value.to(changes["to"])},
            "fill": lambda: {tensor: torch.full_like(value.double(), changes["to"])},
            "longer": lambda: {tensor: torch.cat([value, value])},
            "renamed": lambda: {f"{tensor}.x": value},
            "gone": dict,
        }[name]()
        save_file(weights | new, folder / WEIGHTS)

    return damage


def written(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def edited(**fields: object) -> Callable[[Path], None]:
    return lambda folder: change(folder, **fields)


def become_folder(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return damage


def become_link(name: str, target: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(target)

    return damage


def edited_header(change: Callable[[dict], object]) -> Callable[[Path], None]:
    """Edits the JSON header of the weights."""

    def damage(folder: Path) -> None:
        content = (folder / WEIGHTS).read_bytes()
        (size,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + size])
        change(header)
        text = json.dumps(header).encode()
        (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])

    return damage


DAMAGES = [
    *[
        written(name, content)
        for name in (CONFIG, WEIGHTS)
        for content in (b"", b"text", b"\0" * 100, os.urandom(4000))
    ],
    *[become_folder(name) for name in (CONFIG, WEIGHTS)],
    *[become_link(name, target) for name in (CONFIG, WEIGHTS) for target in ("nowhere", "/dev/zero", WEIGHTS, CONFIG)],
    written(CONFIG, "{}".encode("utf-16")),
    written(CONFIG, b"{}"),
    written(CONFIG, b"[]"),
    written(CONFIG, b"null"),
    written(CONFIG, b"[" * 10**6),
    written(CONFIG, b'{"a":' * 10**5),
    written(CONFIG, b" " * 10**8),
    written(CONFIG, b"1" * 10**6),
    written(WEIGHTS, b"PK\x03\x04" + b"\0" * 1000),
    written(WEIGHTS, pickle.dumps({"a": 1})),
    *[edited(num_layers=n) for n in (1, 3, 60_000, 10**7, 10**30, -1, 0, None, "2", [2])],
    *[edited(**{name: 60_000}) for name in ("width", "mlp_width", "head_width", "num_components", "dim_x", "dim_y")],
    edited(num_frequencies=10**9, buffer_size=10**9),
    edited(head="gaussian"),
    edited(extra=1),
    edited(max_frequency=0.0),
    edited(latents=[{"name": "a", "shape": [10**9]}]),
    *[rewrite("dtype", to=dtype) for dtype in (torch.int8, torch.int64, torch.bool, torch.complex64)],
    *[rewrite("fill", to=value) for value in (float("nan"), float("-inf"), 1e300)],
    *[rewrite(name) for name in ("longer", "renamed", "gone")],
    *[
        edited_header(lambda h, k=k, v=v: h["head.out.bias"].update({k: v}))
        for k, v in [("dtype", "F33"), ("shape", [2**62])]
    ],
    edited_header(lambda h: h["head.out.bias"].update(data_offsets=[0, 2**62])),
    edited_header(lambda h: h.pop("head.out.bias")),
]


@pytest.mark.slow
@pytest.mark.parametrize("damage", range(len(DAMAGES)))
def test_damaged_folder_is_a_value_error_at_once(damage: int, folder: Path) -> None:
    DAMAGES[damage](folder)
    started = time.monotonic()
    with pytest.raises(ValueError, match=re.escape(str(folder))):
        load(folder)
    assert time.monotonic() - started < 5  # in under a second where nothing else runs


@pytest.mark.slow
def test_truncated_weights_are_a_value_error_at_every_length(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    for size in range(0, len(content), len(content) // 40):
        (folder / WEIGHTS).write_bytes(content[:size])
        with pytest.raises(ValueError, match="is corrupt, truncated or no safetensors file"):
            load(folder)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_file_that_may_not_be_read_is_a_value_error(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *args: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(*((Path, "read_text") if name == CONFIG else (checkpoint, "safe_open")), refuse)
    with pytest.raises(ValueError, match=r"cannot be read .*Permission denied.*check its permissions"):
        load(folder)


# ModelConfig


def test_configuration_survives_json() -> None:
    config = ModelConfig(dim_y=2, head="gaussian", x_range=(-2.0, 2.0), num_targets=(1, 9), prior="lines")
    assert ModelConfig.from_json(config.to_json()) == config
    each = dataclasses.replace(config, dim_x=2, x_range=((0.0, 1.0), (5.0, 9.0)), y_range=((-1.0, 1.0), (0.0, 3.0)))
    assert ModelConfig.from_json(each.to_json()) == each


def test_ranges_are_one_pair_or_one_for_every_column() -> None:
    with pytest.raises(ValueError, match=r"x_range must be one pair \(low, high\), or 2 of them; got 3 pairs"):
        ModelConfig(dim_x=2, x_range=((0.0, 1.0),) * 3)
    with pytest.raises(ValueError, match=r"y_range must be a pair .* low < high; got \(1.0, 1.0\)"):
        ModelConfig(dim_y=2, y_range=((0.0, 1.0), (1.0, 1.0)))


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
    ranges = model.config.x_range and model.config.y_range
    assert model.config.prior and model.config.num_targets and (ranges or model.config.inputs == "rows")  # any scale
    assert model.condition().num_context == 0


@pytest.mark.parametrize("name", shipped_models())
def test_shipped_model_has_a_card_and_a_training_record(name: str) -> None:
    folder = models_folder() / name
    assert name in (folder / "README.md").read_text()
    assert json.loads((folder / "training.json").read_text())["prior"] == load(name).config.prior
