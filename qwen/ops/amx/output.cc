// The output projection of attention.

#include "rows.h"
#include "tiles.h"

namespace qwen {
namespace {

ffi::Error Output(ffi::ThreadPool pool, Tensor attended, Tensor kernel, Tensor x,
                  ffi::Result<ffi::AnyBuffer> out) {
  const int64_t panels = kernel.dimensions()[0], hidden = panels * kPanel;
  const Pieces width(kernel.dimensions()[1] * kTileDepth);
  const int64_t columns = width.steps * kTileDepth;
  const Stream stream(Data(x), *out);
  const int64_t row_bytes = hidden * sizeof(float) + columns * sizeof(bf16);
  ParallelRows(pool, x.element_count() / hidden, BlocksOfUnit(row_bytes),
               [&](int64_t first, int64_t rows) {
    const int64_t blocks = BlocksOf(rows);
    bf16* left = Scratch<bf16, 0>(blocks * kPanel * columns);
    float* sums = Scratch<float, 1>(blocks * kPanel * hidden);
    PackRows(Data(attended) + first * columns, rows, columns, left);
    for (int64_t piece = 0; piece < width.count; ++piece)
      MultiplyPiece(left + width.begin(piece) * kStep, width.steps * kStep, blocks, width, piece,
                    Data(kernel), panels, sums);
    stream.Store(sums, first, rows, hidden);
  });
  return ffi::Error::Success();
}

}  // namespace
}  // namespace qwen

XLA_FFI_DEFINE_HANDLER_SYMBOL(QwenAmxOutput, qwen::Output,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::BF16>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::BF16>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::BF16>>()
                                  .Ret<xla::ffi::AnyBuffer>());
