// Activation and depthwise convolution in one pass, forward and backward.
//
// One image's V channels at a time are copied, activated, into a frame of zeros that stays in the first-level cache;
// from there on no tap needs a question about borders. The activated map is never written to memory: the backward pass
// makes it again, which costs less than reading it would. So is a batch norm before the activation: a factor and a
// summand for each channel, or none (nullptr). Sums are taken in an order that depends on the shapes only,
// so the result is the same bit for bit for any number of threads.

#include "vectors.hpp"

struct Shape {
  int64_t n, height, width, channels, out_height, out_width, kernel, stride, padding, dilation;
};

// `weight` (C, k, k) as one vector a tap: [block][tap][V], zeros beyond the last channel.
static void pack(const float* weight, float* packed, int64_t channels, int64_t taps, bool flip) {
  memset(packed, 0, blocks_of(channels) * taps * V * sizeof(float));
  for (int64_t c = 0; c < channels; c++)
    for (int64_t t = 0; t < taps; t++)
      packed[(c / V * taps + (flip ? taps - 1 - t : t)) * V + c % V] = weight[c * taps + t];
}

// T neighbouring outputs of one row: taps outside, outputs inside, all sums in registers. Kernel size K and stride S are
// known to the compiler, or 0.
template <int K, int S, int T>
static INLINE void correlate_some(const float* frame, int64_t frame_width, const float* weight, float* out,
                                  int64_t kernel, int64_t any_stride, int64_t dilation) {
  const int64_t k = K ? K : kernel, stride = S ? S : any_stride;
  vec sum[T] = {};
  for (int64_t i = 0; i < k; i++) {
    const float* row = frame + i * dilation * frame_width * V;
#pragma GCC unroll 8
    for (int64_t j = 0; j < k; j++) {
      vec w = load(weight + (i * k + j) * V);
#pragma GCC unroll 8
      for (int t = 0; t < T; t++) sum[t] += w * load(row + (t * stride + j * dilation) * V);
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < T; t++) store(out + t * V, sum[t]);
}

// One row of outputs, out_width vectors.
template <int K, int S>
static INLINE void correlate_row(const float* frame, int64_t frame_width, const float* weight, float* out,
                                 int64_t out_width, int64_t kernel, int64_t stride, int64_t dilation) {
  int64_t x = 0;
#define SOME(T)                                                                                                 \
  for (; x + T <= out_width; x += T)                                                                            \
  correlate_some<K, S, T>(frame + x * stride * V, frame_width, weight, out + x * V, kernel, stride, dilation)
  SOME(8);
  SOME(4);
  SOME(2);
  SOME(1);
#undef SOME
}

template <int S>
static void correlate(const float* frame, int64_t frame_width, const float* weight, float* out, int64_t out_width,
                      int64_t kernel, int64_t stride, int64_t dilation) {
  switch (kernel) {
    case 3: return correlate_row<3, S>(frame, frame_width, weight, out, out_width, kernel, stride, dilation);
    case 5: return correlate_row<5, S>(frame, frame_width, weight, out, out_width, kernel, stride, dilation);
    case 7: return correlate_row<7, S>(frame, frame_width, weight, out, out_width, kernel, stride, dilation);
    default: return correlate_row<0, S>(frame, frame_width, weight, out, out_width, kernel, stride, dilation);
  }
}

// Adds one image's part of the weight gradient to `sums` [tap][V]. ROWS rows of taps share a pass over the image.
template <int K, int ROWS>
static void weight_gradient(const float* frame, int64_t frame_width, const float* grad, int64_t grad_width,
                            float* sums, const Shape& s) {
  for (int64_t i = 0; i < K; i += ROWS) {
    vec sum[ROWS][K] = {};
    for (int64_t y = 0; y < s.out_height; y++) {
      const float* row = frame + (y * s.stride + i * s.dilation) * frame_width * V;
      for (int64_t x = 0; x < s.out_width; x++) {
        vec g = load(grad + (y * grad_width + x) * V);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
          for (int j = 0; j < K; j++)
            sum[r][j] += g * load(row + (r * s.dilation * frame_width + x * s.stride + j * s.dilation) * V);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
      for (int j = 0; j < K; j++) {
        float* tap = sums + ((i + r) * K + j) * V;
        store(tap, load(tap) + sum[r][j]);
      }
  }
}

static void weight_gradient(const float* frame, int64_t frame_width, const float* grad, int64_t grad_width,
                            float* sums, const Shape& s) {
  switch (s.kernel) {
    case 3: return weight_gradient<3, 3>(frame, frame_width, grad, grad_width, sums, s);
    case 5: return weight_gradient<5, 1>(frame, frame_width, grad, grad_width, sums, s);
    case 7: return weight_gradient<7, 1>(frame, frame_width, grad, grad_width, sums, s);
  }
  for (int64_t i = 0; i < s.kernel; i++)
    for (int64_t j = 0; j < s.kernel; j++) {
      vec sum = {};
      for (int64_t y = 0; y < s.out_height; y++)
        for (int64_t x = 0; x < s.out_width; x++)
          sum += load(grad + (y * grad_width + x) * V) *
                 load(frame + ((y * s.stride + i * s.dilation) * frame_width + x * s.stride + j * s.dilation) * V);
      float* tap = sums + (i * s.kernel + j) * V;
      store(tap, load(tap) + sum);
    }
}

// The input gradient of a stride above 1: each output pixel adds its gradient to its taps' positions in `frame`.
static void scatter(const float* grad, int64_t grad_width, const float* weight, float* frame, int64_t frame_width,
                    const Shape& s) {
  for (int64_t y = 0; y < s.out_height; y++)
    for (int64_t i = 0; i < s.kernel; i++) {
      float* row = frame + (y * s.stride + i * s.dilation) * frame_width * V;
      for (int64_t j = 0; j < s.kernel; j++) {
        vec w = load(weight + (i * s.kernel + j) * V);
        for (int64_t x = 0; x < s.out_width; x++) {
          float* to = row + (x * s.stride + j * s.dilation) * V;
          store(to, load(to) + w * load(grad + (y * grad_width + x) * V));
        }
      }
    }
}

// One block of a channel-wise factor or summand.
static INLINE vec channels_of(const float* values, float otherwise, int64_t block, int lanes) {
  return values ? load(values + block * V, lanes) : all(otherwise);
}

template <int A>
static int forward(const float* x, const float* factors, const float* summands, const float* weight, float* out,
                   const Shape& s, int threads) {
  const int64_t blocks = blocks_of(s.channels), taps = s.kernel * s.kernel;
  const int64_t frame_width = s.width + 2 * s.padding, frame_size = (s.height + 2 * s.padding) * frame_width * V;
  float* packed = workspace(0, blocks * taps * V);
  if (!packed) return 1;
  pack(weight, packed, s.channels, taps, false);
  int failed = 0;
#pragma omp parallel num_threads(threads) reduction(| : failed)
  {
    float* frame = workspace(1, frame_size);
    float* row = workspace(2, s.out_width * V);
    failed = !frame || !row;
    if (frame) memset(frame, 0, frame_size * sizeof(float));
#pragma omp for schedule(static)
    for (int64_t item = 0; item < s.n * blocks; item++) {
      if (failed) continue;
      const int64_t image = item / blocks, block = item % blocks;
      const int lanes = lanes_of(s.channels, block);
      const vec factor = channels_of(factors, 1.0f, block, lanes), summand = channels_of(summands, 0.0f, block, lanes);
      const float* from = x + image * s.height * s.width * s.channels + block * V;
      for (int64_t i = 0; i < s.height; i++) {
        float* to = frame + ((i + s.padding) * frame_width + s.padding) * V;
        for (int64_t j = 0; j < s.width; j++, from += s.channels)
          store(to + j * V, activated<A>(load(from, lanes) * factor + summand));
      }
      float* to = out + image * s.out_height * s.out_width * s.channels + block * V;
      for (int64_t i = 0; i < s.out_height; i++) {
        const float *top = frame + i * s.stride * frame_width * V, *packed_weight = packed + block * taps * V;
        if (s.stride == 1)
          correlate<1>(top, frame_width, packed_weight, row, s.out_width, s.kernel, 1, s.dilation);
        else
          correlate<0>(top, frame_width, packed_weight, row, s.out_width, s.kernel, s.stride, s.dilation);
        for (int64_t j = 0; j < s.out_width; j++, to += s.channels) store(to, load(row + j * V), lanes);
      }
    }
  }
  return failed;
}

template <int A>
static int backward(const float* grad, const float* x, const float* factors, const float* summands, const float* weight,
                    float* x_grad, float* weight_grad, const Shape& s, int threads) {
  const int64_t blocks = blocks_of(s.channels), taps = s.kernel * s.kernel;
  const int64_t frame_width = s.width + 2 * s.padding, frame_size = (s.height + 2 * s.padding) * frame_width * V;
  const int64_t border = s.stride == 1 ? (s.kernel - 1) * s.dilation - s.padding : 0;
  const int64_t grad_width = s.out_width + 2 * border, grad_size = (s.out_height + 2 * border) * grad_width * V;
  const int64_t groups = s.n < 32 ? s.n : 32;  // of images, each with sums of its own
  const int64_t slopes_size = s.height * s.width * V;
  float* packed = workspace(0, blocks * taps * V * (1 + groups));
  if (!packed) return 1;
  float* sums = packed + blocks * taps * V;  // [group][block][tap][V]
  pack(weight, packed, s.channels, taps, s.stride == 1);
  memset(sums, 0, groups * blocks * taps * V * sizeof(float));
  int failed = 0;
#pragma omp parallel num_threads(threads) reduction(| : failed)
  {
    // One image's activated inputs, slopes and gradients; for a stride above 1 also a frame to scatter into.
    float* frame = workspace(1, frame_size * 2 + grad_size + slopes_size);
    float* row = workspace(2, s.width * V);
    failed = !frame || !row;
    float *scattered = frame + frame_size, *grads = scattered + frame_size, *slopes = grads + grad_size;
    if (frame) memset(frame, 0, (frame_size * 2 + grad_size) * sizeof(float));
#pragma omp for schedule(static)
    for (int64_t item = 0; item < groups * blocks; item++) {
      if (failed) continue;
      const int64_t group = item / blocks, block = item % blocks;
      const int lanes = lanes_of(s.channels, block);
      const float* packed_weight = packed + block * taps * V;
      const vec factor = channels_of(factors, 1.0f, block, lanes), summand = channels_of(summands, 0.0f, block, lanes);
      for (int64_t image = group * s.n / groups; image < (group + 1) * s.n / groups; image++) {
        const float* from = x + image * s.height * s.width * s.channels + block * V;
        for (int64_t i = 0; i < s.height; i++) {
          float* to = frame + ((i + s.padding) * frame_width + s.padding) * V;
          for (int64_t j = 0; j < s.width; j++, from += s.channels) {
            vec value, slope;
            activated<A>(load(from, lanes) * factor + summand, value, slope);
            store(to + j * V, value);
            if (A != IDENTITY) store(slopes + (i * s.width + j) * V, slope);
          }
        }
        from = grad + image * s.out_height * s.out_width * s.channels + block * V;
        float* inner = grads + (border * grad_width + border) * V;
        for (int64_t i = 0; i < s.out_height; i++)
          for (int64_t j = 0; j < s.out_width; j++, from += s.channels)
            store(inner + (i * grad_width + j) * V, load(from, lanes));

        weight_gradient(frame, frame_width, inner, grad_width, sums + (group * blocks + block) * taps * V, s);

        float* to = x_grad + image * s.height * s.width * s.channels + block * V;
        if (s.stride != 1) {
          memset(scattered, 0, frame_size * sizeof(float));
          scatter(grads, grad_width, packed_weight, scattered, frame_width, s);
        }
        for (int64_t i = 0; i < s.height; i++) {
          const float* result = scattered + ((i + s.padding) * frame_width + s.padding) * V;
          if (s.stride == 1) {
            correlate<1>(grads + i * grad_width * V, grad_width, packed_weight, row, s.width, s.kernel, 1, s.dilation);
            result = row;
          }
          for (int64_t j = 0; j < s.width; j++, to += s.channels) {
            vec g = load(result + j * V);
            if (A != IDENTITY) g *= load(slopes + (i * s.width + j) * V);
            store(to, g, lanes);
          }
        }
      }
    }
  }
  for (int64_t c = 0; c < s.channels && !failed; c++)
    for (int64_t t = 0; t < taps; t++) {
      float sum = 0;
      for (int64_t group = 0; group < groups; group++)
        sum += sums[((group * blocks + c / V) * taps + t) * V + c % V];
      weight_grad[c * taps + t] = sum;
    }
  return failed;
}

// x (N, H, W, C), factors and summands (C) or nullptr, weight (C, k, k) -> out (N, H', W', C). Returns 0, or 1 where
// there is no memory.
extern "C" int depthwise_forward(const float* x, const float* factors, const float* summands, const float* weight,
                                 float* out, const Shape* shape, int activation, int threads) {
  WITH_ACTIVATION(activation, forward, x, factors, summands, weight, out, *shape, threads)
}

// grad (N, H', W', C), the others as above -> x_grad (N, H, W, C), weight_grad (C, k, k). x_grad is the gradient of what
// the activation was given: x times the factors plus the summands.
extern "C" int depthwise_backward(const float* grad, const float* x, const float* factors, const float* summands,
                                  const float* weight, float* x_grad, float* weight_grad, const Shape* shape,
                                  int activation, int threads) {
  WITH_ACTIVATION(activation, backward, grad, x, factors, summands, weight, x_grad, weight_grad, *shape, threads)
}
