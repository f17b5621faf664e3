"""Scoring on a CPU, ours beside Transformers': InternVL3-1B's shapes, random weights, float32, 6 frames at 448 px.

Each implementation lives in a process of its own, so that its peak memory is its own; they take turns, phase by phase
and repeat by repeat, so that whatever else the machine does falls on both. Transformers runs as kindly as it can: no
`generate` around its forward calls, no attention mask, logits of the last position only, pixels already normalised.
"""

import argparse
import json
import multiprocessing
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from multiprocessing.connection import Connection
from typing import Any

FRAMES, SIZE, TOKENS_PER_FRAME, TEXT_TOKENS, NEW_TOKENS = 6, 448, 256, 120, 33
VISION = {"width": 1024, "layers": 24, "heads": 16, "mlp": 4096}
LANGUAGE = {"width": 896, "layers": 24, "heads": 14, "kv_heads": 2, "mlp": 4864, "vocabulary": 151674}
CONTEXT_ID = 151667
PHASES = {"vision": "vision", "first_token": "first token", "token": "a token"}

Phases = dict[str, Callable[[], Any]]
"""What each phase runs. `token` goes on from where `first_token` stopped, and is run once after it."""


def prompt() -> list[int]:
    """Ids of a prompt shaped like the scoring prompt: every frame's context slots, text before, between and after."""
    between = TEXT_TOKENS // (FRAMES + 1)
    ids = list(range(1000, 1000 + TEXT_TOKENS - FRAMES * between))
    for frame in range(FRAMES):
        ids += range(2000 + frame * between, 2000 + (frame + 1) * between)
        ids += [CONTEXT_ID] * TOKENS_PER_FRAME
    return ids[:-TOKENS_PER_FRAME] + [CONTEXT_ID] * TOKENS_PER_FRAME


def ours(layers: int) -> Phases:
    """The path that `run.py score` takes: prompts padded to a bucket, layers listed, one jitted call a phase."""
    import jax
    import numpy as np
    from flax import nnx

    from vqathinker_jax.data.prompt import pad_left
    from vqathinker_jax.generate import Sampling, begin, decode, encode, prefill
    from vqathinker_jax.model.config import LanguageConfig, ModelConfig, VisionConfig
    from vqathinker_jax.skeleton import abstract_model, arrays, fill

    vision, language = VISION | {"layers": layers}, LANGUAGE | {"layers": layers}
    abstract = abstract_model(ModelConfig(VisionConfig(**vision), LanguageConfig(**language), None), unrolled=True)
    random = np.random.default_rng(0)

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        return random.standard_normal(shape, np.float32) * np.float32(0.02) + np.float32("scale" in name)

    graph, state = nnx.split(fill(abstract, ((name, draw(name, x.shape)) for name, x in arrays(abstract).items())))
    frames_PFYXC = random.integers(0, 256, (1, FRAMES, SIZE, SIZE, 3), np.uint8)
    ids_PS, mask_PS = pad_left([np.asarray(prompt(), np.int32)], 0)
    keys_PG = jax.random.split(jax.random.key(0), (1, 1))
    settings = {"sampling": Sampling(max_new_tokens=NEW_TOKENS), "stop_id": -1, "pad_id": 0}
    held: dict[str, Any] = {}

    def first_token() -> None:
        held.clear()
        logits_PV, held["cache"] = prefill(
            graph, state, encode(graph, state, frames_PFYXC), ids_PS, mask_PS, context_id=CONTEXT_ID
        )
        held["decoding"] = begin(graph, state, logits_PV, keys_PG, **settings)
        jax.block_until_ready(held["decoding"].ids_PGC)

    def token() -> None:
        until = jax.numpy.int32(NEW_TOKENS)
        decoding = decode(graph, state, held["cache"], held.pop("decoding"), keys_PG, until, **settings)
        assert int(decoding.written) == NEW_TOKENS

    return {
        "vision": lambda: jax.block_until_ready(encode(graph, state, frames_PFYXC)),
        "first_token": first_token,
        "token": token,
    }


def transformers(layers: int) -> Phases:
    """`InternVLForConditionalGeneration` with PyTorch's fused attention, on all cores."""
    import torch
    from transformers import InternVLConfig, InternVLForConditionalGeneration

    from convert.theirs import name_of_cache

    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    vision = {
        "hidden_size": VISION["width"],
        "num_hidden_layers": layers,
        "num_attention_heads": VISION["heads"],
        "intermediate_size": VISION["mlp"],
        "attention_bias": True,
        "image_size": [SIZE, SIZE],
    }
    text = {
        "model_type": "qwen2",
        "hidden_size": LANGUAGE["width"],
        "num_hidden_layers": layers,
        "num_attention_heads": LANGUAGE["heads"],
        "num_key_value_heads": LANGUAGE["kv_heads"],
        "intermediate_size": LANGUAGE["mlp"],
        "vocab_size": LANGUAGE["vocabulary"],
        "tie_word_embeddings": False,
    }
    config = InternVLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=CONTEXT_ID,
        tie_word_embeddings=False,
        attn_implementation="sdpa",
    )
    model = InternVLForConditionalGeneration(config).float().eval()
    pixels_FCYX = torch.randn(FRAMES, 3, SIZE, SIZE)
    ids_PS = torch.tensor([prompt()])
    held: dict[str, Any] = {}

    name = name_of_cache(model)

    def feed(**inputs: Any) -> None:
        out = model(**inputs, use_cache=True, logits_to_keep=1, **{name: held.get("cache")})
        held.update(cache=getattr(out, name), ids=out.logits[:, -1:].argmax(-1))

    @torch.no_grad()
    def first_token() -> None:
        held.clear()
        feed(input_ids=ids_PS, pixel_values=pixels_FCYX)

    @torch.no_grad()
    def token() -> None:
        for _ in range(NEW_TOKENS - 1):
            feed(input_ids=held["ids"])

    return {
        "vision": torch.no_grad()(lambda: model.get_image_features(pixel_values=pixels_FCYX).pooler_output),
        "first_token": first_token,
        "token": token,
    }


IMPLEMENTATIONS: dict[str, Callable[[int], Phases]] = {"ours": ours, "transformers": transformers}


def serve(connection: Connection, name: str, layers: int) -> None:
    """The child process: build the model, then answer each phase's name with its seconds until None comes."""
    phases = IMPLEMENTATIONS[name](layers)
    connection.send(None)
    for phase in iter(connection.recv, None):
        start = time.perf_counter()
        phases[phase]()
        connection.send(time.perf_counter() - start)
    connection.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


class Child:
    """One implementation in a process of its own; it works only while it is asked."""

    def __init__(self, name: str, layers: int):
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, name, layers), daemon=True)
        self.process.start()
        theirs.close()
        self.connection.recv()

    def ask(self, phase: str | None) -> float:
        """Seconds that the phase took; peak memory in GiB, and the process's end, for None."""
        self.connection.send(phase)
        answer = self.connection.recv()
        time.sleep(0.3)  # its threads spin for a moment after their work, which is the other's time
        return answer


def measure(layers: int, repeats: int) -> tuple[dict[str, dict[str, list[float]]], dict[str, float]]:
    """Seconds of every call by implementation and phase, the first call (with compilation) in front; peaks in GiB."""
    children = {name: Child(name, layers) for name in IMPLEMENTATIONS}
    seconds: dict[str, dict[str, list[float]]] = {name: {phase: [] for phase in PHASES} for name in children}
    for repeat in range(repeats + 1):
        turn = sorted(children, reverse=bool(repeat % 2))
        for phase in PHASES:
            for name in turn:
                share = NEW_TOKENS - 1 if phase == "token" else 1
                seconds[name][phase].append(children[name].ask(phase) / share)
    return seconds, {name: child.ask(None) for name, child in children.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Phases: vision (pixels to projected tokens), first token (pixels and prompt to the first token's id, "
        "vision included), a token (mean over the other 32, greedy, no early stop). A ratio is Transformers' median "
        "over ours: above 1 means that ours is faster. The first call of each phase is apart: ours compiles in it.",
    )
    parser.add_argument("--repeats", type=int, default=5, help="timed calls of each phase after the first (default 5)")
    parser.add_argument("--layers", type=int, default=24, help="layers of both towers; fewer for a smoke test")
    parser.add_argument("--json", action="store_true", help="end with one line of ratios as JSON")
    args = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    seconds, peaks = measure(args.layers, args.repeats)

    libraries = ", ".join(f"{name} {version(name)}" for name in ("jax", "flax", "torch", "transformers"))
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores · {libraries} · {args.layers} layers")
    print(f"{'seconds, median (fastest–slowest)':36}{'ours':>24}{'Transformers':>24}{'ratio':>8}")
    ratios = {}
    for phase, label in PHASES.items():
        cells, medians = [], []
        for name in IMPLEMENTATIONS:
            timed = seconds[name][phase][1:]
            medians.append(statistics.median(timed))
            cells.append(f"{medians[-1]:.3f} ({min(timed):.3f}–{max(timed):.3f})")
        ratios[f"{phase}_ratio"] = round(medians[1] / medians[0], 3)
        print(f"{label:36}{cells[0]:>24}{cells[1]:>24}{ratios[f'{phase}_ratio']:8.2f}")
    firsts = [sum(calls[0] for calls in seconds[name].values()) for name in IMPLEMENTATIONS]
    print(f"{'first call of all three':36}{firsts[0]:24.1f}{firsts[1]:24.1f}")
    print(f"{'peak memory, GiB':36}{peaks['ours']:24.2f}{peaks['transformers']:24.2f}")
    if args.json:
        print(json.dumps(ratios))


if __name__ == "__main__":
    main()
