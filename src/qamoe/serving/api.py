"""`qamoe serve`: the prediction code of the registered model over HTTP, and a page to see what it does.

No request names a path or an address: media come as bytes, models are those that the server was started with. What
cannot be used is refused with a status code and {"error": one sentence}, which never repeats what was sent.
"""

import logging
import socket
import tempfile
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from fastapi import FastAPI, Request
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from qamoe.config import settings
from qamoe.config.model_names import family
from qamoe.config.task import is_classification
from qamoe.data.clip import MediaSpan
from qamoe.data.stats import frame_stats
from qamoe.errors import UserError
from qamoe.files import file_digest
from qamoe.inference.extraction_worker import Busy, Extraction, Limits
from qamoe.serving import schemas
from qamoe.serving.clip_cache import CachedClip, ClipCache, samples
from qamoe.serving.middleware import Guard
from qamoe.serving.model_loader import Served, open_model

PAGE = Path(__file__).parent / "page"
log = logging.getLogger("qamoe")
_REFUSALS: dict[int | str, dict[str, Any]] = {
    code: {"model": schemas.Error} for code in (400, 403, 404, 409, 413, 415, 422, 503)
}
# What starlette and fastapi say by themselves, as sentences.
_FRAMEWORK = {
    "Not Found": "There is no such page; /docs lists what there is.",
    "Method Not Allowed": "This page knows no such method.",
    "There was an error parsing the body": "The body cannot be read as JSON.",
}
ClipId = Annotated[str, InPath(max_length=64)]


class Service:
    """The state behind the routes: the model in use, clips that are kept, samples and the extracting process."""

    def __init__(self, load: Callable[[], Served], folder: Path | None, limits: Limits) -> None:
        self.load, self.limits = load, limits
        self.served = self._loaded()
        self.samples = samples(folder, self.served.trained.config["task"])
        self.clips = ClipCache()
        self._of_sample: dict[int, str] = {}
        self._predicting = threading.BoundedSemaphore(settings.workers())
        self._loading = threading.Lock()
        self.extraction: Extraction | None = None

    def predict(self, rows: pd.DataFrame, damage: dict[str, tuple[str, float]] | None = None) -> list[schemas.Either]:
        with self._predicting:
            return schemas.answers(self.served.predict(rows, damage))

    def reload(self) -> None:
        """Load the model anew and put it in the place of the old one, which answers until then."""
        if not self._loading.acquire(blocking=False):
            raise HTTPException(409, "The model is being loaded already.")
        try:
            self.served = self._loaded()
        except UserError as refusal:  # its reason may name a path of this machine
            log.warning("reload: %s", refusal)
            raise HTTPException(503, "The model cannot be loaded; the one before answers on.") from None
        finally:
            self._loading.release()

    def _loaded(self) -> Served:
        served = self.load()
        served.warm_up()
        return served

    def extract(self, path: Path, start_s: float = 0.0, end_s: float | None = None) -> str:
        """Extract a file and keep its features; returns their id."""
        extractors = self.served.extractors
        if self.extraction is None or not extractors:
            raise HTTPException(409, "This model knows no media; send it features.")
        key = f"{file_digest(path)} {start_s!r} {end_s!r}"
        return self.clips.put(CachedClip(key, self.extraction.extract(path, extractors, start_s, end_s)))

    def sample(self, number: int) -> MediaSpan:
        """The sample of that number. Raises HTTPException where there is none."""
        if not 0 <= number < len(self.samples):
            raise HTTPException(404, f"There is no such sample; there are {len(self.samples)}, numbered from 0.")
        return self.samples[number][0]

    def label(self, label: float) -> float | str:
        """A label as people know it: a number, or the name of a class."""
        task = self.served.trained.config["task"]
        return task["classes"][int(label)] if is_classification(task) else label

    def upload_of(self, number: int) -> schemas.Upload:
        """A sample's features under an id, extracted at its first use only."""
        clip = self.sample(number)
        clip_id = self._of_sample.get(number, "")
        if self.clips.get(clip_id) is None:
            clip_id = self._of_sample[number] = self.extract(clip.path, clip.start_s, clip.end_s)
        return self.uploaded(clip_id)

    def uploaded(self, clip_id: str) -> schemas.Upload:
        extracted = self.kept(clip_id).extracted
        counts = {m: len(extracted.frames.get(m, ())) for m in self.served.extractors}
        return schemas.Upload(id=clip_id, seconds=extracted.seconds, frames=counts, problems=extracted.problems)

    def kept(self, clip_id: str) -> CachedClip:
        """The clip of that id. Raises HTTPException where it is not, or no more, there."""
        clip = self.clips.get(clip_id)
        if clip is None:
            raise HTTPException(404, "There is no clip of that id; it may have made room for others: send it again.")
        return clip

    def about(self) -> schemas.About:
        served, config = self.served, self.served.trained.config
        task = config["task"]
        classes = task["classes"] if is_classification(task) else []
        stats, streams = config["stats"], [m for m in config["modalities"] if m != "text"]
        return schemas.About(
            name=served.name,
            digest=served.digest,
            modalities=config["modalities"],
            columns={m: max(frame_stats(stats, m)["kept"]) + 1 for m in streams},
            low=None if classes else task["low"],
            high=None if classes else task["high"],
            classes=classes,
            experts=config["models"][family(config["model"])].get("experts"),
            trust_rescaled={m: anchors["rescaled"] for m, anchors in config["trust"].items()},
            generated=config["trained_on_generated"],
            media=sorted(served.extractors),
            limits={"bytes": self.limits.media_bytes, "seconds": self.limits.seconds, "pixels": self.limits.pixels},
        )


def application(service: Service) -> FastAPI:
    """The routes around a service."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.extraction = Extraction(service.limits, service.served.extractors)
        try:
            yield
        finally:
            service.extraction.close()

    app = FastAPI(
        title="qamoe", version="1", lifespan=lifespan, docs_url=None, redoc_url=None, responses=_REFUSALS,
        description="Sentiment with an interval, or a class with probabilities, and how far each modality was trusted.",
    )  # fmt: skip
    app.add_middleware(Guard, limits=service.limits)
    _refusals(app)
    _pages(app)
    _model_routes(app, service)
    _clip_routes(app, service)
    _sample_routes(app, service)
    return app


def _model_routes(app: FastAPI, service: Service) -> None:
    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        """Whether the server answers, and with which model."""
        return {"status": "ok", "model": service.served.name, "digest": service.served.digest}

    @app.get("/model")
    def model() -> schemas.About:
        """What is served, and what it takes."""
        return service.about()

    @app.post("/reload")
    def reload() -> schemas.About:
        """Load the model anew from where the server was told to at its start (after a promotion or a rollback)."""
        service.reload()
        return service.about()

    @app.post("/predict")
    def predict(request: schemas.PredictRequest) -> schemas.Answers:
        """Predict clips given as words and raw features; any modality may be left out."""
        return schemas.Answers(clips=service.predict(request.rows()))


def _clip_routes(app: FastAPI, service: Service) -> None:
    media: dict[str, Any] = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}

    @app.post("/clips", status_code=201, openapi_extra={"requestBody": {"required": True, "content": media}})
    async def upload(request: Request) -> schemas.Upload:
        """Send a film or a sound file as the body; its features are kept for a while under the id that comes back."""
        if request.headers.get("content-type", "").startswith("multipart/"):
            raise HTTPException(415, "Send the file itself as the body, not a form.")
        with tempfile.TemporaryDirectory(prefix="qamoe-") as folder:
            path = Path(folder) / "clip"
            with path.open("wb") as file:
                async for chunk in request.stream():
                    file.write(chunk)
            if not path.stat().st_size:
                raise HTTPException(400, "The body is empty; send a film or a sound file.")
            return service.uploaded(await run_in_threadpool(service.extract, path))

    @app.post("/clips/{clip_id}/predict")
    def predict_clip(clip_id: ClipId, request: schemas.ClipRequest) -> schemas.Either:
        """Predict a clip that was sent before, with words to go with it, as it is or degraded."""
        clip = service.kept(clip_id)
        row = {"text": request.text, "tokens": request.tokens, **clip.extracted.frames}
        columns = {name: pd.Series([value], [clip.key], object) for name, value in row.items()}
        return service.predict(pd.DataFrame(columns), request.degrade.by_modality())[0]


def _sample_routes(app: FastAPI, service: Service) -> None:
    @app.get("/samples")
    def list_samples() -> list[schemas.Sample]:
        """Clips to try it with, if the server was started with some."""
        return [
            schemas.Sample(number=i, text=span.text, label=service.label(label), start_s=span.start_s, end_s=span.end_s)
            for i, (span, label) in enumerate(service.samples)
        ]

    @app.post("/samples/{number}", status_code=201)
    def use_sample(number: int) -> schemas.Upload:
        """The same as sending this sample as a clip."""
        return service.upload_of(number)

    @app.get("/samples/{number}/media", response_class=FileResponse)
    def sample_media(number: int) -> FileResponse:
        """The sample's film or sound, to be played."""
        return FileResponse(service.sample(number).path)


def _pages(app: FastAPI) -> None:
    def show(path: str, name: str) -> None:
        page = HTMLResponse((PAGE / name).read_text())
        app.add_api_route(path, lambda: page, include_in_schema=False, response_class=HTMLResponse)

    show("/", "index.html")
    show("/docs", "docs.html")


def _refusals(app: FastAPI) -> None:
    def answer(status: int, sentence: str, headers: dict[str, str] | None = None) -> JSONResponse:
        return JSONResponse({"error": sentence}, status, headers)

    @app.exception_handler(RequestValidationError)
    def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return answer(422, _sentence(error.errors()[0]))

    @app.exception_handler(UserError)
    def refused(_: Request, refusal: UserError) -> JSONResponse:
        busy = isinstance(refusal, Busy)
        return answer(503 if busy else 422, str(refusal), {"Retry-After": "10"} if busy else None)

    @app.exception_handler(HTTPException)
    def http(_: Request, error: HTTPException) -> JSONResponse:
        return answer(error.status_code, _FRAMEWORK.get(error.detail, error.detail), dict(error.headers or {}))

    @app.exception_handler(ClientDisconnect)
    def gone(_: Request, __: ClientDisconnect) -> JSONResponse:
        return answer(400, "The body ended early.")

    @app.exception_handler(Exception)
    def failed(_: Request, __: Exception) -> JSONResponse:
        return answer(500, "The server failed at this request; its log says why.")


def _sentence(error: dict[str, Any]) -> str:
    """What pydantic found, without what was sent."""
    if error["type"] == "json_invalid":
        return "The body is no valid JSON."
    location = error["loc"][:-1] if error["type"] == "extra_forbidden" else error["loc"]
    where = ".".join(str(part) for part in location if part != "body") or "The body"
    if error["type"] == "extra_forbidden":
        return f"{where} has a key that is not known; /docs lists those that are."
    what = error["msg"].removeprefix("Value error, ")
    return f"{where}: {what[0].lower()}{what[1:]}."


def serve(model: str, folder: Path | None, clips: Path | None, host: str, port: int, limits: Limits) -> None:
    """Serve until Ctrl-C. Raises UserError where the port is taken or the model cannot be loaded."""
    import torch
    import uvicorn

    torch.set_num_threads(1)  # the work on one clip is too small to share; clips are predicted side by side instead
    opened = _listening(host, port)
    service = Service(lambda: open_model(model, folder), clips, limits)
    config = uvicorn.Config(application(service), log_level="warning", access_log=False, server_header=False)
    shown = f"[{host}]" if ":" in host else host
    print(f"{service.served.name} at http://{shown}:{opened.getsockname()[1]} (Ctrl-C ends it)", flush=True)
    uvicorn.Server(config).run(sockets=[opened])


def _listening(host: str, port: int) -> socket.socket:
    # Named as TCP: asyncio sends at once only on such, and an answer's body would wait 40 ms for its head's receipt.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    opened = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        opened.bind((host, port))
        opened.listen(128)
    except OSError as error:
        opened.close()
        raise UserError(f"{host}:{port} cannot be listened on: {error.strerror}; choose another --port.") from None
    return opened
