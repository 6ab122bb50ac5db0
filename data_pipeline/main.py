"""Make a dataset directory of text: cleaned, deduplicated, tokenised, packed, sharded.

Pairs for a translator:

    python -m data_pipeline.main --train=text:train.en.gz,train.de.gz \\
        --valid=text:valid.en.gz,valid.de.gz --test=tsv:test.tsv.gz \\
        --source_lang=en --target_lang=de --vocab_size=8000 --output_dir=DIR

Running text for a language model, and labelled text for a classifier:

    python -m data_pipeline.main --task=language_model --model_type=char \\
        --train=text:book.txt --valid=text:other.txt --output_dir=DIR
    python -m data_pipeline.main --task=classification \\
        --train=tsv:train.tsv --valid=tsv:valid.tsv --output_dir=DIR

A SPEC is one of
    text:SOURCE_FILE,TARGET_FILE        one file a side, line n translates line n
    text:FILE                           running text (language_model)
    tsv:FILE                            source, tab, target, or text, tab, label
    tmx:FILE                            translation memory
    gettext:FILE                        catalogue of a program's messages, .po or .mo
    tfds:NAME/CONFIG:SPLIT              a dataset of TensorFlow Datasets
    builtin:train?size=50000&seed=1     the generated corpus: train, valid or test
Files are plain, .gz or .zst, local or gs://, and may be globs; the flags may be repeated. A weight
before a SPEC of --train, as in 2*tsv:FILE or 0.5*tsv:FILE, repeats or thins out its examples. Flags
that this program does not know go to Beam: --runner=..., --direct_num_workers=2 and so on.
"""

import os

# Before anything imports TensorFlow: its start-up notices are not about this job.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from absl import flags

from common.errors import UsageError, run_app
from data_pipeline.cleaning.cleaner import FILTERS
from data_pipeline.dataset.manifest import SEQUENCES
from data_pipeline.dataset.perturbation import KINDS
from data_pipeline.dataset.tokenizer import MODEL_TYPES
from data_pipeline.job import prepare
from data_pipeline.settings import CORPUS_FILTERS, Settings
from data_pipeline.sources.documents import BOUNDARIES

_STEPS = "\n".join(f"{name}: {what}" for name, what in {**FILTERS, **CORPUS_FILTERS}.items())

_TASK = flags.DEFINE_enum("task", "translation", list(SEQUENCES), "What the dataset is for.")
_TRAIN = flags.DEFINE_multi_string("train", [], "SPEC of training text (repeatable).")
_VALID = flags.DEFINE_multi_string("valid", [], "SPEC of validation text (repeatable).")
_TEST = flags.DEFINE_multi_string("test", [], "SPEC of test text (repeatable).")
_SOURCE_LANG = flags.DEFINE_string(
    "source_lang", "en", "Source language; the language of the text for the other tasks."
)
_TARGET_LANG = flags.DEFINE_string("target_lang", "de", "Target language (translation).")
_OUTPUT_DIR = flags.DEFINE_string("output_dir", "", "The dataset directory to make.")
_VOCAB_SIZE = flags.DEFINE_integer(
    "vocab_size",
    8000,
    "Pieces of the joint vocabulary, specials and bytes included; not for char and byte.",
)
_MODEL_TYPE = flags.DEFINE_enum(
    "model_type", "unigram", MODEL_TYPES, "Kind of SentencePiece model; char and byte: one each."
)
_CHARACTER_COVERAGE = flags.DEFINE_float(
    "character_coverage",
    1.0,
    "Share of all characters that get a piece of their own; the rest is spelled in bytes.",
)
_TOKENIZER_SAMPLE = flags.DEFINE_integer(
    "tokenizer_sample", 200_000, "The tokenizer is trained on at most this many training pairs."
)
_DOCUMENTS = flags.DEFINE_enum(
    "documents", "blank_lines", list(BOUNDARIES), "Where documents of text: begin."
)
_NUM_SHARDS = flags.DEFINE_integer("num_shards", 8, "Files of the training split.")
_SEED = flags.DEFINE_integer("seed", 1, "Seed of the shuffle and of the tokenizer's sample.")
_MAX_TOKENS = flags.DEFINE_integer(
    "max_tokens", 250, "Training pairs and labelled texts with more tokens are dropped."
)
_MAX_LENGTH_RATIO = flags.DEFINE_float(
    "max_length_ratio",
    9.0,
    "Training pairs with more characters on one side per character of the other are dropped.",
)
_JOINT_VOCABULARY = flags.DEFINE_bool(
    "joint_vocabulary", True, "One vocabulary for both languages, or one for each (translation)."
)
_TOKENIZER = flags.DEFINE_list(
    "tokenizer", [], "SentencePiece model(s) to use instead of training: FILE, or SOURCE,TARGET."
)
_BYTE_FALLBACK = flags.DEFINE_bool(
    "byte_fallback", True, "Spell characters outside the vocabulary in bytes."
)
_USER_SYMBOLS = flags.DEFINE_list(
    "user_symbols", [], "Pieces that the tokenizer never splits, such as <2de>."
)
_ENABLE_FILTERS = flags.DEFINE_list(
    "enable_filters", [], f"Cleaning steps to switch on. The steps are\n{_STEPS}"
)
_DISABLE_FILTERS = flags.DEFINE_list("disable_filters", [], "Cleaning steps to switch off.")
_KEEP_REJECTED = flags.DEFINE_bool(
    "keep_rejected",
    False,
    "Write train.rejected.tsv: reason and text of what is dropped.",
)
_ROW_LENGTH = flags.DEFINE_integer(
    "row_length", 256, "Tokens per side of a packed training row; 0 for no packed rows."
)
_SEGMENTATIONS = flags.DEFINE_integer(
    "segmentations",
    1,
    "How often the packed rows hold each example, in sampled segmentations (Kudo 2018).",
)
_SAMPLING_ALPHA = flags.DEFINE_float(
    "sampling_alpha",
    0.2,
    "Exponent of the segmentation sampling: 0 is uniform, 1 follows the probabilities.",
)
_AUGMENT = flags.DEFINE_list(
    "augment",
    [],
    "KIND:SHARE: perturb this share of the examples in the packed rows, such as "
    f"upper:0.07,typos:0.05. Kinds: {', '.join(KINDS)}.",
)
_OVERWRITE = flags.DEFINE_bool(
    "overwrite", False, "Replace a dataset in --output_dir that was made with other settings."
)

# Flags that would do nothing.
_ONLY_FOR = {
    "target_lang": ("translation",),
    "joint_vocabulary": ("translation",),
    "max_length_ratio": ("translation",),
    "documents": ("language_model",),
    "max_tokens": ("translation", "classification"),
}
_OF_TRAINING = (
    "vocab_size",
    "model_type",
    "character_coverage",
    "tokenizer_sample",
    "byte_fallback",
)

# What absl does not know, for Beam; set by `_parse`.
_beam_args: list[str] = []


def _parse(argv: list[str]) -> list[str]:
    """Parse our flags and keep the rest for Beam."""
    try:
        program, *rest = flags.FLAGS(argv, known_only=True)
    except flags.Error as error:
        raise UsageError(f"{error} (--help lists the flags)") from error
    _beam_args[:] = rest
    return [program]


def _check_present() -> None:
    """Raise `UsageError` for a flag that is given and would do nothing."""
    for name, tasks in _ONLY_FOR.items():
        if flags.FLAGS[name].present and _TASK.value not in tasks:
            raise UsageError(
                f"--{name} does nothing with --task={_TASK.value}: it is for "
                f"{' and '.join(tasks)}; leave it out"
            )
    for name in _OF_TRAINING:
        if flags.FLAGS[name].present and _TOKENIZER.value:
            raise UsageError(
                f"--{name} is for training a tokenizer, and --tokenizer gives one; leave one out"
            )


def main(argv: list[str]) -> int:
    """Run the job; return the exit code."""
    _check_present()
    settings = Settings(
        train=tuple(_TRAIN.value),
        valid=tuple(_VALID.value),
        test=tuple(_TEST.value),
        source_lang=_SOURCE_LANG.value,
        target_lang=_TARGET_LANG.value,
        output_dir=_OUTPUT_DIR.value,
        task=_TASK.value,
        documents=_DOCUMENTS.value,
        vocab_size=_VOCAB_SIZE.value,
        model_type=_MODEL_TYPE.value,
        character_coverage=_CHARACTER_COVERAGE.value,
        tokenizer_sample=_TOKENIZER_SAMPLE.value,
        num_shards=_NUM_SHARDS.value,
        seed=_SEED.value,
        max_tokens=_MAX_TOKENS.value,
        max_length_ratio=_MAX_LENGTH_RATIO.value,
        overwrite=_OVERWRITE.value,
        joint_vocabulary=_JOINT_VOCABULARY.value,
        tokenizer=tuple(_TOKENIZER.value),
        byte_fallback=_BYTE_FALLBACK.value,
        user_symbols=tuple(_USER_SYMBOLS.value),
        enable_filters=tuple(_ENABLE_FILTERS.value),
        disable_filters=tuple(_DISABLE_FILTERS.value),
        keep_rejected=_KEEP_REJECTED.value,
        row_length=_ROW_LENGTH.value,
        segmentations=_SEGMENTATIONS.value,
        sampling_alpha=_SAMPLING_ALPHA.value,
        augment=tuple(_AUGMENT.value),
    )
    prepare(settings, beam_args=_beam_args)
    return 0


if __name__ == "__main__":
    run_app(main, parse=_parse)
