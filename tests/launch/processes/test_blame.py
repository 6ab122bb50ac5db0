"""Which worker failed first, by what the others report; and ports that somebody else took."""

from launch import local

_QUICK = {"_FIRST_PAUSE_SECONDS": 0.01, "_STOP_SECONDS": 300.0}
_REPORT = """
def report(facts):
    with open(os.environ["WORKER_STATUS_FILE"], "w") as file:
        json.dump(facts, file)
"""
_ACCUSE = """
report({"lost_worker": 1, "reason": "has not answered for 9 s"})
sys.exit(1)
"""


def test_a_worker_that_names_another_is_not_blamed(launch):
    """The other stands still and is deaf to SIGTERM; it is killed without delay."""
    body = f"""{_REPORT}
if attempt:
    sys.exit()
if index == 1:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    open("deaf", "w").close()
    os.kill(os.getpid(), signal.SIGSTOP)
while not os.path.exists("deaf"):
    time.sleep(0.01)
{_ACCUSE}
"""
    run = launch(body, constants={**_QUICK, "_STOP_SECONDS": 1000.0})
    _, stderr = run.finish(0)
    assert "[launch] worker 1 has not answered for 9 s, says worker 0; it is killed\n" in stderr
    assert "worker 0 ended" not in stderr and run.starts() == [2, 2]


def test_the_death_behind_the_end_of_another_is_named(launch):
    """Both have ended when the launcher looks: it names the one that died."""
    body = f"""{_REPORT}
if attempt:
    sys.exit()
if index == 1:
    with open("begun", "w") as file:
        file.write(str(os.getpid()))
    os.rename("begun", "pid")
    os.kill(os.getpid(), signal.SIGKILL)
while not os.path.exists("pid"):
    time.sleep(0.01)
stat = f"/proc/{{open('pid').read()}}/stat"
while os.path.exists(stat) and ") Z" not in open(stat).read():
    time.sleep(0.01)
{_ACCUSE}
"""
    run = launch(body, constants={**_QUICK, "_POLL_SECONDS": 1.5})
    _, stderr = run.finish(0)
    assert "[launch] worker 1 died of SIGKILL" in stderr and "worker 0 ended" not in stderr


def test_a_port_that_somebody_took(launch):
    """One that the launcher picked is no bad usage: the next start has others."""
    body = f"""{_REPORT}
if attempt:
    sys.exit()
if index == 0:
    open("waiting", "w").close()  # its first start has been counted
    wait()
while not os.path.exists("waiting"):
    time.sleep(0.01)
report({{"port_in_use": 7}})
sys.exit(2)
"""
    _, stderr = launch(body, constants=_QUICK).finish(0)
    assert "somebody else has taken a port" in stderr and "restart 1 of 3" in stderr


def test_a_port_that_the_user_chose(launch):
    body = f"""{_REPORT}
report({{"port_in_use": 7}})
sys.exit(2)
"""
    (port,) = local.pick_ports(1)
    _, stderr = launch(body, "--workers=1", f"--port={port}", constants=_QUICK).finish(2)
    assert "restart" not in stderr.replace("not restarted", "")
