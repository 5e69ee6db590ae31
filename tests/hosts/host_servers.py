"""Starts ComfyUI and the webui as processes of their own and speaks to them over HTTP on the loopback interface."""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

WEBUI_FLAGS = (
    "--skip-torch-cuda-test", "--no-half", "--use-cpu", "all", "--no-hashing", "--skip-prepare-environment",
)  # fmt: skip
CPU_FLAGS = {
    "webui": WEBUI_FLAGS,
    "forge": (
        "--skip-torch-cuda-test", "--always-cpu", "--no-half", "--no-hashing", "--skip-prepare-environment",
        "--skip-python-version-check",
    ),
    "neo": (
        "--skip-torch-cuda-test", "--cpu", "--force-fp32", "--fp32-unet", "--fp32-vae", "--fp32-text-enc",
        "--no-hashing", "--skip-prepare-environment", "--skip-python-version-check",
    ),
}  # fmt: skip
"""What makes each host of the webui's family run in full precision on a processor."""
PATIENCE = 900.0
"""Seconds that a host may take to start: a busy machine takes minutes."""
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class HostError(RuntimeError):
    """A host did not start, or did not do what it was asked."""


@dataclass(frozen=True)
class Host:
    """The checkout of a host with its own interpreter in `.venv`."""

    name: str
    root: Path

    @property
    def python(self) -> Path:
        return self.root / ".venv" / "bin" / "python"

    def environment(self) -> dict[str, str]:
        """Offline, on one thread, without the caller's Python settings, and no bytecode into the checkout."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON") and k != "VIRTUAL_ENV"}
        return {
            **inherited, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1",
            "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1",
        }  # fmt: skip

    def run(
        self, script: Path, *arguments: object, timeout: float = 1800, stdin: str | None = None, **environment: object
    ) -> str:
        """What a script prints when the host's own interpreter runs it in the checkout."""
        done = subprocess.run(
            [str(self.python), str(script), *map(str, arguments)],
            cwd=self.root, env={**self.environment(), **{k: str(v) for k, v in environment.items()}},
            capture_output=True, text=True, timeout=timeout, input=stdin,
        )  # fmt: skip
        if done.returncode:
            raise HostError(f"{script.name} failed in {self.name}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
        return done.stdout


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def read_picture(data: bytes) -> np.ndarray:
    """uint8 [H, W, 3]."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


class Server:
    """A host that serves while the `with` block runs; everything it writes lies in `folder`."""

    ready = "/"

    def __init__(self, host: Host, folder: Path, **environment: str) -> None:
        self.host, self.folder, self.environment = host, folder, environment
        self.port = free_port()
        self.log = folder / "server.log"

    def command(self) -> list[str]:
        raise NotImplementedError

    @property
    def directions(self) -> Path:
        """Where the server keeps what it compiles: nothing of the user's own cache is read or written."""
        return self.folder / "directions"

    def __enter__(self) -> Server:
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self.command(), cwd=self.host.root, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                env={**self.host.environment(), "SAFE_REGION_CACHE": str(self.directions), **self.environment},
            )  # fmt: skip
        try:
            self._wait(PATIENCE)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise HostError(f"{self.host.name} ended with {self.process.returncode}:\n{self.log_tail()}")
            try:
                self.get(self.ready, timeout=5)
                return
            except OSError:
                time.sleep(0.5)
        raise HostError(f"{self.host.name} did not answer within {seconds:.0f} s:\n{self.log_tail()}")

    def log_tail(self, characters: int = 6000) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")[-characters:]

    def get(self, path: str, timeout: float = 120) -> bytes:
        with _opener.open(f"http://127.0.0.1:{self.port}{path}", timeout=timeout) as answer:
            return bytes(answer.read())

    def get_json(self, path: str) -> Any:
        return json.loads(self.get(path))

    def post_json(self, path: str, body: object, timeout: float = 300, answer: bool = True) -> Any:
        """The JSON answer to a JSON request, if it has one; HostError with the host's words and log if it refuses."""
        url, head = f"http://127.0.0.1:{self.port}{path}", {"Content-Type": "application/json"}
        request = urllib.request.Request(url, json.dumps(body).encode(), head)
        try:
            with _opener.open(request, timeout=timeout) as reply:
                return json.loads(reply.read()) if answer else None
        except urllib.error.HTTPError as error:
            words = error.read().decode(errors="replace")
            raise HostError(f"{path} answered {error.code}: {words}\n{self.log_tail()}") from error


class ComfyUI(Server):
    ready = "/system_stats"

    def command(self) -> list[str]:
        known = (self.host.root / "comfy" / "cli_args.py").read_text(encoding="utf-8")
        newer = {"--disable-api-nodes": (), "--database-url": (f"sqlite:///{self.folder}/comfy.db",)}
        return [
            str(self.host.python), "main.py", "--cpu", "--disable-auto-launch", "--base-directory", str(self.folder),
            "--listen", "127.0.0.1", "--port", str(self.port),
            *(word for flag, values in newer.items() if flag in known for word in (flag, *values)),
        ]  # fmt: skip

    def run(self, graph: Mapping[str, Mapping[str, Any]], timeout: float = 300) -> dict[str, Any]:
        """Runs a workflow in API form; its outputs by node id."""
        return self.outputs(self.queue(graph), timeout)

    def queue(self, graph: Mapping[str, Mapping[str, Any]]) -> str:
        """Puts a workflow into the queue; its number."""
        return str(self.post_json("/prompt", {"prompt": graph})["prompt_id"])

    def outputs(self, number: str, timeout: float = 300) -> dict[str, Any]:
        """Outputs by node id of a workflow in the queue."""
        done = self.history(number, timeout)
        if done["status"]["status_str"] != "success":
            raise HostError(f"{done['status']['messages']}\n{self.log_tail()}")
        return dict(done["outputs"])

    def messages(self, graph: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        """What ComfyUI tells of a workflow, by kind: execution_cached, execution_error, execution_success."""
        return dict(self.history(self.queue(graph), 300)["status"]["messages"])

    def history(self, number: str, timeout: float) -> dict[str, Any]:
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            done = self.get_json(f"/history/{number}").get(number)
            if done is not None:
                return dict(done)
            time.sleep(0.05)
        raise HostError(f"ComfyUI did not finish within {timeout:.0f} s:\n{self.log_tail()}")

    def pictures(self, output: Mapping[str, Any]) -> np.ndarray:
        """The pictures of a SaveImage node: uint8 [B, H, W, 3]."""
        paths = ["/view?" + urllib.parse.urlencode(entry) for entry in output["images"]]
        return np.stack([read_picture(self.get(path)) for path in paths])

    def latents(self, output: Mapping[str, Any]) -> Tensor:
        """The latents of a SaveLatent node as the VAE takes them (not scaled): float32 [B, 4, h, w]."""
        (entry,) = output["latents"]
        return load_file(self.folder / "output" / entry["subfolder"] / entry["filename"])["latent_tensor"].float()


class WebUI(Server):
    ready = "/sdapi/v1/sd-models"

    def command(self) -> list[str]:
        return [
            str(self.host.python), "launch.py", *CPU_FLAGS[self.host.name], "--api", "--server-name", "127.0.0.1",
            "--data-dir", str(self.folder), "--port", str(self.port),
        ]  # fmt: skip

    def _wait(self, seconds: float) -> None:
        """Asks nothing before the log says so: a request while the webui still adds its API ends the start."""
        end = time.monotonic() + seconds
        while "Startup time" not in self.log_tail() and self.process.poll() is None and time.monotonic() < end:
            time.sleep(0.2)
        super()._wait(max(1.0, end - time.monotonic()))

    def txt2img(self, **request: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """Pictures uint8 [B, H, W, 3] and the `info` of one /sdapi/v1/txt2img request."""
        answer = self.post_json("/sdapi/v1/txt2img", request)
        pictures: Sequence[str] = answer["images"]
        return np.stack([read_picture(base64.b64decode(data)) for data in pictures]), json.loads(answer["info"])

    def by_infotext(self, text: str) -> dict[str, Any]:
        """The answer to a /sdapi/v1/txt2img request of a picture's parameters alone.

        Forge and Neo end in a TypeError of their own where such a request leaves ``styles`` out, with this extension
        and without: they ask whether a value is a ``list[str]``, which Python does not answer.
        """
        request: dict[str, Any] = {"infotext": text}
        if (self.host.root / "backend").is_dir():
            request["styles"] = []
        return dict(self.post_json("/sdapi/v1/txt2img", request))
