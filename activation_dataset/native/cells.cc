// Checking the cells that a shard's prompts show.

#include <cstdint>
#include <cstring>

// Whether all cells in `count` spans of a block are such as prompts.py stores: four 16-bit numbers,
// example (from -1 on), role (0 or 1), row and column (from 0 on), or -1 throughout.
extern "C" int64_t AreCells(const uint8_t* block, const int64_t* starts, const int64_t* ends,
                            int64_t count) {
  // All bits of a role but the lowest, and the signs of row and column.
  constexpr uint64_t kNone = 0x8000'8000'FFFE'0000;
  bool sound = true;
  for (int64_t i = 0; i < count; ++i) {
    uint64_t wrong = 0;
    for (int64_t at = starts[i]; at + 8 <= ends[i]; at += 8) {
      uint64_t cell;
      std::memcpy(&cell, block + at, sizeof cell);
      const uint64_t example = cell & 0xFFFF;
      const uint64_t unusual = (cell & kNone) | (example >= 0x8000 && example != 0xFFFF);
      wrong |= ~cell ? unusual : 0;
    }
    sound &= !wrong;
  }
  return sound;
}
