"""An asyncio program whose tasks change the state; the pages have a thread of their own."""

import asyncio

import pegasus_http as ph

META = "127.0.0.1:34601"


async def tables(server):
    """A task of the host: `publish` never blocks, so a coroutine calls it as it is."""
    apps = ()
    for app_id, name in enumerate(["stat", "temp"], start=1):
        apps += (ph.App(app_id, name, partition_count=4),)
        server.publish(ph.Cluster(apps=apps, meta_servers=META, primary_meta_server=META))
        await asyncio.sleep(0)


async def get(port, target):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    request = "GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" % target
    writer.write(request.encode())
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    head, _, body = answer.decode().partition("\r\n\r\n")
    return head.split("\r\n")[0] + " " + body.strip()


async def program():
    server = ph.start(role="meta")
    try:
        print(await get(server.port, "/meta/cluster"))
        await tables(server)
        for answer in await asyncio.gather(
            get(server.port, "/meta/app?name=stat"),
            get(server.port, "/meta/app?name=temp"),
        ):
            print(answer)
    finally:
        # It waits for answers under way, so it has no place in the event loop's own thread.
        await asyncio.get_running_loop().run_in_executor(None, server.stop)


def main():
    asyncio.run(asyncio.wait_for(program(), timeout=20))


if __name__ == "__main__":
    main()
