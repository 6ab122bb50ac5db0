"""How fast the same model translates here, in CTranslate2 and in Hugging Face transformers.

    python -m benchmarks.decode --model_dir=MODEL --source=in.txt
    python -m benchmarks.decode --model_dir=MODEL --source=in.txt --threads=1 --beam_sizes=4

The trained weights are handed to the peers, each in a process of its own, and the processes take
turns on the whole file. Scores are divided by the length and a translation has at most 200 tokens,
everywhere. It writes a JSON line for each number of threads and beam, and then a table: sentences
a second, the ratio of ours to theirs, and the share of sentences that both translate into the same
tokens. A peer that is not installed is left out:
pip install "ctranslate2>=4.5,<5" transformers torch.

The Marian model of transformers is the Transformer of the paper: of the other forms of the model,
`benchmarks.decode` measures CTranslate2 alone.
"""

import importlib.util
import json
import multiprocessing
import os
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
from absl import flags

from benchmarks.peers import decoders
from common.console import say_on_stderr
from common.errors import UsageError, no_arguments, run_app

_MODEL_DIR = flags.DEFINE_string("model_dir", None, "Model directory.", required=True)
_CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "best, latest, or a checkpoint's path.")
_SOURCE = flags.DEFINE_string("source", None, "File with a sentence a line.", required=True)
_LINES = flags.DEFINE_integer("lines", 0, "Of the file, from its beginning; 0 for all.", 0)
_THREADS = flags.DEFINE_list("threads", ["1", "2"], "Threads of the CPU, one after the other.")
_BEAM_SIZES = flags.DEFINE_list("beam_sizes", ["4", "1"], "Beams, one after the other.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Turns of each, after one to warm up.", 1)

_PEERS = {"CTranslate2": ["ctranslate2"], "transformers": ["torch", "transformers"]}


def _numbers(flag) -> list[int]:
    try:
        numbers = [int(part) for part in flag.value]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise UsageError(f"--{flag.name}={','.join(flag.value)}: give numbers above 0")
    return numbers


def _lines() -> list[str]:
    try:
        with open(_SOURCE.value, encoding="utf-8", newline="\n") as file:
            lines = file.read().removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--source={_SOURCE.value} cannot be read as UTF-8 text") from error
    return lines[: _LINES.value or None]


def measure(threads: int, beam_sizes: list[int], lines: list[str]) -> list[dict[str, Any]]:
    """Return for each beam what `_compared` returns."""
    context = multiprocessing.get_context("spawn")  # nobody sees what another one imported
    with tempfile.TemporaryDirectory() as folder:
        pools = {"ours": ProcessPoolExecutor(1, context)}
        model = (_MODEL_DIR.value, _CHECKPOINT.value, folder, threads)
        sentences = pools["ours"].submit(decoders.start_ours, *model, lines).result()
        peers = [
            name
            for name, modules in _PEERS.items()
            if all(importlib.util.find_spec(module) for module in modules)
            and os.path.exists(os.path.join(folder, decoders.FILES[name]))
        ]
        for name in peers:
            say_on_stderr(f"starting {name}")
            pools[name] = ProcessPoolExecutor(1, context)
            pools[name].submit(decoders.start_peer, name, folder, threads, sentences).result()
        found = []
        for beam_size in beam_sizes:
            seconds: dict[str, list[float]] = {name: [] for name in pools}
            outputs: dict[str, list[list[int]]] = {}
            for number in range(_ROUNDS.value + 1):
                for name, pool in pools.items():
                    say_on_stderr(f"{threads} thread(s), beam {beam_size}, round {number}: {name}")
                    spent, outputs[name] = pool.submit(decoders.translate, beam_size).result()
                    seconds[name] += [spent] if number else []
            facts = {"threads": threads, "beam_size": beam_size, "sentences": len(sentences)}
            found.append({**facts, "systems": _compared(seconds, outputs)})
        for pool in pools.values():
            pool.shutdown()
    return found


def _compared(
    seconds: dict[str, list[float]], outputs: dict[str, list[list[int]]]
) -> dict[str, dict[str, Any]]:
    """Return name -> the speed of a system, and how it compares with ours.

    Args:
        seconds: name -> of each round.
        outputs: name -> token ids of each translation.
    """
    count = len(outputs["ours"])
    speeds = {name: count / statistics.median(times) for name, times in seconds.items()}
    return {
        name: {
            "sentences_per_second": round(speeds[name], 2),
            "slowest": round(count / max(times), 2),
            "fastest": round(count / min(times), 2),
            "ours_to_this": round(speeds["ours"] / speeds[name], 3),
            "equal": round(
                float(
                    np.mean([a == b for a, b in zip(outputs["ours"], outputs[name], strict=True)])
                ),
                4,
            ),
        }
        for name, times in seconds.items()
    }


def _table(results: list[dict[str, Any]]) -> str:
    lines = [
        f"{'threads':>7} {'beam':>4}  {'system':<14}{'sentences/s':>12}{'ratio':>8}{'equal':>8}"
    ]
    for result in results:
        for name, facts in result["systems"].items():
            lines.append(
                f"{result['threads']:>7} {result['beam_size']:>4}  {name:<14}"
                f"{facts['sentences_per_second']:>12,.1f}{facts['ours_to_this']:>8.2f}"
                f"{facts['equal']:>8.1%}"
            )
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    """Measure, and write a JSON line for each setting and a table."""
    no_arguments(argv)
    threads, beam_sizes = _numbers(_THREADS), _numbers(_BEAM_SIZES)
    lines, results = _lines(), []
    for number in threads:
        for result in measure(number, beam_sizes, lines):
            print(json.dumps(result), flush=True)
            results.append(result)
    say_on_stderr(_table(results))


if __name__ == "__main__":
    run_app(main, result_on_stdout=True)
