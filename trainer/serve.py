"""Serve translations: a web page and a JSON endpoint in one process.

    python -m trainer.serve --model_dir=MODEL
    curl -d '{"text": "Today is Monday."}' http://127.0.0.1:8000/translate

--model_dir may also be what trainer.export wrote with --format=ctranslate2; CTranslate2 translates
then. /healthz says that the server works, /metrics counts for Prometheus.
"""

import signal
import socket

from absl import flags

from common.errors import UsageError, no_arguments, run_app

_MODEL_DIR = flags.DEFINE_string(
    "model_dir", None, "Model directory, or an export for CTranslate2.", required=True
)
_CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "best, latest, or a checkpoint's path.")
_BEAM_SIZE = flags.DEFINE_integer("beam_size", 0, "Beams; 0 for the configuration's.", 0)
_HOST = flags.DEFINE_string(
    "host", "127.0.0.1", "Address to listen on; 0.0.0.0 answers other machines too."
)
_PORT = flags.DEFINE_integer("port", 8000, "Port to listen on; 0 for a free one.", 0, 65535)
_BODY_BYTES = flags.DEFINE_integer("max_body_bytes", 1 << 16, "Size of a request, at most.", 1)
_SENTENCES = flags.DEFINE_integer("max_sentences", 64, "Sentences of a request, at most.", 1)
_SECONDS = flags.DEFINE_float("timeout_seconds", 30.0, "Time of a request, at most.", 0.001)
_QUEUE = flags.DEFINE_integer("max_queue", 512, "Sentences that wait, at most.", 1)
_BATCH = flags.DEFINE_integer("batch_sentences", 32, "Sentences of a batch, at most.", 1)
_CONNECTIONS = 1024  # beyond them the server answers 503


def _listen() -> socket.socket:
    try:
        found = socket.getaddrinfo(_HOST.value, _PORT.value, type=socket.SOCK_STREAM)
        family, _, _, _, address = found[0]
        return socket.create_server(address, family=family, backlog=_CONNECTIONS)
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UsageError(
            f"cannot listen on --host={_HOST.value} --port={_PORT.value}: {why}"
        ) from error


def main(argv: list[str]) -> None:
    """Load, translate one sentence to compile the search, serve until a signal comes."""
    no_arguments(argv)
    try:
        import uvicorn

        from trainer.serving.app import Limits, make_app
    except ImportError as error:
        raise UsageError(
            f"trainer.serve needs {error.name}; pip install -c requirements/extras.txt "
            "-e '.[serve]' brings it"
        ) from error
    from trainer.serving.engines import load_engine

    if _QUEUE.value < _SENTENCES.value:
        raise UsageError(
            f"--max_queue={_QUEUE.value} has no room for a request of "
            f"--max_sentences={_SENTENCES.value}"
        )
    limits = Limits(
        body_bytes=_BODY_BYTES.value,
        sentences=_SENTENCES.value,
        seconds=_SECONDS.value,
        queue_sentences=_QUEUE.value,
        batch_sentences=_BATCH.value,
    )
    listening = _listen()  # before the model loads: a port that is taken is said at once
    engine = load_engine(_MODEL_DIR.value, _CHECKPOINT.value, _BEAM_SIZE.value)
    engine.translate(["1"], True)
    config = uvicorn.Config(
        make_app(engine, limits),
        log_level="warning",
        access_log=False,
        ws="none",
        limit_concurrency=_CONNECTIONS,
        timeout_graceful_shutdown=int(limits.seconds) + 1,
    )
    # uvicorn answers open requests after SIGTERM, and then sends it again.
    signal.signal(signal.SIGTERM, lambda *_: None)
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    print(f"{engine.name}: http://{shown}:{port}", flush=True)
    uvicorn.Server(config).run([listening])


if __name__ == "__main__":
    run_app(main)
