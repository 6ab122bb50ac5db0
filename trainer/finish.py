"""The end of a run: the test split's scores, sample translations, and where to look next."""

import os
import sys

from data_pipeline.dataset.manifest import Manifest
from trainer.checkpoints import model_dir as model_directory
from trainer.decoding import scoring
from trainer.decoding.search import Decoder
from trainer.runtime.signals import STOPPED_ON_REQUEST, StopAskedError

_SAMPLES = 10


def report(run) -> int:
    """Scores the best checkpoint of a `trainer.loop.Run` on the test split and prints samples.

    The chief does it; the other workers wait, since TensorFlow takes one that leaves for dead.

    Returns:
        the exit code: 0, or 42 when a worker was asked to stop meanwhile.
    """
    try:
        if run.worker.is_chief:
            _report(run)
        run.poll_for_chief()
    except StopAskedError:
        run.say(f"{run.stop_reason}: the model is saved, its test not done; start again for that")
        return STOPPED_ON_REQUEST
    return 0


def _report(run) -> None:
    manifest: Manifest = run.manifest
    if "test" in manifest.splits:
        model, tokenizers, facts, step = model_directory.load(run.model_dir, "best")
        print(f"testing the best checkpoint, of step {step:,} ...", flush=True)
        decoder = Decoder(model, facts.config.decode, facts.config.decode.beam_size)
        scores, rows = scoring.score_split(manifest, "test", tokenizers, decoder, between=run.poll)
        run.writer.write("test", step, scores)
        for source, reference, translation in rows[:: max(1, len(rows) // _SAMPLES)][:_SAMPLES]:
            print(f"\n  source       {source}\n  reference    {reference}")
            print(f"  translation  {translation}")
        print(
            f"\ntest  BLEU {scores['bleu']:.2f}  chrF {scores['chrf']:.2f}  on {len(rows):,} "
            f"sentences, {scores['signature']}"
        )
    run.writer.flush()
    # As this process was started, so that the lines work without an activated environment.
    python = os.path.relpath(sys.executable)
    tensorboard = os.path.join(os.path.dirname(python), "tensorboard")
    print(
        f"\nmodel in {run.model_dir}\n"
        f"to see the curves:  {tensorboard} --logdir={run.model_dir}/tensorboard\n"
        f"to translate:       echo 'Today is Monday.' | "
        f"{python} -m trainer.translate --model_dir={run.model_dir}",
        flush=True,
    )
