"""The trigger's gate, asked by real processes over real sockets.

The test is the worker: it accepts a connection and hands the accepted socket to the gate. Who asks
is a child of it. A gate whose arbiter is the test takes such a child for one of our own; to others,
the child is a stranger.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import gunicorn_grace
from gunicorn_grace.probes import asker, processes, sockets
from gunicorn_grace.probes.trigger import TriggerPolicy, Verdict
from support.trials import trials

LINUX = sys.platform == "linux"
pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(not LINUX, reason="the gate reads Linux's /proc"),
]

ROOT = Path(gunicorn_grace.__file__).parents[1]
PATIENCE = 20.0
NOBODY = 65534

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may change its uid")

# Connects, says what it is called if told to, sends the request, and lives until its stdin ends.
CLIENT = """
import socket, sys
family, address, name = eval(sys.argv[1])
if name: open("/proc/self/comm", "w").write(name)
with socket.socket(family) as s:
    s.connect(address)
    s.sendall(b"GET /readyz?down=true HTTP/1.1\\r\\n\\r\\n")
    sys.stdin.read()
"""

# Prints that it runs, and lives until its stdin ends. What it holds, it was given.
HOLDER = "import sys; print('up', flush=True); sys.stdin.read()"

# A worker in a PID namespace of its own, where it is PID 1: prints its address, then the verdict on
# who asks.
INNER = """
import json, os, socket, subprocess, sys
from dataclasses import asdict
from gunicorn_grace.probes.trigger import TriggerPolicy
family, address, arbiter, ask = eval(sys.argv[1])
listener = socket.socket(family); listener.bind(address); listener.listen()
print(json.dumps(listener.getsockname()), flush=True)
child = ask and subprocess.Popen([a.format(*listener.getsockname()) for a in ask], stdout=subprocess.DEVNULL)
sock, _ = listener.accept()
print(json.dumps(asdict(TriggerPolicy("local", None, arbiter).admit({"gunicorn.socket": sock}))), flush=True)
sock.sendall(b"HTTP/1.0 503 \\r\\n\\r\\n"); sock.close()
if child: child.wait()
"""

# A worker of another user, to whom an accepted socket is handed: prints the verdict on who asks. It
# changes its user after it has imported what that user may not be able to read.
NOBODYS = """
import json, os, socket, sys
from dataclasses import asdict
from gunicorn_grace.probes.trigger import TriggerPolicy
arbiter, accepted, user, environ = eval(sys.argv[1])
os.setgroups([]); os.setresgid(user, user, user); os.setresuid(user, user, user)
environ["gunicorn.socket"] = socket.socket(fileno=accepted)
print(json.dumps(asdict(TriggerPolicy("local", None, arbiter).admit(environ))), flush=True)
"""


@contextmanager
def child(*command: str, **how: Any) -> Iterator[subprocess.Popen[str]]:
    """A process that is gone, and reaped, when the block is left."""
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **how
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@contextmanager
def python(code: str, *arguments: str, **how: Any) -> Iterator[subprocess.Popen[str]]:
    with child(sys.executable, "-S", "-c", code, *arguments, **how) as process:
        yield process


@contextmanager
def holder(*sockets: socket.socket) -> Iterator[subprocess.Popen[str]]:
    with python(HOLDER, pass_fds=[sock.fileno() for sock in sockets]) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        yield process


@contextmanager
def listening(family: int, address: Any, *, dual_stack: bool = False) -> Iterator[socket.socket]:
    with socket.socket(family) as listener:
        listener.settimeout(PATIENCE)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dual_stack)
        try:
            listener.bind(address)
        except OSError as error:
            pytest.skip(f"{address} is not to be had here: {error}")
        listener.listen()
        yield listener


@contextmanager
def accepted(listener: socket.socket) -> Iterator[dict[str, Any]]:
    """The environ of the next request: its real socket, and its real headers as WSGI names them."""
    sock, _ = listener.accept()
    with sock:
        sock.settimeout(PATIENCE)
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            part = sock.recv(65536)
            assert part, head
            head += part
        environ: dict[str, Any] = {"gunicorn.socket": sock, "REMOTE_ADDR": "127.0.0.1"}
        for line in head.decode("latin-1").split("\r\n")[1:-2]:
            name, _, value = line.partition(": ")
            environ["HTTP_" + name.upper().replace("-", "_")] = value
        yield environ
        with suppress(BrokenPipeError):
            sock.sendall(b"HTTP/1.1 503 \r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


def curl(listener: socket.socket, gate: TriggerPolicy, *options: str) -> Verdict:
    """The gate's verdict on a real curl."""
    if listener.family == socket.AF_UNIX:
        options += ("--unix-socket", listener.getsockname())
        where = "localhost"
    else:
        host, port = listener.getsockname()[:2]
        where = f"[{host}]:{port}" if listener.family == socket.AF_INET6 else f"{host}:{port}"
    with child(
        "curl", "-s", "--noproxy", "*", *options, f"http://{where}/readyz?down=true"
    ) as process:
        with accepted(listener) as environ:
            verdict = gate.admit(environ)
        process.communicate(timeout=PATIENCE)
    return verdict


def client_of(family: int, address: Any, name: str = "") -> Any:
    return python(CLIENT, repr((int(family), address, name)))


def started(pid: int) -> int:
    """Clock ticks since boot, from the last parenthesis on: field 22 of proc(5)."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


@pytest.fixture
def v4() -> Iterator[socket.socket]:
    with listening(socket.AF_INET, ("127.0.0.1", 0)) as listener:
        yield listener


@pytest.fixture(params=["v4", "v6", "unix"])
def listener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[socket.socket]:
    family, address = {
        "v4": (socket.AF_INET, ("127.0.0.1", 0)),
        "v6": (socket.AF_INET6, ("::1", 0)),
        "unix": (socket.AF_UNIX, str(tmp_path / "s")),
    }[request.param]
    with listening(family, address) as sock:
        yield sock


@pytest.fixture
def stranger() -> Iterator[int]:
    """An arbiter to whom the children of this test are no family."""
    with holder() as process:
        yield process.pid


# --- one-shot processes


@needs_curl
def test_fresh_curl_is_admitted(listener: socket.socket, stranger: int) -> None:
    """A curl that was started a moment ago may begin the shutdown, on IPv4, on IPv6 and on a UNIX
    socket."""
    verdict = curl(listener, TriggerPolicy("local", None, stranger))
    assert verdict.allowed, verdict
    assert re.search(r"pid \d+ \(curl\), started \d\.\d\d s ago", verdict.reason)


@needs_curl
def test_the_source_names_who_asked(listener: socket.socket, stranger: int) -> None:
    """The source is the peer's address and port, or for a UNIX socket the process."""
    form = {
        socket.AF_INET: r"127\.0\.0\.1:\d+",
        socket.AF_INET6: r"\[::1\]:\d+",
        socket.AF_UNIX: r"unix socket, pid \d+ \(curl\)",
    }[listener.family]
    assert re.fullmatch(form, curl(listener, TriggerPolicy("local", None, stranger)).source)


@needs_curl
def test_curl_of_the_application_is_refused(listener: socket.socket) -> None:
    """A child of the arbiter may not begin the shutdown: the application can be made to run it
    (SSRF)."""
    verdict = curl(listener, TriggerPolicy("local", None, os.getpid()))
    assert not verdict.allowed
    assert f"belongs to this instance: it is the arbiter, pid {os.getpid()}" in verdict.reason


@needs_curl
def test_grandchild_of_the_arbiter_is_refused(v4: socket.socket) -> None:
    """Descent counts at any distance: arbiter, shell, curl."""
    url = "http://{}:{}/".format(*v4.getsockname())
    with child("sh", "-c", f"curl -s --noproxy '*' {url}; exit 0") as process:
        with accepted(v4) as environ:
            verdict = TriggerPolicy("local", None, os.getpid()).admit(environ)
        process.communicate(timeout=PATIENCE)
    assert not verdict.allowed
    assert "(curl) belongs to this instance" in verdict.reason


def test_a_worker_is_refused(listener: socket.socket, stranger: int) -> None:
    """The process at the other end may not be the arbiter itself."""
    with (
        client_of(listener.family, listener.getsockname()) as process,
        accepted(listener) as environ,
    ):
        verdict = TriggerPolicy("local", None, process.pid).admit(environ)
        assert not verdict.allowed
        assert f"pid {process.pid} " in verdict.reason
        assert "belongs to this instance" in verdict.reason
        assert TriggerPolicy("local", None, stranger).admit(environ).allowed


def test_a_name_with_parentheses_hides_no_parent(v4: socket.socket, stranger: int) -> None:
    """A process cannot forge its parent or its age by its name, which /proc/<pid>/stat quotes as it
    is."""
    name = ") R 1 (x) 7 7"
    with client_of(socket.AF_INET, v4.getsockname(), name) as process, accepted(v4) as environ:
        ours = TriggerPolicy("local", None, os.getpid()).admit(environ)
        assert not ours.allowed
        assert f"pid {process.pid} ({name}) belongs to this instance" in ours.reason
        assert TriggerPolicy("local", None, stranger).admit(environ).allowed


def test_a_name_cannot_break_the_log_line(v4: socket.socket, stranger: int) -> None:
    """Control characters in a process name reach the log escaped."""
    with client_of(socket.AF_INET, v4.getsockname(), "a\x1b[2Jb\rc") as _, accepted(v4) as environ:
        verdict = TriggerPolicy("local", None, stranger).admit(environ)
    assert verdict.allowed
    assert r"(a\x1b[2Jb\rc)" in verdict.reason


# --- age


def test_age_is_in_seconds_since_the_start(
    listener: socket.socket, stranger: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is older than MAX_AGE is refused, with both numbers, and the age is its own,
    in seconds."""
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    with client_of(listener.family, listener.getsockname()) as _, accepted(listener) as environ:
        reached = time.clock_gettime(time.CLOCK_BOOTTIME)
        monkeypatch.setattr(asker, "MAX_AGE", 0.0)
        verdict = TriggerPolicy("local", None, stranger).admit(environ)
        after = time.clock_gettime(time.CLOCK_BOOTTIME)
        monkeypatch.undo()
        assert TriggerPolicy("local", None, stranger).admit(environ).allowed
    assert not verdict.allowed
    match = re.search(r"started (\d+\.\d\d) s ago >= 0 s", verdict.reason)
    assert match, verdict.reason
    # stat counts in ticks of 10 ms, the message in hundredths.
    tick = 2 / os.sysconf("SC_CLK_TCK")
    assert after - reached - tick <= float(match[1]) <= after - before + tick


def test_an_age_of_ten_seconds_is_the_limit() -> None:
    """The limit is the one that the documentation promises."""
    assert asker.MAX_AGE == 10.0


@contextmanager
def elder_and_younger(*sockets: socket.socket, gap: float = 1.0) -> Iterator[tuple[int, int]]:
    """Two holders of the same sockets. The elder's age, taken just before a look, lies between
    theirs at the look."""
    with ExitStack() as stack:
        elder = stack.enter_context(holder(*sockets)).pid
        ticks = os.sysconf("SC_CLK_TCK")
        while True:
            with holder(*sockets) as younger:
                if started(younger.pid) - started(elder) < gap * ticks:
                    continue
                yield elder, younger.pid
                return


def age_of(pid: int) -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started(pid) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("who", ["elder", "younger"])
def test_age_tells_an_old_process_from_a_young_one(
    v4: socket.socket, stranger: int, who: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two processes on the two sides of MAX_AGE, the younger alone is admitted, and the elder
    alone is refused."""
    with (
        socket.create_connection(v4.getsockname()) as theirs,
        v4.accept()[0] as ours,
        elder_and_younger(theirs) as (elder, younger),
    ):
        theirs.close()
        os.kill(younger if who == "elder" else elder, 9)
        os.waitid(os.P_PID, younger if who == "elder" else elder, os.WEXITED | os.WNOWAIT)
        monkeypatch.setattr(asker, "MAX_AGE", age_of(elder))
        verdict = TriggerPolicy("local", None, stranger).admit({"gunicorn.socket": ours})
    assert verdict.allowed is (who == "younger"), verdict
    assert f"pid {elder if who == 'elder' else younger} " in verdict.reason


def test_an_old_second_holder_refuses(
    v4: socket.socket, stranger: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A young process that shares its socket with an old one is refused because of the old one."""
    with (
        socket.create_connection(v4.getsockname()) as theirs,
        v4.accept()[0] as ours,
        elder_and_younger(theirs) as (elder, younger),
    ):
        theirs.close()
        young = TriggerPolicy("local", None, stranger).admit({"gunicorn.socket": ours})
        monkeypatch.setattr(asker, "MAX_AGE", age_of(elder))
        verdict = TriggerPolicy("local", None, stranger).admit({"gunicorn.socket": ours})
    assert young.allowed
    assert f"pid {elder} " in young.reason
    assert f"pid {younger} " in young.reason
    assert not verdict.allowed
    assert f"pid {elder} " in verdict.reason


@pytest.mark.parametrize("ours_is", [0, 1])
def test_every_holder_must_pass(v4: socket.socket, stranger: int, ours_is: int) -> None:
    """A socket of two processes, one of them ours, is refused, whichever of the two is looked at
    first."""
    with (
        socket.create_connection(v4.getsockname()) as theirs,
        v4.accept()[0] as ours,
        holder(theirs) as one,
        holder(theirs) as two,
    ):
        theirs.close()
        environ = {"gunicorn.socket": ours}
        assert TriggerPolicy("local", None, stranger).admit(environ).allowed
        verdict = TriggerPolicy("local", None, (one, two)[ours_is].pid).admit(environ)
    assert not verdict.allowed
    assert "belongs to this instance" in verdict.reason


# --- relays

# A young process that asks for others: it has a socket to be asked by, of the kind that its first
# argument says.
RELAY = """
import os, socket, sys
kind, address, folder = eval(sys.argv[1])
if kind == "listens on TCP": other = socket.create_server(("127.0.0.1", 0))
if kind == "listens on IPv6": other = socket.create_server(("::1", 0), family=socket.AF_INET6)
if kind == "listens on a UNIX socket":
    other = socket.socket(socket.AF_UNIX); other.bind(folder + "/front"); other.listen()
if kind == "has a client":
    with socket.create_server(("127.0.0.1", 0)) as front:
        theirs = socket.create_connection(front.getsockname()); other = front.accept()[0]
    if os.fork() == 0: theirs.close()
    else: other.close(); os.wait()
def pair(listener):
    theirs = socket.socket(listener.family, socket.SOCK_STREAM, listener.proto)
    theirs.connect(listener.getsockname())
    return theirs, listener.accept()[0], listener.close()
def front():
    made = socket.socket(socket.AF_UNIX); made.bind(folder + "/front"); made.listen(); return made
if kind == "has a UNIX connection": other = socket.socketpair()
if kind == "was accepted at a UNIX socket":
    theirs, other, _ = pair(front())
    if os.fork() == 0: other.close(); sys.stdin.read(); os._exit(0)
    theirs.close()
if kind == "was accepted at an abstract socket":
    made = socket.socket(socket.AF_UNIX); made.bind(chr(0) + folder); made.listen()
    theirs, other, _ = pair(made)
    if os.fork() == 0: other.close(); sys.stdin.read(); os._exit(0)
    theirs.close()
if kind == "is the client of a UNIX socket":
    other, theirs, _ = pair(front())
    if os.fork() == 0: other.close(); sys.stdin.read(); os._exit(0)
    theirs.close()
if kind == "has a UDP socket":
    other = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); other.bind(("127.0.0.1", 0))
if kind == "has a VSOCK socket": other = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
if kind == "has an MPTCP socket":
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262); made.bind(("127.0.0.1", 0)); made.listen()
    theirs, other, _ = pair(made); other.send(b"x"); theirs.recv(1)
if kind == "listens as a standard stream": os.dup2(socket.create_server(("127.0.0.1", 0)).detach(), 1)
if kind == "has sockets as standard streams":
    theirs, other, _ = pair(socket.create_server(("127.0.0.1", 0)))
    if os.fork() == 0: other.close(); sys.stdin.read(); os._exit(0)
    theirs.close(); os.dup2(other.detach(), 1)
if kind == "asks for a name":
    other = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); other.connect(("127.0.0.1", 53))
if kind == "asks for an interface":
    other = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0); other.bind((0, 0))
if kind == "writes to syslog":
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); made.bind(folder + "/log")
    other = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); other.connect(folder + "/log")
    made.close()
with socket.socket(socket.AF_UNIX if isinstance(address, str) else len(address) // 2 * socket.AF_INET) as s:
    s.connect(address)
    s.sendall(b"GET /readyz?down=true HTTP/1.1\\r\\n\\r\\n")
    sys.stdin.read()
"""


HARMLESS = (
    "has a UNIX connection",
    "has sockets as standard streams",
    "asks for a name",
    "asks for an interface",
    "writes to syslog",
)


@pytest.mark.parametrize(
    "kind",
    [
        "listens on TCP",
        "listens on IPv6",
        "listens on a UNIX socket",
        "has a client",
        "was accepted at a UNIX socket",
        "was accepted at an abstract socket",
        "is the client of a UNIX socket",
        "has a UDP socket",
        "has a VSOCK socket",
        "has an MPTCP socket",
        "listens as a standard stream",
        *HARMLESS,
    ],
)
@pytest.mark.parametrize("over", ["tcp", "unix"])
def test_a_young_relay_is_refused(kind: str, over: str, stranger: int, tmp_path: Path) -> None:
    """A process that others can ask may not trigger, however young, and whatever kind of socket
    they ask it through: a proxy that was started with the container, its worker after a reload, a
    child that socat forks for a client. The streams that systemd, ssh or a CI runner give, and the
    sockets of a client that looks up a name, are no such sign."""
    family, address = (
        (socket.AF_INET, ("127.0.0.1", 0))
        if over == "tcp"
        else (socket.AF_UNIX, str(tmp_path / "s"))
    )
    if kind == "listens on IPv6":
        with listening(socket.AF_INET6, ("::1", 0)):
            pass  # or it is skipped
    with (
        listening(family, address) as listener,
        python(RELAY, repr((kind, listener.getsockname(), str(tmp_path)))),
        accepted(listener) as environ,
    ):
        verdict = TriggerPolicy("local", None, stranger).admit(environ)
    if kind in HARMLESS:
        assert verdict.allowed, verdict
    else:
        assert not verdict.allowed
        assert "has another socket (" in verdict.reason


# --- what an application runs


APPLICATIONS = """
import os, sys
from gunicorn_grace.shared.memory import Memory
kind, family, address = eval(sys.argv[1])
code = sys.argv[2]
if kind == "forks":
    memory = Memory.create(slots=1)
if kind == "another gunicorn":
    os.environ["SERVER_SOFTWARE"] = "gunicorn/27.0.1"
if kind == "a worker of ours":
    os.environ["GUNICORN_GRACE_WORKER"] = "1"
if os.fork() == 0:  # The parent ends, so this is an orphan.
    if kind == "forks":
        sys.argv[1] = repr((family, address, ""))
        exec(code)
    os.execv(sys.executable, [sys.executable, "-S", "-c", code, repr((family, address, ""))])
os._exit(0)
"""


@pytest.mark.parametrize("kind", ["forks", "another gunicorn", "a worker of ours", "none of them"])
def test_an_orphan_of_an_application_is_refused(
    kind: str, listener: socket.socket, stranger: int
) -> None:
    """A `curl` that an application has put into the background has a new parent. Its environment,
    or the memory that it holds, says where it comes from, also of another gunicorn on this
    machine."""
    argument = repr((kind, int(listener.family), listener.getsockname()[:2]))
    if listener.family == socket.AF_UNIX:
        argument = repr((kind, int(listener.family), listener.getsockname()))
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("GUNICORN")
    }
    with (
        python(APPLICATIONS, argument, CLIENT, cwd=ROOT, env=environment) as process,
        accepted(listener) as environ,
    ):
        process.wait(PATIENCE)
        verdict = TriggerPolicy("local", None, stranger).admit(environ)
    if kind == "none of them":
        assert verdict.allowed, verdict
    else:
        assert not verdict.allowed
        assert "was started by the application of a gunicorn" in verdict.reason


@pytest.mark.parametrize(
    ("arguments", "is_one"),
    [
        (["/v/bin/python", "/v/bin/gunicorn", "app:app"], True),
        (["python3.11", "-u", "-m", "gunicorn", "app:app"], True),
        (["python3.11", "-W", "error", "-m", "gunicorn"], True),
        (["/v/bin/python", "/v/lib/gunicorn/__main__.py"], True),
        (["gunicorn: worker [app]"], True),
        (["/v/bin/gunicorn"], True),
        (["su", "-", "gunicorn"], False),
        (["sudo", "-u", "gunicorn", "curl"], False),
        (["vim", "/etc/gunicorn"], False),
        (["/v/bin/python", "/v/bin/gunicorn-grace", "rehearse", "gunicorn"], False),
        (["python3", "-c", "import gunicorn"], False),
        (["-bash"], False),
        ([], False),
    ],
)
def test_a_gunicorn_is_known_by_its_command_line(arguments: list[str], is_one: bool) -> None:
    """Its script, its module or its title; not a user, a file or a command of that name."""
    assert processes.is_gunicorn(arguments) is is_one


def test_a_zombie_is_refused(v4: socket.socket, tmp_path: Path, stranger: int) -> None:
    """A process that has ended and left its connection to another one is no hook."""
    with (
        listening(socket.AF_UNIX, str(tmp_path / "s")) as listener,
        client_of(socket.AF_UNIX, listener.getsockname()) as process,
        accepted(listener) as environ,
    ):
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        verdict = TriggerPolicy("local", None, stranger).admit(environ)
    assert not verdict.allowed
    assert f"pid {process.pid} (python" in verdict.reason
    assert "has ended" in verdict.reason


def test_who_holds_a_unix_connection_counts_too(tmp_path: Path, stranger: int) -> None:
    """A process that was left the connection of another one is looked at as well."""
    inherits = CLIENT.replace("    sys.stdin.read()", "    import os; heir = os.fork()")
    inherits += "    if heir: print(heir, flush=True)\n    sys.stdin.read()\n"
    with (
        listening(socket.AF_UNIX, str(tmp_path / "s")) as listener,
        python(inherits, repr((int(socket.AF_UNIX), listener.getsockname(), ""))) as process,
        accepted(listener) as environ,
    ):
        assert process.stdout is not None
        heir = int(process.stdout.readline())
        assert TriggerPolicy("local", None, stranger).admit(environ).allowed
        verdict = TriggerPolicy("local", None, heir).admit(environ)
        os.kill(heir, 9)
    assert not verdict.allowed
    assert f"pid {heir} (python" in verdict.reason


# --- addresses


def test_ipv4_client_of_a_dual_stack_listener(stranger: int) -> None:
    """A client that we see as ::ffff:127.0.0.1, and that /proc lists as plain IPv4, is found."""
    with listening(socket.AF_INET6, ("::", 0), dual_stack=True) as listener:
        port = listener.getsockname()[1]
        with client_of(socket.AF_INET, ("127.0.0.1", port)), accepted(listener) as environ:
            assert environ["gunicorn.socket"].getpeername()[0] == "::ffff:127.0.0.1"
            verdict = TriggerPolicy("local", None, stranger).admit(environ)
    assert verdict.allowed, verdict


@pytest.mark.parametrize("dual_stack", [False, True], ids=["IPv4 listener", "dual-stack listener"])
def test_mapped_client(stranger: int, dual_stack: bool) -> None:
    """A client that speaks IPv4 through an IPv6 socket, which /proc lists as mapped in tcp6, is
    found."""
    family, any_address = (socket.AF_INET6, "::") if dual_stack else (socket.AF_INET, "127.0.0.1")
    with listening(family, (any_address, 0), dual_stack=dual_stack) as listener:
        address = ("::ffff:127.0.0.1", listener.getsockname()[1])
        with client_of(socket.AF_INET6, address), accepted(listener) as environ:
            verdict = TriggerPolicy("local", None, stranger).admit(environ)
    assert verdict.allowed, verdict


def own_address(family: int, elsewhere: str) -> str:
    """An address of this machine that is not loopback. Connecting a UDP socket sends nothing."""
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect((elsewhere, 9))
        except OSError as error:
            pytest.skip(f"no route, so no address but loopback: {error}")
        return str(sock.getsockname()[0])


@pytest.mark.parametrize(
    ("family", "elsewhere"), [(socket.AF_INET, "203.0.113.1"), (socket.AF_INET6, "2001:db8::1")]
)
def test_another_address_is_refused(family: int, elsewhere: str, stranger: int) -> None:
    """A peer that is not on loopback is refused, whatever REMOTE_ADDR says, and its process is not
    looked up."""
    address = own_address(family, elsewhere)
    if ipaddress.ip_address(address).is_loopback:
        pytest.skip("this machine has no address but loopback")
    gate = TriggerPolicy("local", None, stranger)
    with (
        listening(family, (address, 0)) as listener,
        client_of(family, listener.getsockname()[:2]),
        accepted(listener) as environ,
    ):
        assert environ["REMOTE_ADDR"] == "127.0.0.1"
        verdicts = [gate.admit(environ) for _ in range(2)]
    for verdict in verdicts:
        assert not verdict.allowed
        assert f"the peer's address {address} is not a loopback address" in verdict.reason


@trials(30)
@given(
    st.tuples(*[st.integers(0, 255)] * 2, st.integers(1, 254)),
    st.tuples(*[st.integers(0, 255)] * 2, st.integers(1, 254)),
)
def test_the_kernel_spells_addresses_as_we_do(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    """Whatever the two addresses and ports, the one row that is taken from /proc/net/tcp is that of
    the peer."""
    server, client = ("127." + ".".join(map(str, end)) for end in (a, b))
    with (
        closing(socket.create_server((server, 0))) as listener,
        socket.create_connection(listener.getsockname(), source_address=(client, 0)) as theirs,
        listener.accept()[0] as ours,
    ):
        ends = [sockets.endpoint(name) for name in (ours.getpeername(), ours.getsockname())]
        inodes = asker.Asker(1).inodes(*ends)
        assert inodes == {str(os.fstat(theirs.fileno()).st_ino)}


def test_a_tls_socket_is_a_socket(v4: socket.socket, stranger: int) -> None:
    """The socket of a TLS listener is asked like any other."""
    with socket.create_connection(v4.getsockname()) as theirs, v4.accept()[0] as ours:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        wrapped = context.wrap_socket(ours, server_side=True, do_handshake_on_connect=False)
        with wrapped, holder(theirs):
            theirs.close()
            verdict = TriggerPolicy("local", None, stranger).admit({"gunicorn.socket": wrapped})
    assert verdict.allowed, verdict


def test_a_handshake_is_no_connection() -> None:
    """A socket that only tries to connect is not taken for the peer, and what is not found is
    refused."""
    with (
        closing(socket.create_server(("127.0.0.1", 0), backlog=0)) as listener,
        ExitStack() as stack,
    ):
        where = listener.getsockname()
        waiting = [stack.enter_context(socket.socket()) for _ in range(4)]
        for sock in waiting:
            sock.setblocking(False)
            sock.connect_ex(where)
        # Backlog 0 has room for one; the handshakes beyond it stay at SYN_SENT.
        last = sockets.endpoint(waiting[-1].getsockname())
        with pytest.raises(processes.Refused, match=f"port {last[1]} is in neither /proc/net/tcp"):
            asker.Asker(1).inodes(last, sockets.endpoint(where))


# --- proxies


@needs_curl
@pytest.mark.parametrize(
    "header",
    [
        "Forwarded: for=192.0.2.1",
        "X-Forwarded-For: 192.0.2.1",
        "X-Forwarded-Proto: https",
        "X-Forwarded-Host: example.org",
        "X-Forwarded-Whatever: 1",
        "X-Forwarded: 1",
        "X-Real-IP: 192.0.2.1",
        "Via: 1.1 varnish",
    ],
)
def test_a_forwarded_request_is_refused(v4: socket.socket, stranger: int, header: str) -> None:
    """A header that only proxies add is enough, and no look-up is spent on it."""
    gate = TriggerPolicy("local", None, stranger)
    verdict = curl(v4, gate, "-H", header)
    assert not verdict.allowed
    assert "forwarded by a proxy" in verdict.reason
    assert header.partition(": ")[2] in verdict.reason
    assert curl(v4, gate).allowed


def test_the_proxy_protocol_is_refused(v4: socket.socket, stranger: int) -> None:
    """A connection that began with a PROXY line came through a proxy."""
    with client_of(socket.AF_INET, v4.getsockname()), accepted(v4) as environ:
        verdict = TriggerPolicy("local", None, stranger).admit(
            {**environ, "PROXY_PROTOCOL": "TCP4"}
        )
    assert not verdict.allowed
    assert "TCP4" in verdict.reason


def test_a_header_cannot_break_the_log_line(stranger: int) -> None:
    """Control characters in a header reach the log escaped, and no longer than a line."""
    verdict = TriggerPolicy("local", None, stranger).admit({"HTTP_VIA": "a\n\x1b[2J" + "x" * 1000})
    assert r"a\n\x1b[2J" in verdict.reason
    assert len(verdict.reason) < 300


def test_no_socket_is_refused(stranger: int) -> None:
    """A worker class that hides its socket admits nobody, although REMOTE_ADDR says loopback."""
    verdict = TriggerPolicy("local", None, stranger).admit({"REMOTE_ADDR": "127.0.0.1"})
    assert not verdict.allowed
    assert "no gunicorn.socket in environ" in verdict.reason
    assert verdict.source == "REMOTE_ADDR 127.0.0.1"


# --- other containers, other users


def verdict_from(inner: subprocess.Popen[str]) -> Verdict:
    assert inner.stdout is not None
    return Verdict(**json.loads(inner.stdout.readline()))


@contextmanager
def inner_worker(
    family: int,
    address: Any,
    arbiter: int,
    ask: list[str] | None = None,
    *,
    mount_proc: bool = True,
) -> Iterator[tuple[subprocess.Popen[str], Any]]:
    """A worker in a new PID namespace, where it is PID 1, and the address it listens at."""
    probe = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", "true"],
        capture_output=True,
        text=True,
        check=False,
    )
    if probe.returncode:
        pytest.skip(f"no PID namespace to be had: {probe.stderr.strip()}")
    command = [
        "unshare",
        "--pid",
        "--fork",
        "--kill-child",
        *(["--mount-proc"] if mount_proc else []),
    ]
    argument = repr((int(family), address, arbiter, ask))
    with child(*command, sys.executable, "-S", "-c", INNER, argument, cwd=ROOT) as inner:
        assert inner.stdout is not None
        yield inner, json.loads(inner.stdout.readline())


needs_unshare = pytest.mark.skipif(
    shutil.which("unshare") is None, reason="unshare is not installed"
)


@needs_curl
@needs_unshare
def test_an_asker_in_a_namespace_below_ours_is_refused(
    listener: socket.socket, stranger: int
) -> None:
    """A young process that we see, but that lives in a PID namespace of its own, is in another
    container."""
    where = listener.getsockname()
    options = ["--unix-socket", where] if isinstance(where, str) else []
    host = (
        "localhost"
        if isinstance(where, str)
        else f"[{where[0]}]:{where[1]}"
        if ":" in where[0]
        else f"{where[0]}:{where[1]}"
    )
    command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    with child(*command, "curl", "-s", "--noproxy", "*", *options, f"http://{host}/") as process:
        listener.settimeout(2)
        try:
            with accepted(listener) as environ:
                verdict = TriggerPolicy("local", None, stranger).admit(environ)
        except TimeoutError:
            pytest.skip(f"no PID namespace to be had: exit {process.poll()}")
        process.communicate(timeout=PATIENCE)
    assert not verdict.allowed
    assert "(curl) is in another PID namespace" in verdict.reason


@needs_unshare
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
def test_an_asker_in_a_namespace_beside_ours_is_refused(family: int, tmp_path: Path) -> None:
    """Loopback of the same pod, yet of a container whose processes we cannot see: nothing is known,
    so no."""
    address = ("127.0.0.1", 0) if family == socket.AF_INET else str(tmp_path / "s")
    with inner_worker(family, address, 1) as (inner, where), socket.socket(family) as theirs:
        theirs.connect(tuple(where) if isinstance(where, list) else where)
        verdict = verdict_from(inner)
    assert not verdict.allowed
    expected = (
        f"no process that uid {os.geteuid()} may inspect"
        if family == socket.AF_INET
        else "another PID namespace"
    )
    assert expected in verdict.reason
    assert processes.WAY_OUT in verdict.reason


@needs_curl
@needs_unshare
@pytest.mark.parametrize("shell", [False, True])
def test_an_exec_hook_is_admitted_where_the_arbiter_is_pid_1(shell: bool) -> None:
    """A process that is put into the container from outside, as a preStop exec is, has no parent
    there and passes."""
    with inner_worker(socket.AF_INET, ("127.0.0.1", 0), 1) as (inner, where):
        ask = ["curl", "-s", "--noproxy", "*", "http://{}:{}/".format(*where)]
        if shell:
            ask = ["sh", "-c", "curl -s --noproxy '*' http://{}:{}/; true".format(*where)]
        with child("nsenter", f"--pid=/proc/{inner.pid}/ns/pid_for_children", *ask) as hook:
            verdict = verdict_from(inner)
            hook.communicate(timeout=PATIENCE)
    assert verdict.allowed, verdict
    assert "(curl)" in verdict.reason


@needs_curl
@needs_unshare
def test_curl_of_the_application_is_refused_where_the_arbiter_is_pid_1() -> None:
    """A curl that a worker in the container runs descends from PID 1, and is one of our own."""
    ask = ["curl", "-s", "--noproxy", "*", "http://{}:{}/"]
    with inner_worker(socket.AF_INET, ("127.0.0.1", 0), 1, ask) as (inner, _):
        verdict = verdict_from(inner)
    assert not verdict.allowed
    assert "(curl) belongs to this instance: it is the arbiter, pid 1," in verdict.reason


@needs_curl
@needs_unshare
def test_a_proc_of_another_namespace_is_not_read() -> None:
    """Where /proc numbers processes otherwise than we do, our own curl would be a stranger:
    refused."""
    ask = ["curl", "-s", "--noproxy", "*", "http://{}:{}/"]
    with inner_worker(socket.AF_INET, ("127.0.0.1", 0), 1, ask, mount_proc=False) as (inner, _):
        verdict = verdict_from(inner)
    assert not verdict.allowed
    assert "/proc belongs to another PID namespace (this process is pid 1, there " in verdict.reason


def verdict_of_nobody(environ: dict[str, Any], arbiter: int) -> Verdict:
    """The verdict of a worker that gave up its privileges. It is not a fork of the test, in which
    threads of xdist run."""
    sock = environ["gunicorn.socket"]
    rest = {name: value for name, value in environ.items() if name != "gunicorn.socket"}
    with python(
        NOBODYS, repr((arbiter, sock.fileno(), NOBODY, rest)), cwd=ROOT, pass_fds=[sock.fileno()]
    ) as worker:
        return verdict_from(worker)


@needs_root
def test_a_hook_of_another_user_is_refused_with_the_way_out(
    listener: socket.socket, stranger: int
) -> None:
    """A worker that may not look into the asking process refuses, and its reason names `prestop`
    and `token`."""
    with client_of(listener.family, listener.getsockname()), accepted(listener) as environ:
        verdict = verdict_of_nobody(environ, stranger)
    assert not verdict.allowed
    assert f"uid {NOBODY}" in verdict.reason
    assert "`gunicorn-grace prestop`" in verdict.reason
    assert '"token"' in verdict.reason


@needs_root
def test_a_process_of_another_user_is_refused(listener: socket.socket, stranger: int) -> None:
    """Root's worker may look into every process. One of a user who could not end this instance
    either may not trigger."""
    where = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        os.chmod(where, 0o777)
        os.chmod(Path(where).parent, 0o755)
    code = f"import os, socket, sys; os.setgroups([]); os.setresgid(*[{NOBODY}] * 3); "
    code += f"os.setresuid(*[{NOBODY}] * 3)" + CLIENT
    family = listener.family
    if family == socket.AF_UNIX and not all(os.stat(p).st_mode & 1 for p in Path(where).parents):
        pytest.skip("another user may not reach the socket")
    with (
        python(code, repr((int(family), where if family == socket.AF_UNIX else where[:2], ""))),
        accepted(listener) as environ,
    ):
        verdict = TriggerPolicy("local", None, stranger).admit(environ)
    assert not verdict.allowed
    assert f"belongs to another user ({NOBODY}, not 0)" in verdict.reason


@pytest.mark.parametrize("has_diag", [True, False])
def test_the_tables_say_the_same_as_the_kernel(
    has_diag: bool, listener: socket.socket, stranger: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the kernel answers no question about one socket, the tables in /proc do."""

    def fails(request: bytes) -> bytes:
        raise PermissionError(13, "no sock_diag here")

    if not has_diag:
        monkeypatch.setattr(sockets, "_diagnosed", fails)
    with client_of(listener.family, listener.getsockname()) as process, accepted(listener) as e:
        verdict = TriggerPolicy("local", None, stranger).admit(e)
        ours = TriggerPolicy("local", None, process.pid).admit(e)
    assert verdict.allowed
    assert f"pid {process.pid} " in verdict.reason
    assert "belongs to this instance" in ours.reason


def test_without_proc_nobody_is_admitted(listener: socket.socket, stranger: int) -> None:
    """Where there is no /proc, the answer is no, and the log says what to use."""
    with client_of(listener.family, listener.getsockname()), accepted(listener) as environ:
        verdict = TriggerPolicy("local", None, stranger, proc="/nonexistent").admit(environ)
    assert not verdict.allowed
    assert "/nonexistent" in verdict.reason
    assert processes.WAY_OUT in verdict.reason


def test_a_peer_that_did_not_wait_is_refused(v4: socket.socket, stranger: int) -> None:
    """A connection whose other end nobody holds any more proves nothing."""
    with socket.create_connection(v4.getsockname()) as theirs, v4.accept()[0] as ours:
        theirs.close()
        assert ours.recv(1) == b""
        verdict = TriggerPolicy("local", None, stranger).admit({"gunicorn.socket": ours})
    assert not verdict.allowed
    assert "closed the connection" in verdict.reason


def test_a_closed_socket_is_refused(v4: socket.socket, stranger: int) -> None:
    """A socket that was closed under the request is a refusal, not an error."""
    with socket.create_connection(v4.getsockname()), v4.accept()[0] as ours:
        pass
    verdict = TriggerPolicy("local", None, stranger).admit({"gunicorn.socket": ours})
    assert not verdict.allowed
    assert "OSError" in verdict.reason


# --- one look-up a second


def test_one_look_up_a_second(listener: socket.socket, stranger: int) -> None:
    """A second trigger within the second is refused with the reason; a full second later it is
    looked up again."""
    now = [100.0]
    gate = TriggerPolicy("local", None, stranger, clock=lambda: now[0])
    with client_of(listener.family, listener.getsockname()), accepted(listener) as environ:
        assert gate.admit(environ).allowed
        now[0] = 100.75
        verdict = gate.admit(environ)
        assert not verdict.allowed
        assert "looked up 0.75 s ago" in verdict.reason
        now[0] = 101.0  # the refusal in between did not push it back
        assert gate.admit(environ).allowed


def test_a_refused_look_up_counts(v4: socket.socket) -> None:
    """Whoever is refused after a look-up has used up the second: the cost is what is limited."""
    gate = TriggerPolicy("local", None, os.getpid(), clock=lambda: 0.0)
    with client_of(socket.AF_INET, v4.getsockname()), accepted(v4) as environ:
        assert "belongs to this instance" in gate.admit(environ).reason
        assert "looked up 0.00 s ago" in gate.admit(environ).reason


def test_of_many_threads_one_looks_up(v4: socket.socket) -> None:
    """However many threads ask at once, there is one look-up."""

    def ask(gate: TriggerPolicy, barrier: threading.Barrier, ours: socket.socket) -> Verdict:
        barrier.wait(PATIENCE)
        return gate.admit({"gunicorn.socket": ours})

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with socket.create_connection(v4.getsockname()), v4.accept()[0] as ours:
            for _ in range(100):
                gate = TriggerPolicy(
                    "local", None, 1, proc="/nonexistent", clock=lambda: sum(range(50)) * 0.0
                )
                barrier = threading.Barrier(8)
                with ThreadPoolExecutor(8) as threads:
                    asked = [threads.submit(ask, gate, barrier, ours) for _ in range(8)]
                    reasons = [one.result(PATIENCE).reason for one in asked]
                assert ["is not usable" in reason for reason in reasons].count(True) == 1
                assert ["another trigger" in reason for reason in reasons].count(True) == 7
    finally:
        sys.setswitchinterval(interval)


# --- tokens


@needs_curl
@pytest.mark.parametrize("token", ["s3cret", "schlüssel", "鍵"])
def test_the_token_is_admitted_from_a_real_client(v4: socket.socket, token: str) -> None:
    """The right token is enough, also from our own processes, and whatever letters it has."""
    verdict = curl(v4, TriggerPolicy("token", token, os.getpid()), "-H", f"X-Grace-Token: {token}")
    assert verdict.allowed, verdict
    assert re.fullmatch(r"127\.0\.0\.1:\d+", verdict.source)


def test_the_token_needs_no_socket() -> None:
    """The token is accepted from anywhere, also behind a proxy, and on worker classes that hide the
    socket."""
    environ = {
        "HTTP_X_GRACE_TOKEN": "s3cret",
        "HTTP_X_FORWARDED_FOR": "192.0.2.1",
        "REMOTE_ADDR": "192.0.2.7",
    }
    verdict = TriggerPolicy("token", "s3cret", 1, proc="/nonexistent").admit(environ)
    assert verdict == Verdict(True, "X-Grace-Token matched", "REMOTE_ADDR 192.0.2.7")


def test_the_token_is_admitted_from_a_peer_that_hung_up(v4: socket.socket) -> None:
    """A token is as good when its sender did not wait for the answer."""
    with socket.create_connection(v4.getsockname()) as theirs, v4.accept()[0] as ours:
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        theirs.close()  # with a reset
        with pytest.raises(ConnectionResetError):
            ours.recv(1)
        verdict = TriggerPolicy("token", "s3cret", 1).admit(
            {"gunicorn.socket": ours, "HTTP_X_GRACE_TOKEN": "s3cret"}
        )
    assert verdict.allowed
    assert "gone" in verdict.source


def test_a_token_of_raw_bytes_is_admitted() -> None:
    """A token that came from the environment as bytes that are no UTF-8 is compared as those
    bytes."""
    token = b"\xff\xfe".decode("utf-8", "surrogateescape")
    assert TriggerPolicy("token", token, 1).admit({"HTTP_X_GRACE_TOKEN": "\xff\xfe"}).allowed


@pytest.mark.parametrize(
    "given", [None, "", "s3cre", "s3cret ", "S3CRET", "schlüssel", "鍵", "\ud800", b"s3cret", 7]
)
def test_another_token_is_refused(given: object) -> None:
    """A token that is missing, wrong, or not even text in latin-1 is refused, and neither is
    quoted."""
    verdict = TriggerPolicy("token", "s3cret", 1).admit({"HTTP_X_GRACE_TOKEN": given})
    assert not verdict.allowed
    assert "s3cret" not in verdict.reason + verdict.source
    assert "\\u" not in verdict.reason


@pytest.mark.parametrize("token", [None, ""])
@pytest.mark.parametrize(
    "environ", [{}, {"HTTP_X_GRACE_TOKEN": ""}, {"HTTP_X_GRACE_TOKEN": "None"}]
)
def test_without_a_token_none_matches(token: str | None, environ: dict[str, str]) -> None:
    """An empty header does not match a token that was never set."""
    verdict = TriggerPolicy("token", token, 1).admit(environ)
    assert not verdict.allowed
    assert "grace_trigger_token is not set" in verdict.reason


def test_a_token_that_cannot_be_encoded_is_not_quoted() -> None:
    """An encoding error, which quotes what it could not encode, stays out of the log."""
    verdict = TriggerPolicy("token", "s3cret\ud800", 1).admit({"HTTP_X_GRACE_TOKEN": "x"})
    assert not verdict.allowed
    assert "d800" not in verdict.reason


@needs_curl
def test_local_asks_for_no_token(v4: socket.socket) -> None:
    """In mode `local` a token opens nothing."""
    assert not curl(
        v4, TriggerPolicy("local", "s3cret", os.getpid()), "-H", "X-Grace-Token: s3cret"
    ).allowed


@pytest.mark.parametrize("mode", ["off", "", "Local", "nonsense\n"])
def test_an_unknown_mode_admits_nobody(mode: str) -> None:
    """A mode that the gate does not know is shut."""
    verdict = TriggerPolicy(mode, "s3cret", 1).admit({"HTTP_X_GRACE_TOKEN": "s3cret"})
    assert not verdict.allowed
    assert "\n" not in verdict.reason


# --- never raises


class Broken:
    """What no attribute, no text and no comparison can be had of."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("s\nd")

    def __str__(self) -> str:
        raise RuntimeError("no text")


UNCONNECTED = object()
"""Stands for a socket, which Hypothesis would not close."""

names = st.text(max_size=8) | st.sampled_from(
    [
        "gunicorn.socket",
        "REMOTE_ADDR",
        "HTTP_X_GRACE_TOKEN",
        "HTTP_VIA",
        "HTTP_X_FORWARDED_FOR",
        "PROXY_PROTOCOL",
    ]
)
values = (
    st.none()
    | st.integers()
    | st.text()
    | st.binary()
    | st.lists(st.text())
    | st.builds(Broken)
    | st.just(UNCONNECTED)
)


@trials(200)
@given(mode=st.sampled_from(["local", "token"]), environ=st.dictionaries(names, values))
def test_garbage_is_refused(mode: str, environ: dict[str, Any]) -> None:
    """Whatever an environ holds, the gate answers with a refusal of one printable line, and raises
    nothing."""
    with socket.socket() as unconnected:
        environ = {
            name: unconnected if value is UNCONNECTED else value for name, value in environ.items()
        }
        verdict = TriggerPolicy(mode, "\x00 no header is this", 1).admit(environ)
    assert not verdict.allowed
    assert verdict.reason.isprintable()
    assert verdict.source.isprintable()


def test_an_error_inside_is_a_refusal_with_its_reason(v4: socket.socket, stranger: int) -> None:
    """A fault of our own, here in the clock, is refused and named."""

    def clock() -> float:
        raise ZeroDivisionError("clock stopped")

    with socket.create_connection(v4.getsockname()), v4.accept()[0] as ours:
        verdict = TriggerPolicy("local", None, stranger, clock=clock).admit(
            {"gunicorn.socket": ours}
        )
    assert not verdict.allowed
    assert "ZeroDivisionError: clock stopped" in verdict.reason
