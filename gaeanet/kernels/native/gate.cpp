// What squeeze-and-excitation does to whole maps: a factor for each channel of each image, and its gradient.
//
// Maps are seen as (images, pixels, C). Images are shared out among the threads, so the result is the same bit for bit
// for any number of them.

#include "vectors.hpp"

constexpr int64_t PIXELS = 64;  // summed on their own, for the sake of rounding and of the first-level cache

// a and b (images, pixels, C) -> sums (images, C) of their products; of a alone where b is nullptr.
extern "C" int sums_over_pixels(const float* a, const float* b, float* sums, int64_t images, int64_t pixels,
                                int64_t channels, int threads) {
  const int64_t blocks = blocks_of(channels);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t image = 0; image < images; image++) {
    float* to = sums + image * channels;
    memset(to, 0, channels * sizeof(float));
    for (int64_t first = 0; first < pixels; first += PIXELS) {
      const int64_t count = first + PIXELS < pixels ? PIXELS : pixels - first;
      for (int64_t block = 0; block < blocks; block++) {
        const int lanes = lanes_of(channels, block);
        const int64_t at = (image * pixels + first) * channels + block * V;
        vec sum[4] = {};
        for (int64_t p = 0; p < count; p++) {
          const vec value = load(a + at + p * channels, lanes);
          sum[p % 4] += b ? value * load(b + at + p * channels, lanes) : value;
        }
        store(to + block * V, load(to + block * V, lanes) + ((sum[0] + sum[1]) + (sum[2] + sum[3])), lanes);
      }
    }
  }
  return 0;
}

// x (images, pixels, C) times factors (images, C), plus summands (images, C) or nullptr for none -> out like x.
extern "C" int scale_and_shift_images(const float* x, const float* factors, const float* summands, float* out,
                                      int64_t images, int64_t pixels, int64_t channels, int threads) {
  const int64_t blocks = blocks_of(channels);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t pixel = 0; pixel < images * pixels; pixel++) {
    const int64_t image = pixel / pixels;
    for (int64_t block = 0; block < blocks; block++) {
      const int lanes = lanes_of(channels, block);
      const int64_t at = pixel * channels + block * V, c = image * channels + block * V;
      vec value = load(x + at, lanes) * load(factors + c, lanes);
      if (summands) value += load(summands + c, lanes);
      store(out + at, value, lanes);
    }
  }
  return 0;
}
