// Stored elements, eight at a time, as float32.

#ifndef ACTIVATION_DATASET_NATIVE_ELEMENTS_H_
#define ACTIVATION_DATASET_NATIVE_ELEMENTS_H_

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace activation_dataset {

constexpr int64_t kLanes = 8;

inline __m256 Load(const float* from) { return _mm256_loadu_ps(from); }

// Widens bfloat16.
inline __m256 Load(const uint16_t* from) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}

inline float LoadOne(const float* from) { return *from; }

inline float LoadOne(const uint16_t* from) {
  const uint32_t bits = uint32_t{*from} << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace activation_dataset

#endif  // ACTIVATION_DATASET_NATIVE_ELEMENTS_H_
