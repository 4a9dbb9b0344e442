"""Parsers of flag values. Errors name the value and what is allowed."""

from __future__ import annotations

import os
import re
from argparse import ArgumentTypeError
from collections.abc import Sequence
from typing import Literal

from activation_dataset.sites import HOOK_POINTS, HookPoint, in_forward_order
from beam_pipeline.config import ConfigError
from transforms.choose_tokens import TokenChoiceError, parse_choice


def boolean(text: str) -> bool:
    """Parse `True` or `False`, in any case."""
    if text.lower() not in ("true", "false"):
        raise ArgumentTypeError(f"expected True or False, got {text!r}")
    return text.lower() == "true"


def positive(text: str) -> int:
    """Parse a whole number of at least 1."""
    if not re.fullmatch(r"\d{1,12}", text) or int(text) < 1:
        raise ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def positive_or_auto(text: str) -> int | Literal["auto"]:
    """Parse `auto` or a whole number of at least 1."""
    if text == "auto":
        return "auto"
    try:
        return positive(text)
    except ArgumentTypeError as error:
        raise ArgumentTypeError(str(error).replace("expected", "expected auto or")) from None


def natural(text: str) -> int:
    """Parse a whole number of at least 0."""
    return 0 if text == "0" else positive(text)


def byte_count(text: str) -> int:
    """Parse a number of bytes, such as `1000000` or `500GB`."""
    match = re.fullmatch(r"([1-9]\d{0,17})([kMGTP]B)?", text)
    if not match:
        raise ArgumentTypeError(f"expected bytes, such as 1000000, 500GB or 2TB, got {text!r}")
    return int(match[1]) * 1000 ** ["B", "kB", "MB", "GB", "TB", "PB"].index(match[2] or "B")


def fraction(text: str) -> float:
    """Parse a fraction above 0 and at most 1."""
    if not 0 < price(text) <= 1:
        raise ArgumentTypeError(f"expected a fraction above 0 and at most 1, got {text!r}")
    return float(text)


def price(text: str) -> float:
    """Parse a decimal number of at least 0."""
    if not re.fullmatch(r"\d{0,9}\.?\d{1,9}", text):
        raise ArgumentTypeError(f"expected a number of at least 0, such as 0.3, got {text!r}")
    return float(text)


def mesh_shape(text: str) -> tuple[int, int]:
    """Parse devices along data and along model, such as `8,1`."""
    match = re.fullmatch(r"(\d{1,4}),(\d{1,4})", text.replace(" ", ""))
    if not match or "0" in match.groups():
        raise ArgumentTypeError(
            f"expected two positive numbers, data,model, such as 8,1; got {text!r}"
        )
    return int(match[1]), int(match[2])


def token_choice(text: str) -> str:
    """Check a choice of tokens, and return it without spaces."""
    try:
        parse_choice(text)
    except TokenChoiceError as error:
        raise ArgumentTypeError(str(error)) from None
    return text.replace(" ", "")


def parse_names(text: str) -> tuple[str, ...]:
    """Return comma-separated names in alphabetical order, each once."""
    return tuple(sorted(set(re.findall(r"[^\s,]+", text))))


def parse_layers(words: Sequence[str]) -> tuple[int, ...]:
    """Return the layers of `10 11`, `10,11`, `10-23` or `all`, ascending; empty for all."""
    layers: set[int] = set()
    given = set(_split(words))
    if "all" in given:
        if len(given) > 1:
            raise ConfigError(
                "--layers_to_extract: all does not go together with other layers; give all alone"
            )
        return ()
    for word in sorted(given):
        match = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", word)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first:
            raise ConfigError(
                f"--layers_to_extract: {word!r} is not a layer; give numbers (10 11 12), a range "
                "(10-23), or all"
            )
        layers.update(range(first, last + 1))
    return tuple(sorted(layers))


def parse_hook_points(words: Sequence[str]) -> tuple[HookPoint, ...]:
    """Return the hook points of `resid_mid mlp_out` or `resid_mid,mlp_out`, in forward order."""
    named = _split(words)
    if unknown := [word for word in named if word not in HOOK_POINTS]:
        raise ConfigError(
            f"--hook_points: {unknown[0]!r} is not a hook point; give one or more of "
            f"{', '.join(HOOK_POINTS)}"
        )
    return in_forward_order(named)


def parse_output_dir(output_dir: str | None, gcs_bucket: str | None, upload_to_cloud: bool) -> str:
    """Return the output folder from either of its two spellings."""
    if upload_to_cloud or gcs_bucket:
        if not (upload_to_cloud and gcs_bucket) or output_dir is not None:
            raise ConfigError(
                "--gcs_bucket and --upload_to_cloud True go together, without --output_dir; the "
                "short form of both is --output_dir gs://BUCKET/FOLDER"
            )
        output_dir = "gs://" + gcs_bucket.removeprefix("gs://")
    if output_dir is None:
        output_dir = "activations"
    if "://" not in output_dir:
        output_dir = os.path.expanduser(output_dir)
    if not re.fullmatch(r"gs://[^/]+(/.*)?|(?!.*://).+", output_dir, re.DOTALL):
        raise ConfigError(
            f"--output_dir {output_dir!r}: must be a local folder or gs://BUCKET/FOLDER"
        )
    if found := re.search(r"[*?\[]", output_dir):
        # Beam would take it for a wildcard, and find no files in the folder.
        raise ConfigError(f"--output_dir {output_dir!r}: must not contain {found[0]!r}")
    if os.path.isfile(output_dir):
        raise ConfigError(f"--output_dir {output_dir!r}: a file; give the path of a folder")
    return output_dir.rstrip("/") or "/"


def _split(words: Sequence[str]) -> list[str]:
    return re.findall(r"[^\s,]+", " ".join(words)) or [""]
