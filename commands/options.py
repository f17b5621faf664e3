"""What several commands take, and the model that they open with it."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from vqathinker_jax.records import InputError

if TYPE_CHECKING:
    from vqathinker_jax.data.view import View
    from vqathinker_jax.generate import Sampling
    from vqathinker_jax.judge import Judge

DEMO = Path(__file__).parents[1] / "vqathinker_jax" / "assets"
DEMO_NOTICE = (
    "demonstration model: a tiny network that shows how everything fits together; its ratings mean little. "
    "Give --checkpoint a VQAThinker folder for real ones."
)
JSON_HELP = "One JSON object a line on standard output, and nothing else there."


AS_MADE = "(default: as the checkpoint says, else {})"
OptionalPath = Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="(default: none)")]
Flag = tyro.conf.FlagCreatePairsOff[bool]
AsJson = Annotated[Flag, tyro.conf.arg(name="json", help=JSON_HELP, help_behavior_hint="")]


@dataclass(frozen=True)
class ModelOptions:
    """Which model looks at the videos, and how."""

    checkpoint: Annotated[Path, tyro.conf.arg(help_behavior_hint="(default: the bundled demonstration model)")] = (
        DEMO / "checkpoint"
    )
    """Folder of a checkpoint: one from Hugging Face (chat or Transformers format) or one made by `convert`."""
    slowfast: OptionalPath = None
    """SlowFast weights (SLOWFAST_8x8_R50.pyth), for a checkpoint that has a motion branch but not these."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic and weights; auto is bfloat16 on an accelerator, float32 on a CPU."""
    weights: Literal["full", "int8", "fp8"] = "full"
    """int8 and fp8 keep the language model's matrices in a byte a weight: less memory, ratings a little off."""
    cache: Literal["full", "int8"] = "full"
    """int8 keeps what the model remembers of a prompt in a byte a number: room for more videos at a time."""
    attention: Literal["auto", "blocks"] = "auto"
    """auto takes the kernel made for the device (cuDNN's, or splash on a TPU); blocks does without, on any device."""
    frames: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint=AS_MADE.format(12))] = None
    """Frames taken from each video, evenly spread."""
    image_size: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint=AS_MADE.format(560))] = None
    """Side, in pixels, of the square each frame is resized to."""
    decoder: Literal["pyav", "decord"] = "pyav"
    """pyav reads the right frames of every container; decord the reference's very frames, its seek errors included."""
    max_new_tokens: int = 1024
    """Longest answer; one that is cut off before its rating fails."""
    temperature: float = 0.0
    """0 takes the most probable token each time; above 0 tokens are drawn."""
    top_k: int = 0
    """Draw among the k most probable tokens; 0 for all."""
    top_p: float = 1.0
    """Draw among the fewest tokens that together are this probable."""
    seed: int = 0
    """Seed of the draws."""


Model = Annotated[ModelOptions, tyro.conf.arg(name="")]
BUNDLED = ModelOptions()
"""The bundled model, as `score` shows videos to it unless it is told otherwise."""


def chosen_view(options: ModelOptions) -> "View":
    """How videos are shown to the model: as it was made to see them, but for what is given."""
    from convert.load import open_config
    from vqathinker_jax.judge import view_of

    config = open_config(options.checkpoint, slowfast=options.slowfast)
    return view_of(config, options.frames, options.image_size, options.decoder)


def chosen_sampling(options: ModelOptions) -> "Sampling":
    """How the next token is chosen."""
    from vqathinker_jax.generate import Sampling

    return Sampling(options.max_new_tokens, options.temperature, options.top_k, options.top_p)


def open_judge(options: ModelOptions, question: str | None = None) -> "Judge":
    """Load the model that is to rate videos, or to answer `question`; progress and notices go to standard error."""
    from vqathinker import load

    _backend()
    cache_compilations()
    if is_demo(options):
        print(DEMO_NOTICE, file=sys.stderr)
    return load(
        options.checkpoint,
        slowfast=options.slowfast,
        dtype=options.dtype,
        weights=options.weights,
        cache=options.cache,
        attention=options.attention,
        view=chosen_view(options),
        sampling=chosen_sampling(options),
        seed=options.seed,
        question=question,
        progress=True,
    )


def is_demo(options: ModelOptions) -> bool:
    """Whether the bundled model is meant."""
    return options.checkpoint.resolve() == (DEMO / "checkpoint").resolve()


def cache_compilations() -> None:
    """Keep what XLA compiles for the next run."""
    import jax

    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "vqathinker-jax" / "xla"
    jax.config.update("jax_compilation_cache_dir", str(cache))
    # Also what took less than a second: there are dozens of those.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _backend() -> str:
    import jax

    try:
        return jax.default_backend()
    except (RuntimeError, AssertionError):  # the latter where CUDA is asked for and there is none
        asked = os.environ.get("JAX_PLATFORMS", "")
        raise InputError(f"jax finds no device for JAX_PLATFORMS={asked!r}; unset it, or see: run.py doctor") from None
