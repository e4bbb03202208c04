"""The service's log: a line for each record, as text or as JSON."""

from __future__ import annotations

import json
import logging
import re
import time
from typing import Any

from ddpm_deploy.serve.journal import current

BROKEN = re.compile(r'[\s="]')


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, request_id and the fields of a request."""

    def format(self, record: logging.LogRecord) -> str:
        """As JSON."""
        entry: dict[str, Any] = {
            "time": _moment(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


class TextFormatter(logging.Formatter):
    """The same for a person; what a client sent cannot begin a line of its own."""

    def format(self, record: logging.LogRecord) -> str:
        """As text."""
        shown = [_moment(record), f"{record.levelname}:", record.getMessage()]
        shown += [f"{name}={_quoted(value)}" for name, value in _fields(record).items()]
        line = " ".join(shown)
        if not line.isprintable():
            line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
        return line + (f"\n{self.formatException(record.exc_info)}" if record.exc_info else "")


def set_up_logging(log_format: str, level: str) -> None:
    """Write the log of the process to its standard error. log_format: json or text."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("ddpm_deploy").setLevel(level.upper())


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    note = current.get()
    known = {} if note is None else {"request_id": note.id}
    return known | getattr(record, "fields", {})


def _quoted(value: Any) -> str:
    """As it is, or in quotes where it could be taken for several fields."""
    text = str(value)
    return json.dumps(text) if BROKEN.search(text) else text


def _moment(record: logging.LogRecord) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z"
