"""nginx as a server that answers every chat at once from its configuration, without a script or a file behind it.

Its ``return`` discards the body of a POST and keeps the connection open.
"""

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.servers.replies import PATHS

_CONFIGURATION = """
daemon off;
master_process off;
error_log stderr error;
pid {folder}/pid;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    default_type application/json;
    keepalive_requests 1000000000;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port} backlog=1024;
        {locations}
    }}
}}
"""


def installed() -> str | None:
    """The nginx binary, None where there is none. Debian keeps it where only root's PATH looks."""
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")


@contextmanager
def running(binary: str) -> Iterator[int]:
    """Runs nginx on a free loopback port, which it yields."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        configuration = Path(folder, "nginx.conf")
        locations = "\n".join(f"location = {path} {{ return 200 '{body.decode()}'; }}" for path, body in PATHS.items())
        configuration.write_text(_CONFIGURATION.format(folder=folder, port=port, locations=locations))
        process = subprocess.Popen([binary, "-c", configuration, "-p", folder, "-e", "stderr"])
        try:
            _wait_until_it_listens(process, port)
            yield port
        finally:
            process.terminate()
            process.wait()


def _wait_until_it_listens(process: subprocess.Popen[bytes], port: int) -> None:
    for _ in range(500):
        if process.poll() is not None:
            break
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            time.sleep(0.01)
        else:
            return
    raise RuntimeError(f"nginx does not listen (exit status {process.poll()}); what it says is above.")
