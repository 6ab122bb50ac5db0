"""The outer loop: train, report, evaluate, save."""

import math
import os
import signal
import time
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from configs.schema import Config
from data_pipeline import records
from data_pipeline.records import Manifest, UsageError
from trainer import input as trainer_input
from trainer import metrics, scoring
from trainer import model_dir as model_directory
from trainer.checkpoint import Checkpoints
from trainer.decode import Decoder
from trainer.optimizer import make_optimizer
from trainer.step import Steps
from trainer.task import Translation

STOPPED_ON_REQUEST = 42
_SAMPLES = 8  # translations shown in TensorBoard
_EXAMPLES = 5  # sentence pairs shown at the start


class _StopRequest:
    """Remembers that SIGTERM or SIGINT came; a second signal ends the program at once."""

    def __init__(self):
        self.signal: str | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *error):
        self._restore()

    def _remember(self, number, frame):
        self.signal = signal.Signals(number).name
        self._restore()

    def _restore(self):
        for number, handler in self._previous.items():
            signal.signal(number, handler)


class Run:
    """One training run.

    Args:
        config: validated.
        manifest: of the dataset directory.
        model_dir: where everything goes; a run that is there already is continued.
        strategy: a tf.distribute strategy.
        precision: a Keras dtype policy, "float32" or "mixed_bfloat16".
        jit_compile: compile the steps with XLA.
    """

    def __init__(
        self,
        config: Config,
        manifest: Manifest,
        model_dir: str,
        strategy: tf.distribute.Strategy,
        precision: str,
        jit_compile: bool,
    ):
        self.config, self.manifest, self.model_dir = config, manifest, model_dir
        self.strategy = strategy
        replicas = strategy.num_replicas_in_sync
        self.data = trainer_input.training_data(
            records.read_pairs(manifest, "train"), config, manifest.eos_id, replicas
        )
        facts = model_directory.facts_of(config, manifest, precision)
        model_directory.start(model_dir, facts, manifest)
        keras.utils.set_random_seed(config.train.seed)
        keras.config.set_dtype_policy(precision)
        task = Translation(config, manifest.vocab_size, manifest.bos_id)
        with strategy.scope():
            self.model = task.build_model()
            self.optimizer = make_optimizer(config.optimizer, config.train.steps)
            self.optimizer.build(self.model.trainable_variables)
            self.checkpoints = Checkpoints(
                model_dir, self.model, self.optimizer, config.train.keep_checkpoints
            )
            restored = self.checkpoints.restore()
        self.state = self.checkpoints.state
        self.steps = Steps(
            strategy, task, self.model, self.optimizer, config, jit_compile=jit_compile
        )
        self.tokenizer = records.load_tokenizer(manifest.tokenizer_path)
        self.decoder = Decoder(self.model, config.decode, config.decode.validation_beam_size)
        self.writer = metrics.MetricsWriter(model_dir, restored or 0)
        self._report_facts(restored)

    def _report_facts(self, restored: int | None) -> None:
        data, train, manifest = self.data, self.config.train, self.manifest
        parameters = sum(math.prod(v.shape) for v in self.model.trainable_variables)
        shapes = ", ".join(f"{b.batch_rows} x {b.rows.length}" for b in data.buckets)
        pairs = manifest.splits["train"].kept
        lines = [
            f"data         {manifest.directory}, fingerprint {manifest.fingerprint[:12]}",
            f"             {pairs:,} pairs {manifest.source_lang}-{manifest.target_lang}, "
            f"vocabulary {manifest.vocab_size:,}, {data.left_out()} too long and left out",
            f"model        {parameters:,} parameters",
            f"batch        at most {train.batch_tokens:,} target positions on "
            f"{self.strategy.num_replicas_in_sync} replica(s), rows x tokens: {shapes}; "
            f"fill rate {data.fill_rate():.3f}",
            f"length       {train.steps:,} steps, {data.batches_per_epoch:,} an epoch",
            f"model_dir    {self.model_dir}",
            f"state        {'new run' if restored is None else f'resumed at step {restored:,}'}",
        ]
        sources, references = records.read_raw_text(manifest, "valid")
        lines += [
            f"example      {source}  |  {reference}"
            for source, reference in zip(sources[:_EXAMPLES], references, strict=False)
        ]
        print("\n".join(lines), flush=True)
        self.writer.text("train", restored or 0, "run", "\n".join(f"    {line}" for line in lines))

    def train(self) -> int:
        """Trains to the last step, or until early stopping or a signal.

        Returns:
            the exit code: 0, or 42 when a signal asked to stop and everything is saved.

        Raises:
            UsageError: when the loss is not finite. The checkpoints are from before.
        """
        train = self.config.train
        step = self.checkpoints.step
        if step < train.steps and not self._stops_early:
            print("compiling the train step ...", flush=True)
        iterator = self.data.distribute(self.strategy, step)
        self._resumed_seconds = float(self.state.seconds.numpy())
        self._start = time.monotonic()
        first_step = step
        with _StopRequest() as stop:
            while step < train.steps and not self._stops_early:
                # Up to the next evaluation or checkpoint, and no further.
                ends = [train.steps, step + train.steps_per_loop]
                ends += [
                    (step // n + 1) * n for n in (train.evaluate_every, train.checkpoint_every)
                ]
                steps = min(ends) - step
                # The first step of a start is alone: its time is compilation, not training.
                steps = 1 if step == first_step else steps
                step = self._train_some(iterator, step, steps, compiled=step > first_step)
                evaluates = step == train.steps or step % train.evaluate_every == 0
                if evaluates:
                    self._evaluate(step)
                if evaluates or stop.signal or step % train.checkpoint_every == 0:
                    self._save()
                if stop.signal:
                    print(
                        f"{stop.signal}: saved at step {step:,}; start again to go on", flush=True
                    )
                    return STOPPED_ON_REQUEST
        if self._stops_early:
            print(
                f"stopped early at step {step:,}: no better {train.early_stopping_metric} on the "
                f"validation split than {float(self.state.best.numpy()):.4g}, at step "
                f"{int(self.state.best_step.numpy()):,}",
                flush=True,
            )
        self.writer.flush()
        return 0

    def _save(self) -> None:
        self.state.seconds.assign(self._elapsed())
        self.checkpoints.save()
        self.writer.flush()

    def _elapsed(self) -> float:
        return self._resumed_seconds + time.monotonic() - self._start

    def _train_some(self, iterator, step: int, steps: int, *, compiled: bool) -> int:
        """Trains `steps` steps and reports; returns the step it ends at."""
        began = time.monotonic()
        sums = self.steps.train(iterator, tf.constant(steps))
        sums = {key: float(value) for key, value in sums.items()}
        seconds = time.monotonic() - began
        step += steps
        result = metrics.averages(sums)
        # The gradient too: its NaN is in the weights before the loss shows it.
        if not math.isfinite(result["loss"] + sums["gradient_norm"]):
            raise UsageError(
                f"the loss is {result['loss']} and the gradient's norm {sums['gradient_norm']} in "
                f"steps {step - steps + 1} to {step}, and nothing of them was saved; lower "
                "--config.optimizer.learning_rate or set --config.optimizer.clip_norm"
            )
        result |= {
            "grad_norm": sums["gradient_norm"] / steps,
            "learning_rate": float(self.optimizer.schedule(step - 1)),
            "epoch": step / self.data.batches_per_epoch,
            "train_seconds": self._elapsed(),
        }
        if compiled:
            result |= {
                "target_tokens_per_second": sums["tokens"] / seconds,
                "source_tokens_per_second": sums["source_tokens"] / seconds,
                "step_seconds": seconds / steps,
            }
            speed = f"{result['target_tokens_per_second']:,.0f} tokens/s"
            left = metrics.clock((self.config.train.steps - step) * seconds / steps)
        else:
            result["compile_seconds"] = seconds
            speed, left = f"compiled in {seconds:.0f} s", "-:--:--"
        self.writer.write("train", step, result)
        print(
            f"step {step:>7,}/{self.config.train.steps:,}  epoch {result['epoch']:6.2f}  "
            f"loss {result['loss']:.4f}  accuracy {result['token_accuracy']:.3f}  "
            f"lr {result['learning_rate']:.2e}  {speed}  {left} left",
            flush=True,
        )
        return step

    def evaluate_loss(self, split: str) -> dict[str, float]:
        """Loss, perplexity and accuracy per target token over a whole split."""
        pairs = records.read_pairs(self.manifest, split)
        batches = trainer_input.evaluation_batches(
            pairs, self.config, self.manifest.eos_id, self.strategy
        )
        return total_metrics(self.steps, batches)

    def _evaluate(self, step: int) -> None:
        began = time.monotonic()
        result = self.evaluate_loss("valid")
        scores, rows = scoring.score_split(
            self.manifest,
            "valid",
            self.tokenizer,
            self.decoder,
            self.config.decode.validation_sentences,
        )
        result |= {"bleu": scores["bleu"], "chrf": scores["chrf"]}
        result["evaluate_seconds"] = time.monotonic() - began
        self.writer.write("valid", step, result | {"signature": scores["signature"]})
        # The same sentences each time, spread over the split.
        shown = [
            rows[i] for i in np.linspace(0, len(rows) - 1, min(_SAMPLES, len(rows)), dtype=int)
        ]
        self.writer.text("valid", step, "translations", metrics.translations_table(shown))
        self._write_translations(step, rows)
        better = self._note(step, result)
        print(
            f"valid {step:>6,}  loss {result['loss']:.4f}  perplexity {result['perplexity']:.2f}  "
            f"accuracy {result['token_accuracy']:.3f}  BLEU {result['bleu']:.2f}  "
            f"chrF {result['chrf']:.2f}  ({result['evaluate_seconds']:.0f} s)"
            f"{'  best so far' if better else ''}",
            flush=True,
        )
        for source, reference, translation in shown[:2]:
            print(
                f"    source       {source}\n    reference    {reference}\n"
                f"    translation  {translation}",
                flush=True,
            )
        if better:
            self.checkpoints.save_best()

    def _write_translations(self, step: int, rows) -> None:
        folder = os.path.join(self.model_dir, "translations")
        tf.io.gfile.makedirs(folder)
        with tf.io.gfile.GFile(os.path.join(folder, f"valid-{step}.txt"), "w") as file:
            file.write("".join(f"{translation}\n" for _, _, translation in rows))

    def _note(self, step: int, result: dict[str, float]) -> bool:
        """Keeps the early-stopping state; whether this evaluation is the best so far."""
        name = self.config.train.early_stopping_metric
        value, best = result[name], float(self.state.best.numpy())
        better = math.isnan(best) or (value > best if name == "bleu" else value < best)
        if better:
            self.state.best.assign(value)
            self.state.best_step.assign(step)
            self.state.evaluations_since_best.assign(0)
        else:
            self.state.evaluations_since_best.assign_add(1)
        return better

    @property
    def _stops_early(self) -> bool:
        patience = self.config.train.early_stopping_patience
        return 0 < patience <= int(self.state.evaluations_since_best.numpy())


def total_metrics(steps: Steps, batches) -> dict[str, float]:
    """Metrics per token over all batches of an evaluation dataset."""
    totals: dict[str, float] = {}
    for batch in batches:
        for key, value in steps.evaluate(batch).items():
            totals[key] = totals.get(key, 0.0) + float(value)
    if not totals or not totals["tokens"]:
        raise UsageError("the split holds no target tokens; is its text empty?")
    return metrics.averages(totals)
