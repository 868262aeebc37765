"""Reads `state.initial` with Python's websockets and its default limits. Prints the numbers of instances and parts."""

import asyncio
import json
import sys

import websockets


async def main(url: str) -> None:
    instances, parts = 0, 0
    async with websockets.connect(url) as socket:
        async for text in socket:
            event = json.loads(text)
            if event["type"] != "state.initial":
                continue
            instances += len(event["instances"])
            parts += 1
            if not event.get("more"):
                break
    print(json.dumps({"instances": instances, "parts": parts}))


asyncio.run(asyncio.wait_for(main(sys.argv[1]), 30))
