// From coefficients to pixels with libjpeg's integer arithmetic (its "islow" transform, "fancy" interpolation and tables
// of colours), bit-exact. What is here is written for the compiler to run over samples side by side.

#pragma once

#include "vectors.hpp"

typedef int32_t lanes __attribute__((vector_size(32)));

#if defined(__clang__)
#define SHUFFLED(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLED(a, b, ...) __builtin_shuffle(a, b, lanes{__VA_ARGS__})
#endif

static INLINE void clear(int16_t block[64]) {
  const lanes zeros = {};
  for (int k = 0; k < 64; k += 16) memcpy(block + k, &zeros, sizeof zeros);
}

// The inverse cosine transform in one direction, of eight lines side by side (Loeffler, Ligtenberg & Moschytz 1989),
// with factors in 13 bits; `shift` takes them off again, and rounds.
static INLINE void transform(lanes x[8], int shift) {
  const lanes c = (x[2] + x[6]) * 4433;
  const lanes c2 = c - x[6] * 15137, c3 = c + x[2] * 6270;
  const lanes rounding = lanes{} + (1 << (shift - 1));
  const lanes sum = ((x[0] + x[4]) << 13) + rounding, difference = ((x[0] - x[4]) << 13) + rounding;
  const lanes even[4] = {sum + c3, difference + c2, difference - c2, sum - c3};

  const lanes z5 = (x[7] + x[3] + x[5] + x[1]) * 9633;
  const lanes z1 = (x[7] + x[1]) * -7373, z2 = (x[5] + x[3]) * -20995;
  const lanes z3 = (x[7] + x[3]) * -16069 + z5, z4 = (x[5] + x[1]) * -3196 + z5;
  const lanes odd[4] = {x[1] * 12299 + z1 + z4, x[3] * 25172 + z2 + z3, x[5] * 16819 + z2 + z4, x[7] * 2446 + z1 + z3};
  for (int k = 0; k < 4; k++) {
    x[k] = (even[k] + odd[k]) >> shift;
    x[7 - k] = (even[k] - odd[k]) >> shift;
  }
}

static INLINE void transpose(lanes x[8]) {
  lanes pairs[8], fours[8];
  for (int k = 0; k < 8; k += 2) {
    pairs[k] = SHUFFLED(x[k], x[k + 1], 0, 8, 2, 10, 4, 12, 6, 14);
    pairs[k + 1] = SHUFFLED(x[k], x[k + 1], 1, 9, 3, 11, 5, 13, 7, 15);
  }
  for (int k = 0; k < 8; k += 4)
    for (int i = 0; i < 2; i++) {
      fours[k + i] = SHUFFLED(pairs[k + i], pairs[k + 2 + i], 0, 1, 8, 9, 4, 5, 12, 13);
      fours[k + 2 + i] = SHUFFLED(pairs[k + i], pairs[k + 2 + i], 2, 3, 10, 11, 6, 7, 14, 15);
    }
  for (int k = 0; k < 4; k++) {
    x[k] = SHUFFLED(fours[k], fours[k + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    x[k + 4] = SHUFFLED(fours[k], fours[k + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
}

// Where values leave the range -limit..limit - 1, a power of two, the result has bits from `limit * 2` on.
static INLINE lanes outside(const lanes x[8], int limit) {
  lanes bits = {};
  for (int k = 0; k < 8; k++) bits |= x[k] + limit;
  return bits & -(2 * limit);
}

static INLINE bool any(lanes x) {
  int32_t bits = 0;
  for (int k = 0; k < 8; k++) bits |= x[k];
  return bits != 0;
}

// The samples of a block. False where numbers are so large that libjpeg's result depends on the processor, whose
// 16-bit instructions it uses: no encoder of pictures makes such.
static INLINE bool samples_of(const int16_t* block, const int32_t* steps, uint8_t* to, int64_t stride) {
  lanes x[8];
  for (int k = 0; k < 8; k++) {
    typedef int16_t shorts __attribute__((vector_size(16)));
    shorts line;
    lanes factors;
    memcpy(&line, block + 8 * k, sizeof line);
    memcpy(&factors, steps + 8 * k, sizeof factors);
    x[k] = __builtin_convertvector(line, lanes) * factors;
  }
  lanes beyond = outside(x, 1 << 13);
  transform(x, 11);
  beyond |= outside(x, 1 << 13);
  transpose(x);
  transform(x, 18);
  beyond |= outside(x, 1 << 9);
  for (int k = 0; k < 8; k++) {
    x[k] += 128;
    x[k] = x[k] < 0 ? lanes{} : x[k];
    x[k] = x[k] > 255 ? lanes{} + 255 : x[k];
  }
  // Four samples of a line in one number: no second transposition.
  const lanes left = x[0] | x[1] << 8 | x[2] << 16 | x[3] << 24, right = x[4] | x[5] << 8 | x[6] << 16 | x[7] << 24;
  const lanes upper = SHUFFLED(left, right, 0, 8, 1, 9, 2, 10, 3, 11);
  const lanes lower = SHUFFLED(left, right, 4, 12, 5, 13, 6, 14, 7, 15);
  uint8_t lines[64];
  memcpy(lines, &upper, 32);
  memcpy(lines + 32, &lower, 32);
  for (int k = 0; k < 8; k++) memcpy(to + k * stride, lines + 8 * k, 8);
  return !any(beyond);
}

// The same where all coefficients but the first are 0.
static INLINE bool flat_samples(int dc, int step, uint8_t* to, int64_t stride) {
  const int value = dc * step, sample = ((value + 4) >> 3) + 128;
  const uint64_t line = 0x0101010101010101u * uint64_t(sample < 0 ? 0 : sample > 255 ? 255 : sample);
  for (int k = 0; k < 8; k++) memcpy(to + k * stride, &line, 8);
  return value >= -2048 && value < 2048;
}

// Colour samples first..last of a line of which edge is the last one, to twice as many. Each result is three parts of the
// nearer and one of the further sample, across and, where there is a `further` line, down.
static void widened(const uint8_t* nearer, const uint8_t* further, int64_t first, int64_t last, int64_t edge,
                    uint16_t* sums, uint8_t* to) {
  const int64_t begin = first > 0 ? first - 1 : 0, end = last < edge ? last + 1 : edge, count = last - first + 1;
  uint16_t* at = sums + 1 - first;  // sums[0] belongs to first - 1
  if (further)
    for (int64_t k = begin; k <= end; k++) at[k] = uint16_t(3 * nearer[k] + further[k]);
  else
    for (int64_t k = begin; k <= end; k++) at[k] = nearer[k];
  if (first == 0) at[-1] = at[0];
  if (last == edge) at[edge + 1] = at[edge];
  const int shift = further ? 4 : 2, even = further ? 8 : 1, odd = further ? 7 : 2;
  for (int64_t k = 0; k < count; k++) {
    to[2 * k] = uint8_t((3 * sums[k + 1] + sums[k] + even) >> shift);
    to[2 * k + 1] = uint8_t((3 * sums[k + 1] + sums[k + 2] + odd) >> shift);
  }
}

static INLINE uint8_t byte_of(int value) { return uint8_t(value < 0 ? 0 : value > 255 ? 255 : value); }

// YCbCr to RGB, factors in 16 bits.
static void coloured(const uint8_t* y, const uint8_t* cb, const uint8_t* cr, uint8_t* rgb, int64_t count) {
  for (int64_t k = 0; k < count; k++) {
    const int level = y[k], blue = cb[k] - 128, red = cr[k] - 128;
    rgb[3 * k] = byte_of(level + ((91881 * red + 32768) >> 16));
    rgb[3 * k + 1] = byte_of(level + ((-22554 * blue - 46802 * red + 32768) >> 16));
    rgb[3 * k + 2] = byte_of(level + ((116130 * blue + 32768) >> 16));
  }
}

static void grey(const uint8_t* y, uint8_t* rgb, int64_t count) {
  for (int64_t k = 0; k < count; k++) rgb[3 * k] = rgb[3 * k + 1] = rgb[3 * k + 2] = y[k];
}
