"""A label server as a process of its own, to be killed: `python -m stress.served_process LOCATION PORT`."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from prefloop.collection.store import open_store
from prefloop.web.label_server import serve

ROOT = Path(__file__).parents[1]
START_SECONDS = 30.0

# Below the ports that the system hands to outgoing connections: a client that tries again and again while nobody
# listens there could otherwise be given that very port, connect to itself, and keep the server from coming back.
PORTS = range(20_000, 32_000)


class ServedProcess:
    """A server over one store. After `kill`, `start` brings it back on the same port; its words go to `log`.

    `module` is what runs, with the location and the port as its arguments.
    """

    def __init__(self, location: str, log: Path, *, module: str = "stress.served_process") -> None:
        self.port = _free_port()
        self._command = [sys.executable, "-m", module, location, str(self.port)]
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts the process, without waiting for it."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )

    def wait_until_up(self) -> None:
        """Returns when the port answers. Raises RuntimeError with the server's last words when it does not."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.is_running():
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1.0).close()
            except OSError:
                time.sleep(0.01)
            else:
                return
        raise RuntimeError(f"the label server did not come up: {self.last_words()}")

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """SIGKILL, and nothing of the process is left when this returns. Raises RuntimeError if it was dead already."""
        process = self._process
        if process is None or process.poll() is not None:
            raise RuntimeError(f"the label server died by itself: {self.last_words()}")
        os.kill(process.pid, signal.SIGKILL)
        process.wait()

    def cpu_seconds(self) -> float:
        """Processor time of the running process so far."""
        assert self._process is not None
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def last_words(self) -> str:
        """The end of what the server wrote."""
        return self._log.read_text(errors="replace")[-2000:]

    def complaints(self, *, expected: str | None) -> list[str]:
        """Lines the server wrote besides its greeting and those with the `expected` words."""
        lines = self._log.read_text(errors="replace").splitlines()
        greeting = ("The label page is at", "Ctrl-C stops it.")
        return [
            line
            for line in lines
            if line and not line.startswith(greeting) and (expected is None or expected not in line)
        ]

    def close(self) -> None:
        if self.is_running():
            self.kill()


def _free_port() -> int:
    for port in random.sample(PORTS, 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("no free port between 20,000 and 32,000")


def main(location: str, port: int) -> None:
    """Serves the project until killed."""
    with open_store(location, must_exist=True) as store:
        serve(store, port=port, open_browser=False)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
