// Queries, keys and values of a layer: norm, product, bias and RoPE.

#include "rows.h"

namespace qwen {

// Destination of the heads of one kind: row r is stored at data + r * stride.
struct Heads {
  bf16* data;
  int64_t stride;
};

// x: [R, L, H]; scale: [H]; kernel: tiled [H, K * (G + 2) * D]; bias: [K, G + 2, D];
// cosines, sines: [R, L, D / 2]; query: [R, L, K, G, D]; key, value: [R, L, K, D].
ffi::Error Qkv(ffi::ThreadPool pool, Array<3> x, Array<1> scale, Array<3> kernel, Array<3> bias,
               ffi::Buffer<ffi::F32, 3> cosines, ffi::Buffer<ffi::F32, 3> sines, Result<5> query,
               Result<4> key, Result<4> value, Epsilon epsilon) {
  const int64_t row_count = x.dimensions()[0], length = x.dimensions()[1];
  const int64_t hidden = x.dimensions()[2], kv_heads = bias.dimensions()[0];
  const int64_t groups = bias.dimensions()[1] - 2, size = bias.dimensions()[2];
  const int64_t heads = kv_heads * (groups + 2), half = size / 2;
  QWEN_CHECK(groups > 0 && size % 64 == 0);
  QWEN_CHECK(HasShape(scale, {hidden}) && IsTiled(kernel, hidden, heads * size));
  QWEN_CHECK(HasShape(cosines, {row_count, length, half}));
  QWEN_CHECK(HasShape(sines, {row_count, length, half}));
  QWEN_CHECK(HasShape(*query, {row_count, length, kv_heads, groups, size}));
  QWEN_CHECK(HasShape(*key, {row_count, length, kv_heads, size}));
  QWEN_CHECK(HasShape(*value, {row_count, length, kv_heads, size}));
  const int64_t panels = size / kPanel, width = kv_heads * size;
  const Pieces depth(hidden);
  return ParallelRows(pool, row_count * length, BlocksOfUnit(hidden * sizeof(bf16)),
                      [&](int64_t first, int64_t rows) {
    const int64_t blocks = BlocksOf(rows), panel_sums = blocks * kBlock;
    bf16* left = Scratch<bf16, 0>(blocks * kPanel * hidden);
    float* sums = Scratch<float, 1>(panels * panel_sums);
    if (!left || !sums) return false;
    PackNormalized(Data(x) + first * hidden, rows, hidden, Data(scale), *epsilon, left);
    for (int64_t head = 0; head < heads; ++head) {
      for (int64_t panel = 0; panel < panels; ++panel) {
        const bf16* columns = Data(kernel) + (head * panels + panel) * depth.steps * kStep;
        Ahead ahead(columns + depth.steps * kStep, depth.steps * kStep, depth.steps * blocks);
        MultiplyPanel(left, blocks, depth, columns, sums + panel * panel_sums, ahead);
      }
      const int64_t kv = head / (groups + 2), role = head % (groups + 2);
      const Heads to = role < groups
                           ? Heads{Data(*query) + (kv * groups + role) * size, width * groups}
                           : Heads{Data(role == groups ? *key : *value) + kv * size, width};
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
    return true;
  });
}

}  // namespace qwen

XLA_FFI_DEFINE_HANDLER_SYMBOL(QwenAmxQkv, qwen::Qkv);
