// Causal grouped-query attention over rows that hold several samples, with a running softmax
// (Dao, FlashAttention-2, https://arxiv.org/abs/2307.08691): scores never leave the cache.

#include <cmath>
#include <limits>

#include "../exponential.h"
#include "products.h"

namespace qwen2 {
namespace {

namespace ffi = xla::ffi;
using Vectors = ffi::Buffer<ffi::F32>;

constexpr int64_t kKeys = kDepth;  // whose scores are held at a time
constexpr int64_t kQueries = 48;   // of each head, in one unit of work

// 64 keys x kHead dimensions, `stride` from key to key, transposed: a block of a right panel.
template <int64_t kHead>
void PackTransposed(const float* keys, int64_t stride, float* to) {
  for (int64_t d = 0; d < kHead; ++d)
    for (int64_t key = 0; key < kPanel; ++key) to[d * kPanel + key] = keys[key * stride + d];
}

// The queries of a head in consecutive slots, and what they have seen so far.
template <int64_t kHead>
class Queries {
 public:
  // query: `stride` apart; positions: in their samples; slot: of the first of them in its row.
  void Begin(const float* query, int64_t stride, const int32_t* positions, int64_t slot,
             int64_t count) {
    slot_ = slot, count_ = count;
    const __m512 scale = _mm512_set1_ps(1.0f / std::sqrt(float{kHead}));
    for (int64_t i = 0; i < count; ++i) {
      first_[i] = slot + i - positions[i];
      top_[i] = -std::numeric_limits<float>::infinity(), total_[i] = 0.0f;
      for (int64_t d = 0; d < kHead; d += kLine)
        _mm512_store_ps(query_[i] + d,
                        _mm512_mul_ps(_mm512_loadu_ps(query + i * stride + d), scale));
    }
    std::memset(sums_, 0, sizeof(sums_));
  }

  // Attends to the keys from ... from + count - 1. keys: [count / 64][kHead][64]; values: panels of
  // [count][64], `panel_stride` apart.
  void Attend(const float* keys, const float* values, int64_t panel_stride, int64_t from,
              int64_t count) {
    for (int64_t key = 0; key < count; key += kPanel)
      for (int64_t i = 0; i < count_; i += kTileRows) {
        const int64_t rows = std::min(kTileRows, count_ - i);
        if (slot_ + i + rows <= from + key) continue;
        MultiplyTile(rows, query_[i], keys + key * kHead, kHead,
                     {nullptr, 0, scores_[i] + key, kKeys});
      }
    for (int64_t i = 0; i < count_; ++i)
      Weigh(i, std::max<int64_t>(0, first_[i] - from), std::min(count, slot_ + i + 1 - from));
    for (int64_t panel = 0; panel < kHead / kPanel; ++panel)
      for (int64_t i = 0; i < count_; i += kTileRows) {
        const int64_t rows = std::min(kTileRows, count_ - i);
        const int64_t seen = std::min(count, slot_ + i + rows - from);
        if (seen <= 0) continue;
        float* sums = sums_[i] + panel * kPanel;
        MultiplyTile(rows, scores_[i], values + panel * panel_stride, seen,
                     {sums, kHead, sums, kHead});
      }
  }

  // Stores the results, `stride` apart.
  void Store(float* to, int64_t stride) const {
    for (int64_t i = 0; i < count_; ++i) {
      const __m512 total = _mm512_set1_ps(total_[i]);
      for (int64_t d = 0; d < kHead; d += kLine)
        _mm512_storeu_ps(to + i * stride + d, _mm512_div_ps(_mm512_load_ps(sums_[i] + d), total));
    }
  }

 private:
  // Turns a query's scores of the keys first ... end - 1 into weights, all others into 0, and
  // rescales what it has summed.
  void Weigh(int64_t query, int64_t first, int64_t end) {
    float* scores = scores_[query];
    if (first >= end) {
      std::memset(scores, 0, kKeys * sizeof(float));
      return;
    }
    __m512 most = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
    for (int64_t key = first / kLine * kLine; key < end; key += kLine)
      most = _mm512_mask_max_ps(most, Visible(key, first, end), most,
                                _mm512_load_ps(scores + key));
    const float top = std::max(top_[query], _mm512_reduce_max_ps(most));
    const __m512 tops = _mm512_set1_ps(top);
    __m512 total = _mm512_setzero_ps();
    for (int64_t key = 0; key < kKeys; key += kLine) {
      const __mmask16 visible = Visible(key, first, end);
      __m512 weights = _mm512_setzero_ps();
      if (visible != 0)
        weights = _mm512_maskz_mov_ps(
            visible, Exp(_mm512_sub_ps(_mm512_load_ps(scores + key), tops)));
      total = _mm512_add_ps(total, weights);
      _mm512_store_ps(scores + key, weights);
    }
    const float decay = std::exp(top_[query] - top);
    total_[query] = total_[query] * decay + _mm512_reduce_add_ps(total);
    if (top == top_[query]) return;
    top_[query] = top;
    for (int64_t d = 0; d < kHead; d += kLine)
      _mm512_store_ps(sums_[query] + d, _mm512_mul_ps(_mm512_load_ps(sums_[query] + d),
                                                      _mm512_set1_ps(decay)));
  }

  // Which of the 16 keys from `key` on are among first ... end - 1.
  static __mmask16 Visible(int64_t key, int64_t first, int64_t end) {
    const int64_t from = std::clamp<int64_t>(first - key, 0, kLine);
    const int64_t to = std::clamp<int64_t>(end - key, 0, kLine);
    return static_cast<__mmask16>((1u << to) - 1) & static_cast<__mmask16>(~((1u << from) - 1));
  }

  int64_t slot_, count_;
  int64_t first_[kQueries];
  float top_[kQueries], total_[kQueries];
  alignas(64) float query_[kQueries][kDepth];
  alignas(64) float scores_[kQueries][kKeys];
  alignas(64) float sums_[kQueries][kHead];
};

struct Shape {
  int64_t rows, length, heads, groups;
};

template <int64_t kHead>
void Attend(ffi::ThreadPool& pool, const Shape& shape, const float* query, const float* key,
            const float* value, const int32_t* positions, float* out) {
  const auto [rows, length, heads, groups] = shape;
  const int64_t row_head = length * kHead, stride = heads * groups * kHead;
  float* keys = Scratch<float, 2>(2 * rows * heads * row_head);
  float* values = keys + rows * heads * row_head;
  Parallel(pool, rows * heads, [&](int64_t unit) {
    const int64_t row = unit / heads, head = unit % heads;
    const int64_t from = (row * length * heads + head) * kHead, to = unit * row_head;
    for (int64_t slot = 0; slot < length; slot += kPanel)
      PackTransposed<kHead>(key + from + slot * heads * kHead, heads * kHead,
                            keys + to + slot * kHead);
    for (int64_t panel = 0; panel < kHead; panel += kPanel)
      for (int64_t slot = 0; slot < length; ++slot)
        std::memcpy(values + to + panel * length + slot * kPanel,
                    value + from + slot * heads * kHead + panel, kPanel * sizeof(float));
  });
  const int64_t parts = (length + kQueries - 1) / kQueries;
  Parallel(pool, rows * heads * parts, [&](int64_t unit) {
    const int64_t row = unit / parts / heads, head = unit / parts % heads;
    const int64_t slot = (parts - 1 - unit % parts) * kQueries;  // what sees most comes first
    const int64_t count = std::min(kQueries, length - slot);
    const int64_t packed = (row * heads + head) * row_head;
    const int32_t* places = positions + row * length + slot;
    auto* queries = Scratch<Queries<kHead>, 3>(groups);
    const auto at = [&](int64_t group) {
      return (row * length + slot) * stride + (head * groups + group) * kHead;
    };
    for (int64_t group = 0; group < groups; ++group)
      queries[group].Begin(query + at(group), stride, places, slot, count);
    int64_t first = slot;
    for (int64_t i = 0; i < count; ++i) first = std::min(first, slot + i - places[i]);
    const int64_t end = (slot + count + kPanel - 1) / kPanel * kPanel;
    for (int64_t from = first / kPanel * kPanel; from < end; from += kKeys)
      for (int64_t group = 0; group < groups; ++group)
        queries[group].Attend(keys + packed + from * kHead, values + packed + from * kPanel,
                              length * kPanel, from, std::min(kKeys, end - from));
    for (int64_t group = 0; group < groups; ++group) queries[group].Store(out + at(group), stride);
  });
}

ffi::Error Attention(ffi::ThreadPool pool, Vectors query, Vectors key, Vectors value,
                     ffi::Buffer<ffi::S32> positions, ffi::ResultBuffer<ffi::F32> out) {
  const auto sizes = query.dimensions();
  const Shape shape{sizes[0], sizes[1], sizes[2], sizes[3]};
  const auto attend = sizes[4] == 64 ? Attend<64> : Attend<128>;
  attend(pool, shape, query.typed_data(), key.typed_data(), value.typed_data(),
         positions.typed_data(), out->typed_data());
  return ffi::Error::Success();
}

}  // namespace
}  // namespace qwen2

XLA_FFI_DEFINE_HANDLER_SYMBOL(Qwen2Avx512Attention, qwen2::Attention,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::S32>>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::F32>>());
