"""Continue one training on other numbers of replicas and workers, and compare the losses.

    python -m benchmarks.topologies [--legs=1,4,2w,1] [--steps=10]

Trains a tiny model without dropout on the built-in corpus, for so many steps on each leg: "4" is
four replicas in one process (on the CPU), "2w" two worker processes. The same training runs beside
it, undisturbed, on one replica. The losses of all steps must agree to 1e-4.

Exit codes: 0 they do; 1 they do not; 2 bad usage.
"""

import os
import subprocess
import tempfile

from absl import flags

from benchmarks import same_run, small
from common.errors import UsageError, no_arguments, run_app

_LEGS = flags.DEFINE_list("legs", ["1", "4", "2w", "1"], "What to train on, one after the other.")
_STEPS = flags.DEFINE_integer("steps", 10, "Steps on each leg.", lower_bound=2)

_TOLERANCE = 1e-4
_FLAGS = (
    *small.FLAGS,
    "--config.model.dropout=0.0",
    "--config.train.steps_per_loop=1",
    "--config.decode.validation_sentences=8",
)


def losses(model_dir: str) -> dict[int, float]:
    """Map each step to its training loss."""
    return {line["step"]: line["loss"] for line in same_run.read_log(model_dir, "train")}


def main(argv: list[str]) -> int:
    """Run all legs and the undisturbed run, and compare."""
    no_arguments(argv)
    for leg in _LEGS.value:
        small.command(leg, [])  # raises UsageError before anything is run
    with tempfile.TemporaryDirectory(prefix="topologies-") as folder:
        data_dir = os.path.join(folder, "data")
        small.prepare(data_dir)

        def train(name: str, leg: str, steps: int) -> dict[int, float]:
            model_dir = os.path.join(folder, name)
            paths = [f"--data_dir={data_dir}", f"--model_dir={model_dir}"]
            command = small.command(leg, [*paths, *_FLAGS, f"--config.train.steps={steps}"])
            print(f"{name}: to step {steps} on {leg}", flush=True)
            done = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
            )
            if done.returncode:
                print(done.stdout[-3000:])
                raise UsageError(f"the training ended with code {done.returncode}")
            return losses(model_dir)

        whole = train("undisturbed", "1", _STEPS.value * len(_LEGS.value))
        for number, leg in enumerate(_LEGS.value, start=1):
            found = train("continued", leg, _STEPS.value * number)
    if whole.keys() != found.keys():
        print(f"steps differ: {sorted(whole)} and {sorted(found)}")
        return 1
    print(f"\n{'steps':>9}  {'on':>4}  {'undisturbed':>11}  {'continued':>10}  largest difference")
    worst = 0.0
    for number, leg in enumerate(_LEGS.value):
        steps = range(number * _STEPS.value + 1, (number + 1) * _STEPS.value + 1)
        apart = max(abs(found[step] / whole[step] - 1) for step in steps)
        worst = max(worst, apart)
        print(
            f"{steps[0]:>4}-{steps[-1]:<4}  {leg:>4}  {whole[steps[-1]]:>11.6f}  "
            f"{found[steps[-1]]:>10.6f}  {apart:.1e}"
        )
    print(f"{'the same' if worst <= _TOLERANCE else 'NOT the same'} to {_TOLERANCE:g}: {worst:.1e}")
    return 0 if worst <= _TOLERANCE else 1


if __name__ == "__main__":
    run_app(main, result_on_stdout=True)
