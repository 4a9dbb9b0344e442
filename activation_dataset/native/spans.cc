// Checksums of many spans of a block in one call.

#include <cstddef>
#include <cstdint>

//   extend  crc32c_extend of Google's crc32c: the CRC of all before, bytes that follow, how many
//   crcs    [count] of block[starts[i]] to block[ends[i] - 1]
extern "C" void CrcsOfSpans(uint32_t (*extend)(uint32_t, const uint8_t*, size_t),
                            const uint8_t* block, const int64_t* starts, const int64_t* ends,
                            int64_t count, int64_t* crcs) {
  for (int64_t i = 0; i < count; ++i) crcs[i] = extend(0, block + starts[i], ends[i] - starts[i]);
}
