"""Ports of this machine."""

from __future__ import annotations

import secrets
import socket

# The system gives no port of these to a program that asks for any (Linux: from 32768), so none is
# taken between being found and being used; and Ray's own begin elsewhere.
KEPT_FREE = range(20_000, 30_000)
TRIES = 50


def port_problem(host: str, port: int) -> str | None:
    """Why nothing can listen there, with what to do; None where it can."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return f"{host}:{port} cannot be used ({error.strerror}); give another --port or --host"
    return None


def free_port(host: str) -> int:
    """A port on which nothing listens now. On a host where none can be used, any: whoever listens
    there is told why it cannot.
    """
    tried = [KEPT_FREE[secrets.randbelow(len(KEPT_FREE))] for _ in range(TRIES)]
    return next((port for port in tried if port_problem(host, port) is None), tried[0])
