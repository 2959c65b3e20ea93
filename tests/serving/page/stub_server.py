"""A server for the page's tests: the routes that the page asks, with canned answers, and no model.

    python tests/serving/page/stub_server.py [PORT]      # to look at the page

Guided answers come with an explanation. Profiles narrow with every choice; jobs end when `finish_job` says
so.
"""

from __future__ import annotations

import asyncio
import json
import math
import socket
import sys
import threading
import time

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from pad_vllm.serving.page.page_routes import page_router

MARKUP = "<img src=x onerror=\"document.title='broken'\"> & <b>bold</b>"
"""What a model may write, and no page may run."""

END_TOKEN = "<|im_end|>"

PLAIN = (
    "Before getting a dog, there are several factors to consider. **Living space**: make sure that your home "
    "is suitable for its size.\n\n1. **Exercise**: most dogs need a walk a day.\n2. **Costs**: food, vet and "
    "insurance add up."
)
GUIDED = (
    "I'm so glad that you ask! A dog brings so much joy into a home, and I'm happy to share what helps: a "
    "cosy corner, a walk a day together, and a good vet whom you trust."
)
INSTRUCTIONS = {
    "positive": None,
    "simple": None,
    "friendly": "Answer in a warm, friendly and casual tone, like a good friend.",
    "brief": "Answer as briefly as possible, in one or two short sentences.",
}


def error(status, message):
    return JSONResponse(
        {"error": {"message": message, "type": "Error", "param": None, "code": status}}, status
    )


def pieces(text):
    """The text as tokens: words with the blank before them."""
    words = text.split(" ")
    return [words[0], *(f" {word}" for word in words[1:])]


def explained(text):
    tokens = [*pieces(text), END_TOKEN]
    rewards = [
        round(1.9 * math.sin(1.7 * index + len(token)), 3) for index, token in enumerate(tokens)
    ]
    return [
        {
            "token": token,
            "reward": reward,
            "base": " the" if reward > 0.9 else token,
            "changed": reward > 0.9,
        }
        for token, reward in zip(tokens, rewards, strict=True)
    ]


class Stub:
    """One server and all that it was asked."""

    def __init__(self, *, key=None, profiles=True, jobs=True, instructions=True, pause_s=0.0):
        self.key, self.pause_s = key, pause_s
        self.offers = {"profiles": profiles, "jobs": jobs, "instructions": instructions}
        self.offers["sentences"] = True
        self.chats, self.choices, self.stated, self.users = [], [], [], {}
        self.jobs, self.adapters = [], []
        self.refuse_chats = None
        self.answer = GUIDED
        self.app = self._app()
        self.port = None

    def finish_job(self, **values):
        self.jobs[-1].update(values)
        if values.get("state") == "done":
            names = [*INSTRUCTIONS, self.jobs[-1]["name"]]
            dimensions = [{"name": name, "instruction": INSTRUCTIONS.get(name)} for name in names]
            self.adapters.append({"name": values["adapter"], "dimensions": dimensions})

    def _app(self):
        app = FastAPI()
        app.include_router(page_router())

        self._add_chat(app)
        self._add_profiles(app)
        self._add_jobs(app)

        async def authenticated(scope, receive, send):
            """As vLLM's middleware does it."""
            given = dict(scope.get("headers", ())).get(b"authorization", b"").decode()
            if self.key and scope["path"].startswith("/v1") and given != f"Bearer {self.key}":
                await JSONResponse({"error": "Unauthorized"}, 401)(scope, receive, send)
            else:
                await app(scope, receive, send)

        return authenticated

    def _add_chat(self, app):
        @app.get("/v1/pad/dimensions")
        async def dimensions():
            return {
                "model": "smollm2-135m",
                "adapter": "smollm2-135m-demo",
                "engine": "shared",
                "defaults": {
                    "beta": 0.8,
                    "top_k": 20,
                    "no_repeat": 3,
                    "min_p": 0.15,
                    "loop_price": 0,
                },
                "max_beta": 10.0,
                "dimensions": [
                    {"name": n, "instruction": text} for n, text in INSTRUCTIONS.items()
                ],
                "prefixes": ["friendly", "funny"] if self.offers["instructions"] else [],
                "adapters": self.adapters,
                **self.offers,
            }

        @app.post("/v1/chat/completions")
        async def chat(request: Request):
            body = await request.json()
            self.chats.append(body)
            if self.refuse_chats:
                return error(400, self.refuse_chats)
            guided = "vllm_xargs" in body
            text = self.answer if guided else PLAIN

            async def events():
                for token in pieces(text):
                    yield f"data: {json.dumps({'choices': [{'delta': {'content': token}}]})}\n\n"
                    await asyncio.sleep(self.pause_s)
                last = {"choices": [{"delta": {}, "finish_reason": "stop"}]}
                if guided:
                    last["pad"] = {
                        "guided_tokens": len(pieces(text)),
                        "unguided_tokens": 0,
                        "stopped": False,
                        "explained": [explained(text)],
                    }
                yield f"data: {json.dumps(last)}\n\ndata: [DONE]\n\n"

            return StreamingResponse(events(), media_type="text/event-stream")

    def _add_profiles(self, app):
        def profile(user):
            n = self.users[user]
            means = dict(zip(INSTRUCTIONS, (0.9, -0.3, 1.0, 0.2), strict=True))
            spread = 8 / (1 + n)
            return {
                "user": user,
                "version": n,
                "weights": {name: round(m * n / (n + 2), 3) for name, m in means.items()},
                "pad_weights": "positive=1",
                "intervals": {
                    name: [m * n / (n + 2) - spread, m * n / (n + 2) + spread]
                    for name, m in means.items()
                    if n  # what was stated has none
                },
                "choices": n,
            }

        @app.get("/v1/pad/users/{user}")
        async def get(user: str):
            return profile(user) if user in self.users else error(404, f"no profile of {user}")

        @app.put("/v1/pad/users/{user}")
        async def put(user: str, request: Request):
            self.stated.append(await request.json())
            self.users.setdefault(user, 0)
            return profile(user)

        @app.delete("/v1/pad/users/{user}")
        async def delete(user: str):
            self.users.pop(user, None)
            return Response(status_code=204)

        @app.post("/v1/pad/users/{user}/question")
        async def question(user: str, request: Request):
            body = await request.json()
            prompt = body.get("prompt", "How do I start running?")
            await asyncio.sleep(self.pause_s)
            return {
                "question": f"q{len(self.choices)}",
                "messages": [{"role": "user", "content": prompt}],
                "answers": [{"text": PLAIN}, {"text": GUIDED}],
            }

        @app.post("/v1/pad/users/{user}/choices")
        async def choices(user: str, request: Request):
            self.choices.append(await request.json())
            self.users[user] = self.users.get(user, 0) + 1
            return profile(user)

    def _add_jobs(self, app):
        @app.post("/v1/pad/jobs")
        async def start(request: Request):
            body = await request.json()
            if body["name"] in INSTRUCTIONS:
                return error(400, f"there is a dimension {body['name']} already")
            job = {"job": f"j{len(self.jobs)}", **body, "state": "running", "progress": 0.3}
            self.jobs.append(
                {**job, "message": "the answers are read", "seconds": 41, "adapter": None}
            )
            return JSONResponse(self.jobs[-1], 202)

        @app.get("/v1/pad/jobs")
        async def every():
            return {"jobs": self.jobs}

        @app.get("/v1/pad/jobs/{job}")
        async def one(job: str):
            return next(known for known in self.jobs if known["job"] == job)

    def __enter__(self):
        """Serve on a free port, in a thread."""
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        config = uvicorn.Config(self.app, log_level="error", lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([listener],), daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        return self

    def __exit__(self, *_):
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(10)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/pad/"


if __name__ == "__main__":
    uvicorn.run(Stub(pause_s=0.04).app, host="127.0.0.1", port=int((sys.argv[1:] or ["8765"])[0]))
