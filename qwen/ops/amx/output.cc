// The output projection of attention.

#include "rows.h"

namespace qwen {

// attended: [R, L, K, G, D]; kernel: tiled [K * G * D, H]; x, out: [R, L, H].
ffi::Error Output(ffi::ThreadPool pool, Array<5> attended, Array<3> kernel, Array<3> x,
                  ffi::Result<ffi::AnyBuffer> out) {
  const auto sizes = attended.dimensions();
  const int64_t columns = sizes[2] * sizes[3] * sizes[4], hidden = x.dimensions()[2];
  QWEN_CHECK(IsTiled(kernel, columns, hidden));
  QWEN_CHECK(x.dimensions()[0] == sizes[0] && x.dimensions()[1] == sizes[1]);
  QWEN_CHECK(Stream::Fits(x, *out));
  const int64_t panels = hidden / kPanel;
  const Pieces width(columns);
  const Stream stream(Data(x), *out);
  const int64_t row_bytes = hidden * sizeof(float) + columns * sizeof(bf16);
  return ParallelRows(pool, sizes[0] * sizes[1], BlocksOfUnit(row_bytes),
                      [&](int64_t first, int64_t rows) {
    const int64_t blocks = BlocksOf(rows);
    bf16* left = Scratch<bf16, 0>(blocks * kPanel * columns);
    float* sums = Scratch<float, 1>(blocks * kPanel * hidden);
    if (!left || !sums) return false;
    PackRows(Data(attended) + first * columns, rows, columns, left);
    for (int64_t piece = 0; piece < width.count; ++piece)
      MultiplyPiece(left + width.begin(piece) * kStep, width.steps * kStep, blocks, width, piece,
                    Data(kernel), panels, sums);
    stream.Store(sums, first, rows, hidden);
    return true;
  });
}

}  // namespace qwen

XLA_FFI_DEFINE_HANDLER_SYMBOL(QwenAmxOutput, qwen::Output);
