"""What the cross-check holds us against is itself what it claims to be.

Tolerance: 2e-4 of a stage's standard deviation, in float32 on a CPU: the same sums in another order.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers.dynamic_module_utils

from convert.crosscheck import Halves, crosscheck, make_task
from convert.oracle_motion import ROOT, slowfast
from convert.recording import Task
from tests import clips
from tests.checkpoints import draw, settings, shapes, write
from tests.parity.test_slowfast import SIZE, oracle

TOLERANCE = 2e-4

__all__ = ["oracle"]  # the fixture: pytorchvideo's SlowFast


@pytest.mark.parametrize(("frames", "stride", "repeats"), [(12, 4, 4), (6, 3, 6)], ids=["scoring", "training"])
def test_slowfast_from_its_tensors_is_pytorchvideos(oracle: torch.nn.Module, frames: int, stride: int, repeats: int):
    pixels = torch.from_numpy(np.random.default_rng(0).standard_normal((frames, 3, SIZE, SIZE)).astype(np.float32))
    fast = pixels.transpose(0, 1)[None]
    pathways = [fast[:, :, torch.linspace(0, frames - 1, frames // stride).long()], fast]
    weights = {ROOT + name.removeprefix("blocks."): (lambda x=x: x) for name, x in oracle.state_dict().items()}
    weights = {name: read for name, read in weights.items() if int(name.removeprefix(ROOT).split(".")[0]) < 5}
    with torch.no_grad():
        *stages, features = slowfast(pixels, weights, {})
        for block, found in zip(oracle.blocks[:5], stages, strict=True):
            pathways = block(list(pathways))
            for ours, theirs in zip(found, pathways, strict=True):
                assert (ours - theirs).abs().max() < TOLERANCE * theirs.std()
        pooled = [
            torch.nn.AvgPool3d(kernel, stride=1)(pathway.repeat_interleave(repeats, dim=2)).mean((2, 3, 4))
            for pathway, kernel in zip(pathways, ((8, 7, 7), (32, 7, 7)), strict=True)
        ]
    expected = torch.cat(pooled, dim=-1)
    assert (features - expected).abs().max() < TOLERANCE * expected.std()


@pytest.mark.filterwarnings("ignore")  # the loader of remote code warns of much that is no concern here
def test_remote_code_is_checked_against_when_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    config = settings("chat")
    config["auto_map"] = {"AutoConfig": "modeling_chat.Config", "AutoModel": "modeling_chat.Model"}
    config["llm_config"] |= {"sliding_window": None}
    source = write(tmp_path / "source", config, draw(shapes(config, motion=True)))
    shutil.copy(Path(__file__).with_name("modeling_chat.py"), source)
    clips.write(tmp_path / "clip.mp4", 8)

    def make() -> Task:
        inputs = {"frames": 4, "image_size": 84, "tokens": 6, "dtype": "float32", "gradients": True, "slowfast": None}
        return make_task(source, tmp_path / "clip.mp4", **inputs)

    lines: list[str] = []
    agree = crosscheck(source, Halves(reference="remote-code"), make, tmp_path / "report", lines.append)
    assert agree, "\n".join(lines)
    assert lines[0] == "running remote-code, its weights in memory"
    names = {row["stage"] for row in json.loads((tmp_path / "report" / "crosscheck.json").read_text())["stages"]}
    assert {"gradient vision_model.encoder.layers.1.attn.qkv.weight", "vision layer 1, quiet", "greedy tokens"} <= names
