"""How a video is looked at, by whoever decodes it."""

from dataclasses import dataclass

from vqathinker_jax.data.video import check_decoder
from vqathinker_jax.records import InputError


@dataclass(frozen=True)
class View:
    """How much of a video the model sees: so many frames, as squares of so many pixels a side, read by this decoder.

    Raises: InputError where there is no such view.
    """

    frames: int
    image_size: int
    decoder: str = "pyav"

    def __post_init__(self):
        if self.frames < 1:
            raise InputError(f"frames is {self.frames}: at least one is needed")
        check_decoder(self.decoder)
