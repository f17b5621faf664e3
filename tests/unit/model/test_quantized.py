"""Matrices in a byte a weight: as near as a byte allows, and used as if they were what they stand for."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from convert.load import open_model
from convert.native import convert_checkpoint
from tests import checkpoints
from tests.devices import run_on_devices
from tests.models import CONTEXT, PAD, STOP, tiny_frames, tiny_model, tiny_prompt
from vqathinker_jax.data.prompt import pad_left
from vqathinker_jax.generate import Sampling, encode, generate
from vqathinker_jax.model.adapter import ADAPTED
from vqathinker_jax.model.cached_attention import in_bytes
from vqathinker_jax.model.language import Cache
from vqathinker_jax.model.layers import Linear
from vqathinker_jax.model.quantized import Weights, quantized
from vqathinker_jax.model.vlm import VLM
from vqathinker_jax.places import Prompt, answers
from vqathinker_jax.skeleton import abstract_model, arrays, fill

KINDS = "int8", "fp8"
# Half a step of 1/127 of the largest; half of the last of fp8's three bits behind the point.
NEAR = {"int8": 0.5 / 127, "fp8": 2.0**-4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = checkpoints.settings("chat")
    tensors = checkpoints.draw(checkpoints.shapes(config, motion=True))
    return checkpoints.write(tmp_path_factory.mktemp("checkpoint") / "chat", config, tensors)


def narrowed(model: VLM, weights: Weights, *, listed: bool = False) -> VLM:
    return fill(abstract_model(model.config, unrolled=listed), arrays(model).items(), weights)


def widened(model: VLM) -> VLM:
    """The model of full matrices that a narrowed one stands for."""
    values: dict[str, Any] = dict(arrays(model))
    for path in [path for path in values if path.startswith("language.layers.") and path.endswith(".scale")]:
        if (kernel := path.removesuffix("scale") + "kernel") in values:
            scale, numbers = values.pop(path), values[kernel].astype(jnp.float32)
            ins = range(scale.ndim, numbers.ndim)
            stacked = path.split(".")[2] in ADAPTED
            axes = tuple(1 + i for i in range(len(ins))) if stacked else tuple(range(len(ins)))
            values[kernel] = numbers * jnp.expand_dims(scale, axes)
    return fill(abstract_model(model.config, unrolled=isinstance(model.language.layers, nnx.List)), values.items())


@pytest.mark.parametrize("listed", [False, True], ids=["stacked", "listed"])
@pytest.mark.parametrize("weights", KINDS)
def test_every_weight_is_as_near_as_a_byte_allows(weights: Weights, listed: bool):
    model = tiny_model(listed=listed)
    narrow = narrowed(model, weights, listed=listed)
    full, found, wide = arrays(model), arrays(narrow), arrays(widened(narrow))
    matrices = {path for path, array in found.items() if array.dtype.itemsize == 1}
    assert len(matrices) == len(ADAPTED) * (3 if listed else 1)
    assert full.keys() == wide.keys() == {path for path in found if path in full}
    for path, array in full.items():
        if path not in matrices:
            np.testing.assert_array_equal(found[path], array)
            continue
        scale = found[path.removesuffix("kernel") + "scale"]
        ins = 2 if ".out." in path else 1
        first = 0 if listed else 1
        axes = tuple(range(first, first + ins))
        assert scale.shape == tuple(n for axis, n in enumerate(array.shape) if axis not in axes)
        most = np.abs(array).max(axes, keepdims=True)
        # fp8's steps widen with a weight, int8's are those of the largest.
        room = NEAR[weights] * (most if weights == "int8" else np.maximum(np.abs(array), most / 448))
        assert (np.abs(wide[path] - array) <= room * 1.001).all(), path


@pytest.mark.parametrize("listed", [False, True], ids=["stacked", "listed"])
@pytest.mark.parametrize("weights", KINDS)
def test_a_narrow_model_says_what_the_wide_one_it_stands_for_says(weights: Weights, listed: bool):
    narrow = narrowed(tiny_model(listed=listed), weights, listed=listed)

    def said(model: VLM) -> Any:
        split, ids_PS = nnx.split(model), np.stack([tiny_prompt([8, 9])] * 2)
        ends = {"context_id": CONTEXT, "stop_id": STOP, "pad_id": PAD, "sampling": Sampling(8)}
        return generate(*split, encode(*split, tiny_frames(2)), ids_PS, np.ones_like(ids_PS, bool), **ends)

    found, expected, plain = said(narrow), said(widened(narrow)), said(tiny_model(listed=listed))
    np.testing.assert_array_equal(found.ids_PGC, expected.ids_PGC)
    # float32: a scale is multiplied with sums rather than with what is summed.
    np.testing.assert_allclose(found.log_probs_PGC, expected.log_probs_PGC, rtol=1e-4, atol=1e-4)
    assert np.abs(found.log_probs_PGC - plain.log_probs_PGC).max() > 1e-3, "nothing was rounded"


@pytest.mark.parametrize("listed", [False, True], ids=["stacked", "listed"])
def test_a_prompt_in_bytes_says_nearly_the_same_alone_and_in_places(listed: bool):
    def said(cache: Cache) -> Any:
        model = tiny_model(listed=listed)
        model.language.cache = cache
        split, ids_S = nnx.split(model), tiny_prompt([8, 9])
        ids_PS, mask_PS = pad_left([ids_S, ids_S[3:]], PAD, bucket=32)
        ends = {"context_id": CONTEXT, "stop_id": STOP, "sampling": Sampling(8, watched=(9, 30))}
        frames, key = tiny_frames(2), jax.random.key(0)
        made = generate(*split, encode(*split, frames), ids_PS, mask_PS, pad_id=PAD, **ends)
        asked = (Prompt(n, *row, key) for n, row in enumerate(zip(frames, ids_PS, mask_PS, strict=True)))
        seated = {one.tag: one for one in answers(*split, asked, places=2, **ends)}
        for tag, one in seated.items():
            length = made.lengths_PG[tag, 0]
            np.testing.assert_array_equal(one.ids_T, made.ids_PGC[tag, 0, :length])
            np.testing.assert_allclose(one.watched_TW, made.watched_PGCW[tag, 0, :length], rtol=1e-4, atol=1e-4)
        return made

    full, narrow = said("full"), said("int8")
    off = np.abs(full.watched_PGCW[:, :, 0] - narrow.watched_PGCW[:, :, 0])
    assert not off.any(), "the first token comes of the prompt before it is kept"
    off = np.abs(full.watched_PGCW[:, :, 1] - narrow.watched_PGCW[:, :, 1])
    assert 0 < off.max() < 0.3


def test_a_matrix_in_bytes_adds_up_in_float32():
    """Of 4096 products in bfloat16 sums of 8 bits would lose whole points."""
    linear = Linear((4096,), (8,), ("embed", "mlp"), bias=False, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    kernel = rng.integers(-127, 128, (4096, 8)).astype(np.int8)
    linear.kernel.set_value(jnp.asarray(kernel))
    linear.scale = nnx.Param(jnp.linspace(0.001, 0.008, 8))
    x = jnp.asarray(rng.standard_normal((3, 4096)), jnp.bfloat16)
    exact = np.asarray(x, np.float64) @ kernel.astype(np.float64) * np.linspace(0.001, 0.008, 8)
    # One rounding, to bfloat16.
    np.testing.assert_allclose(np.asarray(linear(x), np.float64), exact, rtol=2.0**-8, atol=1e-3)


def test_a_matrix_of_zeros_stays_one():
    path = "language.layers.up.kernel"
    (_, kernel), (name, scale) = quantized([(path, np.zeros((2, 3, 4), np.float32))], "int8")
    assert name == "language.layers.up.scale"
    assert not np.asarray(kernel).any()
    assert np.isfinite(scale).all()


@pytest.mark.parametrize("weights", ["int8", "fp8"])
def test_what_is_next_to_nothing_stays_finite(weights: Weights):
    """Its scale would be smaller than the smallest number that is not flushed to zero."""
    (_, kernel), (_, scale) = quantized([("language.layers.up.kernel", np.full((2, 3, 4), 1e-37, np.float32))], weights)
    assert np.isfinite(np.asarray(kernel, np.float32) * np.asarray(scale)[:, None]).all()
    mask_BS = np.ones((1, 3), bool)
    narrow = in_bytes(jnp.full((1, 2, 3, 4), 1e-37), mask_BS)
    assert np.isfinite(narrow.numbers * narrow.scale).all()


def test_what_is_full_passes_untouched():
    values = [("language.layers.up.kernel", np.ones((2, 3, 4), np.float32))]
    assert list(quantized(values, "full")) == values


def test_both_kinds_of_folders_are_narrowed_alike(folder: Path, tmp_path: Path):
    convert_checkpoint(folder, tmp_path / "native")
    one, other = (arrays(open_model(each, weights="int8")) for each in (folder, tmp_path / "native"))
    assert one.keys() == other.keys()
    assert sum(array.dtype == jnp.int8 for array in one.values()) == len(ADAPTED)
    for path, array in one.items():
        np.testing.assert_array_equal(array, other[path], err_msg=path)


SPREAD = """
import sys
from pathlib import Path
import numpy as np
from convert.load import open_model
from vqathinker_jax.sharding import MeshConfig, make_mesh
from vqathinker_jax.skeleton import arrays
source, mesh = Path(sys.argv[1]), make_mesh(MeshConfig(fsdp=2, tensor=2))
spread, plain = (arrays(open_model(source, weights="fp8", mesh=each)) for each in (mesh, None))
full, cut = arrays(open_model(source, mesh=mesh)), 0
for path, array in spread.items():
    np.testing.assert_array_equal(array, plain[path], err_msg=path)
    if path in full:
        assert array.sharding.is_equivalent_to(full[path].sharding, array.ndim), path
    cut += array.dtype.itemsize == 1 and not array.sharding.is_fully_replicated
print(cut)
"""


@pytest.mark.parametrize("native", [False, True])
def test_over_a_mesh_bytes_lie_as_the_matrices_would(folder: Path, tmp_path: Path, native: bool):
    if native:
        convert_checkpoint(folder, tmp_path / "native")
    source = tmp_path / "native" if native else folder
    assert int(run_on_devices(4, "-c", SPREAD, str(source), optimise=False).stdout) == len(ADAPTED)


def test_a_byte_a_weight_is_what_is_held():
    model = tiny_model()
    full, narrow = (
        sum(array.nbytes for array in jax.tree.leaves(nnx.state(m.language.layers)))
        for m in (model, narrowed(model, "int8"))
    )
    matrices = sum(getattr(model.language.layers, name).kernel[...].size for name in ADAPTED)
    scales = sum(getattr(narrowed(model, "int8").language.layers, name).scale[...].size for name in ADAPTED)
    assert full - narrow == 3 * matrices - 4 * scales
