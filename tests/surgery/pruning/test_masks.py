import jax.numpy as jnp
import pytest

from curvjax.models import parameters, with_parameters
from curvjax.surgery import apply_masks, load_masks, prune_magnitude, save_masks

PATH = "layers.10.mlp.up_proj.kernel"


@pytest.fixture
def masks(model):
    return prune_magnitude(model, {"layers.10": 0.5, "layers.1": 0.25}).masks


def test_full_masks_change_no_logit(model, masks, logits):
    full = {path: jnp.ones_like(mask) for path, mask in masks.items()}
    assert jnp.array_equal(logits(apply_masks(model, full)), logits(model))


def test_masks_come_back_from_their_file(masks, tmp_path):
    save_masks(masks, tmp_path / "masks.safetensors")
    loaded = load_masks(tmp_path / "masks.safetensors")
    assert loaded.keys() == masks.keys()
    assert all(loaded[path].dtype == bool and jnp.array_equal(loaded[path], masks[path]) for path in masks)


def test_saving_replaces_the_file_whole_and_leaves_nothing_beside_it(masks, tmp_path):
    path = tmp_path / "masks.safetensors"
    path.write_bytes(b"an older file")
    save_masks(masks, path)
    assert load_masks(path).keys() == masks.keys()
    assert list(tmp_path.iterdir()) == [path]


def test_a_save_that_fails_leaves_the_old_file(masks, tmp_path, monkeypatch):
    path = tmp_path / "masks.safetensors"
    save_masks(masks, path)

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("curvjax.surgery.pruning.masks.save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_masks({PATH: masks[PATH]}, path)
    assert load_masks(path).keys() == masks.keys()


def test_a_masked_weight_is_zero_even_where_it_was_not_finite(model, masks):
    values = parameters(model)
    broken = values | {PATH: jnp.full_like(values[PATH], jnp.nan)}
    masked = apply_masks(with_parameters(model, broken), {PATH: jnp.zeros_like(masks[PATH])})
    assert not jnp.any(parameters(masked)[PATH])


def test_unknown_and_unfit_masks_are_refused(model, masks):
    with pytest.raises(KeyError, match=r"masks name 1 parameters that the model lacks, e\.g\. \['layers\.12"):
        apply_masks(model, {"layers.12.mlp.up_proj.kernel": masks[PATH]})
    with pytest.raises(ValueError, match=r"must be bool of shape \(8, 12\); got bool of shape \(12, 8\)"):
        apply_masks(model, {PATH: masks[PATH].T})
    with pytest.raises(ValueError, match="got float32 of shape"):
        apply_masks(model, {PATH: masks[PATH].astype(jnp.float32)})


def test_missing_broken_and_foreign_mask_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no masks at .*nowhere"):
        load_masks(tmp_path / "nowhere")
    (tmp_path / "cut").write_bytes(b"\x00\x01")
    with pytest.raises(ValueError, match="cut is not a whole safetensors file"):
        load_masks(tmp_path / "cut")
    save_masks({"a": jnp.ones(3, jnp.float32)}, tmp_path / "foreign")
    with pytest.raises(ValueError, match=r"1 arrays that are not boolean masks, e\.g\. \['a'\]"):
        load_masks(tmp_path / "foreign")
