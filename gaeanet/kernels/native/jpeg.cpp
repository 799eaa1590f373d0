// A part of a JPEG photograph, bit-exact with libjpeg-turbo (tests/test_region.py).
//
// Codes have no fixed positions: those before the part have to be read to know where its own begin, and those after it are read
// too, so that an image is damaged or not whichever part of it is asked for. But nothing else is done for them, and
// reading is the lesser part of decoding. What this decoder does not know (jpeg_frame.hpp), and all damage, is left to
// the forgiving one.

#include "jpeg_frame.hpp"
#include "jpeg_huffman.hpp"
#include "jpeg_samples.hpp"
#include "vectors.hpp"

enum Answer { DONE, NO_MEMORY, NOT_MINE, DAMAGED };

// With narrower registers (and on other processors, where bytes may also be taken together in another order) libjpeg's
// assembly is faster, even though it decodes the whole.
#if defined(__AVX2__)
constexpr bool FAST = true;
#else
constexpr bool FAST = false;
#endif

struct Tables {
  DcTable dc[4];
  AcTable ac[4];
};

// Kept from image to image: many have the same tables, those of the standard's annex K.
static Tables* tables_of(const Frame& frame) {
  static thread_local Tables* tables = nullptr;
  if (!tables) tables = static_cast<Tables*>(calloc(1, sizeof(Tables)));
  if (!tables) return nullptr;
  for (int c = 0; c < frame.components; c++) {
    tables->dc[frame.component[c].dc].prepare(frame.dc[frame.component[c].dc]);
    tables->ac[frame.component[c].ac].prepare(frame.ac[frame.component[c].ac]);
  }
  return tables;
}

// The scan's data between one marker and the next.
struct Segments {
  const uint8_t *at, *end;  // not yet read
  uint8_t* copy;            // as large as the file, and BEYOND
  int marker;               // that ends the segment

  // Copies the next segment without stuffing; false where no marker ends it.
  bool open(Bits& in) {
    uint8_t* to = copy;
    while (const void* next = memchr(at, 0xFF, end - at)) {
      const uint8_t* mark = static_cast<const uint8_t*>(next);
      if (end - mark < 2) return false;
      const bool stuffed = mark[1] == 0;
      const int64_t count = mark - at + stuffed;
      memcpy(to, at, count);
      to += count;
      at = mark + 2;
      if (stuffed) continue;
      marker = mark[1];
      memset(to, 0, BEYOND);
      in = {0, 0, copy, to};
      return true;
    }
    return false;
  }
};

// Samples of one component: a ring of two rows of units, of the columns of units that are wanted.
struct Plane {
  uint8_t* samples;
  int64_t stride, rows, first_column, width, height;

  const uint8_t* row(int64_t y) const { return samples + (y & (rows - 1)) * stride - first_column; }
};

struct Box {
  int64_t top, left, bottom, right;
};

struct Range {
  int64_t begin, end;
  bool has(int64_t k) const { return k >= begin && k < end; }
};

// The units of `size` * 8 samples with the samples from begin to end, and with their neighbours where interpolated.
static Range units_of(int64_t begin, int64_t end, int64_t whole, int factor) {
  if (factor == 1) return {begin / 8, (end - 1) / 8 + 1};
  const int64_t edge = (whole + 1) / 2 - 1;
  const int64_t first = begin ? (begin - 1) / 2 : 0, last = end / 2 < edge ? end / 2 : edge;
  return {first / 8, last / 8 + 1};
}

struct Painter {
  const Frame& frame;
  Box box;
  Plane planes[3];
  uint16_t* sums;
  uint8_t *blue, *red, *pixels;

  void paint(int64_t y) const {
    const int64_t count = box.right - box.left;
    const uint8_t* level = planes[0].row(y) + box.left;
    uint8_t* to = pixels + (y - box.top) * count * 3;
    if (frame.components == 1) return grey(level, to, count);
    const uint8_t* colours[2] = {planes[1].row(y) + box.left, planes[2].row(y) + box.left};
    if (frame.component[0].horizontal == 2) {
      uint8_t* wide[2] = {blue, red};
      for (int c = 0; c < 2; c++) {
        widen(planes[1 + c], y, wide[c]);
        colours[c] = wide[c] + box.left % 2;
      }
    }
    coloured(level, colours[0], colours[1], to, count);
  }

  void widen(const Plane& plane, int64_t y, uint8_t* to) const {
    const int64_t first = box.left / 2, last = (box.right - 1) / 2;
    if (frame.component[0].vertical == 1) return widened(plane.row(y), nullptr, first, last, plane.width - 1, sums, to);
    const int64_t beside = y % 2 ? y / 2 + 1 : y / 2 - 1;
    const int64_t inside = beside < 0 ? 0 : beside >= plane.height ? plane.height - 1 : beside;
    widened(plane.row(y / 2), plane.row(inside), first, last, plane.width - 1, sums, to);
  }
};

struct Decoder {
  const Frame& frame;
  const Tables& tables;
  Bits in;
  int dc[4];

  // One unit, its samples to column `column` and row `row` of the planes.
  bool decode(const Plane* planes, int64_t row, int64_t column) {
    for (int c = 0; c < frame.components; c++) {
      const Component& component = frame.component[c];
      const int32_t* steps = frame.quantization[component.quantization].steps;
      for (int v = 0; v < component.vertical; v++)
        for (int h = 0; h < component.horizontal; h++) {
          alignas(32) int16_t block[64];
          clear(block);
          bool varied;
          if (!tables.dc[component.dc].decode(in, dc[c])) return false;
          if (!tables.ac[component.ac].decode(in, block, varied) || in.left() < 0) return false;
          uint8_t* to = planes[c].samples + (8 * (row * component.vertical + v)) * planes[c].stride;
          to += 8 * (column * component.horizontal + h);
          block[0] = int16_t(dc[c]);
          const bool bounded = varied ? samples_of(block, steps, to, planes[c].stride)
                                      : flat_samples(dc[c], steps[0], to, planes[c].stride);
          if (!bounded) return false;
        }
    }
    return true;
  }

  bool skip() {
    for (int c = 0; c < frame.components; c++) {
      const Component& component = frame.component[c];
      for (int n = component.vertical * component.horizontal; n > 0; n--) {
        if (!tables.dc[component.dc].decode(in, dc[c])) return false;
        if (!tables.ac[component.ac].skip(in) || in.left() < 0) return false;
      }
    }
    return true;
  }

  // As `skip`, but false only of what no encoder writes and libjpeg warns of, if it looks (of bits that are no code it warns
  // near the end alone): not of coefficients that are too large or too many.
  bool pass() {
    for (int c = 0; c < frame.components; c++) {
      const Component& component = frame.component[c];
      for (int n = component.vertical * component.horizontal; n > 0; n--) {
        const int before = dc[c];
        if (!tables.dc[component.dc].decode(in, dc[c])) {
          if (dc[c] == before) return false;  // no code
          dc[c] = 0;
        }
        if (!tables.ac[component.ac].skip(in) && !pass_coefficients(tables.ac[component.ac].codes)) return false;
        if (in.left() < 0) return false;
      }
    }
    return true;
  }

  __attribute__((noinline)) bool pass_coefficients(const Codes& codes) {
    for (int k = 0; k < 63;) {
      in.refill();
      const int symbol = codes.symbol(in), step = step_of(symbol);
      if (symbol < 0) return false;
      in.drop(symbol & 15);
      if (step == END_OF_BLOCK) break;
      k += step;
    }
    return true;
  }
};

// Of what follows the last unit before a marker: libjpeg, which has taken up to 64 bits ahead, warns if there is more.
static Answer too_much(const Bits& in) { return in.left() > 64 + 7 ? DAMAGED : NOT_MINE; }

// Reads all units of the scan. Calls unit(row, column), which takes one from the decoder, and row_end(row). `refused` is the
// answer where unit is false.
template <typename Unit, typename RowEnd>
static INLINE Answer read_units(Decoder& decoder, Segments& segments, Answer refused, Unit unit, RowEnd row_end) {
  const Frame& frame = decoder.frame;
  const int64_t unit_rows = (frame.height + 8 * frame.down - 1) / (8 * frame.down);
  const int64_t unit_columns = (frame.width + 8 * frame.across - 1) / (8 * frame.across);
  int64_t until_restart = frame.restart_interval;
  int restarts = 0;
  if (!segments.open(decoder.in)) return DAMAGED;
  for (int64_t row = 0; row < unit_rows; row++) {
    for (int64_t column = 0; column < unit_columns; column++) {
      if (frame.restart_interval && until_restart-- == 0) {
        if (decoder.in.left() > 7) return too_much(decoder.in);
        if (segments.marker != RST0 + restarts++ % 8) return segments.marker == 0xFF ? NOT_MINE : DAMAGED;
        if (!segments.open(decoder.in)) return DAMAGED;
        memset(decoder.dc, 0, sizeof decoder.dc);
        until_restart = frame.restart_interval - 1;
      }
      if (!unit(row, column)) return refused;
    }
    row_end(row);
  }
  if (decoder.in.left() > 7) return too_much(decoder.in);
  return segments.marker == EOI ? DONE : NOT_MINE;
}

static Answer decode_region(const Frame& frame, const Tables& tables, Segments& segments, Painter& painter) {
  const Box& box = painter.box;
  const int across = frame.across, down = frame.down;
  const Range rows = units_of(box.top, box.bottom, frame.height, down);
  const Range columns = units_of(box.left, box.right, frame.width, across);
  Decoder decoder = {frame, tables, {}, {}};
  int64_t painted = box.top;
  const auto unit = [&](int64_t row, int64_t column) {
    const bool wanted = rows.has(row) && columns.has(column);
    return wanted ? decoder.decode(painter.planes, row % 2, column - columns.begin) : decoder.skip();
  };
  const auto row_end = [&](int64_t row) {
    if (!rows.has(row)) return;
    // The last line of a row of units is interpolated with the first one of the next.
    const int64_t ready = row + 1 == rows.end ? box.bottom : (row + 1) * 8 * down - (down == 2);
    for (; painted < ready && painted < box.bottom; painted++) painter.paint(painted);
  };
  return read_units(decoder, segments, NOT_MINE, unit, row_end);
}

// Pixels (height, width, 3) of a part of a JPEG. Returns 0, or 1 where there is no memory, or 2 or more where this decoder
// does not know the kind of file or it is damaged; the pixels are then anything.
extern "C" int jpeg_region(const uint8_t* data, int64_t bytes, int64_t top, int64_t left, int64_t height, int64_t width,
                           uint8_t* pixels, int) {
  Frame frame;
  if (!FAST || !read_frame(data, bytes, frame) || !frame.common) return NOT_MINE;
  if (top < 0 || left < 0 || height < 1 || width < 1 || height > frame.height - top || width > frame.width - left)
    return NOT_MINE;
  const Tables* tables = tables_of(frame);
  const Box box = {top, left, top + height, left + width};
  Painter painter = {frame, box, {}, nullptr, nullptr, nullptr, pixels};
  const int across = frame.across, down = frame.down;
  const Range columns = units_of(left, box.right, frame.width, across);

  int64_t needed = 0, begins[3];
  for (int c = 0; c < frame.components; c++) {
    const int h = frame.component[c].horizontal, v = frame.component[c].vertical;
    Plane& plane = painter.planes[c];
    plane.stride = (columns.end - columns.begin) * 8 * h;
    plane.rows = 16 * v;
    plane.first_column = columns.begin * 8 * h;
    plane.width = (int64_t(frame.width) * h + across - 1) / across;
    plane.height = (int64_t(frame.height) * v + down - 1) / down;
    begins[c] = needed;
    needed += plane.stride * plane.rows;
  }
  const int64_t sums = needed, blue = sums + 2 * (width + 4), red = blue + width + 4;
  uint8_t* memory = reinterpret_cast<uint8_t*>(workspace(0, (red + width + 4 + 3) / 4));
  uint8_t* copy = reinterpret_cast<uint8_t*>(workspace(1, (bytes + BEYOND + 3) / 4));
  if (!tables || !memory || !copy) return NO_MEMORY;
  for (int c = 0; c < frame.components; c++) painter.planes[c].samples = memory + begins[c];
  painter.sums = reinterpret_cast<uint16_t*>(memory + sums);
  painter.blue = memory + blue;
  painter.red = memory + red;

  Segments segments = {frame.coded, data + bytes, copy, 0};
  return decode_region(frame, *tables, segments, painter);
}

// Reads a JPEG's coded data without decoding any. Returns 0 where they are sound, 1 where there is no memory, 2 where this
// decoder cannot tell, 3 where they are damaged. Takes memory for the data once more, none for pixels.
extern "C" int jpeg_soundness(const uint8_t* data, int64_t bytes, int) {
  Frame frame;
  if (!read_frame(data, bytes, frame)) return NOT_MINE;
  const Tables* tables = tables_of(frame);
  uint8_t* copy = reinterpret_cast<uint8_t*>(workspace(1, (bytes + BEYOND + 3) / 4));
  if (!tables || !copy) return NO_MEMORY;
  Segments segments = {frame.coded, data + bytes, copy, 0};
  Decoder decoder = {frame, *tables, {}, {}};
  return read_units(decoder, segments, DAMAGED, [&](int64_t, int64_t) { return decoder.pass(); }, [](int64_t) {});
}
