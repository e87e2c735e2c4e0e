"""A hosted server that really runs, as `shortviz app` starts it: who may open a session, upload, read its figures."""

import asyncio
import http.client
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping

import pytest
import websockets
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg

from shortviz.server.guard import VISITOR, owner_of
from shortviz.server.start import SCRIPTS

PUBLIC = "shortviz.example"
UPLOAD = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\nhello\r\n--x--\r\n'
FORM = {"Content-Type": "multipart/form-data; boundary=x"}


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    environment = os.environ | {
        "SHORTVIZ_HOSTED": "1",
        "SHORTVIZ_PUBLIC_HOST": PUBLIC,
        "SHORTVIZ_RUNS_DIR": str(tmp_path_factory.mktemp("hosted-runs")),
        "SHORTVIZ_PRELOAD": "0",
    }
    command = [sys.executable, "-m", "shortviz", "app", "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    with server:
        try:
            assert server.stdout is not None
            said = ""
            while "URL:" not in said:
                line = server.stdout.readline()
                assert line, f"the server ended: {said}"
                said += line
            yield port
        finally:
            os.killpg(server.pid, signal.SIGINT)
        rest = server.communicate(timeout=60)[0]
    assert "Traceback" not in said + rest


def ask(
    port: int, method: str, path: str, headers: Mapping[str, str], body: bytes = b"", host: str = ""
) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.putrequest(method, path, skip_host=True)
    for name, value in ({"Host": host or f"127.0.0.1:{port}", "Content-Length": str(len(body))} | headers).items():
        connection.putheader(name, value)
    connection.endheaders(body)
    answer = connection.getresponse()
    found = answer.status, answer.read().decode(errors="replace")
    connection.close()
    return found


async def handshake(port: int, headers: Mapping[str, str]) -> int:
    """Return the HTTP status of an attempt to open a session; 101 is success."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    lines = {
        "Host": f"127.0.0.1:{port}",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Protocol": "streamlit",
    } | headers
    words = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    writer.write(f"GET /_stcore/stream HTTP/1.1\r\n{words}\r\n".encode())
    status = int((await reader.readline()).split()[1])
    writer.close()
    return status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 101),  # a program on this machine: programs send no origin
        ({"Origin": "http://127.0.0.1"}, 101),
        ({"Host": PUBLIC, "Origin": f"https://{PUBLIC}"}, 101),
        ({"Host": f"{PUBLIC}:443", "Origin": f"https://{PUBLIC.upper()}"}, 101),
        ({"Origin": f"https://{PUBLIC}"}, 101),  # behind a proxy that speaks to us by our address
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": ""}, 403),
        ({"Origin": f"https://{PUBLIC}.evil.example"}, 403),
        ({"Origin": f"https://evil.example/{PUBLIC}"}, 403),
        ({"Origin": f"https://{PUBLIC}@evil.example"}, 403),
        ({"Origin": "https://[evil"}, 403),
        ({"Host": "evil.example", "Origin": "http://evil.example"}, 403),  # the same page, by a rebound name
        ({"Host": "evil.example"}, 403),
        ({"Host": "169.254.169.254"}, 403),
    ],
)
def test_only_pages_of_our_own_names_open_a_session(port: int, headers: Mapping[str, str], status: int) -> None:
    assert asyncio.run(handshake(port, headers)) == status


def test_a_visitor_gets_the_page_and_a_foreign_page_or_name_uploads_nothing(port: int) -> None:
    async def visit() -> tuple[str, list[str]]:
        address = f"ws://127.0.0.1:{port}/_stcore/stream"
        session, wrong = "", []
        async with websockets.connect(address, subprotocols=["streamlit"], max_size=None) as stream:
            await stream.send(BackMsg(rerun_script={"query_string": "", "page_script_hash": ""}).SerializeToString())
            async with asyncio.timeout(120):
                while True:
                    message = ForwardMsg.FromString(await stream.recv())
                    kind = message.WhichOneof("type")
                    if kind == "new_session":
                        session = message.new_session.initialize.session_id
                    if kind == "delta" and message.delta.new_element.WhichOneof("type") == "exception":
                        wrong.append(message.delta.new_element.exception.message)
                    if kind == "script_finished" and message.script_finished == ForwardMsg.FINISHED_SUCCESSFULLY:
                        break
            path = f"/_stcore/upload_file/{session}/0"
            for headers, host in (
                ({}, ""),
                ({"Origin": "https://evil.example"}, ""),
                ({"X-Xsrftoken": "2|aaaaaaaa|bbbbbbbb|1"}, ""),
                ({"Cookie": "_streamlit_xsrf=2|aaaaaaaa|bbbbbbbb|1"}, ""),
            ):
                status, _ = await asyncio.to_thread(ask, port, "PUT", path, FORM | headers, UPLOAD, host)
                assert status == 403, headers
            status, _ = await asyncio.to_thread(ask, port, "PUT", path, FORM, UPLOAD, "evil.example")
            assert status == 421
        return session, wrong

    session, wrong = asyncio.run(visit())
    assert session
    assert wrong == []


def test_what_a_stranger_can_read_is_the_pages_and_nothing_of_the_server(port: int) -> None:
    assert ask(port, "GET", "/_stcore/health", {}) == (200, "ok")
    assert ask(port, "GET", "/map", {}, host="10.0.0.7:8501")[0] == 200, "a probe comes by the container's address"
    assert ask(port, "GET", "/_stcore/metrics", {})[0] == 404
    assert ask(port, "GET", "/_stcore/metrics/", {})[0] == 404
    for path in ("/static/../../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/media/..%2f..%2fetc/passwd"):
        status, words = ask(port, "GET", path, {})
        assert status in (400, 404) or "root:" not in words, path
    for script in SCRIPTS.glob("*.py"):
        here = script.read_text(encoding="utf-8").splitlines()[0]
        assert here not in ask(port, "GET", f"/app/static/{script.name}", {})[1]


def cookies(port: int, headers: Mapping[str, str]) -> list[str]:
    """Return the secrets that a page hands out, as whole headers; it may be kept by nobody where it does."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/map", headers=dict(headers))
    answer = connection.getresponse()
    answer.read()
    found = [line for line in answer.headers.get_all("Set-Cookie", []) if line.startswith(VISITOR)]
    assert not found or answer.headers.get_all("Cache-Control") == ["no-store"]
    connection.close()
    return found


def test_every_browser_gets_a_secret_of_its_own_once_and_what_is_not_one_is_replaced(port: int) -> None:
    html = {"Accept": "text/html,*/*"}
    (first,), (second,) = cookies(port, html), cookies(port, html)
    assert first.split(";")[0] != second.split(";")[0]
    assert "HttpOnly" in first
    assert "SameSite=Lax" in first
    assert "Secure" not in first
    assert "Secure" in cookies(port, html | {"X-Forwarded-Proto": "https"})[0]
    assert cookies(port, html | {"Cookie": f"a=b; {first.split(';')[0]}"}) == []
    assert cookies(port, {"Accept": "image/png"}) == []
    for forged in (f"{VISITOR}=me", f"{VISITOR}=", f"{VISITOR}={'0' * 33}", f"{VISITOR}={'A' * 32}", "\x01;=;;"):
        assert len(cookies(port, html | {"Cookie": forged})) == 1, forged


def test_the_owner_of_jobs_is_not_the_secret_itself() -> None:
    assert owner_of("0" * 32) not in ("", "0" * 32)
    assert owner_of("0" * 32) != owner_of("1" * 32)
    assert owner_of("../../x") == owner_of("") == ""
