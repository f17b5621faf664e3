"""The whole scoring path against numbers that the reference's own code computed (`expected.json`).

Tolerance: 2e-4 of an array's standard deviation, in float32 on a CPU: the same sums in another order, through every
layer before.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from convert.load import load
from tests.reference_weights import tensor
from vqathinker_jax.data import prompt
from vqathinker_jax.data.frames import resize
from vqathinker_jax.data.video import read_clip
from vqathinker_jax.generate import Completions, Sampling, encode, generate
from vqathinker_jax.model.vlm import VLM

TOLERANCE = 2e-4


class Case(NamedTuple):
    """A scoring case ready to run: the model as a command loads it, and every clip as the model sees it."""

    graph: nnx.GraphDef[VLM]
    state: nnx.State
    tokenizer: Any
    expected: dict[str, Any]
    frames: dict[str, np.ndarray]
    ids: dict[str, np.ndarray]


@pytest.fixture(scope="module")
def case(scoring_case: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    expected = json.loads((scoring_case / "expected.json").read_text())
    shapes = json.loads((scoring_case / "tensors.json").read_text())
    names = [name for name in shapes if name.startswith("slowfast_model.")]
    slowfast = tmp_path_factory.mktemp("slowfast") / "slowfast.safetensors"
    save_file({name: tensor(expected["weights_seed"], name, tuple(shapes[name])) for name in names}, slowfast)
    model = load(scoring_case, slowfast=slowfast, unrolled=True)
    tokenizer = prompt.load_tokenizer(scoring_case)
    F, size = expected["frames"], expected["image_size"]
    L = model.config.tokens_per_frame(size)
    assert expected["image_tokens"] == L
    return Case(
        *nnx.split(model),
        tokenizer,
        expected,
        frames={name: resize(read_clip(scoring_case / name, F).frames_FYXC, size) for name in expected["videos"]},
        ids={
            name: prompt.encode(tokenizer, video["prompt"], L, F, model.motion is not None)
            for name, video in expected["videos"].items()
        },
    )


@pytest.fixture(scope="module")
def stages(case: Case) -> dict[str, dict[str, np.ndarray]]:
    """Every recorded stage of every clip, computed one clip after the other without padding."""
    context = prompt.special_tokens(case.tokenizer).context

    @jax.jit
    def run(state: nnx.State, frames_FYXC: jax.Array, ids_S: jax.Array) -> dict[str, jax.Array]:
        model = nnx.merge(case.graph, state)
        out: dict[str, Any] = {}
        hidden_BSD = model.embed(ids_S[None], model.encode(frames_FYXC[None], out), context)
        hidden_BSD, _ = model.language.prefill(hidden_BSD, np.ones((1, len(ids_S)), bool))
        logits_BSV = model.language.logits(hidden_BSD)
        return {
            "vision_embeds": out["projector"],
            "motion_feature": out["motion.features"],
            "motion_embeds": out["motion.token"],
            "logits": logits_BSV,
            "last_logits": logits_BSV[0, -1],
        }

    return {name: jax.device_get(run(case.state, case.frames[name], case.ids[name])) for name in case.frames}


@pytest.mark.parametrize("stage", ["vision_embeds", "motion_feature", "motion_embeds", "logits"])
def test_every_stage_is_the_references(case: Case, stages: dict[str, dict[str, np.ndarray]], stage: str):
    for name, video in case.expected["videos"].items():
        pick = video[stage]
        ours = stages[name][stage]
        assert list(ours.shape) == pick["shape"]
        error = np.abs(ours.reshape(-1)[pick["index"]] - np.array(pick["value"])).max()
        assert error < TOLERANCE * pick["std"], f"{name}: {stage} is off by {error / pick['std']:.1e} deviations"


def test_the_logits_of_the_first_new_token_are_the_references(case: Case, stages: dict[str, dict[str, np.ndarray]]):
    for name, video in case.expected["videos"].items():
        error = np.abs(stages[name]["last_logits"] - np.array(video["last_logits"])).max()
        assert error < TOLERANCE * video["logits"]["std"]


def write(case: Case, names: list[str], tokens: int) -> Completions:
    special = prompt.special_tokens(case.tokenizer)
    ids_PS, mask_PS = prompt.pad_left([case.ids[name] for name in names], special.pad)
    return generate(
        case.graph,
        case.state,
        encode(case.graph, case.state, np.stack([case.frames[name] for name in names])),
        ids_PS,
        mask_PS,
        context_id=special.context,
        stop_id=special.stop,
        pad_id=special.pad,
        sampling=Sampling(max_new_tokens=tokens),
    )


def test_greedy_tokens_are_the_references_alone_and_in_a_batch(case: Case):
    videos = case.expected["videos"]
    tokens = max(len(video["greedy_ids"]) for video in videos.values())
    together = write(case, list(videos), tokens)
    for row, (name, video) in enumerate(videos.items()):
        for made in (write(case, [name], tokens).ids_PGC[0, 0], together.ids_PGC[row, 0]):
            assert made[: len(video["greedy_ids"])].tolist() == video["greedy_ids"], name
        text = case.tokenizer.decode(together.ids_PGC[row, 0], skip_special_tokens=True).strip()
        assert text == case.expected["batch_greedy_text"][row]
        assert text == video["greedy_text"]
