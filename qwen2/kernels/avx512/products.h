// Matrix products in float32 on processors with AVX-512.
//
// A tile of up to 6 rows x 64 columns stays in 24 of the 32 registers while the depth passes by:
// what is loaded then serves the most products. Operands are packed in blocks of 128 of the depth:
//   left   [depth / 128] blocks of [rows][128]; the last one may hold fewer columns
//   right  [columns / 64] panels of [depth][64]
// A block of a panel, 32 KB, stays in the first-level cache while all rows meet it, and the next
// one is fetched meanwhile (Goto and van de Geijn, Anatomy of High-Performance Matrix
// Multiplication, https://doi.org/10.1145/1356052.1356053).

#ifndef QWEN2_KERNELS_AVX512_PRODUCTS_H_
#define QWEN2_KERNELS_AVX512_PRODUCTS_H_

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>

#include "../threads.h"
#include "xla/ffi/api/ffi.h"

namespace qwen2 {

constexpr int64_t kTileRows = 6;
constexpr int64_t kPanel = 64;   // columns of a panel
constexpr int64_t kDepth = 128;  // of a block, and from row to row of packed rows
constexpr int64_t kLine = 16;    // floats of a register, and of a line of the cache

struct NothingHeld {};

// Runs work(0) ... work(count - 1) on XLA's threads and on this one.
inline void Parallel(xla::ffi::ThreadPool& pool, int64_t count,
                     const std::function<void(int64_t)>& work) {
  ParallelWith<NothingHeld>(pool, count, work);
}

// Where the sums of a product begin (at zero if null), and where they go; strides in floats.
struct Sums {
  const float* from;
  int64_t from_stride;
  float* to;
  int64_t to_stride;

  Sums Below(int64_t rows) const {
    return {from ? from + rows * from_stride : nullptr, from_stride, to + rows * to_stride,
            to_stride};
  }
};

// Products of kRows packed rows with a block of a panel. `lines` lines from `ahead` on are fetched
// into the second-level cache meanwhile.
template <int kRows>
inline void MultiplyTile(const float* left, const float* right, int64_t depth, const Sums& sums,
                         const float* ahead, int64_t lines) {
  constexpr int kWide = kPanel / kLine;
  __m512 sum[kRows][kWide];
  if (sums.from == nullptr) {
#pragma GCC unroll 6
    for (int row = 0; row < kRows; ++row)
#pragma GCC unroll 4
      for (int i = 0; i < kWide; ++i) sum[row][i] = _mm512_setzero_ps();
  } else {
#pragma GCC unroll 6
    for (int row = 0; row < kRows; ++row)
#pragma GCC unroll 4
      for (int i = 0; i < kWide; ++i)
        sum[row][i] = _mm512_loadu_ps(sums.from + row * sums.from_stride + i * kLine);
  }
  for (int64_t k = 0; k < depth; ++k) {
    __m512 columns[kWide];
#pragma GCC unroll 4
    for (int i = 0; i < kWide; ++i) columns[i] = _mm512_load_ps(right + k * kPanel + i * kLine);
#pragma GCC unroll 6
    for (int row = 0; row < kRows; ++row) {
      const __m512 value = _mm512_set1_ps(left[row * kDepth + k]);
#pragma GCC unroll 4
      for (int i = 0; i < kWide; ++i) sum[row][i] = _mm512_fmadd_ps(value, columns[i], sum[row][i]);
    }
    if (k < lines) _mm_prefetch(ahead + k * kLine, _MM_HINT_T1);
  }
#pragma GCC unroll 6
  for (int row = 0; row < kRows; ++row)
#pragma GCC unroll 4
    for (int i = 0; i < kWide; ++i)
      _mm512_storeu_ps(sums.to + row * sums.to_stride + i * kLine, sum[row][i]);
}

inline void MultiplyTile(int64_t rows, const float* left, const float* right, int64_t depth,
                         const Sums& sums, const float* ahead = nullptr, int64_t lines = 0) {
  switch (rows) {
    case 6: return MultiplyTile<6>(left, right, depth, sums, ahead, lines);
    case 5: return MultiplyTile<5>(left, right, depth, sums, ahead, lines);
    case 4: return MultiplyTile<4>(left, right, depth, sums, ahead, lines);
    case 3: return MultiplyTile<3>(left, right, depth, sums, ahead, lines);
    case 2: return MultiplyTile<2>(left, right, depth, sums, ahead, lines);
    case 1: return MultiplyTile<1>(left, right, depth, sums, ahead, lines);
  }
}

// Products of packed rows with a block of a panel; `next`, a block of the same size, is fetched.
inline void MultiplyBlock(const float* left, int64_t rows, const float* right, int64_t depth,
                          const Sums& sums, const float* next) {
  const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
  const int64_t lines = (depth * kPanel / kLine + tiles - 1) / tiles;
  for (int64_t row = 0; row < rows; row += kTileRows, next += lines * kLine)
    MultiplyTile(std::min(kTileRows, rows - row), left + row * kDepth, right, depth,
                 sums.Below(row), next, lines);
}

// Packs rows of a row-major matrix.
inline void PackRows(const float* from, int64_t rows, int64_t depth, float* to) {
  for (int64_t k = 0; k < depth; k += kDepth) {
    const size_t bytes = std::min(kDepth, depth - k) * sizeof(float);
    for (int64_t row = 0; row < rows; ++row, to += kDepth)
      std::memcpy(to, from + row * depth + k, bytes);
  }
}

}  // namespace qwen2

#endif  // QWEN2_KERNELS_AVX512_PRODUCTS_H_
