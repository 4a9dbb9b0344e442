from pathlib import Path

import pytest

from beam_pipeline.accelerators import ACCELERATORS
from beam_pipeline.prices import SHIPPED, PriceError, load_prices

OWN = 'currency = "EUR"\ndate = "2027-01-01"\nsource = "our contract"\n[device_hour]\ntpu-v5e = 1\n'


def test_the_shipped_table_has_every_accelerator_with_date_and_source():
    prices = load_prices()
    assert all(prices.of(each.price_key) > 0 for each in ACCELERATORS.values())
    assert set(prices.device_hour) == {each.price_key for each in ACCELERATORS.values()}
    assert prices.date.startswith("20")
    assert "list prices" in prices.source


def test_a_table_of_ones_own_replaces_it(tmp_path: Path):
    path = tmp_path / "prices.toml"
    path.write_text(OWN, "utf-8")
    prices = load_prices(path)
    assert (prices.currency, prices.date, prices.source) == ("EUR", "2027-01-01", "our contract")
    assert prices.of("tpu-v5e") == 1
    with pytest.raises(PriceError, match=r"prices.toml: there is no price of gpu-l4 .*tpu-v5e"):
        prices.of("gpu-l4")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[device_hour]", "[device_hour", "no table of prices can be read there"),
        ("[device_hour]", "[hours]", r"the table \[device_hour\] is missing"),
        ("tpu-v5e = 1", "", r"the table \[device_hour\] is missing"),
        ("tpu-v5e = 1", "tpu-v5e = -1", "device_hour.tpu-v5e must be a price, got -1"),
        ("tpu-v5e = 1", "tpu-v5e = nan", "device_hour.tpu-v5e must be a price, got nan"),
        ("tpu-v5e = 1", 'tpu-v5e = "1"', "device_hour.tpu-v5e must be a price, got '1'"),
        ('date = "2027-01-01"', "", "date must be a text in quotes, got None"),
        ('"2027-01-01"', "2027-01-01", "date must be a text in quotes, got datetime"),
        ('"our contract"', '""', "source must be a text in quotes, got ''"),
    ],
)
def test_a_table_that_cannot_be_used_is_explained(tmp_path: Path, old: str, new: str, message: str):
    path = tmp_path / "prices.toml"
    path.write_text(OWN.replace(old, new), "utf-8")
    with pytest.raises(PriceError, match=f"^{path}: {message}"):
        load_prices(path)


def test_a_table_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(PriceError, match=r"absent.toml: no table .*No such file"):
        load_prices(tmp_path / "absent.toml")
    assert SHIPPED.is_file()
