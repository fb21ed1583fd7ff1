"""Replicas of the server: what each needs behind a proxy, and two of them behind Ray Serve."""

import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from processes import run, started
from servers import SIZES, FakePipeline
from starlette.testclient import TestClient

from triptych.cli.main import main
from triptych.serving.http.app import create_app
from triptych.serving.http.metrics import SHARED_FOLDER
from triptych.serving.http.replicas import ProxiedRequests

KEY = {"authorization": "Bearer secret"}
IMAGES = "/v1/images/generations"


# --- one replica ----------------------------------------------------------------------------------


def test_application_works_behind_a_proxy():
    app = create_app(FakePipeline(), "tiny", SIZES, api_key="secret")
    app.add_middleware(ProxiedRequests)
    with TestClient(app, base_url="http://localhost") as client:
        assert client.get("/v1/models").status_code == 401
        made = client.post(IMAGES, json={"prompt": "x", "n": 2}, headers=KEY)
        assert made.status_code == 200 and len(made.json()["data"]) == 2
        streamed = client.post(
            IMAGES, json={"prompt": "x", "stream": True, "partial_images": 1}, headers=KEY
        )
        assert "event: image_generation.completed" in streamed.text
        assert app.state.admission.tickets == set() and app.state.admission.held == 0


COUNTING = """
import os, signal
from prometheus_client import generate_latest
from triptych.serving.http.metrics import Metrics

def counting(number):
    reading, writing = os.pipe()
    if pid := os.fork():
        os.read(reading, 1)
        return pid
    metrics = Metrics()
    metrics.images.inc(number)
    metrics.queue_changed(number)
    os.write(writing, b"x")
    signal.pause()

two, three = counting(2), counting(3)
print(generate_latest(Metrics().exposed()).decode())
for each in (two, three):
    os.kill(each, signal.SIGKILL)
    os.waitpid(each, 0)
    print(generate_latest(Metrics().exposed()).decode())
"""


@pytest.mark.linux  # the processes that are alive are those in /proc
def test_metrics_are_sums_over_replicas_and_queues_of_the_living(tmp_path):
    environment = os.environ | {SHARED_FOLDER: str(tmp_path)}
    shown = run([sys.executable, "-c", COUNTING], env=environment, check=True).stdout
    assert re.findall(r"^triptych_images_total (.*)", shown, re.M) == ["5.0"] * 3
    queues = re.findall(r"^triptych_queue_length (.*)", shown, re.M)
    assert queues[:2] == ["5.0", "3.0"] and queues[2:] in ([], ["0.0"])


# --- the command line -----------------------------------------------------------------------------


def refused(capsys, *flags):
    with pytest.raises(SystemExit) as end:
        main(["serve", "--port", "0", "--device", "cpu", "--replicas", "2", *flags])
    err = capsys.readouterr().err
    assert end.value.code == 1 and err.count("\n") == 1, err
    return err


def test_without_ray_the_command_that_installs_it_is_named(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "pip install 'triptych[replicas]'" in refused(capsys)


@pytest.mark.ray
def test_mistakes_are_found_before_ray_starts(capsys):
    assert "--max-connections is of one process" in refused(capsys, "--max-connections", "9")
    assert "there is no model at nowhere" in refused(capsys, "--from", "nowhere")


# --- Ray Serve ------------------------------------------------------------------------------------


def replicas_of(pid):
    """Processes of replicas that have started, among all that a process started."""
    found, names = [], {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            names[int(folder.name)] = parent, (folder / "cmdline").read_text()
    for each, (parent, name) in names.items():
        while parent in names and parent != pid:
            parent = names[parent][0]
        if parent == pid and "ServeReplica:" in name and "__init__" not in name:
            found.append(each)
    return found


@pytest.mark.slow
@pytest.mark.linux
@pytest.mark.ray
def test_two_replicas_share_requests_and_one_that_is_killed_is_replaced():
    command = [sys.executable, "-m", "triptych", "serve", "--replicas", "2", "--port", "0"]
    command += ["--device", "cpu", "--api-key", "secret", "--max-batch", "1"]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with started(command, seconds=600, env=environment, **options) as process:
        line = process.stdout.readline()
        assert line.startswith("serving tiny on http://127.0.0.1:"), process.communicate()
        client = httpx.Client(base_url=line.split()[-1].removesuffix("/v1"), timeout=120)

        def image(seed):
            return client.post(IMAGES, json={"prompt": "a circle", "seed": seed}, headers=KEY)

        assert client.get("/v1/models").status_code == 401
        assert client.get("/health", headers={"host": "evil.com"}).status_code == 421
        with ThreadPoolExecutor(8) as threads:
            assert [each.status_code for each in threads.map(image, range(16))] == [200] * 16
        assert image(3).json()["data"] == image(3).json()["data"]
        assert "\ntriptych_images_total 18.0\n" in client.get("/metrics").text

        first, second = replicas_of(process.pid)
        os.kill(first, signal.SIGKILL)
        end = time.monotonic() + 300
        while len(now := replicas_of(process.pid)) < 2 or first in now:
            assert time.monotonic() < end
            time.sleep(0.5)
        assert second in now and image(1).status_code == 200

        with ThreadPoolExecutor(1) as thread:  # it is answered, although the server is to end
            body = {"prompt": "a circle", "n": 8}
            slow = thread.submit(client.post, IMAGES, json=body, headers=KEY)
            time.sleep(0.5)
            process.send_signal(signal.SIGTERM)
            assert slow.result().status_code == 200
        assert process.wait(120) == 0
        said = process.stderr.read()
        assert said.count("triptych:") == 1 and "finishing all requests" in said, said
