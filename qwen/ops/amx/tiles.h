// Matrix products on the tile registers (AMX) of Intel CPUs.
//
// A tile holds 16 rows of 64 bytes. Products take bfloat16 and accumulate in float32, 32 x 32 at a
// time. Operands and sums are packed so that every tile is 1 KB of consecutive memory:
//   left   [rows / 32][depth / 32][2] tiles of 16 rows x 32 columns
//   right  [columns / 32][depth / 32][2] tiles of 16 row pairs x 16 columns x 2
//   sums   [rows / 32][2][2] tiles of 16 rows x 16 columns
// A panel is 32 columns of a right matrix; a block is 32 rows of a left matrix or of sums.
// (Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18.)

#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <functional>

#include "arrays.h"
#include "threads.h"

namespace qwen {

constexpr int64_t kTileRows = 16;
constexpr int64_t kTileDepth = 32;
constexpr int64_t kTile = kTileRows * kTileDepth;
constexpr int64_t kPanel = 32;               // columns of a panel, rows of a block
constexpr int64_t kBlock = kPanel * kPanel;  // sums of a block
constexpr int64_t kStep = 2 * kTile;         // elements of a panel or a block per 32 of depth

inline int64_t BlocksOf(int64_t rows) { return (rows + kPanel - 1) / kPanel; }

// Distributes rows over threads in units of at most `most` blocks. Calls work(first row, number of
// rows) for each unit.
inline ffi::Error ParallelRows(ffi::ThreadPool& pool, int64_t rows, int64_t most,
                               const std::function<bool(int64_t, int64_t)>& work) {
  const int64_t threads = std::max<int64_t>(1, pool.num_threads()), blocks = BlocksOf(rows);
  const int64_t rounds = (blocks + most * threads - 1) / (most * threads);
  const int64_t unit = (blocks + rounds * threads - 1) / (rounds * threads) * kPanel;
  return Parallel(pool, (rows + unit - 1) / unit, [=, &work](int64_t index) {
    return work(index * unit, std::min(unit, rows - index * unit));
  });
}

// Packs 32 x 32 numbers of a row-major matrix as right tiles. Rows are `stride` elements apart.
inline void PackRight(const bf16* from, int64_t stride, bf16* to) {
  alignas(64) uint16_t first[32], second[32];
  for (int i = 0; i < 16; ++i) {
    first[2 * i] = i, first[2 * i + 1] = 32 + i;
    second[2 * i] = 16 + i, second[2 * i + 1] = 48 + i;
  }
  const __m512i first_columns = _mm512_load_si512(first);
  const __m512i second_columns = _mm512_load_si512(second);
  for (int64_t k = 0; k < kTileDepth; k += 2, from += 2 * stride, to += 32) {
    const __m512i even = _mm512_loadu_si512(from), odd = _mm512_loadu_si512(from + stride);
    _mm512_storeu_si512(to, _mm512_permutex2var_epi16(even, first_columns, odd));
    _mm512_storeu_si512(to + kTile, _mm512_permutex2var_epi16(even, second_columns, odd));
  }
}

// Prefetches memory into the second-level cache, one part per call.
class Ahead {
 public:
  Ahead(const bf16* from, int64_t size, int64_t calls)
      : at_(from), lines_((size + calls * 32 - 1) / (calls * 32)) {}
  void operator()() {
    for (int64_t line = 0; line < lines_; ++line, at_ += 32) _mm_prefetch(at_, _MM_HINT_T1);
  }

 private:
  const bf16* at_;
  int64_t lines_;
};

// Multiplies blocks of packed rows, `stride` apart, by a part of a panel with depth `steps` * 32.
// If kAdd, adds the products to the existing sums. Tile operations occupy only a part of a core, so
// the loop stores a block's sums while the next block begins, and calls meanwhile() at each step.
template <bool kAdd, typename Meanwhile>
inline void Multiply(const bf16* left, int64_t stride, int64_t blocks, const bf16* right,
                     int64_t steps, float* sums, Meanwhile& meanwhile) {
#define QWEN_NEXT_SUMS(tile)                                        \
  if (block > 0) _tile_stored(tile, sums + tile * 256 - kBlock, 64); \
  if constexpr (kAdd) {                                              \
    _tile_loadd(tile, sums + tile * 256, 64);                        \
  } else {                                                           \
    _tile_zero(tile);                                                \
  }
  for (int64_t block = 0; block < blocks; ++block, sums += kBlock) {
    const bf16 *rows = left + block * stride, *columns = right;
    _tile_loadd(4, rows, 64);
    _tile_loadd(6, columns, 64);
    QWEN_NEXT_SUMS(0)
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, columns + kTile, 64);
    QWEN_NEXT_SUMS(1)
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, rows + kTile, 64);
    QWEN_NEXT_SUMS(2)
    _tile_dpbf16ps(2, 5, 6);
    QWEN_NEXT_SUMS(3)
    _tile_dpbf16ps(3, 5, 7);
    meanwhile();
    for (int64_t step = 1; step < steps; ++step) {
      rows += kStep, columns += kStep;
      _tile_loadd(4, rows, 64);
      _tile_loadd(6, columns, 64);
      _tile_loadd(7, columns + kTile, 64);
      _tile_loadd(5, rows + kTile, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
      meanwhile();
    }
  }
#undef QWEN_NEXT_SUMS
  sums -= kBlock;
  _tile_stored(0, sums, 64);
  _tile_stored(1, sums + 256, 64);
  _tile_stored(2, sums + 512, 64);
  _tile_stored(3, sums + 768, 64);
}

// A depth split into pieces. A piece of a panel stays in the first-level cache while the same piece
// of the rows streams through the cache. Sizes are in steps of 32.
struct Pieces {
  explicit Pieces(int64_t depth) : steps(depth / kTileDepth), count((steps + kMost - 1) / kMost) {}
  int64_t begin(int64_t piece) const { return steps * piece / count; }
  int64_t size(int64_t piece) const { return begin(piece + 1) - begin(piece); }

  static constexpr int64_t kMost = 10;
  const int64_t steps, count;
};

// Multiplies blocks of packed rows by a panel. sums: [blocks].
template <typename Meanwhile>
inline void MultiplyPanel(const bf16* left, int64_t blocks, const Pieces& pieces,
                          const bf16* panel, float* sums, Meanwhile& meanwhile) {
  for (int64_t piece = 0; piece < pieces.count; ++piece) {
    const int64_t from = pieces.begin(piece) * kStep, stride = pieces.steps * kStep;
    const auto multiply = piece > 0 ? Multiply<true, Meanwhile> : Multiply<false, Meanwhile>;
    multiply(left + from, stride, blocks, panel + from, pieces.size(piece), sums, meanwhile);
  }
}

// Multiplies blocks of packed rows, `stride` apart, which contain a piece of the depth, by the same
// piece of all panels of a matrix. sums: [panels][blocks]; every piece except the first adds to
// existing sums.
inline void MultiplyPiece(const bf16* left, int64_t stride, int64_t blocks, const Pieces& pieces,
                          int64_t piece, const bf16* panels, int64_t count, float* sums) {
  const int64_t size = pieces.size(piece);
  const auto multiply = piece > 0 ? Multiply<true, Ahead> : Multiply<false, Ahead>;
  for (int64_t panel = 0; panel < count; ++panel) {
    const bf16* right = panels + (panel * pieces.steps + pieces.begin(piece)) * kStep;
    Ahead ahead(right + pieces.steps * kStep, size * kStep, size * blocks);
    multiply(left, stride, blocks, right, size, sums + panel * blocks * kBlock, ahead);
  }
}

// Returns the offset of 16 columns of a row in sums.
inline int64_t SumsAt(int64_t row, int64_t columns) {
  return row / kPanel * kBlock + row / kTileRows % 2 * kBlock / 2 + columns * kBlock / 4 +
         row % kTileRows * 16;
}

// Returns the offset of 32 columns of a row in packed rows that have `steps` steps.
inline int64_t PackedAt(int64_t row, int64_t step, int64_t steps) {
  return (row / kPanel * steps + step) * kStep + row % kPanel * kTileDepth;
}

}  // namespace qwen
