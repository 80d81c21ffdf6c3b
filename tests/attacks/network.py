"""Attacks over the network, and over what resembles one."""

from __future__ import annotations

import ctypes
import encodings.idna  # getaddrinfo wants it
import errno
import fcntl
import os
import socket
import stat
import struct

from .scene import Attack, Scene
from .system import call

__all__ = ["ATTACKS", "socket_descriptors"]

_MPTCP = 262
_FAST_OPEN = 0x20000000


def socket_descriptors():
    """Find the sockets that this process has, without /proc."""
    found = []
    for fd in range(1024):
        try:
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                found.append(fd)
        except OSError:
            continue
    return found


def send(family, kind, protocol, address, word):
    with socket.socket(family, kind, protocol) as sock:
        sock.settimeout(3)
        sock.connect(tuple(address) if isinstance(address, list) else address)
        sock.sendall(word.encode())
    return True


def send_to(address, word):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        return sock.sendto(word.encode(), tuple(address))


def fast_open(address, word):
    with socket.socket() as sock:
        return sock.sendto(word.encode(), _FAST_OPEN, tuple(address))


def listen():
    """Listen and connect to oneself: nothing has to be bound for that."""
    with socket.socket() as sock, socket.socket() as client:
        sock.listen()
        port = sock.getsockname()[1]
        client.settimeout(3)
        client.connect(("127.0.0.1", port))
    return port


def bind():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        return sock.getsockname()[1]


def open_socket(family, kind, protocol):
    with socket.socket(family, kind, protocol) as sock:
        return sock.fileno()


def netlink():
    """Ask for the network interfaces."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as sock:
        sock.settimeout(3)
        sock.bind((0, 0))
        header = b"\x20\0\0\0\x12\0\1\3\1\0\0\0\0\0\0\0" + bytes(16)
        sock.send(header)
        return b"eth" in (answer := sock.recv(65536)) or b"lo\0" in answer


def packet():
    """Open a packet socket, in a network namespace of one's own if need be."""
    try:
        return open_socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    except PermissionError:
        call("unshare", 0x10000000 | 0x40000000)
        return open_socket(socket.AF_PACKET, socket.SOCK_RAW, 0)


def datagram_without_socket(address, word):
    """Send to somebody else's socket with one of a pair, which no call of socket() made."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with here, there:
        return here.sendto(word.encode(), address)


def reconnect_without_socket(address, word):
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with here, there:
        here.connect(address)
        return here.send(word.encode())


def bind_without_socket(name):
    """Be reachable by a name, with one of a pair."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with here, there:
        here.bind(name)
        return here.getsockname()


def resolve():
    return socket.getaddrinfo("localhost", 80, socket.AF_INET)[0][4][0]


def accept_as_parent():
    """Take a connection that was meant for the parent."""
    for fd in socket_descriptors():
        sock = socket.socket(fileno=os.dup(fd))
        with sock:
            if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                sock.settimeout(3)
                connection, _ = sock.accept()
                with connection:
                    connection.settimeout(3)
                    return connection.recv(100).decode()
    raise OSError(errno.EBADF, "there is no listener")


def _ask_sockets(request, argument):
    """Make a request of each socket that there is: one is the channel to the parent."""
    error = OSError(errno.EBADF, "there is no socket")
    for fd in socket_descriptors():
        try:
            return fcntl.ioctl(fd, request, argument)
        except OSError as exc:
            error = exc
    raise error


def interfaces_by_channel():
    """Ask for the names and addresses of the parent's interfaces."""
    buffer = ctypes.create_string_buffer(4096)
    _ask_sockets(0x8912, struct.pack("iP", 4096, ctypes.addressof(buffer)))  # SIOCGIFCONF
    return b"lo\0" in buffer.raw and socket.inet_aton("127.0.0.1") in buffer.raw


def ethtool_by_channel():
    command = ctypes.create_string_buffer(struct.pack("II", 0xA, 0), 8)  # ETHTOOL_GLINK
    request = struct.pack("16sP16x", b"lo", ctypes.addressof(command))
    return bool(_ask_sockets(0x8946, request))


def change_an_interface_by_channel():
    """Set the flags of an interface of the parent's, to what they are."""
    flags = _ask_sockets(0x8913, b"lo".ljust(40, b"\0"))  # SIOCGIFFLAGS
    return bool(_ask_sockets(0x8914, flags))  # SIOCSIFFLAGS


def interface_by_pair():
    """Ask for the name of an interface of whatever network namespace this process is in."""
    here, there = socket.socketpair()
    with here, there:
        answer = fcntl.ioctl(here, 0x8910, struct.pack("16xi20x", 1))  # SIOCGIFNAME
    return answer[:3] == b"lo\0"


def connect_through_raw_call(address, word):
    """Open the socket by a bare system call, as no library would."""
    fd = call("socket", socket.AF_INET, socket.SOCK_STREAM, 0)
    with socket.socket(fileno=fd) as sock:
        sock.settimeout(3)
        sock.connect(tuple(address))
        sock.sendall(word.encode())
    return True


def _heard(result, scene):
    return scene.heard()


def _inet(kind=socket.SOCK_STREAM):
    return lambda scene: (list(scene.listener(kind=kind).getsockname()), scene.secret)


def _send(kind, protocol=0):
    def arrange(scene):
        address, word = _inet(kind)(scene)
        return socket.AF_INET, int(kind), protocol, address, word

    return arrange


def _unix(kind, abstract, bare=False):
    def arrange(scene):
        address = f"\0attack-{scene.secret}" if abstract else scene.path("socket")
        scene.listener(socket.AF_UNIX, kind, address)
        rest = (address, scene.secret)
        return rest if bare else (socket.AF_UNIX, int(kind), 0, *rest)

    return arrange


def _for_parent(scene: Scene):
    listener = scene.listener()
    client = scene.own(socket.create_connection(listener.getsockname()))
    client.sendall(scene.secret.encode())
    return ()


def _no_mptcp() -> str:
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, _MPTCP).close()
    except OSError as exc:
        return f"no MPTCP here: {exc}"
    return ""


def _no_admin() -> str:
    try:
        with socket.socket() as sock:
            flags = fcntl.ioctl(sock, 0x8913, b"lo".ljust(40, b"\0"))
            fcntl.ioctl(sock, 0x8914, flags)
    except OSError as exc:
        return f"interfaces can't be changed here: {exc}"
    return ""


def _no_vsock() -> str:
    try:
        socket.socket(40, socket.SOCK_STREAM).close()
    except OSError as exc:
        return f"no vsock here: {exc}"
    return ""


_is_fd = lambda result, scene: isinstance(result, int) and result > 2
_STREAM, _DGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM

ATTACKS = [
    Attack("tcp", "network", send, _send(_STREAM), _heard),
    Attack("tcp-raw-call", "network", connect_through_raw_call, _inet(), _heard),
    Attack("tcp-fast-open", "network", fast_open, _inet(), _heard),
    Attack("mptcp", "network", send, _send(_STREAM, _MPTCP), _heard, needs=_no_mptcp),
    Attack("udp", "network", send, _send(_DGRAM), _heard),
    Attack("udp-sendto", "network", send_to, _inet(_DGRAM), _heard),
    Attack("listen", "network", listen),
    Attack("bind", "network", bind),
    Attack("netlink", "network", netlink),
    Attack("packet", "network", packet, succeeded=_is_fd),
    Attack(
        "raw", "network", open_socket, lambda scene: (socket.AF_INET, int(socket.SOCK_RAW), 1),
        _is_fd, needs_root=True,
    ),
    Attack(
        "vsock", "network", open_socket, lambda scene: (40, int(_STREAM), 0), _is_fd,
        needs=_no_vsock,
    ),
    Attack("unix-path", "network", send, _unix(_STREAM, False), _heard),
    Attack("unix-abstract", "network", send, _unix(_STREAM, True), _heard),
    Attack(
        "unix-path-without-socket", "network", datagram_without_socket,
        _unix(_DGRAM, False, True), _heard,
    ),
    Attack(
        "unix-abstract-without-socket", "network", datagram_without_socket,
        _unix(_DGRAM, True, True), _heard,
    ),
    Attack(
        "unix-reconnect-without-socket", "network", reconnect_without_socket,
        _unix(_DGRAM, False, True), _heard,
    ),
    Attack(
        "unix-bind-without-socket", "network", bind_without_socket,
        lambda scene: (scene.path("new"),),
        lambda result, scene: os.path.exists(scene.path("new")),
    ),
    Attack("interfaces-by-channel", "network", interfaces_by_channel),
    Attack("ethtool-by-channel", "network", ethtool_by_channel),
    Attack(
        "change-interface-by-channel", "network", change_an_interface_by_channel,
        needs_root=True, needs=_no_admin,
    ),
    Attack("interface-by-pair", "network", interface_by_pair),
    Attack(
        "getaddrinfo", "network", resolve,
        succeeded=lambda result, scene: result == "127.0.0.1", timeout=3.0,
    ),
    Attack(
        "inherited-listener", "network", accept_as_parent, _for_parent,
        lambda result, scene: result == scene.secret,
        off_options=lambda scene: {"pass_fds": [scene.notes["listener"].fileno()]},
    ),
]  # fmt: skip
