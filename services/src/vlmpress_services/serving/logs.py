"""What a server writes to standard error: JSON lines or text, each with the id of its request."""

import json
import logging
import time
from typing import Any, Literal

from vlmpress_services.serving.calls import Call, current_call

access_log = logging.getLogger("vlmpress_services.access")
TEXT_FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, request_id, and what the record adds."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        entry: dict[str, Any] = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        call = current_call.get()
        if call is not None:
            entry["request_id"] = call.request_id
        entry |= getattr(record, "fields", {})
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


class TextFormatter(logging.Formatter):
    """One line for people; the id of the request at its end."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        text = super().format(record)
        call = current_call.get()
        return text if call is None else f"{text} [{call.request_id}]"


def configure_logs(log_format: Literal["json", "text"], *, quiet: bool) -> None:
    """Gives every handler of the process the format; `quiet` leaves warnings and errors only."""
    formatter = JsonFormatter() if log_format == "json" else TextFormatter(TEXT_FORMAT)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(formatter)
    logging.getLogger("vlmpress_services").setLevel(logging.WARNING if quiet else logging.INFO)


def log_access(call: Call) -> None:
    """One line of an ended call: what, how it ended, how long it took, who and how much; nothing of its content."""
    if call.method.is_health or not access_log.isEnabledFor(logging.INFO):
        return
    seconds = time.monotonic() - call.start_s
    fields = {
        "method": call.method.name,
        "code": call.code.name,
        "seconds": round(seconds, 6),
        "principal": call.principal,
        "received_bytes": call.received_bytes,
        "sent_bytes": call.sent_bytes,
    }
    access_log.info("%s %s %.3f s", call.method.name, call.code.name, seconds, extra={"fields": fields})
