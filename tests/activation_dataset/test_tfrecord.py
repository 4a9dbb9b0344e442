import io

import numpy as np
import pytest

from activation_dataset.checksum import crc32c
from activation_dataset.tfrecord import (
    CorruptRecordError,
    frame_footer,
    frame_header,
    read_records,
    record_data,
)

RECORDS = [b"first", b"", b"third record", bytes(40)]


def framed(records):
    return b"".join(frame_header(len(data)) + data + frame_footer(crc32c(data)) for data in records)


def read(content):
    return [bytes(data) for data in read_records(io.BytesIO(content), "name")]


def test_every_flipped_bit_is_caught():
    content = framed(RECORDS)
    for bit in range(8 * len(content)):
        broken = bytearray(content)
        broken[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptRecordError, match=r"^name: record \d at byte \d+: "):
            read(bytes(broken))
        if bit // 8 < len(framed(RECORDS[:1])):
            block = np.frombuffer(broken, np.uint8)[: len(framed(RECORDS[:1]))]
            with pytest.raises(CorruptRecordError, match=r"^name: record 0 at byte 0: the CRC of "):
                record_data(block, "name", 0, 0)


def test_a_record_of_another_length_is_named():
    block = np.frombuffer(framed([b"four"]) + b"more", np.uint8)
    with pytest.raises(CorruptRecordError, match="4 bytes of data, expected 8"):
        record_data(block, "name", 0, 0)


@pytest.mark.parametrize("length", [100, 2**40, 2**64 - 1])
def test_a_length_past_the_end_is_refused_before_it_is_believed(length):
    """The CRC of the length is valid, so only the size of the file shows the damage."""
    content = framed([b"sound"]) + frame_header(length) + bytes(50)
    with pytest.raises(CorruptRecordError, match=f"record 1 .* {length} bytes of data"):
        read(content)


def test_data_that_cannot_be_decoded_is_an_error_with_its_place():
    def decode(data):
        if bytes(data) == RECORDS[2]:
            raise ValueError("not a number")
        return len(data)

    stream = io.BytesIO(b"skipped" + framed(RECORDS))
    stream.seek(7)
    decoded = read_records(stream, "name", decode)
    assert [next(decoded), next(decoded)] == [5, 0]
    offset = 7 + len(framed(RECORDS[:2]))
    with pytest.raises(CorruptRecordError, match=f"^name: record 2 at byte {offset}: not a number"):
        next(decoded)
