"""Write a trained translation model in a form that others serve.

    python -m trainer.export --model_dir=MODEL --format=saved_model --output_dir=OUT
    python -m trainer.export --model_dir=MODEL --format=ctranslate2 --output_dir=OUT

saved_model: TensorFlow, strings in and strings out, tokenizer and beam search inside. ctranslate2:
for the CTranslate2 engine, in OUT/float32, OUT/float16 and OUT/int8. keras: the weights alone, with
the configuration and the tokenizers. Each comes with a model card, README.md.
"""

import os
import time

from absl import flags

from common.errors import UsageError, no_arguments, run_app
from common.files import read_bytes, write_bytes
from data_pipeline.dataset.examples import read_raw_text
from data_pipeline.dataset.manifest import load_manifest
from trainer.checkpoints import model_dir as model_directory
from trainer.checkpoints.model_dir import LoadedModel
from trainer.decoding.scoring import bleu_tokenizer, score, translate_lines
from trainer.decoding.search import Decoder, search_options
from trainer.exporting import model_card

_FORMATS = ("saved_model", "ctranslate2", "keras")
_ADDED = {"saved_model": "tensorflow_text", "ctranslate2": "ctranslate2"}
_SENTENCES = 200  # of the parity check

_MODEL_DIR = flags.DEFINE_string("model_dir", None, "Model directory.", required=True)
_FORMAT = flags.DEFINE_enum("format", None, _FORMATS, "What to write.", required=True)
_OUTPUT_DIR = flags.DEFINE_string(
    "output_dir", None, "Gets the model; it must not exist or be empty.", required=True
)
_CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "best, latest, or a checkpoint's path.")
_DATA_DIR = flags.DEFINE_string(
    "data_dir",
    None,
    "Dataset directory, for the parity check of ctranslate2; default: the training's.",
)


def _export_saved_model(loaded: LoadedModel, directory: str) -> list[str]:
    from trainer.exporting import saved_model

    tokenizers = (loaded.tokenizers["source"], loaded.tokenizers["target"])
    options = search_options(loaded.facts.config.decode)
    saved_model.save(loaded.model, tokenizers, options, directory)
    return [
        "```python",
        "import tensorflow as tf, tensorflow_text  # registers the tokenizer's operations",
        'model = tf.saved_model.load("DIRECTORY")',
        'model.translate(tf.constant(["Today is Monday."]))["translation"]',
        "```",
    ]


def _export_ctranslate2(loaded: LoadedModel, directory: str) -> list[str]:
    """Write every precision, and compare each with our own decoder on the validation split."""
    from trainer.exporting import ctranslate2_engine, ctranslate2_model

    ctranslate2_model.check(loaded.model.config)
    tokenizers = (loaded.tokenizers["source"], loaded.tokenizers["target"])
    manifest = load_manifest(_DATA_DIR.value or loaded.facts.data_dir)
    texts = read_raw_text(manifest, "valid")
    lines, references = texts["source"][:_SENTENCES], texts["target"][:_SENTENCES]
    tokenizer = bleu_tokenizer(manifest.languages["target"])
    decode = loaded.facts.config.decode
    options = search_options(decode, normalization="length", length_penalty=1.0)
    decoder = Decoder(loaded.model, options)
    translate_lines(lines[:1], tokenizers, decoder)  # compiles
    began = time.monotonic()
    ours = [one.text for one in translate_lines(lines, tokenizers, decoder)]
    speed = len(lines) / (time.monotonic() - began)
    longest = max(options.longest(len(ids) + 1) for ids in tokenizers[0].encode(lines))
    bleu = score(ours, references, tokenizer)
    table = [
        f"Of {len(lines)} sentences of the validation split, beam {decode.beam_size}, on this "
        f"machine's CPU; {bleu['signature']}.",
        "",
        "| | BLEU | translations as ours | MB | sentences/s |",
        "|---|---|---|---|---|",
        f"| this project | {bleu['bleu']} | | | {speed:.1f} |",
    ]
    for name in ctranslate2_model.QUANTIZATIONS:
        path = os.path.join(directory, name)
        size = ctranslate2_model.save(loaded.model, tokenizers, path, name)
        engine = ctranslate2_engine.Engine(path)
        began = time.monotonic()
        found = [one.text for one in engine.translate(lines, decode.beam_size, 1.0, longest)]
        seconds = time.monotonic() - began
        same = sum(a == b for a, b in zip(ours, found, strict=True)) / len(lines)
        theirs = score(found, references, tokenizer)["bleu"]
        table.append(
            f"| {name} | {theirs} | {same:.1%} | {size / 1e6:.1f} | {len(lines) / seconds:.1f} |"
        )
    print("\n".join(table), flush=True)
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
        *table,
    ]


def _export_keras(loaded: LoadedModel, directory: str) -> list[str]:
    loaded.model.save_weights(os.path.join(directory, "model.weights.h5"))
    names = {info.file for info in loaded.facts.tokenizers.values()} | {"config.json"}
    for name in names:
        content = read_bytes(os.path.join(_MODEL_DIR.value, name))
        write_bytes(os.path.join(directory, name), content)
    return [
        "`model.weights.h5` holds the weights under Keras' names; `keras.Model.load_weights` reads",
        "it into `trainer.model.transformer.Transformer`, h5py into anything else.",
    ]


def main(argv: list[str]) -> None:
    """Load, write, describe."""
    no_arguments(argv)
    directory, added = _OUTPUT_DIR.value, _ADDED.get(_FORMAT.value)
    if os.path.isdir(directory) and os.listdir(directory):
        raise UsageError(f"--output_dir={directory} is not empty; name another one")
    if added:
        try:
            __import__(added)
        except ImportError as error:
            raise UsageError(
                f"--format={_FORMAT.value} needs {added} ({error}); "
                "pip install 'transformer-pipeline[export]' brings it"
            ) from error
    loaded = model_directory.load(_MODEL_DIR.value, _CHECKPOINT.value)
    if loaded.facts.config.task != "translation":
        raise UsageError(f"{_MODEL_DIR.value} is no translation model, which this exports")
    os.makedirs(directory, exist_ok=True)
    write = {
        "saved_model": _export_saved_model,
        "ctranslate2": _export_ctranslate2,
        "keras": _export_keras,
    }[_FORMAT.value]
    lines = write(loaded, directory)
    model_card.write(loaded, _MODEL_DIR.value, directory, lines)
    print(f"{_FORMAT.value} in {directory}, with a model card in README.md", flush=True)


if __name__ == "__main__":
    run_app(main)
