// down(silu(gate(x)) * up(x)), without its wide intermediate ever leaving the cache.

#include "../exponential.h"
#include "products.h"

namespace qwen2 {
namespace {

namespace ffi = xla::ffi;
using Matrix = ffi::Buffer<ffi::F32>;

constexpr int64_t kRows = 192;         // at a time
constexpr int64_t kHalf = kPanel / 2;  // columns of gate, and of up, in one panel

// The weights as every unit of work reads them, from the first to the last: for each 128 columns
// of the intermediate the panels of gate and up, then those of their part of down.
struct Weights {
  const float *gate, *up, *down;  // row-major
  int64_t hidden, wide;

  int64_t Size() const { return 3 * hidden * wide; }

  void PackBlock(int64_t first, float* to) const {
    const int64_t width = std::min(kDepth, wide - first);
    to += 3 * hidden * first;
    for (int64_t k = 0; k < hidden; ++k)
      for (int64_t column = 0; column < width; column += kHalf) {
        float* pair = to + column * 2 * hidden + k * kPanel;
        std::memcpy(pair, gate + k * wide + first + column, kHalf * sizeof(float));
        std::memcpy(pair + kHalf, up + k * wide + first + column, kHalf * sizeof(float));
      }
    to += 2 * hidden * width;
    for (int64_t k = 0; k < width; ++k)
      for (int64_t column = 0; column < hidden; column += kPanel)
        std::memcpy(to + column * width + k * kPanel, down + (first + k) * hidden + column,
                    kPanel * sizeof(float));
  }
};

// silu(gate) * up of rows that hold 32 of each, as packed rows.
void StoreGated(const float* sums, int64_t rows, float* to) {
  for (int64_t row = 0; row < rows; ++row, sums += kPanel, to += kDepth)
    for (int64_t i = 0; i < kHalf; i += kLine)
      _mm512_store_ps(to + i, _mm512_mul_ps(Silu(_mm512_load_ps(sums + i)),
                                            _mm512_load_ps(sums + kHalf + i)));
}

ffi::Error Mlp(ffi::ThreadPool pool, Matrix x, Matrix gate, Matrix up, Matrix down,
               ffi::ResultBuffer<ffi::F32> out) {
  const int64_t hidden = gate.dimensions()[0], wide = gate.dimensions()[1];
  const int64_t rows = x.element_count() / hidden;
  const float* from = x.typed_data();
  float* to = out->typed_data();
  const Weights weights{gate.typed_data(), up.typed_data(), down.typed_data(), hidden, wide};
  float* packed = Scratch<float, 0>(weights.Size() + kDepth * kPanel);
  const int64_t blocks = (wide + kDepth - 1) / kDepth;
  Parallel(pool, blocks, [&](int64_t unit) { weights.PackBlock(unit * kDepth, packed); });
  Parallel(pool, (rows + kRows - 1) / kRows, [&](int64_t unit) {
    const int64_t first = unit * kRows, count = std::min(kRows, rows - first);
    const int64_t depth_blocks = (hidden + kDepth - 1) / kDepth;
    float* left = Scratch<float, 1>(kRows * (depth_blocks * kDepth + hidden + kPanel + kDepth));
    float* sums = left + kRows * depth_blocks * kDepth;  // of down: [hidden / 64][count][64]
    float *both = sums + kRows * hidden, *gated = both + kRows * kPanel;
    PackRows(from + first * hidden, count, hidden, left);
    const float* right = packed;
    for (int64_t column = 0; column < wide; column += kDepth) {
      const int64_t width = std::min(kDepth, wide - column);
      for (int64_t half = 0; half < width; half += kHalf) {
        for (int64_t k = 0; k < hidden; k += kDepth) {
          const int64_t depth = std::min(kDepth, hidden - k);
          const float* block = right;
          right += depth * kPanel;
          MultiplyBlock(left + k * count, count, block, depth,
                        {k == 0 ? nullptr : both, kPanel, both, kPanel}, right);
        }
        StoreGated(both, count, gated + half);
      }
      const bool last = column + width == wide;
      for (int64_t panel = 0; panel < hidden; panel += kPanel) {
        float* sum = sums + panel * count;
        const float* block = right;
        right += width * kPanel;
        MultiplyBlock(gated, count, block, width,
                      {column == 0 ? nullptr : sum, kPanel,
                       last ? to + first * hidden + panel : sum, last ? hidden : kPanel},
                      right);
      }
    }
  });
  return ffi::Error::Success();
}

}  // namespace
}  // namespace qwen2

XLA_FFI_DEFINE_HANDLER_SYMBOL(Qwen2Avx512Mlp, qwen2::Mlp,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::F32>>());
