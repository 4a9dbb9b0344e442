"""One-line explanations of errors from anywhere in the job and from the engine."""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Iterator

import grpc

PACKAGES = ("activation_dataset", "beam_pipeline", "corpus", "qwen", "transforms")

_TRACE = "Traceback (most recent call last)"
# Pattern of an error in a traceback. A traceback from a log may have escaped line breaks.
_OUR_ERROR = re.compile(rf"(?:^|\\n)(?:{'|'.join(PACKAGES)})\.[\w.]+: (.+)", re.MULTILINE)
_REFUSAL = re.compile(r"\btransforms\.(?:commit_run|measure_output)\.\w+Error\b")
_WHERE_IT_RAN = re.compile(r" \[while running '[^']*'\]")

# Messages of a job service and of Dataflow at the end of a failed job.
_FAILED_JOBS = (
    re.compile(r"Pipeline \S+ failed in state (\w+): (.*)", re.DOTALL),
    re.compile(r"Dataflow pipeline failed\. State: (\w+), Error:\s*(.*)", re.DOTALL),
)
# Modules of Beam that start engines or talk to them, except the local runner.
_TALKS_TO_ENGINE = re.compile(
    r"apache_beam\.(?:runners\.(?:portability\.(?!fn_api_runner)|dataflow|job)|utils\.subprocess)"
)
_LONGEST_REASON = 300
_CHANNEL_BROKE = "Channel closed prematurely"

RESUME = "Run the same command again: it resumes from the finished files."
WORKER_DIED = (
    "a worker process died{status}: it was killed, perhaps because memory ran out. Fewer workers "
    f"need less memory. {RESUME}"
)


def explained_by(error: BaseException) -> str | None:
    """Return a line that explains an error to the user; None for a bug, which needs a traceback."""
    for each in _with_causes(error):
        if type(each).__module__.partition(".")[0] in PACKAGES:
            return _one_line(str(each))
    # Traceback of another process, as text.
    if found := _OUR_ERROR.findall(str(error)):
        return _one_line(found[-1])
    return None if _TRACE in str(error) else _engine_failure(error)


def was_interrupted(error: BaseException) -> bool:
    """Return True if the error comes from Ctrl-C, which Beam turns into another error."""
    return any(isinstance(each, KeyboardInterrupt) for each in _with_causes(error))


def was_refused(error: BaseException) -> bool:
    """Return True if the job ended before its first activation, since its plan was refused."""
    return any(
        _REFUSAL.search(f"{type(each).__module__}.{type(each).__name__} {each}")
        for each in _with_causes(error)
    )


def is_news(record: logging.LogRecord) -> bool:
    """Return True for a log record with more information than the final error line."""
    error = record.exc_info[1] if record.exc_info else None
    if error is not None and (was_interrupted(error) or explained_by(error)):
        return record.levelno <= logging.DEBUG
    message = record.getMessage()
    # Beam's local worker processes warn about a missing option that this job does not use.
    return not _OUR_ERROR.search(message) and "semi_persistent_directory" not in message


def _engine_failure(error: BaseException) -> str | None:
    text = str(error)
    for pattern in _FAILED_JOBS:
        if match := pattern.search(text):
            state, reason = match.groups()
            return f"the engine ended the job in state {state}: {_reason(reason)}. {RESUME}"
    if isinstance(error, grpc.RpcError | grpc.FutureTimeoutError):
        details = (error.details() if isinstance(error, grpc.Call) else text) or "no connection"
        return f"the engine does not answer: {_one_line(details)}. {RESUME}"
    if _CHANNEL_BROKE in text:
        return WORKER_DIED.format(status="")
    if _comes_from_engine(error):
        return f"the engine did not run the job: {type(error).__name__}: {_reason(text)}. {RESUME}"
    return None


def modules_of(error: BaseException) -> list[str]:
    """Return the names of the modules that an error passed through, the innermost last."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return [str(frame.f_globals.get("__name__", "")) for frame in frames]


def _comes_from_engine(error: BaseException) -> bool:
    """Return True if Beam raised the error while it started an engine or talked to it."""
    ours_or_beams = [
        module
        for module in modules_of(error)
        if module.partition(".")[0] in (*PACKAGES, "apache_beam")
    ]
    return bool(ours_or_beams and _TALKS_TO_ENGINE.match(ours_or_beams[-1]))


def _reason(text: str) -> str:
    # The first line and the root cause of a Java traceback, if any.
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["unknown error"]
    causes = [line for line in lines[1:] if line.startswith("Caused by: ")]
    return " ".join(line[:_LONGEST_REASON] for line in [lines[0], *causes[-1:]]).rstrip(".")


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    each: BaseException | None = error
    while each is not None:
        yield each
        each = each.__cause__ or each.__context__


def _one_line(message: str) -> str:
    return " ".join(_WHERE_IT_RAN.sub("", message).split())
