// Matrix products on the tile registers (AMX) of Intel processors.
//
// A tile holds 16 rows of 64 bytes. Products take bfloat16 and accumulate in float32. Operands are
// packed so that every tile is 1 KB of consecutive memory:
//   left   [rows / 16][depth / 32] tiles of 16 rows x 32 columns
//   right  [columns / 32] panels of [depth / 32][2] tiles of 16 row pairs x 16 columns x 2
// (Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18.)

#ifndef QWEN2_KERNELS_AMX_TILES_H_
#define QWEN2_KERNELS_AMX_TILES_H_

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <functional>

#include "../threads.h"
#include "xla/ffi/api/ffi.h"

namespace qwen2 {

using bf16 = uint16_t;

constexpr int64_t kTileRows = 16;
constexpr int64_t kTileDepth = 32;
constexpr int64_t kTile = kTileRows * kTileDepth;
constexpr int64_t kPanel = 32;  // columns of a panel, and rows that meet it at a time
constexpr int64_t kBlock = kPanel * kPanel;

// The tile registers of a thread, configured while this object lives.
class TileRegisters {
 public:
  TileRegisters() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    _tile_loadconfig(&config);
  }
  ~TileRegisters() { _tile_release(); }
};

// Runs work(0) ... work(count - 1) on XLA's threads and on this one, each with its tile registers.
inline void Parallel(xla::ffi::ThreadPool& pool, int64_t count,
                     const std::function<void(int64_t)>& work) {
  ParallelWith<TileRegisters>(pool, count, work);
}

// Packs `panels` times 32 columns of a row-major matrix, from `from` on. Several at a time, because
// memory is read fastest where what follows in a row is wanted too.
inline void PackPanels(const bf16* from, int64_t row_stride, int64_t depth, int64_t panels,
                       bf16* to) {
  alignas(64) uint16_t first[32], second[32];
  for (int i = 0; i < 16; ++i) {
    first[2 * i] = i, first[2 * i + 1] = 32 + i;
    second[2 * i] = 16 + i, second[2 * i + 1] = 48 + i;
  }
  const __m512i first_columns = _mm512_load_si512(first);
  const __m512i second_columns = _mm512_load_si512(second);
  for (int64_t k = 0; k < depth; k += 2)
    for (int64_t panel = 0; panel < panels; ++panel) {
      const bf16* columns = from + k * row_stride + panel * kPanel;
      const __m512i even = _mm512_loadu_si512(columns);
      const __m512i odd = _mm512_loadu_si512(columns + row_stride);
      bf16* pairs = to + panel * kPanel * depth + k / kTileDepth * 2 * kTile + k % kTileDepth * 16;
      _mm512_store_si512(pairs, _mm512_permutex2var_epi16(even, first_columns, odd));
      _mm512_store_si512(pairs + kTile, _mm512_permutex2var_epi16(even, second_columns, odd));
    }
}

// Packs a row-major matrix [depth, columns] as panels.
inline void PackMatrix(xla::ffi::ThreadPool& pool, const bf16* from, int64_t depth,
                       int64_t columns, bf16* to) {
  constexpr int64_t kAtATime = 8;
  const int64_t panels = columns / kPanel;
  Parallel(pool, (panels + kAtATime - 1) / kAtATime, [=](int64_t unit) {
    const int64_t first = unit * kAtATime, count = std::min(kAtATime, panels - first);
    PackPanels(from + first * kPanel, columns, depth, count, to + first * kPanel * depth);
  });
}

// Packs rows of a row-major matrix as left tiles.
inline void PackRows(const bf16* from, int64_t rows, int64_t depth, bf16* tiles) {
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t k = 0; k < depth; k += kTileDepth)
      _mm512_store_si512(
          tiles + (row / kTileRows * (depth / kTileDepth) + k / kTileDepth) * kTile +
              row % kTileRows * kTileDepth,
          _mm512_loadu_si512(from + row * depth + k));
}

// Products of packed rows with one panel: to(m) gives where rows m ... m + 31 go, `stride` floats
// from row to row. `partial` holds rows * 32 floats. `next` is fetched meanwhile: the next panel.
template <typename To>
inline void MultiplyPanel(const bf16* left, int64_t rows, int64_t depth, const bf16* panel,
                          float* partial, const bf16* next, int64_t stride, To to) {
  constexpr int64_t kDepth = 256;  // as much of a panel as stays in the first-level cache
  const int64_t row_tiles = depth / kTileDepth * kTile;  // from one 16 rows to the next
  const int64_t share = depth * kPanel / (rows / kPanel) / (depth / kTileDepth);
  for (int64_t begin = 0; begin < depth; begin += kDepth) {
    const int64_t end = std::min(begin + kDepth, depth);
    for (int64_t m = 0; m < rows; m += kPanel) {
      float* sums = partial + m * kPanel;
      if (begin == 0) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
      } else {
        _tile_loadd(0, sums, kPanel * 4);
        _tile_loadd(1, sums + 16, kPanel * 4);
        _tile_loadd(2, sums + 16 * kPanel, kPanel * 4);
        _tile_loadd(3, sums + 16 * kPanel + 16, kPanel * 4);
      }
      const bf16* upper = left + m / kTileRows * row_tiles;
      for (int64_t k = begin; k < end; k += kTileDepth) {
        const bf16* right = panel + k * kPanel;
        _tile_loadd(4, upper + k * kTileRows, 64);
        _tile_loadd(6, right, 64);
        _tile_loadd(7, right + kTile, 64);
        _tile_loadd(5, upper + row_tiles + k * kTileRows, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
        const bf16* ahead = next + (m / kPanel * (depth / kTileDepth) + k / kTileDepth) * share;
        for (int64_t i = 0; i < share; i += 32) _mm_prefetch(ahead + i, _MM_HINT_T1);
      }
      float* target = end == depth ? to(m) : sums;
      const int64_t bytes = (end == depth ? stride : kPanel) * 4;
      _tile_stored(0, target, bytes);
      _tile_stored(1, target + 16, bytes);
      _tile_stored(2, target + bytes * 4, bytes);
      _tile_stored(3, target + bytes * 4 + 16, bytes);
    }
  }
}

// exp(x) to a relative 2^-22; 0 far below. Cephes' polynomial (https://www.netlib.org/cephes/).
inline __m512 Exp(__m512 x) {
  x = _mm512_max_ps(_mm512_min_ps(x, _mm512_set1_ps(88.0f)), _mm512_set1_ps(-104.0f));
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(1.9875691500e-4f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
  p = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
  return _mm512_scalef_ps(p, n);
}

// Rounds 32 numbers to the nearest bfloat16, ties to even.
inline void StoreRounded(bf16* to, __m512 first, __m512 second) {
  _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh(second, first));
}

}  // namespace qwen2

#endif  // QWEN2_KERNELS_AMX_TILES_H_
