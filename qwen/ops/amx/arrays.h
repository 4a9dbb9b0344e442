// Kernel arguments and their checks, which kernels run before any memory access.

#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>

#include "xla/ffi/api/ffi.h"

namespace qwen {

namespace ffi = xla::ffi;

using bf16 = uint16_t;

template <size_t kRank>
using Array = ffi::Buffer<ffi::BF16, kRank>;
template <size_t kRank>
using Result = ffi::ResultBuffer<ffi::BF16, kRank>;

template <size_t kRank>
bf16* Data(const Array<kRank>& array) {
  return reinterpret_cast<bf16*>(array.typed_data());
}

template <typename Buffer>
bool HasShape(const Buffer& array, std::initializer_list<int64_t> shape) {
  const auto found = array.dimensions();
  return std::equal(found.begin(), found.end(), shape.begin(), shape.end());
}

// Returns true if a kernel [depth, columns] is tiled as tiles.h describes.
inline bool IsTiled(const Array<3>& kernel, int64_t depth, int64_t columns) {
  return depth % 32 == 0 && columns % 32 == 0 &&
         HasShape(kernel, {columns / 32, depth / 32, 1024});
}

// Returns an error from a kernel whose arguments have inconsistent shapes.
#define QWEN_CHECK(condition)                                                               \
  if (!(condition))                                                                         \
    return ::xla::ffi::Error::InvalidArgument("AMX kernel called with wrong shapes, needs " \
                                              #condition)

// The epsilon attribute of a norm.
inline constexpr char kEpsilon[] = "epsilon";
using Epsilon = ffi::Attr<float, kEpsilon>;

}  // namespace qwen

// Lets `BindTo` accept a thread pool in a kernel's signature.
template <>
struct xla::ffi::CtxBinding<xla::ffi::ThreadPool> {
  using Ctx = ThreadPool;
};
