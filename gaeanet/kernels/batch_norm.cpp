// Batch norm in training, and activations, over maps seen as (rows, channels): a row is a pixel of an image.
//
// Rows are summed in chunks that fit the first-level cache, each twice: for its mean, then for the squares around it.
// The chunks are put together in double precision (Chan et al. 1979), always in the same order, so the result is exact
// to float32 rounding even where the mean is far above the spread, and the same for any number of threads.

#include <cmath>

#include "vectors.hpp"

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

// x (rows, C) -> mean and inverse_std (C) of this batch, towards which the running statistics move, and what batch norm
// is by them: a factor and a summand (C).
extern "C" int batch_norm_statistics(const float* x, const float* weight, const float* bias, float* running_mean,
                                     float* running_var, float* mean, float* inverse_std, float* factor,
                                     float* summand, int64_t rows, int64_t channels, double momentum, double epsilon,
                                     int threads) {
  const int64_t blocks = blocks_of(channels), wide = blocks * V, step = rows_in_chunk(channels);
  const int64_t chunks = (rows + step - 1) / step;
  float* partial = workspace(0, chunks * 2 * wide);  // [chunk][mean, squares][C]
  if (!partial) return 1;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t chunk = 0; chunk < chunks; chunk++) {
    const int64_t first = chunk * step, count = first + step < rows ? step : rows - first;
    for (int64_t block = 0; block < blocks; block++) {
      const int lanes = lanes_of(channels, block);
      const float* from = x + first * channels + block * V;
      const vec centre = sum_of(count, [&](int64_t r) { return load(from + r * channels, lanes); }) / float(count);
      const vec squares = sum_of(count, [&](int64_t r) {
        vec d = load(from + r * channels, lanes) - centre;
        return d * d;
      });
      store(partial + chunk * 2 * wide + block * V, centre);
      store(partial + (chunk * 2 + 1) * wide + block * V, squares);
    }
  }
  for (int64_t c = 0; c < channels; c++) {
    double total = 0, average = 0, squares = 0;
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
      const double count = chunk + 1 < chunks ? step : rows - chunk * step;
      const double delta = partial[chunk * 2 * wide + c] - average;
      total += count;
      average += delta * count / total;
      squares += partial[(chunk * 2 + 1) * wide + c] + delta * delta * count * (total - count) / total;
    }
    mean[c] = float(average);
    inverse_std[c] = float(1.0 / std::sqrt(squares / rows + epsilon));
    running_mean[c] = float((1.0 - momentum) * running_mean[c] + momentum * average);
    running_var[c] = float((1.0 - momentum) * running_var[c] + momentum * squares / (rows - 1));
    factor[c] = weight[c] * inverse_std[c];
    summand[c] = float(bias[c] - average * factor[c]);
  }
  return 0;
}

// x (rows, C) times factor plus summand (C) -> out (rows, C).
extern "C" int scale_and_shift(const float* x, const float* factor, const float* summand, float* out, int64_t rows,
                               int64_t channels, int threads) {
  const int64_t blocks = blocks_of(channels), step = rows_in_chunk(channels);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t first = 0; first < rows; first += step) {
    const int64_t last = first + step < rows ? first + step : rows;
    for (int64_t row = first; row < last; row++)
      for (int64_t block = 0; block < blocks; block++) {
        const int lanes = lanes_of(channels, block);
        const int64_t at = row * channels + block * V, c = block * V;
        store(out + at, load(x + at, lanes) * load(factor + c, lanes) + load(summand + c, lanes), lanes);
      }
  }
  return 0;
}

// grad and x (rows, C), statistics as forward made them -> x_grad (rows, C), weight_grad and bias_grad (C).
extern "C" int batch_norm_backward(const float* grad, const float* x, const float* weight, const float* mean,
                                   const float* inverse_std, float* x_grad, float* weight_grad, float* bias_grad,
                                   int64_t rows, int64_t channels, int threads) {
  const int64_t blocks = blocks_of(channels), wide = blocks * V, step = rows_in_chunk(channels);
  const int64_t chunks = (rows + step - 1) / step;
  float* partial = workspace(0, (chunks * 2 + 3) * wide);  // [chunk][sum, product][C], then three factors
  if (!partial) return 1;
  float *of_grad = partial + chunks * 2 * wide, *of_x = of_grad + wide, *shift = of_x + wide;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t chunk = 0; chunk < chunks; chunk++) {
    const int64_t first = chunk * step, count = first + step < rows ? step : rows - first;
    for (int64_t block = 0; block < blocks; block++) {
      const int lanes = lanes_of(channels, block);
      const float *g = grad + first * channels + block * V, *from = x + first * channels + block * V;
      const vec centre = load(mean + block * V, lanes);
      store(partial + chunk * 2 * wide + block * V,
            sum_of(count, [&](int64_t r) { return load(g + r * channels, lanes); }));
      store(partial + (chunk * 2 + 1) * wide + block * V, sum_of(count, [&](int64_t r) {
              return load(g + r * channels, lanes) * (load(from + r * channels, lanes) - centre);
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
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t chunk = 0; chunk < chunks; chunk++) {
    const int64_t first = chunk * step, last = first + step < rows ? first + step : rows;
    for (int64_t row = first; row < last; row++)
      for (int64_t block = 0; block < blocks; block++) {
        const int lanes = lanes_of(channels, block);
        const int64_t at = row * channels + block * V, c = block * V;
        const vec centred = load(x + at, lanes) - load(mean + c, lanes);
        store(x_grad + at, load(grad + at, lanes) * load(of_grad + c) + centred * load(of_x + c) + load(shift + c), lanes);
      }
  }
  return 0;
}

template <int A>
static int forward(const float* x, float* out, int64_t count, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t block = 0; block < blocks_of(count); block++) {
    const int lanes = lanes_of(count, block);
    store(out + block * V, activated<A>(load(x + block * V, lanes)), lanes);
  }
  return 0;
}

template <int A>
static int backward(const float* grad, const float* x, float* x_grad, int64_t count, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t block = 0; block < blocks_of(count); block++) {
    const int lanes = lanes_of(count, block);
    vec value, slope;
    activated<A>(load(x + block * V, lanes), value, slope);
    store(x_grad + block * V, load(grad + block * V, lanes) * slope, lanes);
  }
  return 0;
}

// x (count) -> out (count); `out` may be `x`.
extern "C" int activation_forward(const float* x, float* out, int64_t count, int activation, int threads) {
  WITH_ACTIVATION(activation, forward, x, out, count, threads)
}

// grad and x (count) -> x_grad (count); `x_grad` may be `grad`.
extern "C" int activation_backward(const float* grad, const float* x, float* x_grad, int64_t count, int activation,
                                   int threads) {
  WITH_ACTIVATION(activation, backward, grad, x, x_grad, count, threads)
}
