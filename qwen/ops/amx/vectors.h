// Vectors of 16 numbers: what is computed between the products.

#ifndef QWEN2_KERNELS_AMX_VECTORS_H_
#define QWEN2_KERNELS_AMX_VECTORS_H_

#include <immintrin.h>

#include <cmath>
#include <cstdint>

namespace qwen {

// Rounds 32 numbers to the nearest bfloat16, ties to even.
inline void StoreRounded(uint16_t* to, __m512 first, __m512 second) {
  _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh(second, first));
}

// 16 bfloat16 numbers.
inline __m512 Widen(const uint16_t* from) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

// 1 / sqrt(mean(row * row) + epsilon), of a multiple of 16 numbers.
inline float InverseNorm(const uint16_t* row, int64_t size, float epsilon) {
  __m512 squares = _mm512_setzero_ps();
  for (int64_t i = 0; i < size; i += 16) {
    const __m512 x = Widen(row + i);
    squares = _mm512_fmadd_ps(x, x, squares);
  }
  return 1.0f / std::sqrt(_mm512_reduce_add_ps(squares) / static_cast<float>(size) + epsilon);
}

}  // namespace qwen

#endif  // QWEN2_KERNELS_AMX_VECTORS_H_
