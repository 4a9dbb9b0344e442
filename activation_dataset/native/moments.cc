// Moments of blocks of vectors in one pass, with the bits of the numpy code in moments.py.
//
// numpy begins every sum with 0. Over the first axis it adds row after row; where it sums numbers
// that lie one behind the other, it does so in pairs: in halves down to 128 of them, and those in
// eight sums side by side (numpy/_core/src/umath/loops_utils.h.src, pairwise_sum).

#include <cstddef>
#include <cstdint>
#include <vector>

#include "elements.h"
#include "moments.h"

namespace activation_dataset {
namespace {

constexpr int64_t kLeaf = 128;   // of a pairwise sum
constexpr int64_t kStrip = 8;    // rows that are taken together

int64_t FirstHalf(int64_t count) {
  const int64_t half = count / 2;
  return half - half % kLanes;
}

template <typename Lanes>
auto SumOfLanes(Lanes r) {
  return ((r[0] + r[1]) + (r[2] + r[3])) + ((r[4] + r[5]) + (r[6] + r[7]));
}

// numpy's sum of `count` of `value(0)`, `value(1)`, ...; at most kLeaf.
template <typename Value>
auto PairwiseLeaf(int64_t count, Value value) {
  decltype(value(0)) sum = 0;
  int64_t i = 0;
  if (count >= kLanes) {
    decltype(value(0)) lanes[kLanes];
    for (; i < kLanes; ++i) lanes[i] = value(i);
    for (; i + kLanes <= count; i += kLanes)
      for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += value(i + lane);
    sum = SumOfLanes(lanes);
  }
  for (; i < count; ++i) sum += value(i);
  return sum;
}

// Sums of a block's columns and of their squares.
struct Columns {
  float* sums;
  float* squares;
};

// Adds columns first to first + count - 1 of some rows to the sums of the columns, one row after
// the other, and puts the sum of each row's squares over these columns into `norms`.
template <int64_t kRows, typename Element>
void AddRows(const Element* rows, int64_t hidden, int64_t first, int64_t count, Columns columns,
             float* norms) {
  if (count > kLeaf) {
    const int64_t half = FirstHalf(count);
    float rest[kRows];
    AddRows<kRows>(rows, hidden, first, half, columns, norms);
    AddRows<kRows>(rows, hidden, first + half, count - half, columns, rest);
    for (int64_t row = 0; row < kRows; ++row) norms[row] += rest[row];
    return;
  }
  const int64_t end = first + count;
  int64_t column = first;
  for (int64_t row = 0; row < kRows; ++row) norms[row] = 0;
  if (count >= kLanes) {
    __m256 lanes[kRows];
    for (int64_t row = 0; row < kRows; ++row) lanes[row] = _mm256_setzero_ps();
    for (; column + kLanes <= end; column += kLanes) {
      __m256 sums = Load(columns.sums + column), squares = Load(columns.squares + column);
      for (int64_t row = 0; row < kRows; ++row) {
        const __m256 values = Load(rows + row * hidden + column);
        const __m256 squared = _mm256_mul_ps(values, values);
        sums = _mm256_add_ps(sums, values);
        squares = _mm256_add_ps(squares, squared);
        lanes[row] = _mm256_add_ps(lanes[row], squared);
      }
      _mm256_storeu_ps(columns.sums + column, sums);
      _mm256_storeu_ps(columns.squares + column, squares);
    }
    for (int64_t row = 0; row < kRows; ++row) norms[row] = SumOfLanes(lanes[row]);
  }
  for (; column < end; ++column) {
    for (int64_t row = 0; row < kRows; ++row) {
      const float value = LoadOne(rows + row * hidden + column), squared = value * value;
      columns.sums[column] += value;
      columns.squares[column] += squared;
      norms[row] += squared;
    }
  }
}

// Columns first to first + kLanes - 1 of a row, in float64.
struct Doubles {
  __m256d low, high;
};

template <typename Element>
Doubles LoadDoubles(const Element* from) {
  const __m256 values = Load(from);
  return {_mm256_cvtps_pd(_mm256_castps256_ps128(values)),
          _mm256_cvtps_pd(_mm256_extractf128_ps(values, 1))};
}

// Means and variances of kLanes columns of a block, in float64 and around the mean.
template <typename Element>
void PreciselyByLanes(const Element* block, int64_t rows, int64_t hidden, double* mean,
                      double* variance) {
  const __m256d count = _mm256_set1_pd(rows), zero = _mm256_setzero_pd();
  Doubles sums{zero, zero}, squares{zero, zero};
  for (int64_t row = 0; row < rows; ++row) {
    const Doubles values = LoadDoubles(block + row * hidden);
    sums.low = _mm256_add_pd(sums.low, values.low);
    sums.high = _mm256_add_pd(sums.high, values.high);
  }
  const Doubles center{_mm256_div_pd(sums.low, count), _mm256_div_pd(sums.high, count)};
  for (int64_t row = 0; row < rows; ++row) {
    const Doubles values = LoadDoubles(block + row * hidden);
    const __m256d low = _mm256_sub_pd(values.low, center.low);
    const __m256d high = _mm256_sub_pd(values.high, center.high);
    squares.low = _mm256_add_pd(squares.low, _mm256_mul_pd(low, low));
    squares.high = _mm256_add_pd(squares.high, _mm256_mul_pd(high, high));
  }
  _mm256_storeu_pd(mean, center.low);
  _mm256_storeu_pd(mean + kLanes / 2, center.high);
  _mm256_storeu_pd(variance, _mm256_div_pd(squares.low, count));
  _mm256_storeu_pd(variance + kLanes / 2, _mm256_div_pd(squares.high, count));
}

// Mean and variance of a column, of which `value(row)` are the elements, as numpy sums numbers that
// lie one behind the other, or else row after row.
template <typename Value>
void PreciselyByOne(int64_t rows, bool in_pairs, Value value, double* mean, double* variance) {
  const auto sum = [&](auto each) {
    if (in_pairs) return PairwiseLeaf(rows, each);
    double total = 0;
    for (int64_t row = 0; row < rows; ++row) total += each(row);
    return total;
  };
  const double center = sum(value) / rows;
  *mean = center;
  *variance = sum([&](int64_t row) {
                const double deviation = value(row) - center;
                return deviation * deviation;
              }) /
              rows;
}

// Means and variances of the chosen columns of a block, in float64 and around the mean.
template <typename Element>
void Precisely(const Element* block, int64_t rows, int64_t hidden,
               const std::vector<int64_t>& chosen, double* mean, double* variance) {
  for (size_t i = 0; i < chosen.size();) {
    const int64_t first = chosen[i];
    if (chosen.size() == 1 || first + kLanes > hidden) {
      const auto value = [&](int64_t row) { return double{LoadOne(block + row * hidden + first)}; };
      PreciselyByOne(rows, chosen.size() == 1, value, mean + first, variance + first);
      ++i;
      continue;
    }
    double means[kLanes], variances[kLanes];
    PreciselyByLanes(block + first, rows, hidden, means, variances);
    for (; i < chosen.size() && chosen[i] < first + kLanes; ++i) {
      mean[chosen[i]] = means[chosen[i] - first];
      variance[chosen[i]] = variances[chosen[i] - first];
    }
  }
}

struct Limits {
  float least_square, largest_square;
  double cancellation;
};

// False if a squared norm is not within the limits; then nothing else is of use.
template <typename Element>
bool MomentsOf(const Element* block, int64_t rows, int64_t hidden, Limits limits, float* sums,
               double* mean, double* variance, float* squares) {
  const Columns columns{sums, sums + hidden};
  for (int64_t column = 0; column < 2 * hidden; ++column) sums[column] = 0;
  int64_t row = 0;
  for (; row + kStrip <= rows; row += kStrip)
    AddRows<kStrip>(block + row * hidden, hidden, 0, hidden, columns, squares + row);
  for (; row < rows; ++row)
    AddRows<1>(block + row * hidden, hidden, 0, hidden, columns, squares + row);
  bool within = true;
  for (row = 0; row < rows; ++row)
    within &= limits.least_square < squares[row] && squares[row] < limits.largest_square;
  if (!within) return false;
  if (hidden == 1) {  // for numpy, numbers that lie one behind the other
    columns.sums[0] = PairwiseLeaf(rows, [&](int64_t each) { return LoadOne(block + each); });
    columns.squares[0] = PairwiseLeaf(rows, [&](int64_t each) { return squares[each]; });
  }
  const double count = rows;
  bool any = false;
  for (int64_t column = 0; column < hidden; ++column) {
    const double center = columns.sums[column] / count;
    mean[column] = center;
    const double spread = columns.squares[column] / count - center * center;
    variance[column] = spread;
    any |= center * center > limits.cancellation * spread;
  }
  if (!any) return true;
  std::vector<int64_t> narrow;
  for (int64_t column = 0; column < hidden; ++column)
    if (mean[column] * mean[column] > limits.cancellation * variance[column])
      narrow.push_back(column);
  Precisely(block, rows, hidden, narrow, mean, variance);
  return true;
}

template <typename Element>
int64_t Moments(const Element* block, int64_t blocks, int64_t rows, int64_t hidden, Limits limits,
                double* mean, double* variance, float* squares) {
  std::vector<float> sums(2 * hidden);
  for (int64_t done = 0; done < blocks; ++done) {
    if (!MomentsOf(block + done * rows * hidden, rows, hidden, limits, sums.data(),
                   mean + done * hidden, variance + done * hidden, squares + done * rows))
      return done;
  }
  return blocks;
}

}  // namespace
}  // namespace activation_dataset

extern "C" int64_t Moments(const void* block, int64_t bfloat16, int64_t blocks, int64_t rows,
                           int64_t hidden, float least_square, float largest_square,
                           double cancellation, double* mean, double* variance, float* squares) {
  const activation_dataset::Limits limits{least_square, largest_square, cancellation};
  if (bfloat16)
    return activation_dataset::Moments(static_cast<const uint16_t*>(block), blocks, rows, hidden,
                                       limits, mean, variance, squares);
  return activation_dataset::Moments(static_cast<const float*>(block), blocks, rows, hidden,
                                     limits, mean, variance, squares);
}
