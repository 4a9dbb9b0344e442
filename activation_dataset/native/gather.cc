// Rows into places all over a window, and from there into a batch, converted on the way.

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "elements.h"
#include "scatter.h"

namespace activation_dataset {
namespace {

constexpr int64_t kAhead = 6;  // rows asked for before they are needed
constexpr int64_t kLine = 64;  // bytes of a cache's line

void Fetch(const void* row, int64_t bytes) {
  const char* from = static_cast<const char*>(row);
  for (int64_t line = 0; line < bytes; line += kLine) _mm_prefetch(from + line, _MM_HINT_T0);
}

template <typename Element>
void ToFloat32(const Element* from, int64_t count, bool scaled, float factor, float* to) {
  const __m256 factors = _mm256_set1_ps(factor);
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const __m256 values = Load(from + i);
    _mm256_storeu_ps(to + i, scaled ? _mm256_mul_ps(values, factors) : values);
  }
  for (; i < count; ++i) {
    const float value = LoadOne(from + i);
    to[i] = scaled ? value * factor : value;
  }
}

// Calls `convert(row, out)` for each chosen row, or for all in order if none are chosen.
template <typename Element, typename Convert>
void ForRows(const Element* stored, int64_t hidden, const int64_t* chosen, int64_t count, char* out,
             int64_t out_stride, Convert convert) {
  for (int64_t i = 0; i < count; ++i) {
    if (chosen && i + kAhead < count)
      Fetch(stored + chosen[i + kAhead] * hidden, hidden * sizeof(Element));
    convert(stored + (chosen ? chosen[i] : i) * hidden, out + i * out_stride);
  }
}

constexpr int64_t kStream = sizeof(__m256i);

// Writes to memory, past the caches; both sizes and the target are multiples of kStream.
void Stream(const char* from, int64_t bytes, char* to) {
  for (int64_t i = 0; i < bytes; i += kStream)
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to + i),
                        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i)));
}

}  // namespace
}  // namespace activation_dataset

extern "C" void Scatter(const char* stored, int64_t row_bytes, const int64_t* places, int64_t count,
                        char* out) {
  using namespace activation_dataset;
  // Rows that are needed much later would push from the caches what is needed soon.
  const bool stream = row_bytes % kStream == 0 && reinterpret_cast<uintptr_t>(out) % kStream == 0;
  for (int64_t i = 0; i < count; ++i) {
    const char* from = stored + i * row_bytes;
    char* to = out + places[i] * row_bytes;
    if (stream)
      Stream(from, row_bytes, to);
    else
      std::memcpy(to, from, row_bytes);
  }
  _mm_sfence();
}

// Rows of [n, hidden] float32 or, if `bfloat16`, of its bits.
//   chosen  [count] which rows; null for the first `count`
//   out     [count, hidden], rows `out_stride` bytes apart; float32 if `widen`, else as stored
//   factor  multiplies what is float32; 1 leaves every bit
extern "C" void Gather(const void* stored, int64_t bfloat16, int64_t hidden, const int64_t* chosen,
                       int64_t count, void* out, int64_t out_stride, int64_t widen, float factor) {
  using namespace activation_dataset;
  const bool scaled = factor != 1;
  char* to = static_cast<char*>(out);
  if (!bfloat16 && scaled) {
    ForRows(static_cast<const float*>(stored), hidden, chosen, count, to, out_stride,
            [=](const float* row, char* into) {
              ToFloat32(row, hidden, true, factor, reinterpret_cast<float*>(into));
            });
  } else if (!bfloat16) {
    ForRows(static_cast<const float*>(stored), hidden, chosen, count, to, out_stride,
            [=](const float* row, char* into) { std::memcpy(into, row, hidden * sizeof *row); });
  } else if (widen) {
    ForRows(static_cast<const uint16_t*>(stored), hidden, chosen, count, to, out_stride,
            [=](const uint16_t* row, char* into) {
              ToFloat32(row, hidden, scaled, factor, reinterpret_cast<float*>(into));
            });
  } else {
    ForRows(static_cast<const uint16_t*>(stored), hidden, chosen, count, to, out_stride,
            [=](const uint16_t* row, char* into) {
              std::memcpy(into, row, hidden * sizeof *row);
            });
  }
}
