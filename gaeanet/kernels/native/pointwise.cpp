// Activation, 1x1 convolution and the statistics of the batch norm after it in one pass, and the way back in two.
//
// A 1x1 convolution is a matrix product over the pixels: rows (pixels, inputs) times a small matrix. A thread takes
// some rows that stay in its second-level cache through everything: activates them, multiplies them, describes the
// products for batch norm while they are there. Backwards it makes batch norm's gradient, multiplies it by the weights
// and by what the convolution was given. Neither an activated map nor batch norm's gradient is written to memory.
//
// Products are taken in tiles whose sums fill the registers: TALL rows times a panel of P columns. Sums are in an order
// that depends on the shapes only, so the result is the same bit for bit for any number of threads.

#include "batch_norm.hpp"

constexpr int WIDE = 2, P = WIDE * V;
constexpr int TALL = V == 16 ? 12 : 6;  // of 32 registers, or 16
constexpr int64_t CHUNK = 48;           // rows that go through everything together: a multiple of TALL
constexpr int64_t GROUPS = 32, GROUP_SUMS = 1 << 20;  // at most so many partial sums of a weight gradient

static int64_t panels_of(int64_t columns) { return (columns + P - 1) / P; }

// A matrix (depth, columns), whose element [k][c] is at from[k * down + c * right], as [panel][depth][P] with zeros
// beyond the last column.
static void pack(const float* from, int64_t depth, int64_t columns, int64_t down, int64_t right, float* packed) {
  for (int64_t panel = 0; panel < panels_of(columns); panel++)
    for (int64_t k = 0; k < depth; k++, packed += P)
      for (int64_t j = 0; j < P; j++) {
        const int64_t c = panel * P + j;
        packed[j] = c < columns ? from[k * down + c * right] : 0.0f;
      }
}

// Adds to the sums of T rows: row t has a[t * down + k * right] for k < depth, to be multiplied by panel [depth][P].
template <int T>
static INLINE void multiply(const float* a, int64_t down, int64_t right, const float* panel, int64_t depth,
                            vec (&sum)[T][WIDE]) {
  for (int64_t k = 0; k < depth; k++) {
    vec b[WIDE];
#pragma GCC unroll 2
    for (int w = 0; w < WIDE; w++) b[w] = load(panel + k * P + w * V);
#pragma GCC unroll 12
    for (int t = 0; t < T; t++) {
      const vec value = all(a[t * down + k * right]);
#pragma GCC unroll 2
      for (int w = 0; w < WIDE; w++) sum[t][w] += value * b[w];
    }
  }
}

template <int T>
struct Rows {};

// Calls tile(Rows<T>(), first) for tiles of T rows until all of `count` have been done.
template <class Tile>
static INLINE void in_tiles(int64_t count, Tile tile) {
  int64_t first = 0;
  for (; first + TALL <= count; first += TALL) tile(Rows<TALL>(), first);
  for (; first + 4 <= count; first += 4) tile(Rows<4>(), first);
  for (; first + 2 <= count; first += 2) tile(Rows<2>(), first);
  for (; first < count; first++) tile(Rows<1>(), first);
}

// T rows of one panel of a product, at `out` in steps of `stride`: a (rows, depth) times panel [depth][P]; SCALED: times
// factors [rows][P], one by one.
template <bool SCALED, int T>
static INLINE void product(Rows<T>, const float* a, const float* panel, int64_t depth, const float* factors, float* out,
                           int64_t stride) {
  vec sum[T][WIDE] = {};
  multiply<T>(a, depth, 1, panel, depth, sum);
#pragma GCC unroll 12
  for (int t = 0; t < T; t++)
#pragma GCC unroll 2
    for (int w = 0; w < WIDE; w++) {
      if (SCALED) sum[t][w] *= load(factors + t * P + w * V);
      store(out + t * stride + w * V, sum[t][w]);
    }
}

// Adds to T rows of `sums` [rows][P], one panel of a product: a transposed, of a (depth, rows) in steps of `down`, times
// panel [depth][P].
template <int T>
static INLINE void add_product(Rows<T>, const float* a, int64_t down, const float* panel, int64_t depth, float* sums) {
  vec sum[T][WIDE];
#pragma GCC unroll 12
  for (int t = 0; t < T; t++)
#pragma GCC unroll 2
    for (int w = 0; w < WIDE; w++) sum[t][w] = load(sums + t * P + w * V);
  multiply<T>(a, 1, down, panel, depth, sum);
#pragma GCC unroll 12
  for (int t = 0; t < T; t++)
#pragma GCC unroll 2
    for (int w = 0; w < WIDE; w++) store(sums + t * P + w * V, sum[t][w]);
}

// Where a panel's tiles go, P columns each: to the map, or first beside it where the map has fewer columns left.
struct Target {
  float *map, *at;
  int64_t map_stride, stride, columns;

  INLINE Target(float* map, int64_t map_stride, int64_t columns, float* beside)
      : map(map), at(columns < P ? beside : map), map_stride(map_stride), stride(columns < P ? P : map_stride),
        columns(columns) {}

  INLINE void finish(int64_t rows) const {
    if (columns < P)
      for (int64_t r = 0; r < rows; r++) memcpy(map + r * map_stride, at + r * P, columns * sizeof(float));
  }
};

template <int A>
static int forward(const float* x, const float* weight, float* out, int64_t rows, int64_t inputs, int64_t outputs,
                   const BatchNorm& norm, int threads) {
  const int64_t chunks = (rows + CHUNK - 1) / CHUNK, panels = panels_of(outputs), size = 2 * blocks_of(outputs) * V;
  float* packed = workspace(0, panels * P * inputs + chunks * size);
  if (!packed) return 1;
  float* partial = packed + panels * P * inputs;
  pack(weight, inputs, outputs, 1, inputs, packed);
  int failed = 0;
#pragma omp parallel num_threads(threads) reduction(| : failed)
  {
    float* memory = workspace(1, CHUNK * P + (A == IDENTITY ? 0 : CHUNK * inputs + V));
    failed = !memory;
    float *narrow = memory, *activated_rows = memory + CHUNK * P;
#pragma omp for schedule(static)
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
      if (failed) continue;
      const int64_t begin = chunk * CHUNK, count = begin + CHUNK < rows ? CHUNK : rows - begin;
      const float* given = x + begin * inputs;
      if (A != IDENTITY) {
        for (int64_t block = 0; block < blocks_of(count * inputs); block++)
          store(activated_rows + block * V, activated<A>(load(given + block * V, lanes_of(count * inputs, block))));
        given = activated_rows;
      }
      float* to = out + begin * outputs;
      for (int64_t panel = 0; panel < panels; panel++) {
        const float* weights = packed + panel * inputs * P;
        const Target target(to + panel * P, outputs, outputs - panel * P, narrow);
        in_tiles(count, [&](auto tall, int64_t row) {
          product<false>(tall, given + row * inputs, weights, inputs, nullptr, target.at + row * target.stride,
                         target.stride);
        });
        target.finish(count);
      }
      describe_chunk(to, count, outputs, partial + chunk * size);
    }
  }
  if (!failed) put_together(partial, rows, CHUNK, outputs, norm);
  return failed;
}

// A chunk of what the convolution was given, x (rows, inputs): activated, and the activation's slopes, [panel][CHUNK][P]
// each with zeros beyond the last column.
template <int A>
static INLINE void activate_chunk(const float* x, int64_t rows, int64_t inputs, float* values, float* slopes) {
  for (int64_t r = 0; r < rows; r++)
    for (int64_t panel = 0; panel < panels_of(inputs); panel++)
#pragma GCC unroll 2
      for (int w = 0; w < WIDE; w++) {
        const int64_t block = panel * WIDE + w, to = (panel * CHUNK + r) * P + w * V;
        vec value = {}, slope = {};
        if (block * V < inputs) value = load(x + r * inputs + block * V, lanes_of(inputs, block));
        if (A != IDENTITY) activated<A>(value, value, slope);
        store(values + to, value);
        if (A != IDENTITY) store(slopes + to, slope);
      }
}

template <int A>
static int backward(const float* grad, int64_t grad_step, const float* mixed, const float* x, const float* weight,
                    const float* norm_weight, const float* mean, const float* inverse_std, float* x_grad,
                    float* weight_grad, float* norm_weight_grad, float* norm_bias_grad, int64_t rows, int64_t inputs,
                    int64_t outputs, int threads) {
  const int64_t chunks = (rows + CHUNK - 1) / CHUNK, panels = panels_of(inputs), size = panels * outputs * P;
  // Chunks go in groups, each with sums of its own.
  int64_t groups = GROUP_SUMS / size < 8 ? 8 : GROUP_SUMS / size > GROUPS ? GROUPS : GROUP_SUMS / size;
  if (groups > chunks) groups = chunks;
  const int64_t norm_size = norm_gradient_size(rows, outputs);
  float* packed = workspace(0, size * (1 + groups) + norm_size);  // the weight, the sums, then batch norm's
  if (!packed) return 1;
  float* sums = packed + size;  // [group][panel][outputs][P]
  pack(weight, outputs, inputs, inputs, 1, packed);
  const NormGradient norm = norm_gradient(grad, grad_step, mixed, norm_weight, mean, inverse_std, norm_weight_grad,
                                          norm_bias_grad, rows, outputs, sums + groups * size, threads);
  int failed = 0;
#pragma omp parallel num_threads(threads) reduction(| : failed)
  {
    float* values = workspace(1, CHUNK * (panels * P * (A == IDENTITY ? 1 : 2) + P + outputs));
    failed = !values;
    float *mixed_grad = values + CHUNK * panels * P, *narrow = mixed_grad + CHUNK * outputs;
    float* slopes = narrow + CHUNK * P;
#pragma omp for schedule(static)
    for (int64_t group = 0; group < groups; group++) {
      if (failed) continue;
      float* own = sums + group * size;
      memset(own, 0, size * sizeof(float));
      for (int64_t chunk = group * chunks / groups; chunk < (group + 1) * chunks / groups; chunk++) {
        const int64_t begin = chunk * CHUNK, count = begin + CHUNK < rows ? CHUNK : rows - begin;
        norm.of(grad + begin * grad_step, grad_step, mixed + begin * outputs, count, outputs, mixed_grad);
        activate_chunk<A>(x + begin * inputs, count, inputs, values, slopes);
        for (int64_t panel = 0; panel < panels; panel++) {
          const float *weights = packed + panel * outputs * P, *slope = slopes + panel * CHUNK * P;
          const Target target(x_grad + begin * inputs + panel * P, inputs, inputs - panel * P, narrow);
          in_tiles(count, [&](auto tall, int64_t row) {
            product<A != IDENTITY>(tall, mixed_grad + row * outputs, weights, outputs, slope + row * P,
                                   target.at + row * target.stride, target.stride);
          });
          target.finish(count);
        }
        for (int64_t panel = 0; panel < panels && weight_grad; panel++) {
          float* to = own + panel * outputs * P;
          const float* value = values + panel * CHUNK * P;
          in_tiles(outputs, [&](auto tall, int64_t output) {
            add_product(tall, mixed_grad + output, outputs, value, count, to + output * P);
          });
        }
      }
    }
#pragma omp for schedule(static)
    for (int64_t panel = 0; panel < panels; panel++) {
      if (failed || !weight_grad) continue;
      const int64_t columns = inputs - panel * P < P ? inputs - panel * P : P;
      for (int64_t n = 0; n < outputs; n++) {
        float* own = sums + (panel * outputs + n) * P;
        for (int64_t group = 1; group < groups; group++)
          for (int64_t j = 0; j < P; j++) own[j] += own[group * size + j];
        memcpy(weight_grad + n * inputs + panel * P, own, columns * sizeof(float));
      }
    }
  }
  return failed;
}

// x (rows, inputs), weight (outputs, inputs) -> out (rows, outputs) = activation(x) times the weight transposed, and what
// batch norm is on it (`BatchNorm`). Returns 0, or 1 where there is no memory.
extern "C" int pointwise_forward(const float* x, const float* weight, float* out, const float* norm_weight,
                                 const float* norm_bias, float* running_mean, float* running_var, float* mean,
                                 float* inverse_std, float* factor, float* summand, int64_t rows, int64_t inputs,
                                 int64_t outputs, double momentum, double epsilon, int activation, int threads) {
  const BatchNorm norm = {norm_weight, norm_bias, running_mean, running_var, mean,
                          inverse_std, factor,    summand,      momentum,    epsilon};
  WITH_ACTIVATION(activation, forward, x, weight, out, rows, inputs, outputs, norm, threads)
}

// grad (rows, outputs), whose rows begin every `grad_step` floats, of what batch norm made of `mixed`, which is the `out`
// of above -> x_grad (rows, inputs), weight_grad (outputs, inputs; may be nullptr), norm_weight_grad and norm_bias_grad
// (outputs).
extern "C" int pointwise_backward(const float* grad, const float* mixed, const float* x, const float* weight,
                                  const float* norm_weight, const float* mean, const float* inverse_std, float* x_grad,
                                  float* weight_grad, float* norm_weight_grad, float* norm_bias_grad, int64_t grad_step,
                                  int64_t rows, int64_t inputs, int64_t outputs, int activation, int threads) {
  WITH_ACTIVATION(activation, backward, grad, grad_step, mixed, x, weight, norm_weight, mean, inverse_std, x_grad,
                  weight_grad, norm_weight_grad, norm_bias_grad, rows, inputs, outputs, threads)
}
