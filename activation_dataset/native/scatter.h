#ifndef ACTIVATION_DATASET_NATIVE_SCATTER_H_
#define ACTIVATION_DATASET_NATIVE_SCATTER_H_

#include <cstdint>

// Rows of `row_bytes`, one behind the other, into the rows `places` [count] of [n, row_bytes].
extern "C" void Scatter(const char* stored, int64_t row_bytes, const int64_t* places, int64_t count,
                        char* out);

#endif  // ACTIVATION_DATASET_NATIVE_SCATTER_H_
