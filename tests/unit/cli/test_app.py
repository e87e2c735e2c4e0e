"""`shortviz app` serves the app on the port asked for, and Ctrl-C or SIGTERM ends it."""

import os
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest


def _group(server: subprocess.Popen[str], number: int) -> None:
    os.killpg(server.pid, number)


def _process(server: subprocess.Popen[str], number: int) -> None:
    os.kill(server.pid, number)


@pytest.mark.parametrize(
    ("end", "number", "codes"),
    [
        pytest.param(_group, signal.SIGINT, (0, 130), id="Ctrl-C, as a terminal sends it"),
        pytest.param(_process, signal.SIGTERM, (0, 143, -signal.SIGTERM), id="SIGTERM, as a service manager sends it"),
    ],
)
def test_the_app_answers_on_localhost_until_it_is_ended(end, number, codes):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "shortviz", "app", "--port", str(port)]
    server = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    with server:
        try:
            said = ""
            while f":{port}" not in said.split("URL:")[-1] or "URL:" not in said:
                line = server.stdout.readline()
                assert line, f"the server ended: {said}"
                said += line
            with urllib.request.urlopen(f"http://localhost:{port}/_stcore/health", timeout=30) as answer:
                assert answer.status == 200
            end(server, number)
            rest = server.communicate(timeout=60)[0]  # ends when nobody holds the output any more
        finally:
            try:
                os.killpg(server.pid, signal.SIGKILL)  # what should not be there any more
                left = True
            except ProcessLookupError:
                left = False
    assert not left
    assert server.returncode in codes
    assert "Traceback" not in said + rest
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
