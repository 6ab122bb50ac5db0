"""Compile the programs of a training run for a TPU or for GPUs, without any; predict their speed.

    python -m launch.preflight --config=configs/transformer_base.py --tpu=v5e-8
    python -m launch.preflight --config=configs/transformer_base.py --tpu=v5e-8 --data_dir=DATA \\
        --find_batch --usd_per_chip_hour=1.2 --json
    python -m launch.preflight --config=configs/transformer_big.py --gpu=h100-8

The model, the optimizer and the train step are the trainer's own, with one chip's share of the
batch. TensorFlow exports them as StableHLO; the TPU's or the GPU's own compiler, which needs no
such device, compiles them and reports their memory. Times are predictions; docs/preflight.md has
the formulas.

Exit codes: 0 everything compiles and fits; 2 bad usage; 3 something does not compile or fit.
"""

import json
import time

from absl import flags

import trainer
from common.console import say_on_stderr
from common.errors import UsageError, no_arguments, run_app
from configs import flags as config_flags
from data_pipeline.dataset.manifest import load_manifest
from launch.compiler import batch, compiler, gpus, report, run, tpus
from launch.compiler.run import PROGRAMS
from launch.compiler.target import Target

DOES_NOT_FIT = 3
_DECODE_ON_HOST = "note: evaluation during training decodes on the host's CPU; decode is for a chip"
_BUCKETS = "note: batching is bucketed; only the longest bucket was compiled"
_EMPTY = "note: positions include padding; multiply by the fill rate of your rows for tokens"

_TPU = flags.DEFINE_string("tpu", None, "Accelerator type, such as v5e-8, v4-8, v5p-8 or v6e-8.")
_GPU = flags.DEFINE_string("gpu", None, "GPUs, such as h100-8, a100-8, h200-8 or l4-4.")
_PRECISION = flags.DEFINE_enum(
    "precision", "mixed_bfloat16", ["float32", "mixed_bfloat16"], "Dtype policy."
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Dataset whose vocabulary sizes to use and whose reading speed to measure."
)
_VOCAB_SIZE = flags.DEFINE_integer(
    "vocab_size", 32_000, "Size of the joint vocabulary, without --data_dir.", lower_bound=8
)
_PROGRAMS = flags.DEFINE_list(
    "programs", list(PROGRAMS), "Programs to compile; the prediction needs train."
)
_JSON = flags.DEFINE_bool("json", False, "Write the report as JSON.")
_FIND_BATCH = flags.DEFINE_bool(
    "find_batch", False, "Search for the largest batch that fits, by compiling several more times."
)
_USD = flags.DEFINE_float(
    "usd_per_chip_hour",
    None,
    "Price of a TPU chip or a GPU per hour, for the cost of the run.",
    0.0,
)


def main(argv: list[str]) -> int:
    """Compile what the flags ask for and print the report."""
    no_arguments(argv)
    name, config = config_flags.read()
    if bool(_TPU.value) == bool(_GPU.value):
        raise UsageError("give --tpu=TYPE or --gpu=TYPE, such as --tpu=v5e-8 or --gpu=h100-8")
    target: Target = tpus.parse(_TPU.value) if _TPU.value else gpus.parse(_GPU.value or "")
    if not _PROGRAMS.value or not set(_PROGRAMS.value) <= set(PROGRAMS):
        wrong = ",".join(_PROGRAMS.value)
        raise UsageError(f"--programs={wrong}: give some of {','.join(PROGRAMS)}")
    compiler.check_installed(target)
    manifest = load_manifest(_DATA_DIR.value) if _DATA_DIR.value else None
    from trainer.checkpoints import model_dir
    from trainer.tasks.lookup import make_task_without_data

    task = (
        model_dir.facts_of(config, manifest, _PRECISION.value).task()
        if manifest
        else make_task_without_data(config, _VOCAB_SIZE.value)
    )
    preflight = run.Preflight(config, task, target, _PRECISION.value)
    say_on_stderr(
        f"compiling {', '.join(_PROGRAMS.value)} for {target.name}; large models take minutes ..."
    )
    facts = {"config": name, "precision": _PRECISION.value, **preflight.run(_PROGRAMS.value)}
    if manifest and facts["prediction"]:
        facts["prediction"]["measured_input_tokens_per_second"] = run.measured_input(
            manifest, config
        )
    if _USD.value is not None and facts["prediction"]:
        run.add_cost(facts, config.train.steps, _USD.value)
    facts["notes"] = [_EMPTY, _DECODE_ON_HOST] if _TPU.value else [_EMPTY]
    if _FIND_BATCH.value and not facts["problems"]:
        try:
            facts["largest_batch"] = preflight.largest_batch()
        except batch.SearchError as error:  # the report took minutes
            facts["notes"].append(f"--find_batch: {error}")
    if config.data.batching != "packed":
        facts["notes"].append(_BUCKETS)
    facts["preflight_seconds"] = time.monotonic() - trainer.STARTED
    print(json.dumps(facts) if _JSON.value else report.text(facts), flush=True)
    return 0 if facts["fits"] else DOES_NOT_FIT


if __name__ == "__main__":
    run_app(main, config_flags.parse, result_on_stdout=True)
