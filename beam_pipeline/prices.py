"""What an hour of a device costs: the table that is shipped, or the user's own."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SHIPPED = Path(__file__).parent / "prices.toml"


class PriceError(ValueError):
    """A table of prices that cannot be used; names the file and the field."""


@dataclass(frozen=True)
class Prices:
    """A table of prices.

    Attributes:
      device_hour: of one device with its share of the machine, by `AcceleratorSettings.price_key`.
      date: when they were looked up.
      source: where, and what they leave out.
    """

    file: str
    currency: str
    date: str
    source: str
    device_hour: Mapping[str, float]

    def of(self, price_key: str) -> float:
        """
        Raises:
          PriceError: if the table does not have it.
        """
        if price_key not in self.device_hour:
            raise PriceError(
                f"{self.file}: there is no price of {price_key} under [device_hour]; there are "
                + ", ".join(sorted(self.device_hour))
            )
        return self.device_hour[price_key]


def load_prices(path: str | Path = SHIPPED) -> Prices:
    """Reads a table; `prices.toml` beside this file shows its form.

    Raises:
      PriceError: if it cannot be read, or a field is missing or of another kind.
    """
    try:
        fields = tomllib.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise PriceError(f"{path}: no table of prices can be read there ({error})") from error
    hours = fields.get("device_hour")
    if not isinstance(hours, dict) or not hours:
        raise PriceError(f"{path}: the table [device_hour] is missing; {SHIPPED} shows its form")
    for name, price in hours.items():
        if type(price) not in (int, float) or not 0 <= price < float("inf"):
            raise PriceError(f"{path}: device_hour.{name} must be a price, got {price!r}")
    texts = {name: fields.get(name) for name in ("currency", "date", "source")}
    for name, text in texts.items():
        if not isinstance(text, str) or not text:
            raise PriceError(f"{path}: {name} must be a text in quotes, got {text!r}")
    return Prices(file=str(path), device_hour=hours, **texts)  # type: ignore[arg-type]
