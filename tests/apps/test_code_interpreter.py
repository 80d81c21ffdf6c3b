"""The code interpreter: what it answers over HTTP, what attackers get, and its page in Chromium."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import secrets
import signal
import socket
import sys
import tempfile
import time

import anyio
import httpx
import pytest

from tests.apps.test_browser import browser, missing
from tests.helpers import ROOT, alive, must_have_browser, python, service, until, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.part(name="attacks"),
    pytest.mark.skipif(sys.platform != "linux", reason="the sandbox it needs is Linux's"),
    pytest.mark.timeout(300),
]

ENDLESS = "while True: pass"


class Server:
    """A code interpreter and a client of it."""

    def __init__(self, address: str, pid: int, client: httpx.Client) -> None:
        self.address, self.pid, self.client = address, pid, client

    def post(self, code: object, **more: object) -> httpx.Response:
        body = json.dumps({"code": code, "timeout": 10, **more})
        return self.client.post(
            "/run", content=body, headers={"Content-Type": "application/json; charset=utf-8"}
        )

    def run(self, code: str, **more: object) -> dict:
        reply = self.post(code, **more)
        assert reply.status_code == 200, reply.text
        answer = reply.json()
        assert "code_interpreter_cell" not in (answer["traceback"] or "")
        return answer

    def value(self, code: str, **more: object) -> str:
        answer = self.run(code, **more)
        assert answer["status"] == "ok", answer
        return answer["value"]

    def traceback(self, code: str) -> str:
        answer = self.run(code)
        assert answer["status"] == "error", answer
        assert answer["value"] is None
        return answer["traceback"]

    def status(self) -> dict:
        return self.client.get("/status").json()


@contextlib.contextmanager
def interpreter(*args: str, **env: str):
    with (
        service("code_interpreter", *args, **env) as (address, pid),
        httpx.Client(base_url=address, timeout=60) as client,
    ):
        yield Server(address, pid, client)


def descendants(pid: int) -> set[int]:
    found, todo = set(), [pid]
    while todo:
        with contextlib.suppress(OSError), open(f"/proc/{todo[-1]}/task/{todo[-1]}/children") as f:
            todo = [*map(int, f.read().split()), *todo]
        found.add(todo.pop())
    return found - {pid}


# What it answers


def test_values_and_output():
    with interpreter() as server:
        answer = server.run("print('out'); import sys; print('err', file=sys.stderr)\n6 * 7")
        assert answer["status"] == "ok"
        assert (answer["value"], answer["stdout"], answer["stderr"]) == ("42", "out\n", "err\n")
        assert answer["traceback"] is None
        assert answer["reason"] is None
        assert set(answer["timings"]) == {"queue", "wall", "user", "system"}
        assert 0 < answer["timings"]["wall"] < 10

        for code, value in {
            "": None,
            "x = 1": None,
            "None": None,
            "x = 20\nx + 22": "42",
            "# only a comment": None,
            "'a\\tb'": r"'a\tb'",
            "'żółć 🎈 \\u202e'": r"'żółć 🎈 \u202e'",
            "__name__": "'__main__'",
            "class A: pass\nA.__module__": "'__main__'",
            "def f(): return g()\ndef g(): return 5\n[f() for _ in 'ab']": "[5, 5]",
            "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: 'int'\nP(3)": "P(x=3)",
            "import asyncio\nasyncio.run(asyncio.sleep(0.01, 'slept'))": "'slept'",
            "import threading as t\nx = []\na = t.Thread(target=x.append, args=(1,))\n"
            "a.start(); a.join(); x": "[1]",
            # One that never ends does not hold up the answer.
            "import threading as t, time\nt.Thread(target=time.sleep, args=(60,)).start()\n5": "5",
            "from pathlib import Path\nPath('a').write_text('b')\nPath('a').read_text()": "'b'",
            "import os\nos.listdir()": "[]",  # nothing is left of the one before
            "import math, json, re, decimal, random, csv, sqlite3\nmath.pi": "3.141592653589793",
            "print.__self__.__name__": "'builtins'",
        }.items():
            assert server.value(code) == value, code

        # What was set in one cell is not there in the next.
        server.value("import builtins; builtins.leaked = 1")
        assert "NameError" in server.traceback("leaked")

        # It is cut, never refused.
        value = server.value("'x' * 1_000_000")
        assert len(value) < 21_000
        assert "980002 characters left out" in value
        assert server.value("type('T', (), {'__repr__': lambda s: '\\ud800'})()") == r"\ud800"
        # Bytes that are no text.
        assert server.run("import os; os.write(1, b'\\xff\\x00')")["stdout"] == "\ufffd\0"


def test_tracebacks():
    with interpreter() as server:
        text = server.traceback("def f(x):\n    y = x\n    return 1 / y\n\n\nf(0)\n")
        lines = [line for line in text.splitlines() if line.strip(" ~^")]
        assert lines[:5] == [
            "Traceback (most recent call last):",
            '  File "<cell>", line 6, in <module>',
            "    f(0)",
            '  File "<cell>", line 3, in f',
            "    return 1 / y",
        ]
        assert text.endswith("ZeroDivisionError: division by zero\n")
        # Only \n, \r and \r\n end a line of Python.
        assert "line 3, in" in server.traceback("a = '\u2028\x0c\x1c'\r\n\n1 / 0")
        assert "    1 / 0" in server.traceback("a = '\u2028\x0c\x1c'\r\n\n1 / 0")

        text = server.traceback("x = 1\ny = (")
        assert text.startswith('  File "<cell>", line 2\n    y = (\n')
        assert "SyntaxError: '(' was never closed" in text
        assert "IndentationError" in server.traceback("if 1:\npass")
        assert "await" in server.traceback("await x")
        assert "null bytes" in server.traceback("1\0")
        assert "surrogates" in server.traceback("'\ud800'")
        assert "SyntaxError" in server.traceback("return 5")

        text = server.traceback(
            "try:\n    1/0\nexcept Exception as e:\n    raise KeyError(1) from e"
        )
        assert "direct cause" in text
        assert "line 2, in <module>" in text
        assert "+-+---------------- 1" in server.traceback(
            "raise ExceptionGroup('g', [ValueError(1), TypeError(2)])"
        )
        text = server.traceback("def f(): f()\nf()")
        assert "RecursionError" in text
        assert "more times" in text
        assert "RecursionError" in server.traceback("x = []\nfor _ in range(10**5): x = [x]\nx")

        # What they say is theirs, and can't hurt.
        evil = "class E(Exception):\n    def __str__(self): raise {}\nraise E"
        for what in ("ValueError", "KeyboardInterrupt", "SystemExit", "self"):
            assert "E: <exception str() failed>" in server.traceback(evil.format(what))
        assert server.traceback("raise KeyboardInterrupt").endswith("KeyboardInterrupt\n")
        assert "GeneratorExit" in server.traceback("raise GeneratorExit")
        assert "left out" in server.traceback("raise ValueError('x' * 10**6)")
        assert "ValueError" in server.traceback("class A:\n __repr__ = lambda s: int('q')\nA()")
        assert "EOFError" in server.traceback("input()")


def test_what_is_too_much():
    with interpreter() as server:

        def check(status, code, **more):
            answer = server.run(code, **more)
            assert answer["status"] == status, answer
            assert server.value("6 * 7") == "42"
            return answer

        begin = time.monotonic()
        answer = check("timeout", f"print('begun')\n\n{ENDLESS}", timeout=0.5)
        assert time.monotonic() - begin < 5
        assert answer["stdout"] == "begun\n"
        assert answer["reason"] == "TIMEOUT"
        assert answer["traceback"].endswith('File "<cell>", line 3 in <module>')
        assert "0.5 s" in answer["message"]
        assert 0.4 < answer["timings"]["wall"] < 5
        check("timeout", "class A:\n def __repr__(s):\n  while 1: pass\nA()", timeout=0.3)
        check("timeout", "import os; os.kill(os.getpid(), 19)", timeout=0.3)
        check("timeout", "import time; time.sleep(60)", timeout=0.3)
        check("timeout", "10 ** 10 ** 9", timeout=0.3)
        check(
            "timeout",
            "import signal, time\nfor n in range(1, 32):\n"
            "    if n not in (9, 19): signal.signal(n, lambda *a: None)\n"
            "while True: time.sleep(1)",
            timeout=0.3,
        )

        answer = check("memory", "x = []\nwhile True: x.append(bytearray(1 << 20))")
        assert "line 2, in <module>" in answer["traceback"]
        check("memory", "x = []\nwhile True: x.append([1])", memory="16 MiB")
        check("memory", "x = 'x' * 10 ** 9")
        assert server.value("len(bytes(60 << 20))") == str(60 << 20)
        check("memory", "len(bytes(60 << 20))", memory="32 MiB")

        answer = check("output", "while True: print('x' * 1000)")
        assert 200_000 < len(answer["stdout"]) < 1_000_000
        check("output", "import os\nwhile True: os.write(2, bytes(9999))")

        assert check("exit", "import sys; sys.exit(3)")["message"] == "fn raised SystemExit('3')"
        assert check("exit", "raise SystemExit('bye')")["message"] == "fn raised SystemExit('bye')"
        assert "code 7" in check("exit", "import os; os._exit(7)")["message"]
        check("exit", "print('hi'); import os; os._exit(0)")

        answer = check("crash", "import os\n\ndef end():\n    os.abort()\nend()")
        assert "SIGABRT" in answer["message"]
        assert 'File "<cell>", line 4 in end' in answer["traceback"]
        answer = check("crash", "import ctypes\nctypes.string_at(0)")
        assert "SIGSEGV" in answer["message"]
        check("crash", "import os; os.kill(os.getpid(), 9)")


@pytest.mark.timeout(60)
def test_what_burns_cpu_in_many_threads():
    with interpreter() as server:
        burn = "import hashlib\nfor t in range(4): T(target=hashlib.scrypt, kwargs=dict("
        code = (
            f"from threading import Thread as T\n{burn}password=b'', salt=b'', n=2, r=8, p=2**22,"
            "maxmem=1 << 30)).start()\nwhile True: pass"
        )
        begin = time.monotonic()
        answer = server.run(code)
        assert answer["status"] in ("cpu", "timeout"), answer
        assert time.monotonic() - begin < 20
        assert server.value("1 + 1") == "2"


def test_many_at_once_and_who_hangs_up():
    async def main(server):
        async with httpx.AsyncClient(base_url=server.address, timeout=60) as client:

            async def run(code, **more):
                reply = await client.post("/run", json={"code": code, **more})
                return reply.json()

            answers = await asyncio.gather(
                *(run(f"import time; time.sleep(0.05); {n} * {n}") for n in range(6)),
                run(ENDLESS, timeout=0.3),
                run("import os; os.abort()"),
            )
            assert [a["value"] for a in answers[:6]] == [str(n * n) for n in range(6)]
            assert [a["status"] for a in answers[6:]] == ["timeout", "crash"]
            # Those that had to wait say so.
            assert max(a["timings"]["queue"] for a in answers) > 0.05

            before = descendants(server.pid)
            hanging = asyncio.create_task(run(ENDLESS, timeout=10))
            with anyio.fail_after(20):
                while not (await client.get("/status")).json()["running"]:
                    await asyncio.sleep(0.01)
            hanging.cancel()
            begin = time.monotonic()
            with anyio.fail_after(20):
                while (await client.get("/status")).json()["running"]:
                    await asyncio.sleep(0.01)
            assert time.monotonic() - begin < 5  # not by its own timeout
            assert (await run("1 + 1"))["value"] == "2"
            await until(lambda: len(descendants(server.pid)) <= len(before))

    with interpreter() as server:
        asyncio.run(main(server))


def test_what_is_refused():
    async def fill(server, expected):
        async with httpx.AsyncClient(base_url=server.address, timeout=60) as client:
            posts = (client.post("/run", json={"code": ENDLESS, "timeout": 1}) for _ in range(6))
            replies = await asyncio.gather(*posts)
            assert sorted(r.status_code for r in replies) == expected
            return [r for r in replies if r.status_code != 200]

    with interpreter("--concurrency=1", "--queue=1") as server:
        for reply in asyncio.run(fill(server, [200] * 2 + [503] * 4)):
            assert reply.headers["retry-after"] == "1"
            assert reply.json()["status"] == "refused"
            assert reply.json()["reason"] == "QUEUE_FULL"
        assert server.value("1 + 1") == "2"

    with interpreter("--per-client=2") as server:
        for reply in asyncio.run(fill(server, [200] * 2 + [429] * 4)):
            assert reply.headers["retry-after"] == "1"
            assert "2 of yours" in reply.json()["error"]
        assert server.value("1 + 1") == "2"


def test_bad_requests():
    with interpreter() as server:

        def refused(status, text, reply):
            assert reply.status_code == status, reply.text
            assert text in reply.json()["error"]

        def raw(body, kind="application/json"):
            return server.client.post("/run", content=body, headers={"Content-Type": kind})

        for body in (b"", b"{", b"\xff", b"[" * 100_000, b'{"code": 1' + b"0" * 5000 + b"}"):
            refused(400, "not JSON", raw(body))
        for body in (b"[]", b"1", b"null", b'"code"'):
            refused(400, "must be a JSON object", raw(body))
        refused(415, "Content-Type", raw(b'{"code": "1"}', "text/plain"))
        refused(415, "Content-Type", raw(b'{"code": "1"}', "application/jsonp"))
        refused(413, "at most", raw(bytes(700_000)))
        refused(
            413,
            "at most",
            server.client.post(
                "/run",
                content=(bytes(9999) for _ in range(99)),
                headers={"Content-Type": "application/json"},
            ),
        )
        refused(400, "code must be a string", raw(b"{}"))
        for code in (None, 5, ["1"], {}):
            refused(400, "code must be a string", server.post(code))
        refused(413, "at most 50000 characters", server.post("x" * 50_001))
        assert server.value("#" * 50_000) is None
        assert server.value("'" + "\U0001f388" * 49_000 + "'[0]") == "'\U0001f388'"
        for timeout in ("5", None, True, 0, -1, [], float("nan"), float("inf"), {}):
            refused(400, "timeout must be", server.post("1", timeout=timeout))
        for memory in ("", "much", "-1", -1, 0, 1.5, True, [], "9" * 5000, "9" * 400 + ".0 GiB"):
            refused(400, "memory must be", server.post("1", memory=memory))
        refused(400, "'stdin'", server.post("1", stdin="x"))

        # More than there may be is what there may be.
        answer = server.run("bytes(1 << 30)", memory="4 GiB", timeout=10**9)
        assert answer["status"] == "memory"

        assert server.client.get("/run").status_code == 405
        assert server.client.get("/etc/passwd").status_code == 404
        assert server.client.get("/..%2f..%2fetc/passwd").status_code == 404
        with socket.create_connection(
            (server.client.base_url.host, server.client.base_url.port)
        ) as s:
            s.sendall(
                b"POST /run HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b"Content-Length: 100\r\n\r\n{"
            )
        assert server.value("1 + 1") == "2"


def test_the_page_and_its_headers():
    with interpreter() as server:
        for reply in (server.client.get("/"), server.post("1"), server.client.get("/nothing")):
            policy = reply.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert reply.headers["x-content-type-options"] == "nosniff"
        text = server.client.get("/").text
        assert not re.search(r"https?://|//cdn|innerHTML|\bon[a-z]+=\"|style=\"", text)


# What attackers get

LIBC = "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
FRAMES = """
import os, socket, stat, struct, sys
frame = sys._getframe()
while "order" not in frame.f_locals:
    frame = frame.f_back
order = frame.f_locals["order"]
def send(kind, body, size=None, luggage=0):
    size = len(body) if size is None else size
    data = struct.pack("<4s8sBBQ", b"\\x89iso", order.nonce, kind, luggage, size) + body
    while data:
        data = data[os.write(order.channel, data):]
VALUE = b"\\0\\0\\0"
"""
BOMB = """
class Bomb:
    def __reduce__(self):
        return open, (OUT + "/pickle", "w")
import pickle
bomb = pickle.dumps(Bomb())
"""

# Each ends with something that is true if it got what it wanted. OUT is a directory that everyone
# may write to, SERVER the server's pid, TCP, UDP and UNIX where the test listens.
ATTACKS = {
    "read /etc/shadow": "open('/etc/shadow').read()",
    "read through a link": "import os\nos.symlink('/etc/shadow', 'x')\nopen('x').read()",
    "read the server's source": "import os\nopen(SOURCE).read()",
    "list the root": "import os\nos.listdir('/')",
    "the server's environment": "open(f'/proc/{SERVER}/environ').read()",
    "the parent's environment": "import os\nopen(f'/proc/{os.getppid()}/environ').read()",
    "the server's memory": "open(f'/proc/{SERVER}/mem', 'rb').fileno()",
    "its own environment": "import os\n[v for v in os.environ.values() if 'hush-' in v]",
    "the environment of C": LIBC + "ctypes.CDLL(None).getenv.restype = ctypes.c_char_p\n"
    "f = libc.getenv; f.restype = ctypes.c_char_p\nf(b'INTERPRETER_SECRET')",
    "secrets in its objects": """
import gc, re, sys
todo, seen, found = [sys.modules, sys._getframe()], set(), []
while todo:
    for o in gc.get_referents(todo.pop()):
        if isinstance(o, (str, bytes)):
            if re.search("hush-(env|heap)-[0-9a-f]{16}", str(o)): found.append(o)
        elif id(o) not in seen:
            seen.add(id(o)); todo.append(o)
found""",
    "secrets in its memory": LIBC
    + """
import re
r, w = os.pipe()
found, last = set(), b""
environ = ctypes.c_void_p.in_dll(libc, "environ")
for near in (id([]), id("a" * 10**5), id(re), ctypes.addressof(environ), environ.value or 0):
    base = near - near % 4096
    for page in range(base - (8 << 20), base + (8 << 20), 4096):
        # Asked this way, the kernel says no where there is nothing, instead of SIGSEGV.
        if libc.write(w, ctypes.c_void_p(page), 4096) == 4096:
            data = os.read(r, 4096)
            found |= set(re.findall(rb"hush-(?:env|heap)-[0-9a-f]{16}", last + data))
            last = data[-64:]
found""",
    "write outside": "open(OUT + '/file', 'w').write('x')",
    "change the library": "import aioisolate\nopen(aioisolate.__file__, 'a').fileno()",
    "chmod": "import os\nos.chmod(OUT + '/target', 0o777) is None",
    "make a fifo": "import os\nos.mkfifo(OUT + '/fifo') is None",
    "rename": "import os\nos.rename(OUT + '/target', OUT + '/renamed') is None",
    "reopen descriptors": """
import os
got = []
for fd in range(100):
    try:
        got.append(os.open(f"/proc/self/fd/{fd}", os.O_RDWR))
    except OSError:
        pass
got""",
    "TCP": "import socket\nsocket.create_connection(('127.0.0.1', TCP), 2).send(b'owned')",
    "TCP to the server": "import socket\nsocket.create_connection(('127.0.0.1', HTTP), 2).fileno()",
    "UDP": "import socket as s\n"
    "s.socket(s.AF_INET, s.SOCK_DGRAM).sendto(b'owned', ('127.0.0.1', UDP))",
    "listen": "import socket\nsocket.create_server(('127.0.0.1', 0)).fileno()",
    "Unix socket": "import socket as s\nx = s.socket(s.AF_UNIX)\nx.connect(UNIX)\nx.send(b'owned')",
    "abstract Unix socket": "import socket as s\nx = s.socket(s.AF_UNIX)\n"
    "x.connect('\\0' + UNIX)\nx.send(b'owned')",
    "netlink": "import socket as s\ns.socket(s.AF_NETLINK, s.SOCK_RAW, 0).fileno()",
    "fork": "import os\npid = os.fork()\nif pid == 0: os._exit(0)\npid",
    "subprocess": "import subprocess\nsubprocess.check_output(['/bin/sh', '-c', 'echo owned'])",
    "posix_spawn": "import os\nos.posix_spawn('/bin/true', ['true'], {})",
    "multiprocessing": "import multiprocessing as m\n"
    "p = m.get_context('fork').Process(target=print)\np.start()\np.pid",
    "ptrace the server": LIBC + "libc.ptrace(0x4206, SERVER, 0, 0) == 0",
    "ptrace the parent": LIBC + "libc.ptrace(0x4206, os.getppid(), 0, 0) == 0",
    "read the parent's memory": LIBC
    + """
buffer = ctypes.create_string_buffer(64)
class V(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("size", ctypes.c_size_t)]
mine, its = V(ctypes.addressof(buffer), 64), V(id(None), 8)
libc.process_vm_readv(os.getppid(), ctypes.byref(mine), 1, ctypes.byref(its), 1, 0) >= 0""",
    "unshare": LIBC + "libc.unshare(0x00020000) == 0",
    "user namespace": LIBC + "libc.unshare(0x10000000) == 0",
    "mount": LIBC + "libc.unshare(0x00020000)\n"
    "libc.mount(b'none', b'/', None, 0x44000, None) == 0\n"
    "libc.mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0",
    "setuid": "import os\nos.setresuid(0, 0, 0) is None",
    "keyring": LIBC + "libc.syscall(250, 0, -1, 0) >= 0",
    "priority of the server": "import os\nos.setpriority(os.PRIO_PROCESS, SERVER, 0) is None",
    "affinity of the server": "import os\n"
    "os.sched_setaffinity(SERVER, os.sched_getaffinity(SERVER)) is None",
    "raise limits": "import resource as r\nr.setrlimit(r.RLIMIT_AS, (-1, -1)) is None",
}
# Not to be tried without the sandbox.
HARMFUL = {
    "kill the server": "import os\nos.kill(SERVER, 9) is None",
    "kill the parent": "import os\nos.kill(os.getppid(), 9) is None",
    "kill everybody": "import os\nos.kill(-1, 9) is None",
    "kill its group": "import os\nos.killpg(0, 0) is None and os.getpgid(0) != os.getpid()",
    "kill by pidfd": "import os, signal\n"
    "signal.pidfd_send_signal(os.pidfd_open(SERVER), 9) is None",
    "fork bomb": "import os\nwhile True: os.fork()",
    "daemon": "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
    "        time.sleep(600)\n    os._exit(0)\n1",
    "thread bomb": "import threading, time\nn = 0\ntry:\n    while n < 64:\n"
    "        threading.Thread(target=time.sleep, args=(60,), daemon=True).start(); n += 1\n"
    "except RuntimeError: pass\nn > 16",
    "io_uring": LIBC + "p = ctypes.create_string_buffer(120)\nlibc.syscall(425, 4, p) >= 0",
    "bpf": LIBC + "p = ctypes.create_string_buffer(120)\nlibc.syscall(321, 0, p, 120) >= 0",
    "userfaultfd": LIBC + "libc.syscall(323, 1) >= 0",
    "fill the scratch directory": """
import os
done = 0
try:
    for n in range(100):
        with open(f"f{n}", "wb", 0) as f:
            while True: done += f.write(bytes(1 << 16))
except OSError: pass
done > 17 << 20""",
    "a huge file in memory": """
import os
fd = os.memfd_create("x")
try:
    for _ in range(2000): os.write(fd, bytes(1 << 16))
except OSError: pass
os.fstat(fd).st_size > 17 << 20""",
    "many files": """
n = 0
try:
    while n < 50_000: open(f"f{n}", "w").close(); n += 1
except OSError: pass
n >= 50_000""",
    # On the channel
    "a pickle as the result": FRAMES + BOMB + "send(2, VALUE + bomb); os._exit(0)",
    "a pickle as the exception": FRAMES + BOMB + "send(3, VALUE + bomb); os._exit(0)",
    "a pickle as progress": FRAMES + BOMB + "send(7, bomb)\nsend(7, b'\\xff')\nsend(6, bomb)\n0",
    "a result in the scratch file": FRAMES + "send(2, struct.pack('<BH', 1, 1)"
    " + struct.pack('<QQBB', 1 << 20, 1 << 40, 0, 0)); os._exit(0)",
    "it did not run": FRAMES + "send(5, b'step\\n0\\nretry me'); os._exit(0)",
    "a length without end": FRAMES + "send(2, b'', size=2**63)\n0",
    "half a frame": FRAMES + "send(2, VALUE, size=10**5); os._exit(0)",
    "a large result": FRAMES + "send(2, VALUE + b'\\xdb' + struct.pack('>I', 1 << 24)"
    " + bytes(1 << 24)); os._exit(0)",
    "nested lists": FRAMES + "send(2, VALUE + b'\\x91' * 100_000 + b'\\xc0'); os._exit(0)",
    "an announced array": FRAMES + "send(2, VALUE + b'\\xdd\\xff\\xff\\xff\\xff'); os._exit(0)",
    "an answer of another form": FRAMES + "send(2, VALUE + b'\\x81\\xa6status\\x05'); os._exit(0)",
    "two answers": FRAMES + "send(2, VALUE + b'\\xc0')\nsend(2, VALUE + b'\\xc0')\n0",
    "noise": FRAMES + "while True: os.write(order.channel, os.urandom(9999))",
    "reports of progress": "from aioisolate import report_progress\n"
    "while True: report_progress(1, 2, 'x')",
    "a flood of progress": FRAMES
    + """
from aioisolate._wire import safe_text
flood = safe_text.dump_progress(1, 2, "x")
while True: send(7, flood)""",
    "a flood of items": FRAMES + "while True: send(6, VALUE + b'\\xc0')",
    "damaged progress": FRAMES + "while True: send(7, b'\\x93' + b'\\x01' * 3)",
    "many descriptors": FRAMES
    + """
channel = socket.socket(fileno=order.channel)
for _ in range(50):
    fds = [os.dup(0) for _ in range(20)]
    try:
        socket.send_fds(channel, [b"x"], fds)
    except OSError:
        break
    finally:
        for fd in fds: os.close(fd)
os._exit(0)""",
    "one byte a second": FRAMES
    + "import time\nwhile True:\n    os.write(order.channel, b'\\x89')\n"
    "    time.sleep(0.1)",
    "a changed cell": "import code_interpreter_cell as c\nc.shorten = lambda *a: {'a': [1]}\n5",
    "a broken cell": "import code_interpreter_cell as c\nc.explain = None\n1/0",
    "a million digits": "import sys\nsys.set_int_max_str_digits(0)\n10 ** 1_000_000 < 0",
}


def is_proof(answer: dict) -> bool:
    return answer["status"] == "ok" and answer["value"] not in (None, "False", "0", "[]", "set()")


@contextlib.contextmanager
def targets():
    """What attackers aim at, and the names by which their programs know it."""
    with contextlib.ExitStack() as stack:
        # Not in pytest's directory, which is closed to others anyway.
        out = stack.enter_context(tempfile.TemporaryDirectory())
        os.chmod(out, 0o777)
        with open(f"{out}/target", "w") as file:
            file.write("x")
        unix = f"{out}/socket"

        def bound(family, kind, where):
            sock = stack.enter_context(socket.socket(family, kind))
            sock.bind(where)
            sock.setblocking(False)
            if kind == socket.SOCK_STREAM:
                sock.listen()
            return sock

        tcp = bound(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0))
        udp = bound(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0))
        local = [bound(socket.AF_UNIX, socket.SOCK_STREAM, name) for name in (unix, "\0" + unix)]
        os.chmod(unix, 0o777)
        names = {
            "OUT": out,
            "UNIX": unix,
            "TCP": tcp.getsockname()[1],
            "UDP": udp.getsockname()[1],
            "SOURCE": str(ROOT / "examples/code_interpreter.py"),
        }
        yield names, [tcp, udp, *local]


def prelude(names: dict) -> str:
    return "; ".join(f"{name} = {value!r}" for name, value in names.items()) + "\n"


def nobody_came(sock: socket.socket) -> bool:
    try:
        sock.recv(1) if sock.type == socket.SOCK_DGRAM else sock.accept()[0].close()
    except BlockingIOError:
        return True
    return False


# There is no server to connect to, and not every machine that runs tests lets them use keyrings.
CONTROL_EXEMPT = {"TCP to the server", "keyring"}


@pytest.mark.skipif(os.geteuid() != 0, reason="some of it is root's only")
def test_the_attacks_are_real(tmp_path):
    """Without a sandbox each gets what it wants, so the next test shows something."""
    token = f"hush-env-{secrets.token_hex(8)}"
    program = """
        import json, os, subprocess, sys, time
        sys.path.insert(0, "examples")
        from code_interpreter_cell import evaluate
        victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
        answers = {}
        for name, source in json.load(sys.stdin).items():
            r, w = os.pipe()
            pid = os.fork()
            if not pid:
                os.chdir(sys.argv[1])
                with open(w, "w") as pipe:
                    json.dump(evaluate(f"SERVER = {victim.pid}\\n{source}"), pipe)
                os._exit(0)
            os.close(w)
            with open(r) as pipe:
                answers[name] = json.load(pipe)
            os.waitpid(pid, 0)
        victim.kill()
        victim.wait()
        print(json.dumps(answers))
    """
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with targets() as (names, _):
        sources = {
            name: prelude(names) + source
            for name, source in ATTACKS.items()
            if name not in CONTROL_EXEMPT
        }
        done = python(
            program,
            str(scratch),
            input=json.dumps(sources),
            env={"INTERPRETER_SECRET": token},
            timeout=120,
        )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])
    failed = {name: answer for name, answer in answers.items() if not is_proof(answer)}
    assert not failed
    for name in ("its own environment", "the environment of C", "secrets in its memory"):
        assert token in answers[name]["value"], name


def test_no_attack_succeeds():
    env_token = f"hush-env-{secrets.token_hex(8)}"
    heap_token = f"hush-heap-{secrets.token_hex(8)}"
    with (
        targets() as (names, rate_limiter),
        interpreter(INTERPRETER_SECRET=env_token) as server,
    ):
        # Another client's program is in the server's memory, and in that of a child of then.
        assert server.value(f"secret = {heap_token!r}\nlen(secret)") == "26"
        names |= {"SERVER": server.pid, "HTTP": server.client.base_url.port}
        descriptors = len(os.listdir(f"/proc/{server.pid}/fd"))
        slow = []
        for name, source in (ATTACKS | HARMFUL).items():
            begin = time.monotonic()
            reply = server.post(prelude(names) + source, timeout=1.5)
            took = time.monotonic() - begin
            assert reply.status_code == 200, (name, reply.text)
            assert not is_proof(reply.json()), (name, reply.text)
            assert env_token not in reply.text, name
            assert heap_token not in reply.text, name
            assert took < 10, (name, took)
            if took > 1.4:
                slow.append(name)
            assert server.value("6 * 7") == "42", name
            assert all(map(nobody_came, rate_limiter)), name
            assert sorted(os.listdir(names["OUT"])) == ["socket", "target"], name
            assert os.stat(names["OUT"] + "/target").st_mode & 0o777 != 0o777, name

        # A name is looked up in vain, and at once.
        begin = time.monotonic()
        text = server.traceback("import socket\nsocket.getaddrinfo('example.com', 80)")
        assert "gaierror" in text
        assert time.monotonic() - begin < 5

        # Nothing is left: the fork server, its warm children, and no descriptor more.
        wait_until(lambda: server.status() == {"running": 0, "waiting": 0})
        wait_until(lambda: len(descendants(server.pid)) <= 3)
        wait_until(lambda: len(os.listdir(f"/proc/{server.pid}/fd")) <= descriptors + 2)
        left = descendants(server.pid)
    assert not any(map(alive, left))
    print("to the end of their time:", slow)


def test_its_end_takes_all_with_it():
    with interpreter() as server:
        left = descendants(server.pid)
        assert left

        async def main():
            async with httpx.AsyncClient(base_url=server.address, timeout=60) as client:
                body = {"code": ENDLESS, "timeout": 2}
                running = asyncio.create_task(client.post("/run", json=body))
                while not (await client.get("/status")).json()["running"]:
                    await asyncio.sleep(0.01)
                family = descendants(server.pid)
                os.kill(server.pid, signal.SIGTERM)
                assert (await running).json()["status"] == "timeout"
                return family

        left |= asyncio.run(main())
        wait_until(lambda: not alive(server.pid))
        wait_until(lambda: not any(map(alive, left)))


# Its page


@pytest.fixture
def _chromium():
    if missing():
        refuse = pytest.fail if must_have_browser() else pytest.skip
        refuse(f"no {', '.join(missing())} on this machine (apt: chromium, chromium-driver)")


class Page:
    """The interpreter's page in a browser, and hands to use it."""

    def __init__(self, driver):
        self.driver = driver

    def element(self, name):
        return self.driver.find_element("id", name)

    def text(self, name):
        return self.element(name).text

    def write(self, *keys):
        from selenium.webdriver.common.keys import Keys

        self.element("code").send_keys(Keys.CONTROL, "a")
        self.element("code").send_keys(Keys.DELETE)
        self.element("code").send_keys(*keys)

    def type(self, code):
        """Have the code in the editor, without the help that it gives to who types."""
        self.write("x")
        self.driver.execute_script(
            "const e = document.getElementById('code'); e.value = arguments[0];"
            "e.dispatchEvent(new Event('input'))",
            code,
        )

    def press_run(self):
        from selenium.webdriver.common.keys import Keys

        self.element("code").send_keys(Keys.CONTROL, Keys.ENTER)

    def run(self, code=None):
        """Run what is there, or *code*, and return the status that it gets."""
        if code is not None:
            self.type(code)
        self.press_run()
        wait_until(lambda: not self.element("stop").is_enabled())
        return self.text("status")

    def choose(self, name):
        from selenium.webdriver.support.ui import Select

        Select(self.element("examples")).select_by_visible_text(name)

    def resize(self, width, height=900):
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
        )


@contextlib.contextmanager
def opened(profile, *args):
    with interpreter(*args) as server, browser(profile) as driver:
        driver.get(server.address)
        yield Page(driver), server
        # No error of a script, and nothing that the page's own policy has forbidden.
        assert not [entry for entry in driver.get_log("browser") if "favicon" not in str(entry)]


@pytest.mark.usefixtures("_chromium")
def test_writing_and_running(tmp_path):
    from selenium.webdriver.common.keys import Keys

    with opened(tmp_path) as (page, _):
        assert page.driver.title == "Code interpreter"
        assert page.driver.switch_to.active_element == page.element("code")
        assert "def primes" in page.element("code").get_property("value")

        # As a person types it: the editor indents.
        page.write("def f(x):", Keys.ENTER, "print('hi')", Keys.ENTER, "return x * 2", Keys.ENTER)
        page.element("code").send_keys(Keys.SHIFT, Keys.TAB)
        page.element("code").send_keys("f(21)")
        written = "def f(x):\n    print('hi')\n    return x * 2\nf(21)"
        assert page.element("code").get_property("value") == written
        assert page.text("lines").split() == ["1", "2", "3", "4"]
        assert page.run() == "done"
        assert (page.text("value"), page.text("stdout")) == ("42", "hi")
        assert not page.element("traceback").is_displayed()
        assert "wall" in page.text("timings")

        # Several lines at once, in and out, and undone.
        page.element("code").send_keys(Keys.CONTROL, "a")
        page.element("code").send_keys(Keys.TAB)
        inner = page.element("code").get_property("value")
        assert inner == "\n".join("    " + line for line in written.split("\n"))
        page.element("code").send_keys(Keys.CONTROL, "a")
        page.element("code").send_keys(Keys.SHIFT, Keys.TAB)
        assert page.element("code").get_property("value") == written
        page.element("code").send_keys(Keys.CONTROL, "z")
        assert page.element("code").get_property("value") == inner
        # Tab leaves it where that is wanted.
        page.element("code").send_keys(Keys.ESCAPE)
        page.element("code").send_keys(Keys.TAB)
        assert page.driver.switch_to.active_element == page.element("answer")
        assert page.element("code").get_property("value") == inner

        assert page.run("1 / 0") == "exception"
        assert "ZeroDivisionError" in page.text("traceback")
        assert not page.element("value").is_displayed()
        assert page.run("import sys; print('oh', file=sys.stderr)") == "done"
        assert page.text("stderr") == "oh"
        assert page.run("pass") == "done"
        assert page.text("nothing") == "No value and no output."


@pytest.mark.usefixtures("_chromium")
def test_what_a_stranger_says_is_never_html(tmp_path):
    evil = "<img src=x onerror=document.title='owned'><script>document.title='owned'</script>"
    with opened(tmp_path) as (page, _):
        say = f"evil = {evil!r}\n"
        page.run(say + "import sys; print(evil); print(evil, file=sys.stderr); evil")
        assert page.text("value") == repr(evil)
        assert page.text("stdout") == page.text("stderr") == evil
        page.run(say + "raise ValueError(evil)")
        assert page.text("traceback").endswith(f"ValueError: {evil}")
        page.run(say + "raise SystemExit(evil)")
        assert evil in page.text("message").replace("\\'", "'")
        time.sleep(0.2)
        assert page.driver.title == "Code interpreter"
        assert not page.driver.find_elements("css selector", "#answer img, #answer script")
        # If the page itself were wrong, the policy would still hold.
        blocked = page.driver.execute_script(
            "try { document.body.innerHTML = '<b>x</b>' } catch (e) { return e.name }"
        )
        assert blocked == "TypeError"
        page.driver.get_log("browser")  # it says so there, too


@pytest.mark.usefixtures("_chromium")
def test_the_examples_of_the_menu(tmp_path):
    expected = {
        "Primes": ("done", "[2, 3, 5"),
        "An exception": ("exception", "invalid literal for int()"),
        "Files in a scratch directory": ("done", "gone when this run is over"),
        "Read /etc/passwd": ("exception", "No such file"),
        "Open a socket": ("exception", "PermissionError"),
        "Start a program": ("exception", "PermissionError"),
        "Fork bomb": ("exception", "PermissionError"),
        "Kill every process": ("exception", "PermissionError"),
        "Eat memory": ("out of memory", "MemoryError"),
        "Infinite loop": ("took too long", "here we go"),
        "Endless output": ("said too much", "all work and no play"),
        "Crash the interpreter": ("crashed", "SIGSEGV"),
        "Inject HTML": ("done", "<img src=x"),
    }
    with opened(tmp_path) as (page, server):
        from selenium.webdriver.support.ui import Select

        Select(page.element("timeout")).select_by_visible_text("1 s")
        options = page.driver.find_elements("css selector", "#examples option")
        assert {option.text for option in options[1:]} == set(expected)
        for name, (status, said) in expected.items():
            page.choose(name)
            assert page.run() == status, name
            assert said in page.text("answer"), name
        assert server.value("1 + 1") == "2"


@pytest.mark.usefixtures("_chromium")
def test_stopping_and_running_again(tmp_path):
    with opened(tmp_path, "--concurrency=1", "--queue=0") as (page, server):
        page.type(ENDLESS)
        page.press_run()
        wait_until(lambda: server.status()["running"])
        assert page.text("status") == "running…"
        # Somebody else has it all.
        assert server.post("1").status_code == 503
        page.element("stop").click()
        wait_until(lambda: page.text("status") == "stopped")
        wait_until(lambda: not server.status()["running"])
        assert page.run("6 * 7") == "done"

        page.type(ENDLESS)
        page.press_run()
        wait_until(lambda: server.status()["running"])
        page.driver.get("about:blank")
        wait_until(lambda: not server.status()["running"])


@pytest.mark.usefixtures("_chromium")
def test_its_looks(tmp_path):
    with opened(tmp_path) as (page, _):
        for width in (1280, 900, 400, 320):
            page.resize(width)
            page.choose("An exception")
            page.run()
            size = page.driver.execute_script(
                "const r = document.documentElement; return [r.scrollWidth, r.clientWidth]"
            )
            assert size[0] <= size[1], width
            edges = {
                name: page.element(name).rect for name in ("code", "answer", "run", "examples")
            }
            assert all(r["x"] >= 0 and r["x"] + r["width"] <= width for r in edges.values())
            beside = edges["answer"]["y"] < edges["code"]["y"] + edges["code"]["height"]
            assert beside == (width > 896)
        colours = set()
        for scheme in ("light", "dark"):
            page.driver.execute_cdp_cmd(
                "Emulation.setEmulatedMedia",
                {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
            )
            colours.add(
                page.driver.find_element("css selector", "body").value_of_css_property("color")
            )
        assert len(colours) == 2
