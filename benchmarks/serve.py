"""`triptych serve` under load, and under malformed requests: python benchmarks/serve.py

A server of the tiny preset is started as people start it. Many clients at once ask for images,
edits and answers for a while, each next one when it has its last; then come requests that no server
should accept. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import httpx
from malformed import by_hand, complaints, generated
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from reporting import machine, versions

KEY = "benchmark"
COLOURS = ("red", "green", "blue", "yellow")
WARM_UP = 1 / 6
"""Of the time of the load: memory may grow until then."""


@contextlib.contextmanager
def started(*arguments: str) -> Iterator[tuple[str, int]]:
    """Address and process id of a server on a free port."""
    command = [sys.executable, "-m", "triptych", "serve", "--port", "0", "--api-key", KEY]
    process = subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        found = re.search(r"http://\S+(?=/v1)", line)
        if found is None:
            raise SystemExit("the server did not start")
        yield found[0], process.pid
        process.send_signal(signal.SIGTERM)
        if process.wait(60) != 0:
            raise SystemExit(f"the server ended with {process.returncode}")
    finally:
        process.kill()


def memory(pid: int) -> float:
    """Resident megabytes of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024


def metric(address: str, name: str, **labels: str) -> float:
    """The sum of a metric over its other labels."""
    families = text_string_to_metric_families(httpx.get(f"{address}/metrics", timeout=60).text)
    samples = [sample for family in families for sample in family.samples]
    return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())


def a_request(draw: random.Random, file: bytes) -> tuple[str, dict]:
    """Path and arguments of one of many kinds: 70% images, 20% chats, 10% edits."""
    text = f"a photo of a {draw.choice(COLOURS)} circle"
    kind = draw.random()
    if kind < 0.7:
        return "/v1/images/generations", {"json": {"prompt": text, "seed": draw.randrange(10**6)}}
    if kind < 0.9:
        url = "data:image/png;base64," + base64.b64encode(file).decode()
        content = [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": "how many shapes are there?"},
        ]
        body = {"messages": [{"role": "user", "content": content}], "stream": draw.random() < 0.5}
        return "/v1/chat/completions", {"json": body}
    return "/v1/images/edits", {"data": {"prompt": text}, "files": {"image": file}}


def fault(answer: httpx.Response) -> str | None:
    """Name the fault of a response to a valid request, if any."""
    if answer.status_code == 429:
        return None if "retry-after" in answer.headers else "429 without Retry-After"
    if answer.status_code != 200:
        return f"status {answer.status_code}: {answer.text[:200]}"
    if answer.headers["content-type"].startswith("text/event-stream"):
        return None if answer.text.endswith("data: [DONE]\n\n") else "a stream without its end"
    body = answer.json()
    good = body["data"][0]["b64_json"] if "data" in body else body["choices"][0]["finish_reason"]
    return None if good else "an empty answer"


async def load(address: str, pid: int, clients: int, seconds: float) -> dict[str, object]:
    """Ask for `seconds` from `clients` at once."""
    image = BytesIO()
    Image.new("RGB", (48, 48), "red").save(image, "PNG")
    latencies: dict[str, list[float]] = {}
    statuses: Counter[int] = Counter()
    faults: list[str] = []
    sizes: list[float] = []
    begin = time.monotonic()

    async def ask(number: int, http: httpx.AsyncClient) -> None:
        draw = random.Random(number)
        while time.monotonic() < begin + seconds:
            path, arguments = a_request(draw, image.getvalue())
            sent = time.monotonic()
            try:
                answer = await http.post(path, **arguments)
            except httpx.HTTPError as error:
                faults.append(repr(error))
                continue
            statuses[answer.status_code] += 1
            if wrong := fault(answer):
                faults.append(wrong)
            if answer.status_code == 200:
                latencies.setdefault(path, []).append(time.monotonic() - sent)
            if answer.status_code == 429:
                await asyncio.sleep(float(answer.headers.get("retry-after", 1)))

    async def watch() -> None:
        while True:
            sizes.append(memory(pid))
            await asyncio.sleep(seconds / 60)

    limits = httpx.Limits(max_connections=clients)
    headers = {"authorization": f"Bearer {KEY}"}
    watching = asyncio.create_task(watch())
    async with httpx.AsyncClient(
        base_url=address, timeout=120, limits=limits, headers=headers
    ) as http:
        await asyncio.gather(*(ask(number, http) for number in range(clients)))
    watching.cancel()
    elapsed, warm = time.monotonic() - begin, sizes[int(len(sizes) * WARM_UP) :]
    third = max(1, len(warm) // 3)
    return {
        "clients": clients,
        "seconds": round(elapsed, 1),
        "requests": sum(statuses.values()),
        "statuses": dict(statuses),
        "failed_other_than_429": len(faults),
        "failures": faults[:5],
        "latency_s": {
            name: percentiles(values)
            for name, values in ({"all": sum(latencies.values(), [])} | latencies).items()
        },
        "memory_mb": {
            "start": round(sizes[0]),
            "after_warm_up": round(statistics.median(warm[:third])),
            "end": round(statistics.median(warm[-third:])),
        },
    }


def percentiles(values: list[float]) -> dict[str, float]:
    """p50, p95, p99."""
    if len(values) < 2:
        return {}
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {f"p{n}": round(cuts[n - 1], 3) for n in (50, 95, 99)}


def batches(address: str, seconds: float) -> dict[str, object]:
    """Throughput and mean batch sizes from the metrics of the server."""
    found: dict[str, object] = {
        "images_per_s": round(metric(address, "triptych_images_total") / seconds, 2)
    }
    for kind in ("generate", "edit", "chat"):
        calls = metric(address, "triptych_batch_size_count", kind=kind)
        if calls:
            total = metric(address, "triptych_batch_size_sum", kind=kind)
            found[f"mean_batch_{kind}"] = round(total / calls, 2)
    return found


def attack(address: str, number: int) -> dict[str, object]:
    """Malformed requests, about `number` in all; then a good one."""
    wrong: list[str] = []
    sent = 0
    headers = {"authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=address, timeout=60, headers=headers) as client:
        for name, send in by_hand():
            try:
                found = complaints(send(client))
            except httpx.HTTPError as error:
                found = [repr(error)]
            sent += 1
            wrong += [f"{name}: {each}" for each in found]
    for name, found in generated(address, KEY, max(0, number - sent)):
        sent += 1
        wrong += [f"{name}: {each}" for each in found]
    good = httpx.post(
        f"{address}/v1/images/generations", json={"prompt": "a red circle"}, headers=headers,
        timeout=60,
    )  # fmt: skip
    return {
        "malformed": sent,
        "answered_wrongly": len(wrong),
        "wrong": wrong[:5],
        "good_request_after": good.status_code,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--malformed", type=int, default=1000)
    parser.add_argument("--out", type=Path, help="JSON file beside standard output")
    parsed = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    result: dict[str, object] = {
        "machine": machine(),
        "versions": versions("torch", "fastapi", "uvicorn", "openai", "schemathesis"),
    }
    with started() as (address, pid):
        result |= asyncio.run(load(address, pid, parsed.clients, parsed.seconds))
        result |= batches(address, result["seconds"])
        print(json.dumps(result, indent=1), flush=True)
        result |= attack(address, parsed.malformed)
        result["memory_mb"]["after_malformed"] = round(memory(pid))
    line = json.dumps(result)
    if parsed.out:
        parsed.out.write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
