// Conversion of row-major activations to packed rows, and of sums to row-major activations.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "arrays.h"
#include "tiles.h"
#include "vectors.h"

namespace qwen {

// Bytes of rows per unit of work, which leave a quarter of the second-level cache for other data.
constexpr int64_t kUnitBytes = 3 << 19;

// Returns the maximum number of blocks per unit for rows of `row_bytes` bytes.
inline int64_t BlocksOfUnit(int64_t row_bytes) {
  return std::clamp<int64_t>(kUnitBytes / row_bytes / kPanel, 1, 8);
}

// Pads the last block of packed rows with zeros.
inline void PadRows(int64_t rows, int64_t steps, bf16* to) {
  for (int64_t row = rows; row < BlocksOf(rows) * kPanel; ++row)
    for (int64_t step = 0; step < steps; ++step)
      std::memset(to + PackedAt(row, step, steps), 0, kTileDepth * sizeof(bf16));
}

inline void PackRows(const bf16* from, int64_t rows, int64_t depth, bf16* to) {
  const int64_t steps = depth / kTileDepth;
  for (int64_t row = 0; row < rows; ++row, from += depth)
    for (int64_t step = 0; step < steps; ++step)
      _mm512_store_si512(to + PackedAt(row, step, steps),
                         _mm512_loadu_si512(from + step * kTileDepth));
  PadRows(rows, steps, to);
}

// Packs rows and applies RMSNorm: row / sqrt(mean(row * row) + epsilon) * scale.
inline void PackNormalized(const bf16* from, int64_t rows, int64_t depth, const bf16* scale,
                           float epsilon, bf16* to) {
  const int64_t steps = depth / kTileDepth;
  for (int64_t row = 0; row < rows; ++row, from += depth) {
    const __m512 inverse = _mm512_set1_ps(InverseNorm(from, depth, epsilon));
    const auto normalized = [&](int64_t i) {
      return _mm512_mul_ps(_mm512_mul_ps(Widen(from + i), inverse), Widen(scale + i));
    };
    for (int64_t step = 0; step < steps; ++step)
      StoreRounded(to + PackedAt(row, step, steps), normalized(step * kTileDepth),
                   normalized(step * kTileDepth + 16));
  }
  PadRows(rows, steps, to);
}

// The result of a kernel, [rows, columns]. A bfloat16 result is the residual stream plus the
// update; a float32 result is the update alone.
class Stream {
 public:
  Stream(const bf16* before, ffi::AnyBuffer& out)
      : before_(before), out_(out.untyped_data()),
        added_(out.element_type() == ffi::DataType::BF16) {}

  // Returns true if a result has the shape of the residual stream and one of the two types.
  static bool Fits(const Array<3>& before, const ffi::AnyBuffer& out) {
    const auto type = out.element_type();
    return (type == ffi::DataType::BF16 || type == ffi::DataType::F32) &&
           HasShape(out, {before.dimensions()[0], before.dimensions()[1], before.dimensions()[2]});
  }

  // Stores `rows` rows, starting at row `first`. sums: sums of the update, [columns / 32][blocks].
  void Store(const float* sums, int64_t first, int64_t rows, int64_t columns) const {
    const int64_t blocks = BlocksOf(rows);
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t panel = 0; panel < columns / kPanel; ++panel) {
        const float* of_panel = sums + panel * blocks * kBlock;
        const __m512 left = _mm512_load_ps(of_panel + SumsAt(row, 0));
        const __m512 right = _mm512_load_ps(of_panel + SumsAt(row, 1));
        const int64_t at = (first + row) * columns + panel * kPanel;
        if (added_) {
          StoreRounded(static_cast<bf16*>(out_) + at, _mm512_add_ps(Widen(before_ + at), left),
                       _mm512_add_ps(Widen(before_ + at + 16), right));
        } else {
          _mm512_storeu_ps(static_cast<float*>(out_) + at, left);
          _mm512_storeu_ps(static_cast<float*>(out_) + at + 16, right);
        }
      }
  }

 private:
  const bf16* before_;
  void* out_;
  const bool added_;
};

}  // namespace qwen
