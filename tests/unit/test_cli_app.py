"""`shortviz app` serves the app on the port asked for, and Ctrl-C ends it."""

import os
import signal
import socket
import subprocess
import sys
import urllib.request


def test_the_app_answers_on_localhost_until_ctrl_c():
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
        finally:
            os.killpg(server.pid, signal.SIGINT)  # what a terminal does
        rest = server.communicate(timeout=60)[0]
    assert server.returncode in (0, 130)
    assert "Traceback" not in said + rest
