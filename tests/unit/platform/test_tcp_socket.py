"""Answers are sent at once: asyncio switches Nagle's algorithm off only where a socket's protocol is named."""

from __future__ import annotations

import asyncio
import socket

from segfleet.server.public import tcp_socket


async def delays(listener: socket.socket) -> list[int]:
    found: list[int] = []

    async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        found.append(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    async with await asyncio.start_server(accept, sock=listener):
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        await reader.read()
        writer.close()
        await writer.wait_closed()
    return found


def test_what_is_accepted_sends_without_delay() -> None:
    listener = tcp_socket(socket.AF_INET)
    listener.bind(("127.0.0.1", 0))
    assert [bool(option) for option in asyncio.run(delays(listener))] == [True]
