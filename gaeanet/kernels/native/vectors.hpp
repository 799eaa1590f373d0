// What all kernels share: a vector as wide as the machine's registers, and the activations on it.
//
// Maps are float32 in NHWC order: the channels of a pixel are neighbours, so a vector holds V channels of one pixel and
// no kernel needs a shuffle. Channel counts need not be multiples of V: the last vector of a pixel is then read and
// written in part.

#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>

#if defined(__AVX512F__)
constexpr int V = 16;
#elif defined(__AVX__)
constexpr int V = 8;
#else
constexpr int V = 4;
#endif

#define INLINE inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(V * sizeof(float))));
typedef int32_t ivec __attribute__((vector_size(V * sizeof(int32_t))));

static INLINE vec load(const float* from) {
  vec v;
  memcpy(&v, from, sizeof v);
  return v;
}

static INLINE void store(float* to, vec v) { memcpy(to, &v, sizeof v); }

// The first `lanes` lanes; the others are 0.
static INLINE vec load(const float* from, int lanes) {
  if (lanes == V) return load(from);
  float whole[V] = {};
  for (int i = 0; i < lanes; i++) whole[i] = from[i];
  return load(whole);
}

static INLINE void store(float* to, vec v, int lanes) {
  if (lanes == V) return store(to, v);
  for (int i = 0; i < lanes; i++) to[i] = v[i];
}

static INLINE vec all(float value) { return value - vec{}; }  // not `+`: -0 + 0 is 0, which takes an addition

static INLINE int64_t blocks_of(int64_t channels) { return (channels + V - 1) / V; }

static INLINE int lanes_of(int64_t channels, int64_t block) {
  int64_t rest = channels - block * V;
  return rest < V ? int(rest) : V;
}

// Memory that a thread keeps from call to call: fresh pages would cost more than the arithmetic. `slot` separates
// what one kernel needs together. Never freed; nullptr where there is no memory. Under a sanitizer (benchmarks/fuzz.py)
// each call has its own, of just this size.
static float* workspace(int slot, int64_t floats) {
  static thread_local struct {
    float* memory;
    int64_t floats;
  } scratch[4];
#if defined(EXACT_WORKSPACE)
  const bool keep = false;
#else
  const bool keep = scratch[slot].floats >= floats;
#endif
  if (!keep) {
    void* memory = nullptr;
    free(scratch[slot].memory);
    scratch[slot].memory = posix_memalign(&memory, 64, floats * sizeof(float)) ? nullptr : static_cast<float*>(memory);
    scratch[slot].floats = scratch[slot].memory ? floats : 0;
  }
  return scratch[slot].memory;
}

enum Activation { IDENTITY, RELU, SWISH, HSWISH };

// exp(x) to 2 units in the last place; infinite above 88, and below -87 as at -87.
static INLINE vec exponential(vec x) {
  x = x < all(-87.0f) ? all(-87.0f) : x;
  const ivec beyond = x > all(88.0f);
  x = beyond ? all(88.0f) : x;
  vec shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  vec whole = shifted - 12582912.0f;
  vec part = x - whole * 0.693359375f + whole * 2.12194440e-4f;  // ln 2 in two pieces; |part| <= ln 2 / 2
  vec power = all(1.0f / 5040);  // Taylor's series, whose next term is below 2^-25 here
  power = power * part + 1.0f / 720;
  power = power * part + 1.0f / 120;
  power = power * part + 1.0f / 24;
  power = power * part + 1.0f / 6;
  power = power * part + 0.5f;
  power = power * part + 1.0f;
  power = power * part + 1.0f;
  ivec bits;
  memcpy(&bits, &shifted, sizeof bits);
  bits = (bits + 127) << 23;  // the integer is in the low bits of `shifted`: this is 2^whole
  vec scale;
  memcpy(&scale, &bits, sizeof scale);
  return beyond ? all(__builtin_inff()) : power * scale;
}

template <int A>
static INLINE vec activated(vec x) {
  if (A == RELU) return x < all(0.0f) ? all(0.0f) : x;  // NaN stays NaN
  if (A == SWISH) return x / (exponential(-x) + 1.0f);
  if (A == HSWISH) {
    vec gate = x + 3.0f;
    gate = gate < all(0.0f) ? all(0.0f) : gate;
    gate = gate > all(6.0f) ? all(6.0f) : gate;
    return x * (gate * (1.0f / 6.0f));
  }
  return x;
}

// The activation's value and its derivative.
template <int A>
static INLINE void activated(vec x, vec& value, vec& slope) {
  if (A == SWISH) {
    vec sigmoid = 1.0f / (exponential(-x) + 1.0f);
    value = x * sigmoid;
    slope = sigmoid + value * (1.0f - sigmoid);
    return;
  }
  value = activated<A>(x);
  if (A == RELU) slope = x <= all(0.0f) ? all(0.0f) : all(1.0f);
  if (A == HSWISH) {
    slope = x * (1.0f / 3.0f) + 0.5f;
    slope = x <= all(-3.0f) ? all(0.0f) : slope;
    slope = x >= all(3.0f) ? all(1.0f) : slope;
  }
  if (A == IDENTITY) slope = all(1.0f);
}

// Calls FUNCTION<A>(...) for the activation's number.
#define WITH_ACTIVATION(number, FUNCTION, ...)              \
  switch (number) {                                         \
    case RELU: return FUNCTION<RELU>(__VA_ARGS__);          \
    case SWISH: return FUNCTION<SWISH>(__VA_ARGS__);        \
    case HSWISH: return FUNCTION<HSWISH>(__VA_ARGS__);      \
    default: return FUNCTION<IDENTITY>(__VA_ARGS__);        \
  }
