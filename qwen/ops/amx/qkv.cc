// Queries, keys and values of a layer: norm, product, bias and RoPE.

#include "rows.h"
#include "tiles.h"
#include "vectors.h"

namespace qwen {
namespace {

using Angles = ffi::Buffer<ffi::F32>;

// Where the heads of one kind go: row r's to data + r * stride.
struct Heads {
  bf16* data;
  int64_t stride;
};

ffi::Error Qkv(ffi::ThreadPool pool, Tensor x, Tensor scale, Tensor kernel, Tensor bias,
               Angles cosines, Angles sines, ffi::ResultBuffer<ffi::BF16> query,
               ffi::ResultBuffer<ffi::BF16> key, ffi::ResultBuffer<ffi::BF16> value,
               float epsilon) {
  const int64_t hidden = scale.element_count();
  const int64_t groups = bias.dimensions()[1] - 2, size = bias.dimensions()[2];
  const int64_t heads = bias.dimensions()[0] * (groups + 2), half = size / 2;
  const int64_t panels = size / kPanel, width = bias.dimensions()[0] * size;
  const Pieces depth(hidden);
  ParallelRows(pool, x.element_count() / hidden, BlocksOfUnit(hidden * sizeof(bf16)),
               [&](int64_t first, int64_t rows) {
    const int64_t blocks = BlocksOf(rows), panel_sums = blocks * kBlock;
    bf16* left = Scratch<bf16, 0>(blocks * kPanel * hidden);
    float* sums = Scratch<float, 1>(panels * panel_sums);
    PackNormalised(Data(x) + first * hidden, rows, hidden, Data(scale), epsilon, left);
    for (int64_t head = 0; head < heads; ++head) {
      for (int64_t panel = 0; panel < panels; ++panel) {
        const bf16* columns = Data(kernel) + (head * panels + panel) * depth.steps * kStep;
        Ahead ahead(columns + depth.steps * kStep, depth.steps * kStep, depth.steps * blocks);
        MultiplyPanel(left, blocks, depth, columns, sums + panel * panel_sums, ahead);
      }
      const int64_t kv = head / (groups + 2), role = head % (groups + 2);
      const Heads to = role < groups
                           ? Heads{Data(query) + (kv * groups + role) * size, width * groups}
                           : Heads{Data(role == groups ? key : value) + kv * size, width};
      const bf16* biases = Data(bias) + head * size;
      const auto biased = [&](int64_t row, int64_t i) {
        const float* at = sums + i / kPanel * panel_sums + SumsAt(row, i % kPanel / 16);
        return _mm512_add_ps(_mm512_load_ps(at), Widen(biases + i));
      };
      for (int64_t row = 0; row < rows; ++row) {
        bf16* out = to.data + (first + row) * to.stride;
        if (role > groups) {
          for (int64_t i = 0; i < size; i += 32)
            StoreRounded(out + i, biased(row, i), biased(row, i + 16));
          continue;
        }
        for (int64_t i = 0; i < half; i += 32) {
          __m512 rotated[2][2];
          for (int64_t part = 0; part < 2; ++part) {
            const int64_t at = i + part * 16, angle = (first + row) * half + at;
            const __m512 low = biased(row, at), high = biased(row, half + at);
            const __m512 cosine = _mm512_loadu_ps(cosines.typed_data() + angle);
            const __m512 sine = _mm512_loadu_ps(sines.typed_data() + angle);
            rotated[0][part] = _mm512_fmsub_ps(low, cosine, _mm512_mul_ps(high, sine));
            rotated[1][part] = _mm512_fmadd_ps(high, cosine, _mm512_mul_ps(low, sine));
          }
          StoreRounded(out + i, rotated[0][0], rotated[0][1]);
          StoreRounded(out + half + i, rotated[1][0], rotated[1][1]);
        }
      }
    }
  });
  return ffi::Error::Success();
}

}  // namespace
}  // namespace qwen

XLA_FFI_DEFINE_HANDLER_SYMBOL(QwenAmxQkv, qwen::Qkv,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::BF16>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::BF16>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::BF16>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::BF16>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::BF16>>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::BF16>>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::BF16>>()
                                  .Attr<float>("epsilon"));
