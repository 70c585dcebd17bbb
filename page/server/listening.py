"""Whether the page can listen where its owner wants it to: found out before a model is loaded."""

import errno
import os
import socket

LOCALHOST = "127.0.0.1"
"""Where the page listens if no address is set."""


def check_address(host, port):
    """Check that an address and a port are free.

    Args:
        host (`str`, *optional*): name or address of this machine; `LOCALHOST` without it.
        port (`int`, *optional*): nothing is checked without it: the first free one is taken then.

    Raises:
        ValueError: if the port is in use, or nothing may listen there.
    """
    if port is None:
        return
    try:
        name = (host or LOCALHOST).strip("[]")
        family, kind, _, _, (address, _, *scope) = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as tried:
            if os.name == "posix":  # elsewhere it would allow two to listen; here it spares the wait after a restart
                tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind((address, port, *scope))
    except (OSError, OverflowError) as error:
        if getattr(error, "errno", None) == errno.EADDRINUSE:
            raise ValueError(
                f"port {port} is in use, perhaps by another page like this one; stop that one or choose another --port."
            ) from None
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise ValueError(
            f"the page cannot listen on {host or LOCALHOST}, port {port}: {reason}; choose another --host or --port."
        ) from None
