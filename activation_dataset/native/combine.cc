#include "combine.h"

#include <array>

namespace activation_dataset {
namespace {

constexpr uint32_t kPolynomial = 0x82F63B78;  // Castagnoli, bit-reversed
constexpr uint32_t kOne = uint32_t{1} << 31;  // x^0

// Product of two polynomials over GF(2), modulo the CRC polynomial.
constexpr uint32_t Multiply(uint32_t a, uint32_t b) {
  uint32_t product = 0;
  for (int bit = 31; bit >= 0; --bit) {
    product ^= -(a >> bit & 1) & b;
    b = b >> 1 ^ (-(b & 1) & kPolynomial);
  }
  return product;
}

// x^(2^k), k = 0..63.
constexpr std::array<uint32_t, 64> Squares() {
  std::array<uint32_t, 64> powers{};
  powers[0] = kOne >> 1;
  for (int k = 1; k < 64; ++k) powers[k] = Multiply(powers[k - 1], powers[k - 1]);
  return powers;
}

constexpr std::array<uint32_t, 64> kSquares = Squares();

uint32_t PowerOfX(uint64_t exponent) {
  uint32_t power = kOne;
  for (int bit = 0; exponent; ++bit, exponent >>= 1)
    if (exponent & 1) power = Multiply(power, kSquares[bit]);
  return power;
}

struct Shift {
  int64_t bytes;
  uint32_t power;
};

constexpr int64_t kKept = 256;

}  // namespace

uint32_t Combine(uint32_t first, uint32_t second, int64_t second_length) {
  thread_local std::array<Shift, kKept> kept{};  // of 0 bytes there is nothing to keep
  if (!second_length) return first;
  Shift& shift = kept[second_length % kKept];
  if (shift.bytes != second_length) shift = {second_length, PowerOfX(8 * second_length)};
  return Multiply(first, shift.power) ^ second;
}

}  // namespace activation_dataset
