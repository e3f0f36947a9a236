#!/usr/bin/python3
# An asyncio echo server and 20 concurrent clients of it in one process (asyncio_echo.py both PORT), or apart (server|client PORT).
import asyncio
import sys


async def serve(reader, writer):
    while data := await reader.read(4096):
        writer.write(data)
        await writer.drain()
    writer.close()


async def client(port, no):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for i in range(300):
        message = f"{no}:{i};".encode() * (1 + i % 50)
        writer.write(message)
        await writer.drain()
        if await reader.readexactly(len(message)) != message:
            sys.exit(f"client {no}, message {i}: a different one came back")
    writer.write_eof()
    if await reader.read():
        sys.exit(f"client {no}: bytes after the end")
    writer.close()
    await writer.wait_closed()


async def main(role, port):
    server = await asyncio.start_server(serve, "127.0.0.1", port) if role in ("server", "both") else None
    if role in ("client", "both"):
        await asyncio.gather(*(client(port, n) for n in range(20)))
        print("ok")
    elif server:
        await server.serve_forever()


try:
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
except KeyboardInterrupt:
    pass
