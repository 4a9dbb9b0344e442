"""Pooled activations for Beam's `RunInference`, from texts or token ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from apache_beam.ml.inference.base import ModelHandler, PredictionResult

from qwen.settings import ExtractorSettings

if TYPE_CHECKING:
    from qwen.extractor import ActivationExtractor


class ActivationModelHandler(ModelHandler[str | np.ndarray, PredictionResult, Any]):
    """Handler whose inference for a text is a dict from site to vector, [row elements].

    An element is a text, which is tokenized without special tokens, or token ids, [tokens] of any
    integer type. The vectors are in the storage dtype of the settings: a row has
    the width of the site, and 4 bytes of scale with an 8-bit dtype.
    """

    def __init__(self, settings: ExtractorSettings, max_batch_size: int = 256) -> None:
        """Keep the settings; workers load the model and extract up to `max_batch_size` together.

        Raises:
            ValueError: if the settings ask for every token.
        """
        super().__init__(max_batch_size=max_batch_size)
        if settings.pooling == "none":
            raise ValueError(
                "pooling is 'none', but an inference has one vector for each site: choose 'last' "
                "or 'mean', or use transforms.ExtractActivations"
            )
        self._settings = settings

    def load_model(self) -> ActivationExtractor:
        """Load the model onto this worker's devices; `RunInference` does so once per process."""
        from qwen.extractor import open_extractor

        return open_extractor(self._settings)

    def run_inference(
        self,
        batch: Sequence[str | np.ndarray],
        model: ActivationExtractor,
        inference_args: dict[str, Any] | None = None,
    ) -> Iterator[PredictionResult]:
        """Yield the activations of each element of a batch.

        Raises:
            ValueError: if an element has no token, an id outside the vocabulary, or more tokens
                than the model has positions.
        """
        tokenizer = model.source.tokenizer()
        token_ids = [
            np.asarray(tokenizer(each, add_special_tokens=False)["input_ids"], np.int32)
            if isinstance(each, str)
            else each
            for each in batch
        ]
        found: list[dict[Any, np.ndarray]] = [{} for _ in batch]
        for captured in model.extract(token_ids):
            for site, vectors in captured.vectors.items():
                for sample, vector in zip(captured.samples, vectors, strict=True):
                    found[sample][site] = vector.copy()
        for example, inference in zip(batch, found, strict=True):
            yield PredictionResult(example, inference, self._settings.model_path)
