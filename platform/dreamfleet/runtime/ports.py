"""Ports of this machine."""

from __future__ import annotations

import socket


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
    """A port on which nothing listens now."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port
