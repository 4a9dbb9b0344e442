from __future__ import annotations

import pytest

from activation_dataset.reporting.axes import horizontal


@pytest.mark.parametrize(
    ("whole", "ticks"), [(True, [10, 11, 12]), (False, [10, 10.5, 11, 11.5, 12])]
)
def test_an_axis_of_layers_has_no_half_layers(whole: bool, ticks: list[float]) -> None:
    assert horizontal(10, 12, whole=whole).ticks() == pytest.approx(ticks)
