// Checksums of many spans of a block in one call.

#include <cstdint>

#include "framing.h"

//   crcs    [count] of block[starts[i]] to block[ends[i] - 1]
extern "C" void CrcsOfSpans(activation_dataset::Extend extend, const uint8_t* block,
                            const int64_t* starts, const int64_t* ends, int64_t count,
                            int64_t* crcs) {
  for (int64_t i = 0; i < count; ++i) crcs[i] = extend(0, block + starts[i], ends[i] - starts[i]);
}
