"""A small tokenizer in Qwen2's form: texts in, the files that `prompt.load_tokenizer` reads out."""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, trainers
from tokenizers.pre_tokenizers import ByteLevel
from transformers import Qwen2Tokenizer

from vqathinker_jax.data.prompt import CLOSE, CONTEXT, OPEN, STOP, TURN

PAD = "<|endoftext|>"
SPECIAL = (STOP, PAD, TURN, OPEN, CLOSE, CONTEXT)


def write_tokenizer(directory: Path, texts: Iterable[str]) -> None:
    """Write a tokenizer that knows every byte and, as one token each, the words of `texts`, split as Qwen2 splits."""
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.NFC()
    learner.pre_tokenizer = Qwen2Tokenizer().backend_tokenizer.pre_tokenizer
    # Ends by itself once all words are whole; in this order of the alphabet ids do not depend on Python's hashing.
    trainer = trainers.BpeTrainer(vocab_size=100_000, initial_alphabet=sorted(ByteLevel.alphabet()))
    learner.train_from_iterator(texts, trainer)
    learner.model.save(str(directory))

    added = {token: learner.get_vocab_size() + place for place, token in enumerate(SPECIAL)}
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    roles = {
        "eos_token": STOP,
        "pad_token": PAD,
        "unk_token": PAD,
        "additional_special_tokens": [TURN, OPEN, CLOSE, CONTEXT],
    }
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "added_tokens_decoder": {str(at): {"content": token, **plain, "special": True} for token, at in added.items()},
        "clean_up_tokenization_spaces": False,
        "model_max_length": 32768,
        **roles,
    }
    for name, content in (("added_tokens", added), ("special_tokens_map", roles), ("tokenizer_config", settings)):
        (directory / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
