// The side of benchmarks/fuzz.py that runs under sanitizers: what bytes of an image file reach, and nothing else.
//
// Requests come on standard input and are answered on standard output, one at a time, so that whoever asks knows which
// one was the last. Every block of memory is as large as it has to be, no larger: AddressSanitizer sees a byte too many.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

extern "C" int jpeg_region(const uint8_t*, int64_t, int64_t, int64_t, int64_t, int64_t, uint8_t*, int);
extern "C" int jpeg_soundness(const uint8_t*, int64_t, int);
extern "C" int colour_jitter(uint8_t*, int64_t, const int64_t*, double, double, double, int, int);
extern "C" int count_levels(const uint8_t*, int64_t, int64_t*, int);
extern "C" int map_levels(uint8_t*, int64_t, const uint8_t*, int);

struct Request {
  int64_t bytes, top, left, height, width, room;  // room: pixels that there is memory for
};

struct Answer {
  int32_t region, soundness, news;  // news: 1 where the request went a way through the code that none went before
};

// The ways: how often one block of code follows another, as a power of two, for each pair (by a hash).
constexpr int WAYS = 1 << 16;
static uint8_t now[WAYS], seen[WAYS];
static uintptr_t before;

extern "C" void __sanitizer_cov_trace_pc() {
  const uintptr_t here = reinterpret_cast<uintptr_t>(__builtin_return_address(0)) * 0x9E3779B97F4A7C15u >> 48;
  uint8_t& count = now[(here ^ before) & (WAYS - 1)];
  if (count < 255) count++;
  before = here >> 1;
}

static bool news() {
  bool found = false;
  for (int k = 0; k < WAYS; k++)
    if (now[k]) {
      const uint8_t size = uint8_t(1 << (31 - __builtin_clz(now[k])));
      found |= !(seen[k] & size);
      seen[k] |= size;
    }
  return found;
}

static void colours(const uint8_t* pixels, int64_t count, int64_t seed) {
  uint8_t* copy = static_cast<uint8_t*>(malloc(3 * count));
  memcpy(copy, pixels, 3 * count);
  int64_t levels[3 * 256], order[4];
  uint8_t results[3 * 256];
  count_levels(copy, count, levels, 1);
  for (int k = 0; k < 3 * 256; k++) results[k] = uint8_t(levels[k]);
  for (int k = 0; k < 4; k++) order[k] = (seed >> k) % 5 - 1;
  colour_jitter(copy, count, order, 0.6 + double(seed % 9) / 10, 1.4, 0.6, int(seed % 256), 1);
  map_levels(copy, count, results, 1);
  free(copy);
}

int main() {
  Request asked;
  while (fread(&asked, sizeof asked, 1, stdin) == 1) {
    uint8_t* data = static_cast<uint8_t*>(malloc(asked.bytes));
    uint8_t* pixels = static_cast<uint8_t*>(malloc(3 * asked.room));
    if (fread(data, 1, asked.bytes, stdin) != size_t(asked.bytes)) return 3;
    memset(now, 0, sizeof now);
    before = 0;
    const int soundness = jpeg_soundness(data, asked.bytes, 1);
    const int region = jpeg_region(data, asked.bytes, asked.top, asked.left, asked.height, asked.width, pixels, 1);
    const Answer answer = {region, soundness, news()};
    if (region == 0) colours(pixels, asked.room, asked.bytes);
    fwrite(&answer, sizeof answer, 1, stdout);
    if (region == 0) fwrite(pixels, 3, asked.room, stdout);
    fflush(stdout);
    free(data);
    free(pixels);
  }
  return 0;
}
