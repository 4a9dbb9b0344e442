// The right operand of products, packed once for all of them.

#include "tiles.h"

namespace qwen {
namespace {

// [depth, columns] to [columns / 32, depth / 32, 1024].
ffi::Error Pack(ffi::ThreadPool pool, Tensor matrix,
                ffi::ResultBuffer<ffi::BF16> packed) {
  constexpr int64_t kAtATime = 8;
  const int64_t depth = matrix.dimensions()[0], columns = matrix.dimensions()[1];
  const bf16* from = Data(matrix);
  bf16* to = Data(packed);
  const int64_t panels = columns / kPanel;
  Parallel(pool, (panels + kAtATime - 1) / kAtATime, [=](int64_t unit) {
    const int64_t first = unit * kAtATime, count = std::min(kAtATime, panels - first);
    PackPanels(from + first * kPanel, columns, depth, count, to + first * kPanel * depth);
  });
  return ffi::Error::Success();
}

}  // namespace
}  // namespace qwen

XLA_FFI_DEFINE_HANDLER_SYMBOL(QwenAmxPack, qwen::Pack,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::BF16>>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::BF16>>());
