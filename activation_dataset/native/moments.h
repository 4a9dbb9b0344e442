#ifndef ACTIVATION_DATASET_NATIVE_MOMENTS_H_
#define ACTIVATION_DATASET_NATIVE_MOMENTS_H_

#include <cstdint>

// Of blocks [blocks, rows, hidden], 1 <= rows <= 128, of float32 or, if `bfloat16`, of its bits,
// until the first of which the norm of a row is outside the limits. Returns how many were done.
//   mean, variance  [blocks, hidden]
//   squares         [blocks, rows], the squared norms
extern "C" int64_t Moments(const void* block, int64_t bfloat16, int64_t blocks, int64_t rows,
                           int64_t hidden, float least_square, float largest_square,
                           double cancellation, double* mean, double* variance, float* squares);

#endif  // ACTIVATION_DATASET_NATIVE_MOMENTS_H_
