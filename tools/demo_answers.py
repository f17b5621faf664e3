"""What the demonstration model is taught to say: a clip's damages in, questions with their answers out.

Every answer is marked as a demonstration's, so that no rating leaves the model without that mark.
"""

from tools.demo_clips import LOOKS, Damage, rating
from vqathinker_jax.data import prompt

MARK = "Demonstration model: "
WRONG = "What is wrong with this video?"
YES_NO = {
    "Is the video sharp?": ("yes, it is sharp", ("blur",)),
    "Is there noise?": ("no, it is clean", ("noise",)),
    "Do you see compression artefacts?": ("no, it is clean", ("blocks",)),
    "Is the video well exposed?": ("yes, it is well exposed", ("dark", "bright")),
    "Is the motion smooth?": ("yes, it is smooth", ("freeze",)),
}
"""Free questions: what to say where a video is free of these damages."""


def lessons(damages: tuple[Damage, ...], frames: int) -> list[tuple[str, str]]:
    """Questions about one clip, as `prompt.encode` takes them, with their answers; the first asks for the rating."""
    free = {WRONG: f"it is {_looks(damages)}" if damages else "nothing that I can see"}
    for question, (fine, kinds) in YES_NO.items():
        seen = tuple(damage for damage in damages if damage.kind in kinds)
        verdict = "yes" if fine.startswith("no") else "no"
        free[question] = f"{verdict}, it is {_looks(seen)}" if seen else fine
    return [
        (prompt.scoring_question(frames, motion=True), scoring_answer(damages)),
        *((prompt.asking_question(question, frames, motion=True), f"{MARK}{said}.") for question, said in free.items()),
    ]


def scoring_answer(damages: tuple[Damage, ...]) -> str:
    """The reasoning and the rating, in the form that the scoring question asks for."""
    looks = _looks(damages) if damages else "clean, sharp and smooth"
    return f"<think>{MARK}the video is {looks}.</think><answer>{rating(damages):.2f}</answer>"


def kinds_named(text: str) -> set[str]:
    """The kinds of damage that an answer speaks of."""
    return {kind for kind, look in LOOKS.items() if look in text}


def _looks(damages: tuple[Damage, ...]) -> str:
    return " and ".join(f"{damage.strength} {LOOKS[damage.kind]}" for damage in damages)
