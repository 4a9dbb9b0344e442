// down(silu(gate(x)) * up(x)), without its wide intermediate ever leaving the cache.

#include "tiles.h"

namespace qwen2 {
namespace {

namespace ffi = xla::ffi;
using Matrix = ffi::Buffer<ffi::BF16>;

constexpr int64_t kRows = 128;  // at a time: their intermediate fits into the second-level cache

__m512 Silu(__m512 x) {
  const __m512 decay = Exp(_mm512_sub_ps(_mm512_setzero_ps(), x));
  return _mm512_div_ps(x, _mm512_add_ps(_mm512_set1_ps(1.0f), decay));
}

// 32 x 32 of silu(gate) * up, as two left tiles, `stride` apart.
void StoreGated(const float* gate, const float* up, bf16* to, int64_t stride) {
  for (int64_t row = 0; row < kPanel; ++row, gate += kPanel, up += kPanel)
    StoreRounded(to + row / kTileRows * stride + row % kTileRows * kTileDepth,
                 _mm512_mul_ps(Silu(_mm512_load_ps(gate)), _mm512_load_ps(up)),
                 _mm512_mul_ps(Silu(_mm512_load_ps(gate + 16)), _mm512_load_ps(up + 16)));
}

ffi::Error Mlp(ffi::ThreadPool pool, Matrix x, Matrix gate, Matrix up, Matrix down,
               ffi::ResultBuffer<ffi::F32> out) {
  const int64_t hidden = gate.dimensions()[0], wide = gate.dimensions()[1];
  const int64_t rows = x.element_count() / hidden;
  const int64_t wide_panels = wide / kPanel;
  const auto* from = reinterpret_cast<const bf16*>(x.typed_data());
  float* to = out->typed_data();
  bf16* gates = Scratch<bf16, 0>(3 * hidden * wide + hidden * kPanel);
  bf16 *ups = gates + hidden * wide, *downs = ups + hidden * wide;
  PackMatrix(pool, reinterpret_cast<const bf16*>(gate.typed_data()), hidden, wide, gates);
  PackMatrix(pool, reinterpret_cast<const bf16*>(up.typed_data()), hidden, wide, ups);
  PackMatrix(pool, reinterpret_cast<const bf16*>(down.typed_data()), wide, hidden, downs);
  Parallel(pool, (rows + kRows - 1) / kRows, [&](int64_t unit) {
    const int64_t first = unit * kRows, count = std::min(kRows, rows - first);
    bf16* left = Scratch<bf16, 1>(kRows * (hidden + wide));
    bf16* gated = left + kRows * hidden;
    float* gate_sums = Scratch<float, 2>(3 * kRows * kPanel);
    float *up_sums = gate_sums + kRows * kPanel, *partial = up_sums + kRows * kPanel;
    const int64_t gated_stride = wide / kTileDepth * kTile;
    PackRows(from + first * hidden, count, hidden, left);
    for (int64_t panel = 0; panel < wide_panels; ++panel) {
      const bf16 *gate_panel = gates + panel * kPanel * hidden;
      const bf16 *up_panel = ups + panel * kPanel * hidden;
      MultiplyPanel(left, count, hidden, gate_panel, gate_sums, gate_panel + kPanel * hidden,
                    kPanel, [&](int64_t m) { return gate_sums + m * kPanel; });
      MultiplyPanel(left, count, hidden, up_panel, up_sums, up_panel + kPanel * hidden, kPanel,
                    [&](int64_t m) { return up_sums + m * kPanel; });
      for (int64_t m = 0; m < count; m += kPanel)
        StoreGated(gate_sums + m * kPanel, up_sums + m * kPanel,
                   gated + m / kTileRows * gated_stride + panel * kTile, gated_stride);
    }
    for (int64_t panel = 0; panel < hidden / kPanel; ++panel) {
      const bf16* down_panel = downs + panel * kPanel * wide;
      MultiplyPanel(gated, count, wide, down_panel, partial, down_panel + kPanel * wide, hidden,
                    [&](int64_t m) { return to + (first + m) * hidden + panel * kPanel; });
    }
  });
  return ffi::Error::Success();
}

}  // namespace
}  // namespace qwen2

XLA_FFI_DEFINE_HANDLER_SYMBOL(Qwen2AmxMlp, qwen2::Mlp,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::BF16>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::BF16>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::BF16>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::BF16>>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::F32>>());
