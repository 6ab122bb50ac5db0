"""Which worker failed first, by what the others say; and ports that somebody else took."""

import errno

from launch import local
from launch.processes import supervisor as supervise
from trainer.distributed import heartbeat
from trainer.distributed.meeting import name_of
from trainer.distributed.wire import port_error

_QUICK = {"_FIRST_PAUSE_SECONDS": 0.01}
_ACCUSE = (
    "error: worker 1 (localhost:2) has not answered for 9 s; ending, so that all can be started "
    "again from the last checkpoint"
)


def test_a_worker_that_names_another_is_not_blamed(launch):
    """The other stands still and is deaf to SIGTERM; it is killed without delay."""
    body = f"""
if attempt:
    sys.exit()
if index == 1:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    open("deaf", "w").close()
    os.kill(os.getpid(), signal.SIGSTOP)
while not os.path.exists("deaf"):
    time.sleep(0.01)
sys.exit({_ACCUSE!r})
"""
    run = launch(body, constants={**_QUICK, "_STOP_SECONDS": 1000.0})
    _, stderr = run.finish(0)
    assert "[launch] worker 1 has not answered for 9 s, says worker 0; it is killed\n" in stderr
    assert "worker 0 ended" not in stderr and run.starts() == [2, 2]


def test_the_death_behind_the_end_of_another_is_named(launch):
    """Both have ended when the launcher looks: it names the one that died."""
    body = f"""
if attempt:
    sys.exit()
if index == 1:
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(0.2)
sys.exit({_ACCUSE!r})
"""
    run = launch(body, constants={**_QUICK, "_POLL_SECONDS": 1.5})
    _, stderr = run.finish(0)
    assert "[launch] worker 1 died of SIGKILL\n" in stderr and "worker 0 ended" not in stderr


def test_a_port_that_somebody_took(launch):
    """One that the launcher picked is no bad usage: the next start has others."""
    body = """
if attempt:
    sys.exit()
if index == 0:
    wait()
print("error: port 7 of this machine is in use, and this worker needs it", file=sys.stderr)
sys.exit(2)
"""
    _, stderr = launch(body, constants=_QUICK).finish(0)
    assert "somebody else has taken a port" in stderr and "restart 1 of 3" in stderr


def test_a_port_that_the_user_chose(launch):
    body = """
print("error: port 7 of this machine is in use, and this worker needs it", file=sys.stderr)
sys.exit(2)
"""
    (port,) = local.pick_ports(1)
    _, stderr = launch(body, "--workers=1", f"--port={port}", constants=_QUICK).finish(2)
    assert "restart" not in stderr.replace("not restarted", "")


def test_what_the_trainer_says_is_understood():
    """The launcher reads these lines; here they are made as the trainer makes them."""
    addresses = ["localhost:1", "[::1]:2"]
    for verdict in (
        f"{name_of(1, addresses)} has not answered for 30 s; {heartbeat._AGAIN}",
        f"{name_of(1, addresses)} has died, or its connection is lost; {heartbeat._AGAIN}",
        f"{name_of(1, addresses)} keeps the others waiting and has made no progress for 9 s; x",
    ):
        assert supervise._ACCUSATION.match(f"error: {verdict}")[1] == "1"
    taken = port_error("localhost:7", OSError(errno.EADDRINUSE, "x"))
    assert supervise._PORT_IN_USE.match(f"error: {taken}")
