"""Join two network devices by a cable that is slow and loses frames.

`python -m benchmarks.slow_link LEFT RIGHT DELAY LOSS [SEED]`: the devices have these names, and are
there as long as this runs. Each Ethernet frame arrives DELAY seconds late, or, with probability
LOSS, never: what netem does in kernels that have it. Prints "ready" when both devices are there.
"""

from __future__ import annotations

import fcntl
import heapq
import os
import random
import select
import struct
import sys
import time

TUNSETIFF = 0x400454CA
IFF_TAP = 0x0002
IFF_NO_PI = 0x1000
"""From linux/if_tun.h."""
MOST = 65536
"""Bytes of a frame, at most."""


def device(name: str) -> int:
    """Open a network device as a file.

    Its reads are frames that were sent over the device, and its writes are frames that it receives.
    """
    file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(file, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TAP | IFF_NO_PI))
    return file


def carry(left: int, right: int, delay: float, chance: random.Random, loss: float) -> None:
    """For ever."""
    # late: (when it is due, number, to whom, frame)
    others = {left: right, right: left}
    late = []
    number = 0
    while True:
        wait = max(0.0, late[0][0] - time.monotonic()) if late else None
        for file in select.select([left, right], [], [], wait)[0]:
            frame = os.read(file, MOST)
            if chance.random() >= loss:
                number += 1
                heapq.heappush(late, (time.monotonic() + delay, number, others[file], frame))
        while late and late[0][0] <= time.monotonic():
            _, _, to, frame = heapq.heappop(late)
            try:
                os.write(to, frame)
            except OSError:
                continue  # the device is down: a cable that is not plugged in


if __name__ == "__main__":
    left = device(sys.argv[1])
    right = device(sys.argv[2])
    delay, loss = map(float, sys.argv[3:5])
    print("ready", flush=True)
    carry(left, right, delay, random.Random(int(sys.argv[5]) if len(sys.argv) > 5 else 0), loss)
