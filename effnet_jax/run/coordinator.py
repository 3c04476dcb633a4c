"""Checks before a process joins: its coordinator's address, and whether its number is in use.

If a second process registers with the number of a running one, JAX's coordinator ends the whole run
(jax 0.10.2: "different incarnation"). It answers no questions of processes that have not
registered. Process 0 therefore answers on the UDP port of the same number (JAX uses TCP), and every
process asks there before it joins. Without an answer, for example behind a firewall, it joins.
"""

import contextlib
import json
import re
import socket
import time
from collections.abc import Callable

from effnet_jax.errors import UserError

QUESTION = "effnet_jax: process "
TRIES = 3  # A datagram can get lost.
TIMEOUT = 0.5  # Seconds for an answer.


def bind(port: int, kind: socket.SocketKind) -> socket.socket:
    """A socket bound to a port on all addresses of this machine, as JAX binds."""
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    bound = socket.socket(family, kind)
    try:
        if kind == socket.SOCK_STREAM:  # With UDP it would let two processes share the port.
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        bound.bind(("", port))
    except OSError:
        bound.close()
        raise
    return bound


def check_address(address: str, binds: bool) -> None:
    """Raises UserError if `address` is not HOST:PORT, or the port can't be bound where it `binds`.

    JAX's coordinator would end the process with a segmentation fault.
    """
    host, _, port = address.rpartition(":")
    if not re.fullmatch(r"\[[^]/]+\]|[^]:/\s[]+", host) or not re.fullmatch(r"\d{1,5}", port):
        raise UserError(f"--coordinator_address={address} is not HOST:PORT, as in 10.0.0.2:9876")
    if not 0 < int(port) < 2**16:
        raise UserError(f"--coordinator_address={address}: a port is between 1 and 65535")
    if not binds:
        return
    try:
        bind(int(port), socket.SOCK_STREAM).close()
    except OSError as error:
        raise UserError(
            f"port {port} of --coordinator_address={address} can't be used on this machine, "
            f"where process 0 has to run: {error.strerror}. Give all processes another port"
        ) from None


def answer(address: str, describe: Callable[[int], tuple[int, str]]) -> None:
    """Answers each question about a process with `describe(index)`: its beat and a description.

    Runs until the process ends; returns at once if the UDP port is in use.
    """
    try:
        bound = bind(int(address.rpartition(":")[2]), socket.SOCK_DGRAM)
    except OSError:
        return
    with bound:
        while True:
            # Any program may send anything to the port.
            with contextlib.suppress(OSError, ValueError, KeyError):
                question, sender = bound.recvfrom(100)
                index = int(question.decode().removeprefix(QUESTION))
                bound.sendto(json.dumps(describe(index)).encode(), sender)


def find_running(address: str, index: int, seconds: float) -> str | None:
    """Describes the live process with this number in the run at `address`; None if there is none.

    A process is alive if its beat changes twice, because the first change may have been on its way
    when the process died. Returns after `seconds`, or as soon as there is no answer.
    """
    beats, end = set(), time.monotonic() + seconds
    while (reply := _ask(address, index)) and time.monotonic() < end:
        beat, name = reply
        beats.add(beat)
        if len(beats) > 2:
            return name
        time.sleep(0.1)
    return None


def _ask(address: str, index: int) -> tuple[int, str] | None:
    """The beat and the description of a process, from process 0; None without an answer."""
    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError):  # For example an unknown name.
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_DGRAM)
        replies = (_exchange(family, target, index) for family, *_, target in found)
        return next(filter(None, replies), None)
    return None


def _exchange(family: int, target: tuple, index: int) -> tuple[int, str] | None:
    with (
        contextlib.suppress(OSError, ValueError, TypeError),
        socket.socket(family, socket.SOCK_DGRAM) as asking,
    ):
        asking.settimeout(TIMEOUT)
        asking.connect(target)
        for _ in range(TRIES):
            asking.send(f"{QUESTION}{index}".encode())
            with contextlib.suppress(TimeoutError):
                beat, name = json.loads(asking.recv(4096))
                return beat, name
    return None
