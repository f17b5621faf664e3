"""SlowFast-R50 in PyTorch, from its tensors alone: what pytorchvideo computes, without pytorchvideo.

Enters: normalised frames and a way to read a tensor by its name. Leaves: both pathways after every stage, and the
pooled features. Source: pytorchvideo's `create_slowfast` and the reference's `slowfast_model`.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

ROOT = "slowfast_model.feature_extraction."
_ALPHA = 4

Weights = Mapping[str, Callable[[], "torch.Tensor"]]


def slowfast(pixels_FCYX: "torch.Tensor", weights: Weights, settings: Mapping[str, Any]) -> list[Any]:
    """[(slow, fast)] of each stage, [1, C, F, Y, X], and last of all the features [1, Z]; settings: `motion_config`."""
    import torch

    fast = pixels_FCYX.transpose(0, 1)[None]
    frames = fast.shape[2]
    count = -(-frames // _ALPHA)
    pathways = (fast[:, :, torch.linspace(0, frames - 1, count).long()], fast)
    stages: list[Any] = []
    number = 0
    while any(name.startswith(f"{ROOT}{number}.") for name in weights):
        pathways = _block(pathways, number, weights, settings.get("epsilon", 1e-5))
        stages.append(pathways)
        number += 1
    repeats = max(-(-12 // count), -(-32 // frames))
    pools = settings.get("slow_pool", (8, 7, 7)), settings.get("fast_pool", (32, 7, 7))
    pooled = [
        # In float32, as PyTorch has no such pooling in bfloat16 on a CPU.
        torch.nn.functional.avg_pool3d(x.float().repeat_interleave(repeats, dim=2), tuple(pool), stride=1).mean(
            (2, 3, 4)
        )
        for x, pool in zip(pathways, pools, strict=True)
    ]
    return [*stages, torch.cat(pooled, dim=-1).to(fast.dtype)]


def _block(pathways: tuple[Any, Any], number: int, weights: Weights, epsilon: float) -> tuple[Any, Any]:
    import torch
    from torch.nn import functional

    def conv_norm(x: Any, conv: str, norm: str, stride: tuple[int, int, int]) -> Any:
        kernel = weights[conv + ".weight"]().to(x.dtype)
        padding = tuple(size // 2 for size in kernel.shape[2:])
        x = functional.conv3d(x, kernel, stride=stride, padding=padding)
        parts = (weights[f"{norm}.{part}"]().to(x.dtype) for part in ("running_mean", "running_var", "weight", "bias"))
        return functional.batch_norm(x, *parts, training=False, eps=epsilon)

    def stem(x: Any, at: str) -> Any:
        x = functional.relu(conv_norm(x, at + "conv", at + "norm", (1, 2, 2)))
        return functional.max_pool3d(x, (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1))

    def residual(x: Any, at: str, stride: int) -> Any:
        strides = 1, stride, stride
        branch = functional.relu(conv_norm(x, at + "branch2.conv_a", at + "branch2.norm_a", (1, 1, 1)))
        branch = functional.relu(conv_norm(branch, at + "branch2.conv_b", at + "branch2.norm_b", strides))
        branch = conv_norm(branch, at + "branch2.conv_c", at + "branch2.norm_c", (1, 1, 1))
        projected = at + "branch1_conv.weight" in weights
        return functional.relu(
            branch + (conv_norm(x, at + "branch1_conv", at + "branch1_norm", strides) if projected else x)
        )

    def residuals(x: Any, at: str) -> Any:
        depth = 0
        while f"{at}res_blocks.{depth}.branch2.conv_a.weight" in weights:
            x = residual(x, f"{at}res_blocks.{depth}.", 2 if number > 1 and depth == 0 else 1)
            depth += 1
        return x

    root = f"{ROOT}{number}."
    run = stem if number == 0 else residuals
    slow, fast = (run(x, f"{root}multipathway_blocks.{pathway}.") for pathway, x in enumerate(pathways))
    fusion = root + "multipathway_fusion."
    if fusion + "conv_fast_to_slow.weight" in weights:
        lateral = conv_norm(fast, fusion + "conv_fast_to_slow", fusion + "norm", (_ALPHA, 1, 1))
        slow = torch.cat([slow, functional.relu(lateral)], dim=1)
    return slow, fast
