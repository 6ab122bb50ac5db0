"""What the process of every command needs."""

import os
from concurrent.futures import ThreadPoolExecutor

import grpc

from common import process


def test_grpc_reaches_this_machine_without_the_proxy(monkeypatch):
    """As Beam's workers do; nobody listens where the proxy should be."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "example.org,localhost")
    monkeypatch.delenv(process.NO_GRPC_PROXY, raising=False)
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    process.prepare()
    assert os.environ[process.NO_GRPC_PROXY] == "example.org,localhost,127.0.0.1"
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("localhost:0")
    server.start()
    with grpc.insecure_channel(f"localhost:{port}") as channel:
        grpc.channel_ready_future(channel).result(timeout=300)
    server.stop(None)
