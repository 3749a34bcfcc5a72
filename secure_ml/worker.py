"""A worker process: ``python -m secure_ml.worker`` does the pieces that come in on stdin until its parent is gone.

What a method prints goes to stderr. Each message is its length in eight bytes, then the bytes.
"""

from __future__ import annotations

import os
import queue
import threading
from typing import BinaryIO

from secure_ml.parcels import perform_packed


def send(pipe: BinaryIO, *messages: bytes) -> None:
    """Write messages."""
    for message in messages:
        pipe.write(len(message).to_bytes(8, "big") + message)
    pipe.flush()


def receive(pipe: BinaryIO) -> bytes | None:
    """The next message; None where the other side is gone."""
    head = pipe.read(8)
    size = int.from_bytes(head, "big")
    message = pipe.read(size)
    return message if len(head) == 8 and len(message) == size else None


def main() -> None:
    """Say that it is ready, then do what comes."""
    orders, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    with open(os.devnull) as nothing:  # noqa: PTH123
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    waiting: queue.SimpleQueue[tuple[bytes, bytes]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(orders, waiting), daemon=True).start()
    send(answers, b"")
    while True:
        send(answers, perform_packed(*waiting.get()))


def _listen(orders: BinaryIO, waiting: queue.SimpleQueue[tuple[bytes, bytes]]) -> None:
    """Hand on what comes; end this process with its parent, however that ended and whatever is being done."""
    while True:
        parts = receive(orders), receive(orders)
        if parts[0] is None or parts[1] is None:
            os._exit(1)
        waiting.put((parts[0], parts[1]))


if __name__ == "__main__":
    main()
