"""What the campaigns and benchmarks ask of whoever starts them: a line that says what is wrong, and status 2."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any


def positive(text: str) -> int:
    """A type of arguments."""
    if not text.isascii() or not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return int(text)


def json_file(text: str) -> dict[str, Any]:
    """A type of arguments: what the file holds."""
    try:
        found = json.loads(Path(text).read_text())
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f"{text} is not a JSON object")
    return found


def require_root(parser: argparse.ArgumentParser) -> None:
    if os.geteuid() != 0:
        parser.error("needs root")
