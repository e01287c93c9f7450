"""A trained model over HTTP: lists of items as JSON, for users of its dataset or for histories of anybody."""

import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Self

import anyio
import numpy as np
import uvicorn
from fastapi import FastAPI, HTTPException
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, model_validator
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from csrec_dist import __version__
from csrec_dist.errors import UserError, shortened
from csrec_dist.recommend import Recommender
from csrec_dist.recommend.ranked import Ranked, rank
from csrec_dist.recommend.raw_histories import KnownItems, of_anybody

LOCAL = ("127.0.0.1", "localhost", "::1")
MOST_CONNECTIONS = 1000
"""Beyond them uvicorn answers 503."""
MOST_SECONDS_TO_STOP = 30
"""A client that never sends the rest of its request would hold a stopped service for ever."""
LONGEST_DETAIL = 500
LONGEST_HOST = 60
ABOUT = """\
Top-n lists of a trained sequential recommender.

Items and users are named by the ids of the log; 7 and "7" are the same. Errors have a `detail` that says what was
received and what is allowed: 400 for unknown users or items, 413 for a body that is too large, 422 for another form.
"""

RawId = StrictInt | StrictStr


@dataclass(frozen=True)
class Limits:
    """What one request may ask for."""

    body_bytes: int = 1 << 20
    top_n: int = 1000
    lists: int = 256


class List(BaseModel):
    """The best items for a user, or after a history; `user` is the place of a history, from 0."""

    user: RawId
    items: list[RawId] = Field(description="Best first; empty where the history has no known item.")
    scores: list[float] = Field(description="Logits.")


class Answer(BaseModel):
    """Lists in the order in which they were asked for."""

    lists: list[List]
    unknown_items: int = Field(description="Items of the histories that the model does not know, which it left out.")


class Problem(BaseModel):
    """Why there is no answer."""

    detail: str


class Health(BaseModel):
    """That the service answers, and what it serves."""

    status: str
    model: str
    num_items: int
    num_users: int | None = Field(description="null: the model was saved without its dataset; give histories.")
    max_length: int = Field(description="Of a longer history the model reads the latest items.")
    version: str


def build_app(recommender: Recommender, limits: Limits | None = None) -> FastAPI:
    """The service as an ASGI application; its OpenAPI page is at /docs."""
    limits = limits or Limits()
    model = recommender.model
    most_items = min(limits.top_n, model.num_items)
    one_at_a_time = anyio.CapacityLimiter(1)  # several would share the cores that one computes on

    class Question(BaseModel):
        """Either `users` or `histories`, and how many items for each."""

        model_config = ConfigDict(extra="forbid")

        users: Annotated[list[RawId], Field(max_length=limits.lists)] | None = Field(
            None, description="Users of the dataset, with everything that they ever had as their history."
        )
        histories: Annotated[list[list[RawId]], Field(max_length=limits.lists)] | None = Field(
            None, description="Items of each history, oldest first. Unknown ones are left out and counted."
        )
        top_n: StrictInt = Field(min(10, most_items), ge=1, le=most_items, description="Items of each list.")
        exclude_seen: StrictBool = Field(
            False, description="Leave out the items of the history; lists may be shorter then."
        )
        items: list[RawId] | None = Field(None, min_length=1, description="The items to choose from; null: all.")

        @model_validator(mode="after")
        def _has_one_kind(self) -> Self:
            if (self.users is None) == (self.histories is None):
                raise ValueError("give either users or histories")
            return self

    app = FastAPI(title="csrec_dist", version=__version__, description=ABOUT)
    app.add_middleware(BodyLimit, most_bytes=limits.body_bytes)

    @app.exception_handler(UserError)
    async def explain(_: Any, error: UserError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 400)

    @app.exception_handler(RequestValidationError)
    async def explain_form(_: Any, error: RequestValidationError) -> JSONResponse:
        wrong = (f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        return JSONResponse(
            {"detail": shortened(f"The request cannot be read: {'; '.join(wrong)}.", LONGEST_DETAIL)}, 422
        )

    @app.get("/health")
    async def health() -> Health:
        """Whether the service answers, and what it serves."""
        return Health(
            status="ok",
            model=model.config.name,
            num_items=model.num_items,
            num_users=recommender.dataset.num_users if recommender.dataset else None,
            max_length=model.max_length,
            version=__version__,
        )

    @app.post("/recommend", response_model=Answer, responses={code: {"model": Problem} for code in (400, 413, 422)})
    async def recommend(question: Question) -> JSONResponse:
        """The best items for users, or after histories."""
        answer = await anyio.to_thread.run_sync(lambda: _answer(recommender, **dict(question)), limiter=one_at_a_time)
        return JSONResponse(answer)

    return app


def _answer(
    recommender: Recommender,
    users: list[Any] | None,
    histories: list[list[Any]] | None,
    top_n: int,
    exclude_seen: bool,
    items: list[Any] | None,
) -> dict[str, Any]:
    """An `Answer`, as JSON has it."""
    known = KnownItems(recommender.items, "the request")
    source = recommender.histories_of(users) if histories is None else of_anybody(histories, known)
    candidates = None if items is None else np.unique(KnownItems(recommender.items, "the request").of(items))
    if candidates is not None and not len(candidates):
        raise UserError("None of the items to choose from is in the dataset. Name them as the log does.")
    parts = rank(recommender.model, source, top_n, exclude_seen=exclude_seen, candidates=candidates)
    lists = [each for ranked in parts for each in _lists(ranked, recommender)]
    if histories is not None:
        by_place = {each["user"]: each for each in lists}
        lists = [by_place.get(place, {"user": place, "items": [], "scores": []}) for place in range(len(histories))]
    return {"lists": lists, "unknown_items": known.num_unknown}


def _lists(ranked: Ranked, recommender: Recommender) -> Iterator[dict[str, Any]]:
    """Each `List`, as JSON has it."""
    items, scores = recommender.items.of(ranked.items).to_pylist(), ranked.scores.tolist()
    ends = ranked.lengths.cumsum().tolist()
    for user, start, end in zip(ranked.users, [0, *ends], ends, strict=False):
        yield {"user": user, "items": items[start:end], "scores": scores[start:end]}


class BodyLimit:
    """Answers 413 to a body of more than `most_bytes`, as soon as it has read so many."""

    def __init__(self, app: ASGIApp, most_bytes: int) -> None:
        self._app, self._most_bytes = app, most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, as ASGI has it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        num_bytes = 0

        async def counted() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._most_bytes:
                limit = f"The body has more than {self._most_bytes:,} bytes; ask for fewer lists at a time."
                raise HTTPException(413, limit)
            return message

        await self._app(scope, counted, send)


def serve(
    recommender: Recommender,
    host: str = LOCAL[0],
    port: int = 8000,
    limits: Limits | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Answer requests until a signal ends the process; port 0 is any free one, which `say` names.

    Raises:
        UserError: the address cannot be had.
    """
    server = uvicorn.Server(
        uvicorn.Config(
            build_app(recommender, limits),
            log_level="warning",
            access_log=False,
            limit_concurrency=MOST_CONNECTIONS,
            timeout_graceful_shutdown=MOST_SECONDS_TO_STOP,
        )
    )
    with _listening(host, port) as listener:
        address = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
        say(f"serving {recommender!r} at {address}; {address}/docs explains what it answers")
        if host not in LOCAL:
            say(f"warning: everybody who reaches {host} may ask: there is no password")
        server.run(sockets=[listener])


def _listening(host: str, port: int) -> socket.socket:
    """A socket at the address; UserError when it cannot be had.

    Small answers are sent at once: asyncio sees to that only for sockets that were made otherwise, and they would wait
    40 ms for the client to acknowledge their headers.
    """
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError, ValueError, TypeError) as error:  # the last two: a name that no host can have
        reason = getattr(error, "strerror", None) or str(error)
        address = f"{shortened(host, LONGEST_HOST)}:{port}"
        raise UserError(f"{address} cannot be served: {reason}. Give another --host or --port.") from None
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener
