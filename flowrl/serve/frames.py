"""The frames that a server and its workers exchange through pipes: an 8-byte length, then JSON or a request's body."""

import asyncio
import struct
from typing import BinaryIO

LENGTH = struct.Struct(">Q")


def write(pipe: BinaryIO, data: bytes) -> None:
    """Writes one frame."""
    pipe.write(LENGTH.pack(len(data)))
    pipe.write(data)
    pipe.flush()


def read(pipe: BinaryIO) -> bytes | None:
    """The next frame; None if the other side has closed the pipe."""
    head = pipe.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    (length,) = LENGTH.unpack(head)
    data = pipe.read(length)
    return data if len(data) == length else None


async def send(pipe: asyncio.StreamWriter, *frames: bytes) -> None:
    """Writes frames. Raises ConnectionError if the other side is gone."""
    for data in frames:
        pipe.write(LENGTH.pack(len(data)))
        pipe.write(data)
        await pipe.drain()


async def receive(pipe: asyncio.StreamReader) -> bytes:
    """The next frame. Raises asyncio.IncompleteReadError if the other side is gone."""
    (length,) = LENGTH.unpack(await pipe.readexactly(LENGTH.size))
    return await pipe.readexactly(length)
