"""Scores a model on a split of its dataset: one JSON line.

python -m trainer.evaluate --model_dir=MODEL --split=test
"""

import json

import tensorflow as tf
from absl import flags

from common.errors import UsageError, no_arguments, run_app
from common.files import check_output, write_output
from data_pipeline.dataset.examples import read_examples
from data_pipeline.dataset.manifest import load_manifest
from trainer.checkpoints import model_dir as model_directory
from trainer.decoding import scoring
from trainer.decoding.search import Decoder, search_options
from trainer.input.evaluation import evaluation_batches
from trainer.step import Steps
from trainer.validation import total_metrics

_MODEL_DIR = flags.DEFINE_string("model_dir", None, "Model directory.", required=True)
_SPLIT = flags.DEFINE_string("split", "test", "Split to score: valid or test.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "best, latest, or a checkpoint's path.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Dataset directory; default: the training's.")
_BEAM_SIZE = flags.DEFINE_integer("beam_size", 0, "Beams; 0 for the configuration's.", 0)
_OUTPUT = flags.DEFINE_string("output", None, "Also write the translations to this file.")


def main(argv: list[str]) -> None:
    """Loads, scores, prints."""
    no_arguments(argv)
    if _OUTPUT.value:
        check_output(_OUTPUT.value, "output")
    loaded = model_directory.load(_MODEL_DIR.value, _CHECKPOINT.value)
    model, facts = loaded.model, loaded.facts
    tokenizers = (loaded.tokenizers["source"], loaded.tokenizers["target"])
    manifest = load_manifest(_DATA_DIR.value or facts.data_dir)
    if _SPLIT.value not in manifest.splits or _SPLIT.value == "train":
        held_out = sorted(set(manifest.splits) - {"train"})
        raise UsageError(
            f"--split={_SPLIT.value}: {manifest.directory} has these splits to score: "
            f"{', '.join(held_out)}"
        )
    for side, info in facts.tokenizers.items():
        if manifest.tokenizers[side].sha256 != info.sha256:
            raise UsageError(
                f"{manifest.directory} was made with another {side} vocabulary than "
                f"{_MODEL_DIR.value}; prepare it again with {info.file} of the model directory, "
                "or score its own model"
            )
    config = facts.config
    strategy = tf.distribute.get_strategy()
    steps = Steps(strategy, loaded.task, model, None, None, config, jit_compile=False)
    pairs = read_examples(manifest, _SPLIT.value)
    batches = evaluation_batches(pairs, config, manifest.closing_id, strategy)
    result = total_metrics(steps, batches)
    decoder = Decoder(model, search_options(config.decode, _BEAM_SIZE.value))
    scores, rows = scoring.score_split(manifest, _SPLIT.value, tokenizers, decoder)
    if _OUTPUT.value:
        text = "".join(f"{translation}\n" for _, _, translation in rows)
        write_output(_OUTPUT.value, text.encode(), "output")
    print(
        json.dumps(
            {
                "split": _SPLIT.value,
                "step": loaded.step,
                "sentences": len(rows),
                **{key: round(value, 5) for key, value in result.items()},
                **scores,
                "beam_size": decoder.options.beam_size,
                "length_penalty": config.decode.length_penalty,
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    run_app(main, result_on_stdout=True)
