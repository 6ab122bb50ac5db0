"""Write a trained model in a form that others serve.

    python -m trainer.export --model_dir=MODEL --format=saved_model --output_dir=OUT
    python -m trainer.export --model_dir=MODEL --format=ctranslate2 --output_dir=OUT
    python -m trainer.export --model_dir=MODEL --format=safetensors --output_dir=OUT
    python -m trainer.export --model_dir=MODEL --format=keras --output_dir=OUT

saved_model: TensorFlow, strings in and strings out, of every task; tokenizer and search are inside.
ctranslate2: a translation model for that engine, in OUT/float32, OUT/float16 and OUT/int8.
safetensors: the weights under readable names, with the configuration and the tokenizers. keras: the
same with the weights as Keras saves them. The first two are compared with the model before they are
put in their place. All come with a model card, README.md.
"""

import os
import tempfile

import tensorflow as tf
from absl import flags, logging

from common.console import warn
from common.errors import UsageError, no_arguments, run_app
from common.files import list_names, read_bytes, storage_errors, write_bytes
from trainer.checkpoints import files as checkpoint_files
from trainer.checkpoints import model_dir as model_directory
from trainer.checkpoints.model_dir import LoadedModel
from trainer.exporting import ctranslate2_engine, model_card, parity

_NEEDS = {
    "saved_model": "tensorflow_text",
    "ctranslate2": "ctranslate2",
    "safetensors": "safetensors",
    "keras": "keras",
}

_MODEL_DIR = flags.DEFINE_string("model_dir", None, "Model directory.", required=True)
_FORMAT = flags.DEFINE_enum("format", None, list(_NEEDS), "What to write.", required=True)
_OUTPUT_DIR = flags.DEFINE_string(
    "output_dir", None, "Gets the model; it must not exist or be empty.", required=True
)
_CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "best, latest, or a checkpoint's path.")
_DATA_DIR = flags.DEFINE_string(
    "data_dir", "", "Dataset directory, for the comparison; default: the training's."
)
_COMPARE = flags.DEFINE_integer(
    "compare", 200, "Validation texts that model and export are compared on; 0 for none.", 0
)

_USE = {
    "translation": 'model.translate(tf.constant(["Today is Monday."]))["translation"]',
    "language_model": 'model.generate(tf.constant(["Once"]), 100, 0.8, 1)["text"]'
    "  # tokens, temperature, seed",
    "classification": 'model.classify(tf.constant(["Today is Monday."]))["label"]',
}


def _export_saved_model(
    loaded: LoadedModel, directory: str, texts: dict[str, list[str]]
) -> list[str]:
    from trainer.exporting import saved_model

    saved_model.save(saved_model.module_of(loaded), directory)
    return [
        "```python",
        "import tensorflow as tf, tensorflow_text  # registers the tokenizer's operations",
        'model = tf.saved_model.load("DIRECTORY")',
        _USE[loaded.facts.config.task],
        "```",
        "",
        *(parity.check_saved_model(loaded, directory, texts) if texts else []),
    ]


def _export_ctranslate2(
    loaded: LoadedModel, directory: str, texts: dict[str, list[str]]
) -> list[str]:
    from trainer.decoding.options import search_options
    from trainer.exporting import ctranslate2_model

    tokenizers = (loaded.tokenizers["source"], loaded.tokenizers["target"])
    wanted = search_options(loaded.facts.config.decode)
    options, lacking = ctranslate2_engine.supported(wanted)
    if lacking:
        warn(f"CTranslate2 translates without decode.{', decode.'.join(lacking)}")
    facts = {"languages": loaded.facts.languages, "step": loaded.step}
    check = parity.CTranslate2Check(loaded, texts, options) if texts else None
    for name in ctranslate2_model.QUANTIZATIONS:
        path = os.path.join(directory, name)
        size = ctranslate2_model.save(loaded.model, tokenizers, path, name, options, facts)
        if check:
            check.add(name, path, size)
    return [
        "```python",
        "import ctranslate2, sentencepiece",
        'source = sentencepiece.SentencePieceProcessor("int8/source.model")',
        'target = sentencepiece.SentencePieceProcessor("int8/target.model")',
        'translator = ctranslate2.Translator("int8")',
        'pieces = source.encode("Today is Monday.", out_type=str)',
        "print(target.decode(translator.translate_batch([pieces])[0].hypotheses[0]))",
        "```",
        "",
        *(check.table if check else []),
    ]


def _export_safetensors(
    loaded: LoadedModel, directory: str, texts: dict[str, list[str]]
) -> list[str]:
    del texts
    from trainer.exporting import weights

    facts = {"task": loaded.facts.config.task, "step": str(loaded.step)}
    written = weights.save(loaded.model, directory, facts)
    _copy_facts(loaded, directory)
    return [
        "```python",
        "import json, safetensors.numpy, sentencepiece  # or safetensors.torch",
        'weights = safetensors.numpy.load_file("model.safetensors")',
        'facts = json.load(open("config.json"))',
        'sides = facts["tokenizers"]  # sequence -> {"file", ...}',
        "pieces = {k: sentencepiece.SentencePieceProcessor(v['file']) for k, v in sides.items()}",
        "```",
        "",
        "A kernel is [inputs, outputs]; what is tied to another weight stands there once.",
        "",
        "| weight | shape |",
        "|---|---|",
        *(f"| {name} | {' x '.join(map(str, shape))} |" for name, shape in written),
    ]


def _export_keras(loaded: LoadedModel, directory: str, texts: dict[str, list[str]]) -> list[str]:
    del texts
    loaded.model.save_weights(os.path.join(directory, "model.weights.h5"))
    _copy_facts(loaded, directory)
    return [
        "```python",
        "from trainer.checkpoints.model_dir import read_facts  # of this project",
        'model = read_facts("DIRECTORY").task().build_model()',
        'model.load_weights("DIRECTORY/model.weights.h5")',
        "```",
        "",
    ]


def _copy_facts(loaded: LoadedModel, directory: str) -> None:
    """Copy the configuration and the tokenizers."""
    for name in {info.file for info in loaded.facts.tokenizers.values()} | {"config.json"}:
        content = read_bytes(os.path.join(_MODEL_DIR.value, name))
        write_bytes(os.path.join(directory, name), content)


def _check_flags(directory: str) -> None:
    """Refuse what is wrong before the model is loaded."""
    if _FORMAT.value == "saved_model":
        checkpoint_files.check_path(directory)  # its variables are a checkpoint
    try:
        __import__(_NEEDS[_FORMAT.value])
    except ImportError as error:
        raise UsageError(
            f"--format={_FORMAT.value} needs {_NEEDS[_FORMAT.value]} ({error}); "
            "pip install -c requirements/extras.txt -e '.[export]' brings it"
        ) from error
    facts = model_directory.read_facts(_MODEL_DIR.value)
    if _FORMAT.value == "ctranslate2":
        from trainer.exporting import ctranslate2_model

        if facts.config.task != "translation":
            raise UsageError(
                f"--format=ctranslate2 exports translation models, and {_MODEL_DIR.value} holds "
                f"one for {facts.config.task}; use --format=saved_model"
            )
        ctranslate2_model.check(facts.config.model)
    with storage_errors(f"--output_dir={directory} cannot be used"):
        if tf.io.gfile.exists(directory) and not tf.io.gfile.isdir(directory):
            raise UsageError(f"--output_dir={directory} is a file; name a directory")
        if list_names(directory):
            raise UsageError(f"--output_dir={directory} is not empty; name another one")


def _publish(local: str, directory: str) -> None:
    """Copy what was written to its place, here or on gs://; the model card comes last."""
    paths = [
        os.path.relpath(os.path.join(folder, name), local)
        for folder, _, names in os.walk(local)
        for name in names
    ]
    with storage_errors(f"--output_dir={directory} cannot be written"):
        for path in sorted(paths, key=lambda path: (path == model_card.FILE, path)):
            target = os.path.join(directory, path)
            tf.io.gfile.makedirs(os.path.dirname(target))
            tf.io.gfile.copy(os.path.join(local, path), target)


def main(argv: list[str]) -> None:
    """Load, write, compare, describe."""
    no_arguments(argv)
    logging.set_verbosity(logging.WARNING)  # tf.saved_model.save tells what it does
    directory = _OUTPUT_DIR.value
    _check_flags(directory)
    loaded = model_directory.load(_MODEL_DIR.value, _CHECKPOINT.value)
    compares = _FORMAT.value in ("saved_model", "ctranslate2")  # the others are the weights alone
    texts = parity.read_texts(loaded, _DATA_DIR.value, _COMPARE.value if compares else 0)
    write = {
        "saved_model": _export_saved_model,
        "ctranslate2": _export_ctranslate2,
        "safetensors": _export_safetensors,
        "keras": _export_keras,
    }[_FORMAT.value]
    with tempfile.TemporaryDirectory() as local:
        lines = write(loaded, local, texts)
        model_card.write(loaded, _MODEL_DIR.value, local, lines)
        _publish(local, directory)
    shown = "\n".join(lines[lines.index("```", 1) + 2 :])
    print(shown + f"\n{_FORMAT.value} in {directory}, described in README.md", flush=True)


if __name__ == "__main__":
    run_app(main)
