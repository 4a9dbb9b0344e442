// Counting varints: numbers in groups of seven bits, of which all bytes but the last have the highest
// bit (protobuf.dev/programming-guides/encoding).

#include <immintrin.h>

#include <cstdint>

namespace {

constexpr int64_t kBytes = sizeof(__m256i);
constexpr uint32_t kMore = 0x80;  // in a byte that is not a varint's last

// Where the bytes of a varint have `more`, whether they end in four of them or in a last one of 0.
struct Checked {
  uint32_t before = 0;  // the bits `more` of the three bytes before, in the highest places
  bool sound = true;

  void Add(uint32_t more, uint32_t zero) {
    const auto back = [&](int places) { return more << places | before >> (32 - places); };
    sound &= !(more & back(1) & back(2) & back(3)) && !(zero & back(1));
    before = more;
  }
};

}  // namespace

// How many varints lie in each of `count` spans that follow each other, given their ends.
// Returns 0 if any is not whole, not of at most 4 bytes or not the shortest for its number, or if a
// span is empty; then `counts` are of no use.
extern "C" int64_t CountVarints(const uint8_t* packed, const int64_t* ends, int64_t count,
                                int64_t* counts) {
  Checked checked;
  int64_t at = 0;
  for (int64_t span = 0; span < count; ++span) {
    const int64_t end = ends[span];
    if (end <= at || packed[end - 1] & kMore) return 0;
    int64_t found = 0;
    for (; at + kBytes <= end; at += kBytes) {
      const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(packed + at));
      const uint32_t more = _mm256_movemask_epi8(bytes);
      checked.Add(more, _mm256_movemask_epi8(_mm256_cmpeq_epi8(bytes, _mm256_setzero_si256())));
      found += kBytes - __builtin_popcount(more);
    }
    uint32_t more = 0, zero = 0;
    const int64_t rest = end - at;
    for (int64_t i = 0; i < rest; ++i) {
      more |= uint32_t{(packed[at + i] & kMore) != 0} << i;
      zero |= uint32_t{packed[at + i] == 0} << i;
    }
    if (rest) checked.Add(more, zero);
    found += rest - __builtin_popcount(more);
    counts[span] = found;
    at = end;
    checked.before = 0;  // the span's last byte has not `more`
  }
  return checked.sound;
}
