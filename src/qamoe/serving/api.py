"""Serve a model over HTTP, with a web page to try it, for `qamoe serve`.

A request cannot name a path or an address: media are sent as bytes, and the model is set when the server starts. An
invalid request gets a status code and {"error": one sentence}; the sentence never repeats the content of the request.
"""

import errno
import logging
import re
import socket
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NoReturn

import pandas as pd
from fastapi import FastAPI, Request
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from qamoe.config import settings
from qamoe.config.extractor_settings import TranscribeSettings
from qamoe.config.model_names import family
from qamoe.config.task import has_classes, is_classification, is_multilabel, label_names
from qamoe.data.clip import MediaSpan
from qamoe.data.stats import frame_stats
from qamoe.errors import UserError
from qamoe.extractors.registry import recogniser_of
from qamoe.extractors.transcribe import word_records
from qamoe.files import file_digest
from qamoe.inference.extraction_worker import Busy, Extraction, Limits
from qamoe.inference.predict import clip_row
from qamoe.serving import schemas
from qamoe.serving.clip_cache import CachedClip, ClipCache, samples
from qamoe.serving.json_bodies import JsonRoute
from qamoe.serving.middleware import RequestGuard
from qamoe.serving.model_loader import Served, open_model
from qamoe.serving.upload_folder import upload_folder

PAGE = Path(__file__).parent / "page"
log = logging.getLogger("qamoe")
_REFUSALS: dict[int | str, dict[str, Any]] = {
    code: {"model": schemas.Error} for code in (400, 403, 404, 408, 409, 413, 415, 422, 503, 507)
}
# Messages of starlette and fastapi -> sentences.
_FRAMEWORK = {
    "Not Found": "This path does not exist; /docs lists all paths.",
    "Method Not Allowed": "This path does not accept this method; /docs lists the methods.",
    "There was an error parsing the body": "The body cannot be read as JSON.",
}
ClipId = Annotated[str, InPath(max_length=64)]


class Service:
    """The state behind the routes: the model, the cached clips, the samples and the extraction process."""

    def __init__(
        self, load: Callable[[], Served], folder: Path | None, limits: Limits, transcribe: bool = True
    ) -> None:
        self.load, self.limits, self._transcribe = load, limits, transcribe
        self.served = self._loaded()
        self.samples = samples(folder, self.served.trained.config["task"])
        self.clips = ClipCache()
        self._sample_ids: dict[int, str] = {}
        # Few threads of their own: each thread that predicts keeps memory of its own for later.
        self._predicting = ThreadPoolExecutor(settings.workers())
        self._loading = threading.Lock()
        self.extraction: Extraction | None = None
        self.uploads: Path | None = None

    def predict(
        self, rows: pd.DataFrame, degradations: dict[str, tuple[str, float]] | None = None
    ) -> list[schemas.Either]:
        try:
            return schemas.answers(self._predicting.submit(self.served.predict, rows, degradations).result())
        except CancelledError:
            raise HTTPException(503, "The server is shutting down.", {"Retry-After": "10"}) from None

    def close(self) -> None:
        """Give up the clips and files that wait, so that the process can end."""
        self._predicting.shutdown(wait=False, cancel_futures=True)
        if self.extraction is not None:
            self.extraction.close()

    def rows(self, request: schemas.PredictRequest) -> pd.DataFrame:
        """Return a request as input of `predict`. Raises UserError for frames of another size than the model reads."""
        about = self.about()
        for number, clip in enumerate(request.clips):
            for modality, columns in about.columns.items():
                frames = getattr(clip, modality)
                if frames is None:
                    continue
                if frames.shape[1] != columns:
                    raise UserError(
                        f"clips.{number}.{modality} has {frames.shape[1]} columns; this model reads {columns}."
                    )
                if frames.shape[0] > about.frames[modality]:
                    raise UserError(
                        f"clips.{number}.{modality} has {frames.shape[0]} frames; this model reads"
                        f" {about.frames[modality]}."
                    )
        return request.rows()

    def reload(self) -> None:
        """Load the model again and replace the current one, which answers until then."""
        if not self._loading.acquire(blocking=False):
            raise HTTPException(409, "Another request is already loading the model.")
        try:
            self.served = self._loaded()
        except Exception as error:  # files of any content; the message may name a path of this machine
            log.warning("reload: %s: %s", type(error).__name__, error)
            raise HTTPException(503, "The model cannot be loaded; the previous model stays in use.") from None
        finally:
            self._loading.release()

    def _loaded(self) -> Served:
        served = self.load()
        served.warm_up()
        return served

    @property
    def recogniser(self) -> TranscribeSettings | str:
        """The speech recognition of uploaded clips, or why there is none ("": nobody wants it)."""
        return recogniser_of(self.served.trained.config) if self._transcribe else ""

    def extract(self, path: Path, start_s: float = 0.0, end_s: float | None = None, text: str = "") -> str:
        """Extract the features of a file and cache them; return their id.

        If `text` is empty, its words are those of a subtitle track inside it, or else of its voice.
        """
        extractors = self.served.extractors
        if self.extraction is None or not extractors:
            raise HTTPException(
                409, "This model was trained on ready-made features and cannot read media files; send features."
            )
        key = f"{file_digest(path)} {start_s!r} {end_s!r}"
        recogniser = "" if text else self.recogniser
        wanted = extractors if isinstance(recogniser, str) else extractors | {"text": recogniser}
        extracted = self.extraction.extract(path, wanted, start_s, end_s)
        if text:
            extracted = replace(extracted, text="")
        elif isinstance(recogniser, str) and recogniser and not extracted.text:
            extracted = replace(extracted, problems=extracted.problems | {"text": f"no transcript; {recogniser}"})
        return self.clips.put(CachedClip(key, extracted))

    def sample(self, number: int) -> MediaSpan:
        """Return a sample by its number. Raises HTTPException for an unknown number."""
        if not 0 <= number < len(self.samples):
            raise HTTPException(404, f"This sample does not exist; there are {len(self.samples)}, numbered from 0.")
        return self.samples[number][0]

    def label(self, label: float) -> float | str | list[str]:
        """Return a label as a number, or as the name of a class, or as those of all labels of a clip."""
        task = self.served.trained.config["task"]
        if is_multilabel(task):
            return label_names(label, task["classes"])
        return task["classes"][int(label)] if is_classification(task) else label

    def upload_of(self, number: int) -> schemas.Upload:
        """Return the features of a sample under an id; extract them at the first use."""
        clip = self.sample(number)
        clip_id = self._sample_ids.get(number, "")
        if self.clips.get(clip_id) is None:
            clip_id = self._sample_ids[number] = self.extract(clip.path, clip.start_s, clip.end_s, clip.text)
        return self.uploaded(clip_id)

    def uploaded(self, clip_id: str) -> schemas.Upload:
        extracted = self.cached(clip_id).extracted
        counts = {m: len(extracted.frames.get(m, ())) for m in self.served.extractors}
        heard = extracted.frames.get("text")
        words = None if heard is None else [schemas.HeardWord(**word) for word in word_records(heard)]
        return schemas.Upload(
            id=clip_id,
            seconds=extracted.seconds,
            frames=counts,
            problems=extracted.problems,
            text=extracted.text or None,
            words=words,
        )

    def cached(self, clip_id: str) -> CachedClip:
        """Return a cached clip by its id. Raises HTTPException if it is not in the cache."""
        clip = self.clips.get(clip_id)
        if clip is None:
            raise HTTPException(404, "No clip has this id; the server may have dropped it. Send the clip again.")
        return clip

    def about(self) -> schemas.About:
        served, config = self.served, self.served.trained.config
        task = config["task"]
        classes = task["classes"] if has_classes(task) else []
        stats, frame_modalities = config["stats"], [m for m in config["modalities"] if m != "text"]
        return schemas.About(
            name=served.name,
            digest=served.digest,
            modalities=config["modalities"],
            columns={m: max(frame_stats(stats, m)["kept"]) + 1 for m in frame_modalities},
            frames={m: config["max_frames"][m] for m in frame_modalities},
            low=None if classes else task["low"],
            high=None if classes else task["high"],
            classes=classes,
            multilabel=is_multilabel(task),
            experts=config["models"][family(config["model"])].get("experts"),
            trust_rescaled={m: anchors["rescaled"] for m, anchors in config["trust"].items()},
            generated=config["trained_on_generated"],
            media=sorted(served.extractors),
            limits={"bytes": self.limits.media_bytes, "seconds": self.limits.seconds, "pixels": self.limits.pixels},
        )


def application(service: Service, hosts: frozenset[str] = frozenset()) -> RequestGuard:
    """Return the application with all routes of a service. hosts: as of RequestGuard."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        with upload_folder() as service.uploads:
            recogniser = service.recogniser
            words = {} if isinstance(recogniser, str) else {"text": recogniser}
            service.extraction = Extraction(service.limits, service.served.extractors | words, service.uploads)
            try:
                yield
            finally:
                service.close()

    app = FastAPI(
        title="qamoe", version="1", lifespan=lifespan, docs_url=None, redoc_url=None, responses=_REFUSALS,
        redirect_slashes=False,  # a redirect would repeat the Host and the query of the request
        description="Predicts a score with an interval, or a class with probabilities, and the trust in each modality.",
    )  # fmt: skip
    app.router.route_class = JsonRoute
    _error_handlers(app)
    _pages(app)
    _model_routes(app, service)
    _clip_routes(app, service)
    _sample_routes(app, service)
    return RequestGuard(app, service.limits, hosts)


def _model_routes(app: FastAPI, service: Service) -> None:
    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        """Report that the server is running, and its model."""
        return {"status": "ok", "model": service.served.name, "digest": service.served.digest}

    @app.get("/model")
    def model() -> schemas.About:
        """Describe the model, its inputs and its limits."""
        return service.about()

    @app.post("/reload")
    def reload() -> schemas.About:
        """Load the model again, such as after a promotion or rollback. The source is set at the start of the server."""
        service.reload()
        return service.about()

    @app.post("/predict")
    def predict(request: schemas.PredictRequest) -> schemas.Answers:
        """Predict clips from text and raw features; any modality may be left out."""
        answers = service.predict(service.rows(request))
        for answer, clip in zip(answers, request.clips, strict=True):
            if clip.tokens is None:
                answer.explain(clip.text, clip_row(service.served.trained.config, clip.text, {})[1])
        return schemas.Answers(clips=answers)


def _clip_routes(app: FastAPI, service: Service) -> None:
    media: dict[str, Any] = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}

    @app.post("/clips", status_code=201, openapi_extra={"requestBody": {"required": True, "content": media}})
    async def upload(request: Request) -> schemas.Upload:
        """Upload a video or audio file as the body. The server caches its features under the returned id."""
        if request.headers.get("content-type", "").startswith("multipart/"):
            raise HTTPException(415, "Send the file itself as the body, not a form.")
        try:
            with tempfile.TemporaryDirectory(dir=service.uploads, ignore_cleanup_errors=True) as folder:
                path = Path(folder) / "clip"
                with path.open("wb") as file:
                    async for chunk in request.stream():
                        file.write(chunk)
                if not path.stat().st_size:
                    raise HTTPException(400, "The body is empty; send a video or audio file.")
                return service.uploaded(await run_in_threadpool(service.extract, path))
        except OSError as error:
            _no_room(error)

    @app.post("/clips/{clip_id}/predict")
    def predict_clip(clip_id: ClipId, request: schemas.ClipRequest) -> schemas.Either:
        """Predict an uploaded clip with a text, or else that of its subtitles or voice, clean or degraded."""
        clip = service.cached(clip_id)
        text, features = request.text if request.tokens is None else "", clip.extracted.frames
        text = clip.extracted.text if text is None and clip.extracted.text else text
        row, unread = clip_row(service.served.trained.config, text, features)
        if request.tokens is not None:
            row |= {"tokens": request.tokens, "confidence": request.confidence}
        columns = {name: pd.Series([value], [clip.key], object) for name, value in row.items()}
        answer = service.predict(pd.DataFrame(columns), request.degrade.by_modality())[0]
        words = " ".join(features["text"]["word"]) if text is None and "text" in features else text or None
        answer.explain(words, unread)
        return answer


def _no_room(error: OSError) -> NoReturn:
    """Refuse an upload for which the server has no disk or descriptor left; raise any other error again."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise HTTPException(507, "The server has no disk space left for uploads.") from None
    if error.errno in (errno.EMFILE, errno.ENFILE):
        raise HTTPException(503, "The server has too many files open; send this file again.", {"Retry-After": "10"})
    raise error


def _sample_routes(app: FastAPI, service: Service) -> None:
    @app.get("/samples")
    def list_samples() -> list[schemas.Sample]:
        """List the sample clips, if the server was started with any."""
        return [
            schemas.Sample(number=i, text=span.text, label=service.label(label), start_s=span.start_s, end_s=span.end_s)
            for i, (span, label) in enumerate(service.samples)
        ]

    @app.post("/samples/{number}", status_code=201)
    def use_sample(number: int) -> schemas.Upload:
        """Use a sample as if it had been uploaded."""
        return service.upload_of(number)

    @app.get("/samples/{number}/media", response_class=FileResponse)
    def sample_media(number: int) -> FileResponse:
        """Return the video or audio file of a sample."""
        return FileResponse(service.sample(number).path)


def _pages(app: FastAPI) -> None:
    def show(path: str, name: str) -> None:
        page = HTMLResponse((PAGE / name).read_text())
        app.add_api_route(path, lambda: page, include_in_schema=False, response_class=HTMLResponse)

    show("/", "index.html")
    show("/docs", "docs.html")


def _error_handlers(app: FastAPI) -> None:
    def answer(status: int, sentence: str, headers: dict[str, str] | None = None) -> JSONResponse:
        return JSONResponse({"error": sentence}, status, headers)

    @app.exception_handler(RequestValidationError)
    def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return answer(422, _sentence(error.errors()[0]))

    @app.exception_handler(UserError)
    def refused(_: Request, error: UserError) -> JSONResponse:
        busy = isinstance(error, Busy)
        return answer(503 if busy else 422, str(error), {"Retry-After": "10"} if busy else None)

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
    """Turn an error of pydantic into a sentence without the content of the request."""
    if error["type"] == "json_invalid":
        return "The body is not valid JSON."
    location = error["loc"][:-1] if error["type"] == "extra_forbidden" else error["loc"]
    where = ".".join(str(part) for part in location if part != "body") or "The body"
    if error["type"] == "extra_forbidden":
        return f"{where} has an unknown key; /docs lists the known keys."
    message = error["msg"].removeprefix("Value error, ")
    return f"{where}: {message[0].lower()}{message[1:]}."


def serve(
    model: str,
    folder: Path | None,
    clips: Path | None,
    host: str,
    port: int,
    limits: Limits,
    allowed_hosts: Sequence[str] = (),
    transcribe: bool = True,
) -> None:
    """Serve until Ctrl-C. Raises UserError if the port is in use or the model cannot be loaded.

    allowed_hosts: names of the server besides `host`, such as those of a proxy in front of it. transcribe: recognise
    the words of uploaded clips.
    """
    import torch

    from qamoe.serving.connections import Server

    torch.set_num_threads(1)  # one clip is too little work for several threads; clips are predicted in parallel instead
    hosts = names_of(host, allowed_hosts)
    listener = _listening(host, port)
    service = Service(lambda: open_model(model, folder), clips, limits, transcribe)
    shown_host = f"[{host}]" if ":" in host else host
    print(
        f"{service.served.name} at http://{shown_host}:{listener.getsockname()[1]} (press Ctrl-C to stop)", flush=True
    )
    Server(application(service, hosts), limits).run(sockets=[listener])


def names_of(host: str, allowed: Sequence[str]) -> frozenset[str]:
    """Return the names that a Host header may have on a server of an address. Raises UserError for another form."""
    for name in allowed:
        if not re.fullmatch(r"[A-Za-z0-9_.-]+|[0-9A-Fa-f:.]+", name):
            raise UserError(f"--allowed-hosts {name!r} is not a host; allowed: names and addresses without a port")
    local = ["localhost"] if host in ("0.0.0.0", "::", "::1") or host.startswith("127.") else []
    return frozenset(name.lower() for name in (host, *local, *allowed))


def _listening(host: str, port: int) -> socket.socket:
    # asyncio sets TCP_NODELAY only if the protocol is given. Without it, the body of a response is sent 40 ms late.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise UserError(f"cannot listen on {host}:{port}: {error.strerror}; choose another --port") from None
    return listener
