import importlib

import google_crc32c
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from activation_dataset import checksum, native
from activation_dataset.checksum import combine, crc32c, crc32c_of_spans, extend, to_text


def test_published_values():
    # RFC 3720, appendix B.4, and the check value of the CRC catalogue.
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
    assert crc32c(b"123456789") == 0xE3069283


def test_text_is_base64_of_the_big_endian_bytes():
    assert to_text(crc32c(b"")) == "AAAAAA=="
    assert to_text(0xE3069283) == "4waSgw=="


def test_any_contiguous_buffer_will_do():
    content = bytes(range(200))
    array = np.frombuffer(content, np.float32)
    for buffer in (content, bytearray(content), memoryview(content), array, array.reshape(5, 10)):
        assert extend(0, buffer) == crc32c(content)


@pytest.mark.parametrize("size", [0, 1, 1 << 15, (1 << 15) + 1, 3_000_001])
@pytest.mark.parametrize("start", [0, 3])
def test_large_buffers_are_summed_as_small_ones(size, start):
    content = np.random.default_rng(size).integers(256, size=start + size, dtype=np.uint8)[start:]
    assert extend(7, content) == google_crc32c.extend(7, content.tobytes())


def test_a_buffer_with_gaps_is_refused():
    with pytest.raises((ValueError, BufferError)):
        extend(0, np.zeros((1 << 16, 2), np.uint8)[:, 0])


@pytest.mark.parametrize("by", ["library", "google_crc32c"])
def test_many_spans_of_a_block(by, monkeypatch):
    if by == "library" and native.library is None:
        pytest.skip("the library is not built here")
    if by != "library":
        monkeypatch.setattr(native, "library", None)
    block = np.random.default_rng(0).integers(256, size=5000, dtype=np.uint8)
    starts = np.arange(0, 2400, 3)
    ends = starts + np.arange(len(starts)) % 1000
    found = crc32c_of_spans(block, starts, ends)
    expected = [crc32c(block[i:j].tobytes()) for i, j in zip(starts, ends, strict=True)]
    assert found.tolist() == expected


@given(st.lists(st.binary(max_size=50), max_size=5))
def test_several_buffers_count_as_one(buffers):
    assert crc32c(*buffers) == crc32c(b"".join(buffers))


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_combining_equals_summing_both(first, second):
    assert combine(crc32c(first), crc32c(second), len(second)) == crc32c(first + second)


def test_combining_long_strings():
    second = bytes(5_000_003)
    assert combine(crc32c(b"first"), crc32c(second), len(second)) == crc32c(b"first", second)


def test_the_pure_python_fallback_is_refused(monkeypatch):
    monkeypatch.setattr(google_crc32c, "implementation", "python")
    with pytest.raises(ImportError, match=r"no C extension.*pip install"):
        importlib.reload(checksum)
    monkeypatch.undo()
    importlib.reload(checksum)
