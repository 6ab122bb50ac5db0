"""Continues one training on other numbers of replicas and workers, and compares the losses.

    python -m benchmarks.topologies [--legs=1,4,2w,1] [--steps=10]

Trains a tiny model without dropout on the built-in corpus, so many steps on each leg: "4" is four
replicas in one process (of the CPU), "2w" two worker processes. Beside it runs the same training,
undisturbed, on one replica. The losses of all steps must agree to 1e-4.

Exit codes: 0 they do; 1 they do not; 2 bad usage.
"""

import os
import subprocess
import tempfile

from absl import flags

from benchmarks import same_run, soak
from common.errors import UsageError, no_arguments, run_app

_LEGS = flags.DEFINE_list("legs", ["1", "4", "2w", "1"], "What to train on, one after the other.")
_STEPS = flags.DEFINE_integer("steps", 10, "Steps on each leg.", lower_bound=2)

_TOLERANCE = 1e-4
_FLAGS = (
    "--config.model.dropout=0.0",
    "--config.model.width=32",
    "--config.model.feed_forward=64",
    "--config.model.heads=2",
    "--config.model.encoder_layers=1",
    "--config.model.decoder_layers=1",
    "--config.data.row_length=64",
    "--config.train.batch_tokens=2048",
    "--config.train.steps_per_loop=1",
    "--config.decode.validation_sentences=8",
)


def losses(model_dir: str) -> dict[int, float]:
    """Step -> training loss."""
    return {line["step"]: line["loss"] for line in same_run.read_log(model_dir, "train")}


def main(argv: list[str]) -> int:
    """All legs, the undisturbed run, and the comparison."""
    no_arguments(argv)
    commands = [soak.leg_command(leg) for leg in _LEGS.value]
    with tempfile.TemporaryDirectory(prefix="topologies-") as folder:
        data_dir = os.path.join(folder, "data")
        soak.prepare(data_dir)

        def train(command: list[str], name: str, steps: int) -> dict[int, float]:
            print(f"{name}: to step {steps} with {' '.join(command[1:])}", flush=True)
            model_dir = os.path.join(folder, name)
            paths = [f"--data_dir={data_dir}", f"--model_dir={model_dir}"]
            done = subprocess.run(
                [*command, *paths, *_FLAGS, f"--config.train.steps={steps}"],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
            if done.returncode:
                print(done.stdout[-3000:])
                raise UsageError(f"the training ended with code {done.returncode}")
            return losses(model_dir)

        whole = train(soak.leg_command("1"), "undisturbed", _STEPS.value * len(commands))
        for number, command in enumerate(commands, start=1):
            found = train(command, "continued", _STEPS.value * number)
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
