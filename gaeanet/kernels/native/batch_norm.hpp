// Batch norm in training over a map seen as (rows, channels), a row being a pixel of an image: the parts that a kernel
// does while it has the rows at hand.
//
// Rows are summed in chunks, each twice: for its mean, then for the squares around it. The chunks are put together in
// double precision (Chan et al. 1979), always in the same order, so the result is exact to float32 rounding even where
// the mean is far above the spread, and the same for any number of threads.

#pragma once

#include <cmath>

#include "vectors.hpp"

// A module's parameters and statistics, and what this batch makes of it: its mean, its inverse deviation, and batch norm
// by them as a factor and a summand; (C) each.
struct BatchNorm {
  const float *weight, *bias;
  float *running_mean, *running_var, *mean, *inverse_std, *factor, *summand;
  double momentum, epsilon;
};

// Rows that stay in the first-level cache.
static int64_t rows_in_chunk(int64_t channels) {
  int64_t rows = 4096 / channels;  // 16 kB
  return rows < 8 ? 8 : rows > 256 ? 256 : rows;
}

// Adds up term(row) over the rows of a chunk, four sums side by side: one alone would wait for its last addition.
template <class Term>
static INLINE vec sum_of(int64_t rows, Term term) {
  vec sum[4] = {};
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4)
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) sum[i] += term(r + i);
  for (; r < rows; r++) sum[0] += term(r);
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

// x (rows, C), a chunk -> its mean and the squares around it: `partial` [2][C in whole vectors].
static void describe_chunk(const float* x, int64_t rows, int64_t channels, float* partial) {
  const int64_t blocks = blocks_of(channels);
  for (int64_t block = 0; block < blocks; block++) {
    const int lanes = lanes_of(channels, block);
    const float* from = x + block * V;
    const vec centre = sum_of(rows, [&](int64_t r) { return load(from + r * channels, lanes); }) / float(rows);
    const vec squares = sum_of(rows, [&](int64_t r) {
      vec d = load(from + r * channels, lanes) - centre;
      return d * d;
    });
    store(partial + block * V, centre);
    store(partial + (blocks + block) * V, squares);
  }
}

// Chunks of `step` rows, the last one perhaps shorter, as `describe_chunk` left them one after the other -> `norm`.
static void put_together(const float* partial, int64_t rows, int64_t step, int64_t channels, const BatchNorm& norm) {
  const int64_t chunks = (rows + step - 1) / step, wide = blocks_of(channels) * V;
  for (int64_t c = 0; c < channels; c++) {
    double total = 0, average = 0, squares = 0;
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
      const double count = chunk + 1 < chunks ? step : rows - chunk * step;
      const double delta = partial[chunk * 2 * wide + c] - average;
      total += count;
      average += delta * count / total;
      squares += partial[(chunk * 2 + 1) * wide + c] + delta * delta * count * (total - count) / total;
    }
    norm.mean[c] = float(average);
    norm.inverse_std[c] = float(1.0 / std::sqrt(squares / rows + norm.epsilon));
    norm.running_mean[c] = float((1.0 - norm.momentum) * norm.running_mean[c] + norm.momentum * average);
    norm.running_var[c] = float((1.0 - norm.momentum) * norm.running_var[c] + norm.momentum * squares / (rows - 1));
    norm.factor[c] = norm.weight[c] * norm.inverse_std[c];
    norm.summand[c] = float(norm.bias[c] - average * norm.factor[c]);
  }
}

// The gradient of batch norm's input: grad * of_grad + (x - mean) * of_x + shift, (C) each.
struct NormGradient {
  const float *mean, *of_grad, *of_x, *shift;

  // Of some rows: grad, whose rows begin every `grad_step` floats, and x (rows, C) -> out (rows, C).
  INLINE void of(const float* grad, int64_t grad_step, const float* x, int64_t rows, int64_t channels,
                 float* out) const {
    for (int64_t row = 0; row < rows; row++)
      for (int64_t block = 0; block < blocks_of(channels); block++) {
        const int lanes = lanes_of(channels, block);
        const int64_t c = block * V, at = row * channels + c;
        const vec centred = load(x + at, lanes) - load(mean + c, lanes);
        const vec scaled = load(grad + row * grad_step + c, lanes) * load(of_grad + c);
        store(out + at, scaled + centred * load(of_x + c) + load(shift + c), lanes);
      }
  }
};

// How many floats `norm_gradient` needs.
static int64_t norm_gradient_size(int64_t rows, int64_t channels) {
  const int64_t step = rows_in_chunk(channels), chunks = (rows + step - 1) / step;
  return (chunks * 2 + 3) * blocks_of(channels) * V;
}

// grad (rows, C), whose rows begin every `grad_step` floats, x (rows, C), statistics as forward made them -> weight_grad
// and bias_grad (C), and what the gradient of x is.
static NormGradient norm_gradient(const float* grad, int64_t grad_step, const float* x, const float* weight,
                                  const float* mean, const float* inverse_std, float* weight_grad, float* bias_grad,
                                  int64_t rows, int64_t channels, float* memory, int threads) {
  const int64_t blocks = blocks_of(channels), wide = blocks * V, step = rows_in_chunk(channels);
  const int64_t chunks = (rows + step - 1) / step;
  float *partial = memory, *of_grad = partial + chunks * 2 * wide, *of_x = of_grad + wide, *shift = of_x + wide;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t chunk = 0; chunk < chunks; chunk++) {
    const int64_t first = chunk * step, count = first + step < rows ? step : rows - first;
    for (int64_t block = 0; block < blocks; block++) {
      const int lanes = lanes_of(channels, block);
      const float *g = grad + first * grad_step + block * V, *from = x + first * channels + block * V;
      const vec centre = load(mean + block * V, lanes);
      store(partial + chunk * 2 * wide + block * V,
            sum_of(count, [&](int64_t r) { return load(g + r * grad_step, lanes); }));
      store(partial + (chunk * 2 + 1) * wide + block * V, sum_of(count, [&](int64_t r) {
              return load(g + r * grad_step, lanes) * (load(from + r * channels, lanes) - centre);
            }));
    }
  }
  for (int64_t c = 0; c < channels; c++) {
    double sum = 0, product = 0;
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
      sum += partial[chunk * 2 * wide + c];
      product += partial[(chunk * 2 + 1) * wide + c];
    }
    bias_grad[c] = float(sum);
    weight_grad[c] = float(product * inverse_std[c]);
    // x_grad = weight * inverse_std * (grad - mean(grad) - normalised x * mean(grad * normalised x))
    const double factor = double(weight[c]) * inverse_std[c];
    const double slope = -factor * product * inverse_std[c] * inverse_std[c] / rows;
    of_grad[c] = float(factor);
    of_x[c] = float(slope);
    shift[c] = float(-factor * sum / rows);
  }
  return {mean, of_grad, of_x, shift};
}
