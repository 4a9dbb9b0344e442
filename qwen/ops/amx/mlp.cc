// The MLP of a layer and the preceding norm: down(silu(gate(x)) * up(x)) for normalized x. The
// intermediate never leaves the cache: the kernel computes a piece of it for a unit of rows and
// immediately multiplies the piece by `down`.

#include "rows.h"

namespace qwen {
// Computes and packs silu(gate) * up for a panel's 32 columns, one row per call, and prefetches
// memory.
class Gating {
 public:
  // gates: sums of the gate projection, [blocks], then sums of the up projection, [blocks].
  Gating(const float* gates, int64_t rows, int64_t steps, bf16* to)
      : gates_(gates), rows_(rows), steps_(steps), to_(to) {}

  void operator()() {
    ahead_();
    if (row_ < rows_) GateRow();
  }
  void Fetch(Ahead ahead) { ahead_ = ahead; }
  void Finish() {
    while (row_ < rows_) GateRow();
  }

 private:
  void GateRow() {
    const float *first = gates_ + SumsAt(row_, 0), *second = gates_ + SumsAt(row_, 1);
    const int64_t up = rows_ * kPanel;
    StoreRounded(to_ + PackedAt(row_, 0, steps_),
                 _mm512_mul_ps(Silu(_mm512_load_ps(first)), _mm512_load_ps(first + up)),
                 _mm512_mul_ps(Silu(_mm512_load_ps(second)), _mm512_load_ps(second + up)));
    ++row_;
  }

  const float* gates_;
  int64_t rows_, steps_, row_ = 0;
  bf16* to_;
  Ahead ahead_{nullptr, 0, 1};
};

// x, out: [R, L, H]; scale: [H]; gate, up: tiled [H, I]; down: tiled [I, H].
ffi::Error Mlp(ffi::ThreadPool pool, Array<3> x, Array<1> scale, Array<3> gate, Array<3> up,
               Array<3> down, ffi::Result<ffi::AnyBuffer> out, Epsilon epsilon) {
  const int64_t hidden = x.dimensions()[2], wide = gate.dimensions()[0] * kPanel;
  QWEN_CHECK(HasShape(scale, {hidden}));
  QWEN_CHECK(IsTiled(gate, hidden, wide) && IsTiled(up, hidden, wide));
  QWEN_CHECK(IsTiled(down, wide, hidden));
  QWEN_CHECK(Stream::Fits(x, *out));
  const Pieces depth(hidden), width(wide);
  const int64_t panel_size = depth.steps * kStep;
  const Stream stream(Data(x), *out);
  const int64_t row_bytes = hidden * (sizeof(bf16) + sizeof(float));
  return ParallelRows(pool, x.dimensions()[0] * x.dimensions()[1], BlocksOfUnit(row_bytes),
                      [&](int64_t first, int64_t rows) {
    const int64_t blocks = BlocksOf(rows), packed_rows = blocks * kPanel;
    bf16* left = Scratch<bf16, 0>(packed_rows * (hidden + Pieces::kMost * kTileDepth));
    float* sums = Scratch<float, 1>(packed_rows * (hidden + 4 * kPanel));
    if (!left || !sums) return false;
    bf16* gated = left + packed_rows * hidden;
    float* gates[2] = {sums + packed_rows * hidden, sums + packed_rows * (hidden + 2 * kPanel)};
    PackNormalized(Data(x) + first * hidden, rows, hidden, Data(scale), *epsilon, left);
    for (int64_t piece = 0; piece < width.count; ++piece) {
      const int64_t steps = width.size(piece);
      Gating gating(nullptr, 0, steps, gated);
      for (int64_t step = 0; step < steps; ++step) {
        const int64_t panel = (width.begin(piece) + step) * panel_size;
        float* sums_of_panel = gates[step % 2];
        gating.Fetch(Ahead(Data(up) + panel, panel_size, depth.steps * blocks));
        MultiplyPanel(left, blocks, depth, Data(gate) + panel, sums_of_panel, gating);
        gating.Fetch(Ahead(Data(gate) + panel + panel_size, panel_size, depth.steps * blocks));
        MultiplyPanel(left, blocks, depth, Data(up) + panel, sums_of_panel + packed_rows * kPanel,
                      gating);
        gating.Finish();
        gating = Gating(sums_of_panel, packed_rows, steps, gated + step * kStep);
      }
      gating.Finish();
      MultiplyPiece(gated, steps * kStep, blocks, width, piece, Data(down), hidden / kPanel, sums);
    }
    stream.Store(sums, first, rows, hidden);
    return true;
  });
}

}  // namespace qwen

XLA_FFI_DEFINE_HANDLER_SYMBOL(QwenAmxMlp, qwen::Mlp);
