// The product of activations with a matrix of weights.

#include "products.h"

namespace qwen2 {
namespace {

namespace ffi = xla::ffi;
using Matrix = ffi::Buffer<ffi::F32>;

constexpr int64_t kRows = 96;  // at a time

ffi::Error Product(ffi::ThreadPool pool, Matrix x, Matrix weights,
                   ffi::ResultBuffer<ffi::F32> out) {
  const int64_t depth = weights.dimensions()[0], columns = weights.dimensions()[1];
  const int64_t rows = x.element_count() / depth;
  const float *from = x.typed_data(), *matrix = weights.typed_data();
  float* to = out->typed_data();
  float* packed = Scratch<float, 0>(depth * columns + kDepth * kPanel);
  Parallel(pool, (depth + kDepth - 1) / kDepth, [&](int64_t unit) {
    const int64_t end = std::min(depth, (unit + 1) * kDepth);
    for (int64_t k = unit * kDepth; k < end; ++k)
      for (int64_t column = 0; column < columns; column += kPanel)
        std::memcpy(packed + column * depth + k * kPanel, matrix + k * columns + column,
                    kPanel * sizeof(float));
  });
  Parallel(pool, (rows + kRows - 1) / kRows, [&](int64_t unit) {
    const int64_t first = unit * kRows, count = std::min(kRows, rows - first);
    const int64_t blocks = (depth + kDepth - 1) / kDepth;
    float* left = Scratch<float, 1>(kRows * (blocks * kDepth + kPanel));
    float* sums = left + kRows * blocks * kDepth;
    PackRows(from + first * depth, count, depth, left);
    const float* right = packed;
    for (int64_t column = 0; column < columns; column += kPanel)
      for (int64_t k = 0; k < depth; k += kDepth) {
        const int64_t share = std::min(kDepth, depth - k);
        const bool last = k + share == depth;
        const float* block = right;
        right += share * kPanel;
        MultiplyBlock(left + k * count, count, block, share,
                      {k == 0 ? nullptr : sums, kPanel,
                       last ? to + first * columns + column : sums, last ? columns : kPanel},
                      right);
      }
  });
  return ffi::Error::Success();
}

}  // namespace
}  // namespace qwen2

XLA_FFI_DEFINE_HANDLER_SYMBOL(Qwen2Avx512Product, qwen2::Product,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::F32>>());
