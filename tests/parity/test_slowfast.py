"""Live parity of the motion encoder with pytorchvideo's SlowFast-R50, stage by stage, from a torch-hub file.

Tolerance: 2e-4 of a stage's standard deviation, in float32 on a CPU: the same sums in another order, through every
convolution before.
"""

import sys
import warnings
from types import ModuleType
from unittest.mock import patch

import jax
import numpy as np
import pytest
import torch
from flax import nnx

from convert.load import load
from tests import checkpoints
from vqathinker_jax.model.motion import SlowFast, coverage, schedule
from vqathinker_jax.records import InputError

# pytorchvideo imports torchvision for its detection heads alone, and torchvision would bring gigabytes of CUDA.
detection = ModuleType("torchvision.ops")
detection.RoIAlign = None  # type: ignore[attr-defined]
stubs = {"torchvision": ModuleType("torchvision"), "torchvision.ops": detection}
with patch.dict(sys.modules, stubs), warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # its own dependency fvcore scripts a loss at import
    from pytorchvideo.models.slowfast import create_slowfast

TOLERANCE = 2e-4
SIZE = 224


@pytest.fixture(scope="module")
def oracle() -> torch.nn.Module:
    """SlowFast-R50 8x8 with random weights and batch statistics, in evaluation mode."""
    torch.manual_seed(0)
    model = create_slowfast(
        model_depth=50, slowfast_fusion_conv_kernel_size=(7, 1, 1), head_pool_kernel_sizes=((8, 7, 7), (32, 7, 7))
    ).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            for weight, low, high in ((module.weight, 0.5, 1.5), (module.bias, -0.2, 0.2)):
                torch.nn.init.uniform_(weight, low, high)
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return model


@pytest.fixture(scope="module")
def ours(oracle: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> SlowFast:
    folder = tmp_path_factory.mktemp("motion")
    config = checkpoints.settings("chat")
    del config["motion_config"]
    names = {
        name: shape
        for name, shape in checkpoints.shapes({**config, "motion_config": R50}, motion=True).items()
        if not name.startswith("slowfast_model.")
    }
    checkpoints.write(folder, config, checkpoints.draw(names))
    torch.save({"model_state": oracle.state_dict()}, folder / "SLOWFAST_8x8_R50.pyth")
    motion = load(folder, slowfast=folder / "SLOWFAST_8x8_R50.pyth").motion
    assert motion is not None
    return motion


R50 = {"stem": 64, "depths": [3, 4, 6, 3]}


@pytest.mark.parametrize(("frames", "stride", "repeats"), [(12, 4, 4), (6, 3, 6)], ids=["scoring", "training"])
def test_every_stage_is_pytorchvideos(oracle: torch.nn.Module, ours: SlowFast, frames: int, stride: int, repeats: int):
    video_FYXC = np.random.default_rng(frames).standard_normal((1, frames, SIZE, SIZE, 3)).astype(np.float32)
    fast = torch.from_numpy(video_FYXC).permute(0, 4, 1, 2, 3)
    slow = fast[:, :, torch.linspace(0, frames - 1, frames // stride).long()]
    expected, pathways = [], [slow, fast]
    with torch.no_grad():
        for block in oracle.blocks[:5]:
            pathways = block(list(pathways))
            expected.append([pathway.permute(0, 2, 3, 4, 1).numpy() for pathway in pathways])
        pooled = [
            torch.nn.AvgPool3d(kernel, stride=1)(pathway.repeat_interleave(repeats, dim=2)).mean((2, 3, 4))
            for pathway, kernel in zip(pathways, ((8, 7, 7), (32, 7, 7)), strict=True)
        ]
    graph, state = nnx.split(ours)

    @jax.jit
    def run(state: nnx.State, video_PFYXC: jax.Array) -> tuple[jax.Array, tuple]:
        out: dict = {}
        return nnx.merge(graph, state)(video_PFYXC, out), out["motion.stages"]

    features, stages = run(state, video_FYXC)
    for number, (found, wanted) in enumerate(zip(stages, expected, strict=True)):
        for pathway, ours_PFYXC, theirs in zip(("slow", "fast"), found, wanted, strict=True):
            error = np.abs(ours_PFYXC - theirs).max() / theirs.std()
            assert error < TOLERANCE, f"stage {number} {pathway} is off by {error:.1e} standard deviations"
    wanted = torch.cat(pooled, dim=-1).numpy()
    assert np.abs(features - wanted).max() / wanted.std() < TOLERANCE


@pytest.mark.parametrize("frames", range(1, 40))
def test_any_number_of_frames_has_a_schedule(frames: int):
    """As many slow frames as the strided lateral convolutions yield, and pooling windows that fit."""
    slow, repeats = schedule(frames)
    assert len(slow) == (frames + 6 - 7) // 4 + 1
    assert slow[0] == 0
    assert slow[-1] < frames
    assert len(slow) * repeats >= 8
    assert frames * repeats >= 32


def test_the_slow_pathway_sees_torchs_frames():
    for frames in range(1, 2001):
        slow, _ = schedule(frames)
        assert slow.tolist() == torch.linspace(0, frames - 1, len(slow)).long().tolist(), f"{frames} frames"


def test_weights_of_the_pooled_mean_sum_to_one_and_small_maps_are_refused():
    np.testing.assert_allclose(coverage(18, 7, "rows").sum(), 1, rtol=1e-6)
    with pytest.raises(InputError, match="6 rows, fewer than the pooling's 7"):
        coverage(6, 7, "rows")
