"""Continue a text with a language model; it appears as it is written.

    python -m trainer.generate --model_dir=MODEL --prompt='Once upon a time' --length=300
    python -m trainer.generate --model_dir=MODEL --num_samples=3 --temperature=0.7 --top_p=0.9

The same --seed writes the same text. A document that is over ends a sample before its length. A
prompt longer than the row that the model was trained on is read from its end.
"""

import numpy as np
from absl import flags

from common.console import warn, write_stdout
from common.errors import UsageError, no_arguments, run_app
from data_pipeline.dataset.tokenizer import UNK_ID, Tokenizer
from trainer.checkpoints import model_dir as model_directory
from trainer.decoding.generation import TextGenerator
from trainer.decoding.options import SamplingOptions

_AT_ONCE = 8  # tokens between two writes to the terminal
_INCOMPLETE = "\ufffd"  # what an unfinished character of several bytes decodes to

_MODEL_DIR = flags.DEFINE_string("model_dir", None, "Model directory.", required=True)
_CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "best, latest, or a checkpoint's path.")
_PROMPT = flags.DEFINE_string("prompt", "", "How the text begins; empty to begin a document.")
_LENGTH = flags.DEFINE_integer("length", 300, "Tokens to write at most.", 1, 10_000_000)
_NUM_SAMPLES = flags.DEFINE_integer("num_samples", 1, "How many texts.", 1)
_TEMPERATURE = flags.DEFINE_float(
    "temperature", 0.8, "Below 1 for likelier text; 0 for the likeliest token each time.", 0.0
)
_TOP_K = flags.DEFINE_integer("top_k", 0, "Draw among this many tokens; 0 for all.", 0)
_TOP_P = flags.DEFINE_float(
    "top_p", 1.0, "Draw among the likeliest tokens of this total probability.", 0.01, 1.0
)
_SEED = flags.DEFINE_integer("seed", 1, "Another seed writes another text.", 0)


def encode_prompt(prompt: str, tokenizer: Tokenizer) -> list[int]:
    """Return the token ids of a prompt.

    Raises:
        UsageError: the vocabulary lacks some of its characters.
    """
    (ids,) = tokenizer.encode([prompt])
    if UNK_ID in ids:
        lacking = sorted({one for one in prompt if UNK_ID in tokenizer.encode([one])[0]})
        raise UsageError(
            f"--prompt has characters that the model's vocabulary lacks: {' '.join(lacking)}; "
            "leave them out"
        )
    spelled = int(tokenizer.byte_mask()[ids].sum()) if tokenizer.model_type != "byte" else 0
    if spelled:
        warn(
            f"--prompt has characters that are rare or new to the model: {spelled:,} of its "
            f"{len(ids):,} tokens are single bytes"
        )
    return ids


def sampling_options() -> SamplingOptions:
    """Return what the flags say; without temperature, of the likeliest token alone."""
    greedy = _TEMPERATURE.value == 0
    return SamplingOptions(
        _NUM_SAMPLES.value,
        1.0 if greedy else max(_TEMPERATURE.value, 0.01),
        1 if greedy else _TOP_K.value,
        _TOP_P.value,
        _SEED.value,
    )


def main(argv: list[str]) -> None:
    """Load, write."""
    no_arguments(argv)
    loaded = model_directory.load(_MODEL_DIR.value, _CHECKPOINT.value, "language_model")
    facts, tokenizer = loaded.facts, loaded.tokenizers["text"]
    ids = encode_prompt(_PROMPT.value, tokenizer)
    room = facts.config.data.longest_row
    if len(ids) >= room:
        warn(
            f"--prompt has {len(ids):,} tokens, and the model sees {room:,}: it goes on from the "
            f"last {room // 2:,}"
        )
    generator = TextGenerator(loaded.model, sampling_options(), room)
    prompts = np.tile(np.array(ids, np.int32), [_NUM_SAMPLES.value, 1])
    _write(generator, tokenizer, prompts)


def _write(generator: TextGenerator, tokenizer: Tokenizer, prompts: np.ndarray) -> None:
    """Write one sample as it grows, or several one after the other at the end."""
    start = tokenizer.decode(prompts.tolist())
    if len(prompts) > 1:
        found = generator.generate(prompts, _LENGTH.value)
        written = tokenizer.decode([row[row > 0] for row in np.concatenate([prompts, found], 1)])
        for number, text in enumerate(written, start=1):
            _say(f"--- {number}\n{text}\n")
        return
    _say(start[0])
    shown = len(start[0])
    for new in generator.stream(prompts, _LENGTH.value, _AT_ONCE):
        row = np.concatenate([prompts, new], axis=1)[0]
        (text,) = tokenizer.decode([row[row > 0]])
        whole = text.rstrip(_INCOMPLETE)
        _say(whole[shown:])
        shown = max(shown, len(whole))
    _say(text[shown:] + "\n")


def _say(text: str) -> None:
    write_stdout(text.encode("utf-8"))


if __name__ == "__main__":
    run_app(main, result_on_stdout=True)
