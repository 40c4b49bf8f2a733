"""A network camera: what RTSP (RFC 2326) sends is read live, in time, to its end."""

import re
import socket
import subprocess
import sys
import threading
from pathlib import Path

import av

SESSION = "1"
FRAMES, RATE = 100, 25
SDP = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=camera\r\nt=0 0\r\nm=video 0 RTP/AVP 32\r\n"
"""MPEG-2, which needs no words of its own."""


class Camera(threading.Thread):
    """Serves one player: says what it has, and plays it over UDP once it is asked to."""

    def __init__(self, ffmpeg: str) -> None:
        super().__init__(name="camera", daemon=True)
        self._ffmpeg = ffmpeg
        self._door = socket.create_server(("127.0.0.1", 0))
        self.url = f"rtsp://127.0.0.1:{self._door.getsockname()[1]}/live"
        self.asked: list[str] = []
        """Methods, in order."""

    def run(self) -> None:
        with self._door:
            player, _ = self._door.accept()
        port = ""
        with player, player.makefile("r", newline="\r\n") as lines:
            while request := "".join(iter(lines.readline, "\r\n")):
                method = request.partition(" ")[0]
                self.asked.append(method)
                if found := re.search(r"client_port=(\d+)", request):
                    port = found[1]
                player.sendall(self._answer(method, request, port).encode())
                if method == "PLAY":
                    subprocess.run(
                        [self._ffmpeg, *self._sent(port)], stdout=subprocess.DEVNULL, check=False
                    )
                    return

    def _answer(self, method: str, request: str, port: str) -> str:
        found = re.search(r"CSeq: *(\d+)", request, re.IGNORECASE)
        assert found, request
        words, body = [f"CSeq: {found[1]}", f"Session: {SESSION}"], ""
        if method == "OPTIONS":
            words.append("Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN")
        elif method == "DESCRIBE":
            body = SDP
            words += ["Content-Type: application/sdp", f"Content-Length: {len(body)}"]
        elif method == "SETUP":
            ports = f"client_port={port}-{int(port) + 1};server_port=6970-6971"
            words.append(f"Transport: RTP/AVP;unicast;{ports}")
        return "\r\n".join(["RTSP/1.0 200 OK", *words, "", body])

    def _sent(self, port: str) -> list[str]:
        source = f"testsrc2=size=160x128:rate={RATE}:duration={FRAMES / RATE}"
        words = ["-v", "error", "-nostdin", "-re", "-f", "lavfi", "-i", source]
        words += ["-c:v", "mpeg2video", "-g", "5", "-bf", "0", "-pix_fmt", "yuv420p"]
        return [*words, "-f", "rtp", f"rtp://127.0.0.1:{port}"]


def test_a_network_camera_is_live_and_its_end_is_the_end(ffmpeg: str, tmp_path: Path) -> None:
    camera, sink = Camera(ffmpeg), tmp_path / "fixed.mp4"
    camera.start()
    words = [camera.url, "-o", str(sink), "--no-deblur", "--latency", "0.5"]
    done = subprocess.run(
        [sys.executable, "-m", "vdeblur", *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    camera.join(10)
    assert not camera.is_alive()
    assert "latency" in done.stdout
    assert [method for method in camera.asked if method != "OPTIONS"] == [
        "DESCRIBE",
        "SETUP",
        "PLAY",
    ]
    with av.open(str(sink)) as fixed:
        times = [frame.time for frame in fixed.decode(video=0)]
    assert FRAMES / 2 < len(times) <= FRAMES
    assert times == sorted(times)
