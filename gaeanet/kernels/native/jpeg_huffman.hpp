// Entropy decoding of blocks of 8 x 8 coefficients (ITU-T T.81, annex F.2).
//
// The codes come from a copy of the data without stuffing, which may be read some way beyond its end, so that eight
// bytes are taken in one load and nothing is asked of each. A look-up by the next bits gives not the code alone but the
// coefficient, where its bits are among them, which is so for most; and where no coefficients are wanted, the steps of
// as many codes as the bits hold.

#pragma once

#include "jpeg_frame.hpp"
#include "vectors.hpp"

constexpr int WINDOW = 11;   // bits of a look-up: two tables of these are at home in the first-level cache
constexpr int SHORT = 9;     // of a look-up of a DC difference
constexpr int BEYOND = 512;  // bytes after the data that may be read: no block takes more

// The coded data up to a marker, as a row of bits whose next ones are the topmost of `bits`.
struct Bits {
  uint64_t bits;
  int count;  // how many of `bits` count, at least
  const uint8_t *at, *end;

  // At least 56 bits.
  INLINE void refill() {
    uint64_t more;
    memcpy(&more, at, 8);
    bits |= __builtin_bswap64(more) >> count;
    at += (63 - count) >> 3;
    count |= 56;
  }
  INLINE uint32_t peek(int n) const { return uint32_t(bits >> (64 - n)); }
  INLINE void drop(int n) {
    bits <<= n & 63;
    count -= n;
  }
  // The value of n bits, 0..15, of which the lower half means negative numbers.
  INLINE int receive(int n) {
    const int value = int(bits >> 1 >> (63 - n)), upper = (1 << n) >> 1;
    drop(n);
    return value < upper ? value - (1 << n) + 1 : value;
  }
  // Bits that are left; below 0 where more was read than there is.
  INLINE int64_t left() const { return 8 * (end - at) + count; }
};

// The codes of a table by length.
struct Codes {
  HuffmanSpecification made_of;
  int32_t limit[17];  // of each length: the first 16 bits that are beyond its codes
  int32_t first[17];  // where the symbols of a length begin, less its first code

  bool same(const HuffmanSpecification& specification) const { return !memcmp(&made_of, &specification, sizeof made_of); }

  // Calls take(symbol, length, code) for each code.
  template <typename Take>
  void prepare(const HuffmanSpecification& specification, Take take) {
    made_of = specification;
    for (int length = 1, code = 0, symbol = 0; length <= 16; length++, code *= 2) {
      first[length] = symbol - code;
      for (const int end = symbol + specification.counts[length - 1]; symbol < end; symbol++, code++)
        take(specification.symbols[symbol & 255], length, code);
      limit[length] = code << (16 - length);
    }
  }

  // Takes a code from bits that hold one; its symbol, or -1 where no code begins like this.
  __attribute__((noinline)) int symbol(Bits& in) const {
    const int next = int(in.peek(16));
    for (int length = 1; length <= 16; length++)
      if (next < limit[length]) {
        in.drop(length);
        return made_of.symbols[(first[length] + (next >> (16 - length))) & 255];
      }
    return -1;
  }
};

struct DcTable {
  Codes codes;
  uint16_t sizes[1 << SHORT];  // by the next bits: length of the code | size << 8; 0 where it is longer

  void prepare(const HuffmanSpecification& specification) {
    if (codes.same(specification)) return;
    memset(sizes, 0, sizeof sizes);
    codes.prepare(specification, [this](int size, int length, int code) {
      if (length > SHORT) return;
      const int free = SHORT - length;
      for (int k = 0; k < 1 << free; k++) sizes[(code << free) + k] = uint16_t(length | size << 8);
    });
  }

  // Adds the difference that comes next; false where there is none.
  INLINE bool decode(Bits& state, int& dc) const {
    Bits in = state;
    in.refill();
    const int entry = sizes[in.peek(SHORT)];
    int size = entry >> 8;
    in.drop(entry & 63);
    if (__builtin_expect(!entry, 0)) {
      Bits there = in;
      if ((size = codes.symbol(there)) < 0) return false;
      in = there;
    }
    dc += in.receive(size);
    state = in;
    return dc >= -32768 && dc <= 32767;
  }
};

// How far it is from coefficient to coefficient; these lead to no coefficient.
enum Step { END_OF_BLOCK = 64, VALUE_BEYOND = 128, CODE_BEYOND = 192 };

static INLINE int step_of(int symbol) { return symbol & 15 || symbol == 0xF0 ? (symbol >> 4) + 1 : int(END_OF_BLOCK); }

struct AcTable {
  Codes codes;
  // By the next bits: length | step << 8 | value << 16 of a coefficient; or length | VALUE_BEYOND << 8 | symbol << 16 of its
  // code; or CODE_BEYOND << 8.
  uint32_t steps[1 << WINDOW];
  uint16_t leaps[1 << WINDOW];  // length | step << 8, over two codes where the window holds two of one block

  void prepare(const HuffmanSpecification& specification) {
    if (codes.same(specification)) return;
    for (uint32_t& entry : steps) entry = CODE_BEYOND << 8;
    codes.prepare(specification, [this](int symbol, int length, int code) {
      if (length > WINDOW) return;
      uint32_t* entry = steps + (code << (WINDOW - length));
      const int size = symbol & 15, free = WINDOW - length - size;
      if (free < 0) {
        for (int k = 0; k < 1 << (WINDOW - length); k++) *entry++ = uint32_t(length | VALUE_BEYOND << 8 | symbol << 16);
        return;
      }
      const uint32_t common = uint32_t(length + size) | uint32_t(step_of(symbol)) << 8;
      for (int bits = 0; bits < 1 << size; bits++) {
        const int value = size && bits < 1 << (size - 1) ? bits - (1 << size) + 1 : bits;
        for (int k = 0; k < 1 << free; k++) *entry++ = common | uint32_t(value) << 16;
      }
    });
    for (int window = 0; window < 1 << WINDOW; window++) {
      const int one = int(steps[window] & 0xFFFF), length = one & 63;
      const int two = int(steps[(window << length) & ((1 << WINDOW) - 1)] & 0xFFFF);
      const bool both = one >> 8 < END_OF_BLOCK && two >> 8 < VALUE_BEYOND && length + (two & 63) <= WINDOW;
      leaps[window] = uint16_t(both ? one + two : one);
    }
  }

  // The coefficient after number k whose code or value the table does not hold; k moves on to it, or to 63 at the end of
  // the block. False where nothing is coded like this.
  INLINE bool decode_beyond(Bits& in, uint32_t entry, int& k, int& value) const {
    int symbol = int(entry >> 16);
    if ((entry >> 8 & 255) == CODE_BEYOND) {
      Bits there = in;
      there.refill();
      if ((symbol = codes.symbol(there)) < 0) return false;
      in = there;
    }
    in.refill();
    value = in.receive(symbol & 15);
    const int step = step_of(symbol);
    k = step == END_OF_BLOCK ? 63 : k + step;
    return k <= 63;
  }

  // Coefficients 1..63 of a block that holds zeros; false where they are not coded as they should be. `any`: whether
  // there are any.
  INLINE bool decode(Bits& state, int16_t* block, bool& any) const {
    Bits in = state;
    int k = 0;
    any = true;
    while (true) {
      uint32_t entry;
      in.refill();
      for (int turn = 0; turn < 56 / WINDOW; turn++) {
        entry = steps[in.peek(WINDOW)];
        in.drop(entry & 63);
        k += entry >> 8 & 255;
        if (__builtin_expect(k >= 63, 0)) goto out;
        block[ZIGZAG[k]] = int16_t(entry >> 16);
      }
      continue;
    out:
      const int step = entry >> 8 & 255;
      int value = int16_t(entry >> 16);
      if (step >= VALUE_BEYOND) {
        k -= step;
        if (!decode_beyond(in, entry, k, value)) return false;
      } else if (step == END_OF_BLOCK) {
        any = k != END_OF_BLOCK;
        break;
      } else if (k > 63) {
        return false;
      }
      block[ZIGZAG[k]] = int16_t(value);
      if (k == 63) break;
    }
    state = in;
    return true;
  }

  // The same without the coefficients.
  INLINE bool skip(Bits& state) const {
    Bits in = state;
    int k = 0;
    while (true) {
      int entry, step;
      in.refill();
      for (int turn = 0; turn < 56 / WINDOW; turn++) {
        entry = leaps[in.peek(WINDOW)];
        step = entry >> 8;
        if (__builtin_expect(k + step >= 63, 0)) goto out;
        in.drop(entry & 63);
        k += step;
      }
      continue;
    out:
      // To the end of the block, if it had not ended before; or beyond the table; or further than the block goes.
      if ((step >= END_OF_BLOCK && step < VALUE_BEYOND && k + step - END_OF_BLOCK < 63) || k + step == 63) {
        in.drop(entry & 63);
        break;
      }
      const uint32_t single = steps[in.peek(WINDOW)];
      in.drop(single & 63);
      int value;
      step = single >> 8 & 255;
      if (step < END_OF_BLOCK)
        k += step;
      else if (step == END_OF_BLOCK)
        k = 63;
      else if (!decode_beyond(in, single, k, value))
        return false;
      if (k == 63) break;
      if (k > 63) return false;
    }
    state = in;
    return true;
  }
};
