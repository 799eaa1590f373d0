"""Images a second from a bucket of small objects, by the number of requests that one process has under way.

    python benchmarks/requests_in_flight.py                                  20,000 objects on loopback, 30 ms away
    python benchmarks/requests_in_flight.py --location gs://bucket/imagenet  a bucket of yours

On loopback the server shares this machine's cores: beyond a few thousand images a second it is what is measured.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

from object_server import objects
from photographs import photograph

from gaeanet.data.sources import order
from gaeanet.data.sources.bucket_folder import BucketFolderSource
from gaeanet.data.storage.bucket import BucketClient

IN_FLIGHT = (1, 2, 4, 8, 16, 32, 64, 128)
BATCH = 128


def images_per_second(location: str, cache: Path, in_flight: int, seconds: float) -> tuple[float, int]:
    """Speed in images/s, and retries; batch after batch of an epoch, as a worker reads them."""
    client = BucketClient(location, requests_in_flight=in_flight)
    client.connect()
    source = BucketFolderSource(client, cache=cache)
    indices = order.epoch_order(len(source.catalog.train), 0, 0)
    list(source.fetch("train", indices[-in_flight:].tolist()))  # opens the connections
    begin, done = time.monotonic(), 0
    while (took := time.monotonic() - begin) < seconds and done + BATCH <= len(indices) - in_flight:
        done += sum(1 for _ in source.fetch("train", indices[done : done + BATCH].tolist()))
    return done / max(took, 1e-9), client.retries


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--location", help="a bucket to measure in place of the one on loopback")
    parser.add_argument("--objects", type=int, default=20_000)
    parser.add_argument("--latency", type=float, default=0.03, help="seconds that each answer takes (default: 0.03)")
    parser.add_argument("--seconds", type=float, default=6.0, help="for each number of requests")
    arguments = parser.parse_args()
    folders = [f"n{label:08d}" for label in range(20)]
    keys = [f"train/{folders[k % 20]}/{k}.JPEG" for k in range(arguments.objects)]
    keys += [f"val/{folder}/0.JPEG" for folder in folders]
    here = nullcontext(arguments.location) if arguments.location else objects(keys, photograph(), arguments.latency)
    with here as location, tempfile.TemporaryDirectory() as cache:
        first = None
        for in_flight in IN_FLIGHT:
            speed, retries = images_per_second(location, Path(cache), in_flight, arguments.seconds)
            first = first or speed
            print(f"{in_flight:4d} in flight: {speed:7.0f} images/s, {speed / first:5.1f} x, {retries} retries")


if __name__ == "__main__":
    main()
