"""Average the last or the best checkpoints of a run, score the result, and keep it.

    python -m trainer.average --model_dir=MODEL --last=5
    python -m trainer.average --model_dir=MODEL --best=3 --ema_decay=0.8

The average is written to MODEL/averaged and scored on the validation split. It replaces an average
of the same newest checkpoint that is there already, unless that is at least as good. Where it is
better than every checkpoint, it is the model that evaluate, translate and export take from then on.
"""

import json

from absl import flags

from common.errors import UsageError, no_arguments, run_app
from data_pipeline.dataset.manifest import load_manifest
from trainer.averaging import average
from trainer.checkpoints import averages, saver
from trainer.checkpoints import model_dir as model_directory

_MODEL_DIR = flags.DEFINE_string("model_dir", None, "Model directory.", required=True)
_LAST = flags.DEFINE_integer("last", 5, "Average this many of the newest checkpoints.", 2)
_BEST = flags.DEFINE_integer(
    "best", 0, "Average this many of the best checkpoints instead (see keep_best).", 0
)
_DECAY = flags.DEFINE_float(
    "ema_decay", 1.0, "Weight of each checkpoint relative to the one after it.", 0.0, 1.0
)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Dataset directory; default: the training's.")


def main(argv: list[str]) -> None:
    """Average, score, save, print a JSON line."""
    no_arguments(argv)
    model_dir = _MODEL_DIR.value
    loaded = model_directory.load(model_dir, "latest")
    metric = loaded.facts.config.train.best_metric
    higher = loaded.task.BEST[metric]
    last = 0 if _BEST.value else _LAST.value
    if _BEST.value == 1:
        raise UsageError("--best=1 is no average; give at least 2")
    if _DECAY.value == 0:
        raise UsageError("--ema_decay=0 leaves nothing to average; give a number above 0")
    chosen = averages.choose(model_dir, last=last, best=_BEST.value, metric=metric, higher=higher)
    manifest = load_manifest(_DATA_DIR.value or loaded.facts.data_dir)
    averaged = average(loaded, model_dir, manifest, chosen, _DECAY.value)
    model = saver.find(model_dir, "best", metric, higher)
    print(
        json.dumps(
            {
                "checkpoint": averaged.path or None,
                "steps": [one.step for one in chosen],
                **averaged.metrics,
                "is_best": model.path == averaged.path,
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    run_app(main, result_on_stdout=True)
