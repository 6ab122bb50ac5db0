"""Compare the speed of training with PyTorch and Keras' fit, on one corpus and one machine.

    python -m benchmarks.train_throughput --data_dir=DATA --model=tiny --precision=float32
    python -m benchmarks.train_throughput --data_dir=DATA --model=base \\
        --precision=mixed_bfloat16 --seconds=60 --rounds=3

All contenders train a Transformer of the same size on the same sentence pairs, in batches of about
as many target tokens, with dropout 0.1 and Adam. The result is target tokens per second after
compilation and warm-up, including ends of sentences but not padding:

    ours           the train step of this repository, packed rows, label smoothing, clipping
    torch_eager    peers/torch_transformer.py: nn.Transformer, batches of similar length, label
                   smoothing, clipping, fused Adam; PyTorch's number of threads
    torch_compile  the same with torch.compile(dynamic=True), all shapes compiled before
    keras_fit      peers/keras_fit.py: Keras' layers, padded batches of shuffled sentences, fit

Each runs in a separate process. They take turns for several rounds, so that a machine that becomes
slower or busier affects all of them. The result is the median over the rounds. PyTorch is not a
dependency of this project: pip install torch==2.13.0 into the same environment to compare (on a
CPU, its compiler needs a C++ compiler). In a second run PyTorch's cache shortens the first step of
torch_compile.

The last column is the model FLOPs utilization (trainer/metrics/flops.py): useful floating-point
operations per second, without those on padding, divided by the rate of a large matrix product,
which is measured in the same run on a CPU and taken from the data sheet on a GPU.
"""

import dataclasses
import json
import math
import platform
import sys

from absl import flags

from benchmarks import machine, rounds
from benchmarks.comparison import Setting, fitting_pairs, target_tokens
from common.errors import UsageError, no_arguments, run_app
from configs import schema, transformer_base, transformer_tiny
from data_pipeline.dataset.examples import read_examples
from data_pipeline.dataset.manifest import load_manifest

_MODELS = {"tiny": transformer_tiny.get_config, "base": transformer_base.get_config}
_PEERS = {
    "torch_eager": ("benchmarks.peers.torch_transformer", "eager"),
    "torch_compile": ("benchmarks.peers.torch_transformer", "compile"),
    "keras_fit": ("benchmarks.peers.keras_fit", "fit"),
}

_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Dataset directory, from data_pipeline.main.", required=True
)
_MODEL = flags.DEFINE_enum("model", "tiny", list(_MODELS), "configs/transformer_MODEL.py.")
_PRECISION = flags.DEFINE_enum(
    "precision", "float32", ["float32", "mixed_bfloat16"], "Precision of all contenders."
)
_BATCH_TOKENS = flags.DEFINE_integer("batch_tokens", 4096, "Target positions in a batch.", 1)
_ROW_LENGTH = flags.DEFINE_integer(
    "row_length", 64, "Length of the packed rows; all contenders skip longer sentences.", 1
)
_SECONDS = flags.DEFINE_float("seconds", 30.0, "Length of a contender's round.", 0.0)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Rounds; the median counts.", 1)
_OURS = flags.DEFINE_list("ours", ["auto"], "--jit_compile of trainer.main: auto, on, off.")
_CONTENDERS = flags.DEFINE_list("peers", list(_PEERS), f"Of {', '.join(_PEERS)}; may be empty.")
_JSON = flags.DEFINE_bool("json", False, "Print one JSON line besides the table.")


def make_config(model: str, batch_tokens: int, row_length: int) -> schema.Config:
    """Return the named configuration with the batch and the comparison's fixed settings.

    Raises:
        UsageError: if the batch does not hold a whole number of rows.
    """
    config = _MODELS[model]()
    config.model.dropout, config.train.label_smoothing = 0.1, 0.1
    config.optimizer.clip_norm = 1.0
    config.train.batch_tokens, config.data.row_length = batch_tokens, row_length
    if batch_tokens % row_length:
        raise UsageError(
            f"--batch_tokens={batch_tokens} is not a multiple of --row_length={row_length}"
        )
    return config


def make_contenders(setting: Setting, ours: list[str], peers: list[str]) -> list[rounds.Contender]:
    """Return the requested contenders, in the order of the table.

    Raises:
        UsageError: if one does not exist.
    """
    for name, known in (("ours", ["auto", "on", "off"]), ("peers", list(_PEERS))):
        for item in {"ours": ours, "peers": peers}[name]:
            if item not in known:
                raise UsageError(f"--{name}: {item!r} is not known; use {', '.join(known)}")
    if not ours:
        raise UsageError("--ours is empty; name at least one of auto, on, off")
    chosen = [(f"ours_{variant}", "benchmarks.ours", variant) for variant in ours]
    chosen += [(name, *_PEERS[name]) for name in peers]
    return [
        rounds.Contender(name, module, dataclasses.replace(setting, variant=variant))
        for name, module, variant in chosen
    ]


def print_table(results: list[dict], flops_per_token: float, peak: float) -> None:
    """Print a line per contender, and how much faster our first one is; `peak` in FLOP/s or NaN."""
    ours = results[0]["tokens_per_second"]
    print(
        f"{'contender':14} {'parameters':>11} {'1st step':>9} {'tokens/s':>9} {'min':>9} "
        f"{'max':>9} {'ours /':>7} {'MFU':>7}"
    )
    for result in results:
        if "missing" in result:
            print(f"{result['name']:14} not measured: {result['missing']}")
            continue
        speed = result["tokens_per_second"]
        print(
            f"{result['name']:14} {result['parameters']:>11,} "
            f"{result['first_step_seconds']:>7.1f} s {speed:>9,.0f} {result['min']:>9,.0f} "
            f"{result['max']:>9,.0f} {ours / speed:>7.2f} {speed * flops_per_token / peak:>7.1%}"
        )
    torch = [r for r in results if r["name"].startswith("torch") and "missing" not in r]
    if torch:
        best = max(torch, key=lambda result: result["tokens_per_second"])
        ratio = ours / best["tokens_per_second"]
        print(f"{results[0]['name']} / best of PyTorch ({best['name']}): {ratio:.2f}")


def main(argv: list[str]) -> None:
    """Measure the contenders that the flags name, and print the table."""
    no_arguments(argv)
    config = make_config(_MODEL.value, _BATCH_TOKENS.value, _ROW_LENGTH.value)
    load = machine.load_average()
    manifest = load_manifest(_DATA_DIR.value)
    manifest.split("valid")  # the trainer needs one
    if manifest.task != "translation":
        raise UsageError(f"{_DATA_DIR.value} is a dataset for {manifest.task}, not translation")
    if not manifest.joint_vocabulary:
        raise UsageError(
            f"{_DATA_DIR.value} has two vocabularies, and the contenders share one embedding; "
            "make it with data_pipeline.main --joint_vocabulary"
        )
    pairs = read_examples(manifest, "train")
    kept = fitting_pairs(pairs, _ROW_LENGTH.value)
    if not len(kept):
        raise UsageError(f"no pair of {_DATA_DIR.value} fits into --row_length={_ROW_LENGTH.value}")
    setting = Setting(manifest, kept, config, _PRECISION.value, variant="")
    contenders = make_contenders(setting, _OURS.value, _CONTENDERS.value)
    facts = {
        "machine": machine.describe(),
        "command": " ".join(["python", "-m", "benchmarks.train_throughput", *sys.argv[1:]]),
        "load_average": load,
        "corpus": f"{manifest.directory}: {len(kept):,} pairs, {target_tokens(kept):,} target "
        f"tokens, {len(pairs) - len(kept)} longer pairs left out",
    }
    for name, fact in facts.items():
        print(f"{name:13} {fact}", flush=True)
    if load > machine.BUSY:
        print("WARNING       other processes are busy: the results below are too low, or uneven")
    results = rounds.measure(contenders, _ROUNDS.value, _SECONDS.value)
    measured = [result for result in results if "flops_per_token" in result]
    if "missing" in results[0] or not measured:
        raise UsageError(f"{results[0]['name']} was not measured: {results[0].get('missing')}")
    # Each of our variants measured it; the largest was disturbed least.
    peak = max(result["peak_flops"] or math.nan for result in measured)
    flops_per_token = measured[0]["flops_per_token"]
    versions = dict.fromkeys(r["version"] for r in results if "version" in r)
    print(f"{'versions':13} Python {platform.python_version()}; {'; '.join(versions)}")
    print(f"{'matmul':13} {peak / 1e9:,.0f} GFLOP/s in {_PRECISION.value}")
    print(f"{'model':13} {flops_per_token / 1e6:,.1f} MFLOP a target token in training")
    print(f"{'fill rate':13} {measured[0]['fill_rate']:.3f} of the packed rows\n")
    print_table(results, flops_per_token, peak)
    if _JSON.value:
        setup = {"model": _MODEL.value, "precision": _PRECISION.value}
        print(json.dumps({**facts, **setup, "results": results}))


if __name__ == "__main__":
    run_app(main, result_on_stdout=True)
