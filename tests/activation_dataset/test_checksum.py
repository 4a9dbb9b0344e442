import importlib
import io

import google_crc32c
import numpy as np
import pytest

from activation_dataset import checksum
from activation_dataset.checksum import crc32c, crc32c_of_stream


def test_published_values():
    # RFC 3720, appendix B.4, and the check value of the CRC catalog.
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
    assert crc32c(b"123456789") == 0xE3069283


@pytest.mark.parametrize("size", [0, 7, 3_000_001])
def test_a_stream_is_read_to_its_end(size):
    content = np.random.default_rng(size).integers(256, size=size, dtype=np.uint8).tobytes()
    stream = io.BytesIO(b"skipped" + content)
    stream.seek(7)
    assert crc32c_of_stream(stream) == (crc32c(content), size)


def test_the_pure_python_fallback_is_refused(monkeypatch):
    monkeypatch.setattr(google_crc32c, "implementation", "python")
    with pytest.raises(ImportError, match=r"no C extension.*pip install"):
        importlib.reload(checksum)
    monkeypatch.undo()
    importlib.reload(checksum)
