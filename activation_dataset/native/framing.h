#ifndef ACTIVATION_DATASET_NATIVE_FRAMING_H_
#define ACTIVATION_DATASET_NATIVE_FRAMING_H_

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace activation_dataset {

// crc32c_extend of Google's crc32c: the CRC of all before, bytes that follow, how many.
using Extend = uint32_t (*)(uint32_t, const uint8_t*, size_t);

// How TFRecord frames a record's data (tensorflow/core/lib/io/record_writer.h): its length, the CRC
// of that, the data, the CRC of that; little-endian, as are all processors of this library.
constexpr int64_t kLengthBytes = 8, kCrcBytes = 4, kHeaderBytes = kLengthBytes + kCrcBytes;

// The form in which it stores a CRC.
inline uint32_t Masked(uint32_t crc) { return (crc >> 15 | crc << 17) + 0xA282EAD8; }

// Whether the CRC behind some bytes is theirs.
inline bool CrcMatches(Extend extend, const uint8_t* bytes, int64_t count) {
  const uint32_t masked = Masked(extend(0, bytes, count));
  return !std::memcmp(bytes + count, &masked, kCrcBytes);
}

}  // namespace activation_dataset

#endif  // ACTIVATION_DATASET_NATIVE_FRAMING_H_
