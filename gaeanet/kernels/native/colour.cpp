// Colour operations on 8-bit RGB pixels, bit-exact with Pillow's (tests/test_colour.py: all colours).
//
// For colour jitter, pixels are taken apart into planes, in which every loop runs over bytes side by side, and put together again at the
// end. The order of operations is Pillow's, and its precision where float would give another byte; a fused multiply-add
// would, so this file is compiled without. One image is one thread's work: the loader has a process for each core.

#include "vectors.hpp"

struct Planes {
  uint8_t *red, *green, *blue;  // one behind the other
  int64_t count;
};

// Between two values of 0..255, or beyond: `weight` 0 is `from`, 1 is `to`.
static INLINE uint8_t blend(int from, int to, float weight) {
  float value = float(from) + weight * float(to - from);
  value = value > 0.0f ? value : 0.0f;
  value = value < 255.0f ? value : 255.0f;
  return uint8_t(int(value));
}

// ITU-R 601 luma.
static INLINE int grey(int red, int green, int blue) { return (red * 19595 + green * 38470 + blue * 7471 + 32768) >> 16; }

// The values of all three planes through blend(from, value, weight), which has only 256 results.
static void blend_all(Planes image, int from, float weight) {
  uint8_t results[256];
  for (int value = 0; value < 256; value++) results[value] = blend(from, value, weight);
  for (uint8_t* at = image.red; at < image.red + 3 * image.count; at++) *at = results[*at];
}

static void brightness(Planes image, float factor) { blend_all(image, 0, factor); }

static void contrast(Planes image, float factor) {
  int64_t sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < image.count; i++) sum += grey(image.red[i], image.green[i], image.blue[i]);
  blend_all(image, int(double(sum) / double(image.count) + 0.5), factor);
}

static void saturation(Planes image, float factor) {
#pragma omp simd
  for (int64_t i = 0; i < image.count; i++) {
    const int red = image.red[i], green = image.green[i], blue = image.blue[i], level = grey(red, green, blue);
    image.red[i] = blend(level, red, factor);
    image.green[i] = blend(level, green, factor);
    image.blue[i] = blend(level, blue, factor);
  }
}

static INLINE int largest(int a, int b) { return a > b ? a : b; }
static INLINE int smallest(int a, int b) { return a < b ? a : b; }

// To hue, saturation and value in 8 bit, and back with the hue turned by `turn` 256ths.
static void hue(Planes image, int turn) {
#pragma omp simd
  for (int64_t i = 0; i < image.count; i++) {
    const int red = image.red[i], green = image.green[i], blue = image.blue[i];
    const int value = largest(red, largest(green, blue)), spread = value - smallest(red, smallest(green, blue));
    const float range = float(largest(spread, 1));
    const float of_red = float(value - red) / range, of_green = float(value - green) / range;
    const float of_blue = float(value - blue) / range;
    // The three thirds of the wheel; Pillow rounds these sums once, from double.
    const float first = of_blue - of_green;
    const float second = float(2.0 + double(of_red) - double(of_blue));
    const float third = float(4.0 + double(of_green) - double(of_red));
    const float third_or_second = green == value ? second : third;
    const float turned = red == value ? first : third_or_second;
    const float wheel = turned / 6.0f + (turned < 0.0f ? 1.0f : 0.0f);
    const int old_hue = spread ? int(wheel * 255.0f) : 0;
    const int strength = spread ? int(float(spread) / float(largest(value, 1)) * 255.0f) : 0;

    const int new_hue = (old_hue + turn) & 255;
    const float turned_hue = float(new_hue) * 6.0f, sixth = float(int(turned_hue / 255.0f));
    const float part = (turned_hue - sixth * 255.0f) / 255.0f;
    const float saturation = float(strength) / 255.0f;
    const int low = int(float(value) * (1.0f - saturation) + 0.5f);
    const int falling = int(float(value) * (1.0f - saturation * part) + 0.5f);
    const int rising = int(float(value) * (1.0f - saturation * (1.0f - part)) + 0.5f);
    const int side = sixth == 6.0f ? 0 : int(sixth);
    const int new_red = side == 0 || side == 5 ? value : side == 1 ? falling : side == 4 ? rising : low;
    const int new_green = side == 1 || side == 2 ? value : side == 3 ? falling : side == 0 ? rising : low;
    const int new_blue = side == 3 || side == 4 ? value : side == 5 ? falling : side == 2 ? rising : low;
    image.red[i] = uint8_t(strength ? new_red : value);
    image.green[i] = uint8_t(strength ? new_green : value);
    image.blue[i] = uint8_t(strength ? new_blue : value);
  }
}

// pixels (count, 3), changed in place by the four operations in the order that `order` gives: 0 brightness, 1 contrast,
// 2 saturation, 3 hue, any other number none. Returns 0, or 1 where there is no memory.
extern "C" int colour_jitter(uint8_t* pixels, int64_t count, const int64_t* order, double brightness_factor,
                             double contrast_factor, double saturation_factor, int hue_turn, int) {
  uint8_t* planes = reinterpret_cast<uint8_t*>(workspace(0, (3 * count + 3) / 4));
  if (!planes) return 1;
  const Planes image = {planes, planes + count, planes + 2 * count, count};
  for (int64_t i = 0; i < count; i++) {
    image.red[i] = pixels[3 * i];
    image.green[i] = pixels[3 * i + 1];
    image.blue[i] = pixels[3 * i + 2];
  }
  for (int k = 0; k < 4; k++) switch (order[k]) {
      case 0: brightness(image, float(brightness_factor)); break;
      case 1: contrast(image, float(contrast_factor)); break;
      case 2: saturation(image, float(saturation_factor)); break;
      case 3: hue(image, hue_turn); break;
    }
  for (int64_t i = 0; i < count; i++) {
    pixels[3 * i] = image.red[i];
    pixels[3 * i + 1] = image.green[i];
    pixels[3 * i + 2] = image.blue[i];
  }
  return 0;
}

// pixels (count, 3) -> levels (3, 256): how many pixels have each level, by channel.
extern "C" int count_levels(const uint8_t* pixels, int64_t count, int64_t* levels, int) {
  memset(levels, 0, 3 * 256 * sizeof *levels);
  for (int64_t i = 0; i < count; i++)
    for (int c = 0; c < 3; c++) levels[c * 256 + pixels[3 * i + c]]++;
  return 0;
}

// pixels (count, 3), each replaced by what results (3, 256) has for it.
extern "C" int map_levels(uint8_t* pixels, int64_t count, const uint8_t* results, int) {
  for (int64_t i = 0; i < count; i++)
    for (int c = 0; c < 3; c++) pixels[3 * i + c] = results[c * 256 + pixels[3 * i + c]];
  return 0;
}
