import subprocess
import sys

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.ml.inference.base import RunInference
from apache_beam.testing.util import assert_that

from qwen.extractor import open_extractor
from qwen.settings import ExtractorSettings
from tests.conftest import COMPILED, ROOT
from transforms import ActivationModelHandler

SETTINGS = ExtractorSettings("random:tiny", (1, 3), compile_cache=COMPILED.name)
TEXTS = ["The residual stream", "0 1 2\n3 4 5", "a"]


def test_run_inference_gives_the_activations_of_texts_and_of_token_ids():
    extractor = open_extractor(SETTINGS)
    expected = {
        text: {site: vectors[index] for site, vectors in extractor(TEXTS).items()}
        for index, text in enumerate(TEXTS)
    }
    tokenizer = extractor.source.tokenizer()
    ids = {text: np.asarray(tokenizer(text)["input_ids"], np.int32) for text in TEXTS}

    def check(results):
        assert len(results) == 2 * len(TEXTS)
        for result in results:
            text = result.example
            if not isinstance(text, str):
                (text,) = (each for each in TEXTS if np.array_equal(ids[each], text))
            assert set(result.inference) == {1, 3}
            for site, vector in result.inference.items():
                np.testing.assert_allclose(vector, expected[text][site], rtol=2e-2, atol=2e-2)

    with beam.Pipeline("FnApiRunner") as pipeline:
        found = pipeline | beam.Create([*TEXTS, *ids.values()])
        assert_that(found | RunInference(ActivationModelHandler(SETTINGS)), check)


def test_every_token_is_refused():
    with pytest.raises(ValueError, match="pooling is 'none'.*'last' or 'mean'"):
        ActivationModelHandler(ExtractorSettings("random:tiny", (1,), pooling="none"))


def test_importing_the_package_imports_neither_beam_nor_jax():
    program = (
        "import sys, transforms; assert 'apache_beam' not in sys.modules\n"
        "for name in transforms.__all__: assert getattr(transforms, name).__name__ == name\n"
        "assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
    import transforms

    with pytest.raises(AttributeError, match="Absent"):
        _ = transforms.Absent
