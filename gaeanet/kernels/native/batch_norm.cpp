// Batch norm in training where no kernel before it has the rows at hand: its passes one by one.

#include "batch_norm.hpp"

// x (rows, C) -> mean and inverse_std (C) of this batch, towards which the running statistics move, and what batch norm
// is by them: a factor and a summand (C).
extern "C" int batch_norm_statistics(const float* x, const float* weight, const float* bias, float* running_mean,
                                     float* running_var, float* mean, float* inverse_std, float* factor,
                                     float* summand, int64_t rows, int64_t channels, double momentum, double epsilon,
                                     int threads) {
  const int64_t step = rows_in_chunk(channels), chunks = (rows + step - 1) / step, size = 2 * blocks_of(channels) * V;
  float* partial = workspace(0, chunks * size);
  if (!partial) return 1;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t chunk = 0; chunk < chunks; chunk++) {
    const int64_t first = chunk * step, count = first + step < rows ? step : rows - first;
    describe_chunk(x + first * channels, count, channels, partial + chunk * size);
  }
  put_together(partial, rows, step, channels,
               {weight, bias, running_mean, running_var, mean, inverse_std, factor, summand, momentum, epsilon});
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

// grad (rows, C), whose rows begin every `grad_step` floats, x (rows, C), statistics as forward made them -> x_grad
// (rows, C), weight_grad and bias_grad (C).
extern "C" int batch_norm_backward(const float* grad, const float* x, const float* weight, const float* mean,
                                   const float* inverse_std, float* x_grad, float* weight_grad, float* bias_grad,
                                   int64_t grad_step, int64_t rows, int64_t channels, int threads) {
  float* memory = workspace(0, norm_gradient_size(rows, channels));
  if (!memory) return 1;
  const NormGradient gradient = norm_gradient(grad, grad_step, x, weight, mean, inverse_std, weight_grad, bias_grad, rows,
                                              channels, memory, threads);
  const int64_t step = rows_in_chunk(channels);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t first = 0; first < rows; first += step)
    gradient.of(grad + first * grad_step, grad_step, x + first * channels, first + step < rows ? step : rows - first,
                channels, x_grad + first * channels);
  return 0;
}
