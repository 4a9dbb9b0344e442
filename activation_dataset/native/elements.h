// Stored elements, eight at a time, in the compiler's own vectors.

#ifndef ACTIVATION_DATASET_NATIVE_ELEMENTS_H_
#define ACTIVATION_DATASET_NATIVE_ELEMENTS_H_

#include <cstdint>
#include <cstring>

namespace activation_dataset {

constexpr int64_t kLanes = 8;
typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));
typedef uint16_t HalfWords __attribute__((vector_size(2 * kLanes)));

inline Floats Load(const float* from) {
  Floats values;
  std::memcpy(&values, from, sizeof values);
  return values;
}

// Widens bfloat16.
inline Floats Load(const uint16_t* from) {
  HalfWords bits;
  std::memcpy(&bits, from, sizeof bits);
  return reinterpret_cast<Floats>(__builtin_convertvector(bits, Words) << 16);
}

inline float LoadOne(const float* from) { return *from; }

inline float LoadOne(const uint16_t* from) {
  const uint32_t bits = uint32_t{*from} << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline void Store(Floats values, float* to) { std::memcpy(to, &values, sizeof values); }

}  // namespace activation_dataset

#endif  // ACTIVATION_DATASET_NATIVE_ELEMENTS_H_
