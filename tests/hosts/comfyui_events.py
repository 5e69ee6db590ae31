"""Run by ComfyUI's interpreter: runs a workflow through a server and prints its websocket's events as one line of JSON.

usage: comfyui_events.py PORT [NODE] < WORKFLOW    (at the first progress of NODE, Interrupt is pressed)
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import aiohttp

port, node = sys.argv[1], (sys.argv[2:] or [None])[0]
LAST = ("execution_success", "execution_error", "execution_interrupted")


async def main() -> None:
    workflow = json.load(sys.stdin)
    told: list[dict[str, Any]] = []
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", trust_env=False) as session:
        async with session.ws_connect("/ws?clientId=test", max_msg_size=0) as socket:
            body = {"prompt": workflow, "client_id": "test"}
            async with session.post("/prompt", json=body) as answer:
                number = (await answer.json())["prompt_id"]
            pressed = False
            async for message in socket:
                if message.type != aiohttp.WSMsgType.TEXT:
                    continue
                event = json.loads(message.data)
                if event["data"].get("prompt_id") not in (None, number):
                    continue
                told.append(event)
                if event["type"] == "progress" and event["data"]["node"] == node and not pressed:
                    pressed = True
                    await session.post("/interrupt", json={})
                if event["type"] in LAST:
                    break
    print(json.dumps(told))


asyncio.run(main())
