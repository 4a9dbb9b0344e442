"""A pipeline with Beam's `RunInference`, checked against the extractor; exits with 0 if it agrees.

It is a separate program, because Beam's module imports torch where it is installed.
"""

from __future__ import annotations

from collections.abc import Sequence

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.ml.inference.base import PredictionResult, RunInference
from apache_beam.testing.util import assert_that

from qwen.extractor import open_extractor
from qwen.settings import ExtractorSettings
from transforms.model_handler import ActivationModelHandler

SETTINGS = ExtractorSettings("random:tiny", (1, 3), compute_dtype="float32")
TEXTS = ["The residual stream", "0 1 2\n3 4 5", "a"]


def main() -> None:
    extractor = open_extractor(SETTINGS)
    expected = extractor(TEXTS)
    tokenizer = extractor.source.tokenizer()
    ids = [np.asarray(tokenizer(text)["input_ids"], np.int32) for text in TEXTS]

    def check(results: Sequence[PredictionResult]) -> None:
        keys = [str(each) for each in (*TEXTS, *ids)]
        assert len(results) == len(keys)
        for result in results:
            index = keys.index(str(result.example)) % len(TEXTS)
            assert set(result.inference) == {1, 3}
            for site, vector in result.inference.items():
                np.testing.assert_allclose(vector, expected[site][index], rtol=1e-4, atol=1e-5)

    with beam.Pipeline("FnApiRunner") as pipeline:
        elements = pipeline | beam.Create([*TEXTS, *ids])
        assert_that(elements | RunInference(ActivationModelHandler(SETTINGS)), check)
    for wrong in (2**32 + 5, 5.9):  # a cast to 32 bits makes 5 of both
        with pytest.raises(ValueError, match=r"integer ids|token id"):
            list(ActivationModelHandler(SETTINGS).run_inference([np.array([wrong])], extractor))
    with pytest.raises(ValueError, match=r"pooling is 'none'.*'last' or 'mean'"):
        ActivationModelHandler(ExtractorSettings("random:tiny", (1,), pooling="none"))


if __name__ == "__main__":
    main()
