// Rows from a file into memory, with their checksum, while they are in a core's cache.

#include <algorithm>
#include <cstdint>

#include "file.h"
#include "framing.h"
#include "scatter.h"

// Reads `count` rows of `row_bytes` that lie one behind the other in a file, from `offset` on.
//   crc      CRC32C of what comes before
//   scratch  [piece_rows, row_bytes]
//   places   [count] the rows of `out` that they go to; null for the first `count`
// Returns the CRC32C that includes them, or a negative number as Fill.
extern "C" int64_t ReadRows(activation_dataset::Extend extend, int64_t crc,
                            int64_t file, int64_t offset, int64_t count, int64_t row_bytes,
                            char* scratch, int64_t piece_rows, const int64_t* places, char* out) {
  for (int64_t row = 0; row < count; row += piece_rows) {
    const int64_t rows = std::min(piece_rows, count - row), bytes = rows * row_bytes;
    char* piece = places ? scratch : out + row * row_bytes;
    const int64_t failed =
        activation_dataset::Fill(file, offset + row * row_bytes, piece, bytes);
    if (failed) return failed;
    crc = extend(crc, reinterpret_cast<const uint8_t*>(piece), bytes);
    if (places) Scatter(piece, row_bytes, places + row, rows, out);
  }
  return crc;
}
