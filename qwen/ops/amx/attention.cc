// Causal grouped-query attention over rows with several samples, with a running softmax
// (Dao, FlashAttention-2, https://arxiv.org/abs/2307.08691): scores never leave the cache.

#include <cmath>
#include <cstring>

#include "tiles.h"
#include "vectors.h"

namespace qwen {
namespace {

constexpr int64_t kKeys = 256;     // number of keys that are scored at a time
constexpr int64_t kQueries = 64;   // number of queries of a head per unit of work
constexpr float kMasked = -1e30f;  // finite, so that no maximum is infinite

// Packs 16 keys x 32 dimensions, `stride` elements apart, as a right tile of their transpose.
void PackTransposed(const bf16* keys, int64_t stride, bf16* tile) {
  auto* to = reinterpret_cast<uint32_t*>(tile);
  for (int64_t key = 0; key < kTileRows; ++key) {
    uint32_t pairs[16];
    std::memcpy(pairs, keys + key * stride, sizeof(pairs));
    for (int64_t pair = 0; pair < 16; ++pair) to[pair * 16 + key] = pairs[pair];
  }
}

// 16 queries of one head. Query i sees the keys first_[i] ... slot_ + i.
template <int64_t kHead>
class QueryTile {
 public:
  // positions: positions of the 16 queries in their samples; slot: slot of the first query.
  QueryTile(const bf16* queries, int64_t stride, const int32_t* positions, int64_t slot)
      : queries_(queries), stride_(stride), slot_(slot) {
    for (int64_t i = 0; i < kTileRows; ++i) {
      first_[i] = std::max<int64_t>(0, slot + i - positions[i]);
      top_[i] = kMasked, total_[i] = 0.0f;
    }
    std::memset(sums_, 0, sizeof(sums_));
  }

  // Attends to all visible keys. keys, values: right tiles of a row, [L / 32][kHead * 32] each.
  void Attend(const bf16* keys, const bf16* values) {
    const int64_t first = *std::min_element(first_, first_ + kTileRows) / kPanel * kPanel;
    const int64_t end = (slot_ + kTileRows + kPanel - 1) / kPanel * kPanel;
    for (int64_t from = first; from < end; from += kKeys) {
      const int64_t count = std::min(kKeys, end - from);
      Score(keys + from * kHead, count);
      for (int64_t i = 0; i < kTileRows; ++i) Weigh(i, first_[i] - from, slot_ + i - from, count);
      Add(values + from * kHead, count);
    }
  }

  // Stores the 16 results, `stride` elements apart.
  void Store(bf16* to, int64_t stride) const {
    for (int64_t i = 0; i < kTileRows; ++i) {
      const __m512 inverse = _mm512_set1_ps(1.0f / total_[i]);
      for (int64_t d = 0; d < kHead; d += 32)
        StoreRounded(to + i * stride + d,
                     _mm512_mul_ps(_mm512_load_ps(sums_[i] + d), inverse),
                     _mm512_mul_ps(_mm512_load_ps(sums_[i] + d + 16), inverse));
    }
  }

 private:
  void Score(const bf16* keys, int64_t count) {
    _tile_loadd(4, queries_, stride_ * 2);
    _tile_loadd(5, queries_ + 32, stride_ * 2);
    if constexpr (kHead == 128) {
      _tile_loadd(6, queries_ + 64, stride_ * 2);
      _tile_loadd(7, queries_ + 96, stride_ * 2);
    }
    for (int64_t key = 0; key < count; key += kTileRows, keys += kTileRows * kHead) {
      _tile_zero(0);
      _tile_loadd(2, keys, 64);
      _tile_loadd(3, keys + kTile, 64);
      _tile_dpbf16ps(0, 4, 2);
      _tile_dpbf16ps(0, 5, 3);
      if constexpr (kHead == 128) {
        _tile_loadd(2, keys + 2 * kTile, 64);
        _tile_loadd(3, keys + 3 * kTile, 64);
        _tile_dpbf16ps(0, 6, 2);
        _tile_dpbf16ps(0, 7, 3);
      }
      _tile_stored(0, scores_[0] + key, kKeys * 4);
    }
  }

  // Converts a query's scores to weights and rescales its sums. Keys first ... last are visible.
  void Weigh(int64_t query, int64_t first, int64_t last, int64_t count) {
    float* scores = scores_[query];
    __m512 most = _mm512_set1_ps(kMasked);
    if (first > 0 || last < count - 1) Mask(scores, first, last, count);
    for (int64_t key = 0; key < count; key += 16)
      most = _mm512_max_ps(most, _mm512_load_ps(scores + key));
    const float scale = 1.0f / std::sqrt(float{kHead});
    const float top = std::max(top_[query], scale * _mm512_reduce_max_ps(most));
    const __m512 scales = _mm512_set1_ps(scale), tops = _mm512_set1_ps(top);
    __m512 total = _mm512_setzero_ps();
    for (int64_t key = 0; key < count; key += 32) {
      const __m512 a = Exp(_mm512_fmsub_ps(_mm512_load_ps(scores + key), scales, tops));
      const __m512 b = Exp(_mm512_fmsub_ps(_mm512_load_ps(scores + key + 16), scales, tops));
      total = _mm512_add_ps(total, _mm512_add_ps(a, b));
      StoreRounded(weights_[query] + key, a, b);
    }
    const float decay = std::exp(top_[query] - top);
    total_[query] = total_[query] * decay + _mm512_reduce_add_ps(total);
    if (top == top_[query]) return;
    top_[query] = top;
    for (int64_t d = 0; d < kHead; d += 16)
      _mm512_store_ps(sums_[query] + d, _mm512_mul_ps(_mm512_load_ps(sums_[query] + d),
                                                      _mm512_set1_ps(decay)));
  }

  static void Mask(float* scores, int64_t first, int64_t last, int64_t count) {
    const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    for (int64_t key = 0; key < count; key += 16) {
      const __m512i keys = _mm512_add_epi32(lanes, _mm512_set1_epi32(static_cast<int>(key)));
      const __mmask16 hidden =
          _mm512_cmplt_epi32_mask(keys, _mm512_set1_epi32(static_cast<int>(first))) |
          _mm512_cmpgt_epi32_mask(keys, _mm512_set1_epi32(static_cast<int>(last)));
      _mm512_mask_store_ps(scores + key, hidden, _mm512_set1_ps(kMasked));
    }
  }

  void Add(const bf16* values, int64_t count) {
    for (int64_t d = 0; d < kHead; d += kPanel) {
      _tile_loadd(0, sums_[0] + d, kHead * 4);
      _tile_loadd(1, sums_[0] + d + 16, kHead * 4);
      for (int64_t key = 0; key < count; key += kTileDepth) {
        _tile_loadd(4, weights_[0] + key, kKeys * 2);
        _tile_loadd(2, values + key * kHead + d * kTileDepth, 64);
        _tile_loadd(3, values + key * kHead + d * kTileDepth + kTile, 64);
        _tile_dpbf16ps(0, 4, 2);
        _tile_dpbf16ps(1, 4, 3);
      }
      _tile_stored(0, sums_[0] + d, kHead * 4);
      _tile_stored(1, sums_[0] + d + 16, kHead * 4);
    }
  }

  const bf16* queries_;
  const int64_t stride_, slot_;
  int64_t first_[kTileRows];
  float top_[kTileRows], total_[kTileRows];
  alignas(64) float sums_[kTileRows][kHead];
  alignas(64) float scores_[kTileRows][kKeys];
  alignas(64) bf16 weights_[kTileRows][kKeys];
};

template <int64_t kHead>
ffi::Error Attend(ffi::ThreadPool& pool, ffi::Span<const int64_t> sizes, const bf16* query,
                  const bf16* key, const bf16* value, const int32_t* positions, bf16* out) {
  const int64_t rows = sizes[0], length = sizes[1], heads = sizes[2], groups = sizes[3];
  const int64_t row_head = length * kHead, stride = heads * groups * kHead;
  bf16* keys = Scratch<bf16, 3>(2 * rows * heads * row_head);
  if (!keys) return NoMemory();
  bf16* values = keys + rows * heads * row_head;
  ffi::Error packed = Parallel(pool, rows * heads, [&](int64_t unit) {
    const int64_t row = unit / heads, head = unit % heads;
    const int64_t from = (row * length * heads + head) * kHead, to = unit * row_head;
    for (int64_t slot = 0; slot < length; slot += kTileRows)
      for (int64_t d = 0; d < kHead; d += kTileDepth)
        PackTransposed(key + from + slot * heads * kHead + d, heads * kHead,
                       keys + to + slot * kHead + d * kTileRows);
    for (int64_t slot = 0; slot < length; slot += kTileDepth)
      for (int64_t d = 0; d < kHead; d += kPanel)
        PackRight(value + from + slot * heads * kHead + d, heads * kHead,
                  values + to + slot * kHead + d * kTileDepth);
    return true;
  });
  if (packed.failure()) return packed;
  const int64_t parts = length / kQueries;
  return Parallel(pool, rows * heads * parts, [&](int64_t unit) {
    const int64_t row = unit / parts / heads, head = unit / parts % heads;
    const int64_t part = parts - 1 - unit % parts;  // longest units first
    const int64_t row_tiles = (row * heads + head) * row_head;
    for (int64_t slot = part * kQueries; slot < (part + 1) * kQueries; slot += kTileRows)
      for (int64_t group = 0; group < groups; ++group) {
        const int64_t at = (row * length + slot) * stride + (head * groups + group) * kHead;
        QueryTile<kHead> tile(query + at, stride, positions + row * length + slot, slot);
        tile.Attend(keys + row_tiles, values + row_tiles);
        tile.Store(out + at, stride);
      }
    return true;
  });
}

}  // namespace

// query, out: [R, L, K, G, D]; key, value: [R, L, K, D]; positions: [R, L], the position of each
// token in its sample.
ffi::Error Attention(ffi::ThreadPool pool, Array<5> query, Array<4> key, Array<4> value,
                     ffi::Buffer<ffi::S32, 2> positions, Result<5> out) {
  const auto sizes = query.dimensions();
  const int64_t rows = sizes[0], length = sizes[1], heads = sizes[2], size = sizes[4];
  QWEN_CHECK(length % kQueries == 0 && (size == 64 || size == 128));
  QWEN_CHECK(HasShape(key, {rows, length, heads, size}));
  QWEN_CHECK(HasShape(value, {rows, length, heads, size}));
  QWEN_CHECK(HasShape(positions, {rows, length}));
  QWEN_CHECK(HasShape(*out, {rows, length, heads, sizes[3], size}));
  const auto attend = size == 64 ? Attend<64> : Attend<128>;
  return attend(pool, sizes, Data(query), Data(key), Data(value), positions.typed_data(),
                Data(*out));
}

}  // namespace qwen

XLA_FFI_DEFINE_HANDLER_SYMBOL(QwenAmxAttention, qwen::Attention);
