// Entropy decoding of blocks of 8 x 8 coefficients (ITU-T T.81, annex F.2).
//
// The codes come from a copy of the data without stuffing, which may be read some way beyond its end, so that eight
// bytes are taken at once and nothing is asked of each. A look-up by the next bits gives not the code alone but the
// coefficient, where its bits are among them, which is so for most; and where no coefficients are wanted, the steps of
// as many codes as the bits hold.

#pragma once

#include "jpeg_frame.hpp"

#define INLINE inline __attribute__((always_inline))

constexpr int WINDOW = 11;  // bits of a look-up: two tables of these are at home in the first-level cache
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
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    more = __builtin_bswap64(more);
#endif
    bits |= more >> count;
    at += (63 - count) >> 3;
    count |= 56;
  }
  INLINE uint32_t peek(int n) const { return uint32_t(bits >> (64 - n)); }
  INLINE void drop(int n) {
    bits <<= n & 63;
    count -= n;
  }
  // The value of n bits, 1..16, of which the lower half means negative numbers.
  INLINE int receive(int n) {
    const int value = int(peek(n)), negative = value < (1 << (n - 1));
    drop(n);
    return negative ? value - (1 << n) + 1 : value;
  }
  // Bits that are left; below 0 where more was read than there is.
  INLINE int64_t left() const { return 8 * (end - at) + count; }
};

// The codes of a table by length.
struct Codes {
  HuffmanSpecification made_of;
  int32_t limit[17];  // of each length: the first 16 bits that are beyond its codes
  int32_t first[17];  // where the symbols of a length begin, less its first code

  void prepare(const HuffmanSpecification& specification) {
    made_of = specification;
    for (int length = 1, code = 0, symbol = 0; length <= 16; length++, code *= 2) {
      first[length] = symbol - code;
      symbol += specification.counts[length - 1];
      code += specification.counts[length - 1];
      limit[length] = code << (16 - length);
    }
  }
  // Takes a code from bits that hold one; its symbol, or -1 where no code begins like this.
  int symbol(Bits& in) const {
    const int next = int(in.peek(16));
    for (int length = 1; length <= 16; length++)
      if (next < limit[length]) {
        in.drop(length);
        return made_of.symbols[(first[length] + (next >> (16 - length))) & 255];
      }
    return -1;
  }
  bool same(const HuffmanSpecification& specification) const { return !memcmp(&made_of, &specification, sizeof made_of); }
};

// How far a step goes from coefficient to coefficient; these go nowhere.
enum Step { END_OF_BLOCK = 64, NOT_IN_TABLE = 128 };

struct DcTable {
  Codes codes;
  uint16_t sizes[1 << 9];  // by the next nine bits: length of the code | size << 8; 0 where it is longer

  void prepare(const HuffmanSpecification& specification) {
    if (codes.same(specification)) return;
    codes.prepare(specification);
    for (int window = 0; window < 1 << 9; window++) {
      Bits in = {uint64_t(window) << 55, 9, nullptr, nullptr};
      const int size = codes.symbol(in);
      sizes[window] = size < 0 || in.count < 0 ? 0 : uint16_t((9 - in.count) | size << 8);
    }
  }
  // Adds the difference that comes next; false where there is none.
  INLINE bool decode(Bits& in, int& dc) const {
    in.refill();
    const int entry = sizes[in.peek(9)];
    int size = entry >> 8;
    if (entry)
      in.drop(entry & 63);
    else if ((size = codes.symbol(in)) < 0)
      return false;
    if (size) dc += in.receive(size);
    return dc >= -32768 && dc <= 32767;
  }
};

struct AcTable {
  Codes codes;
  uint32_t steps[1 << WINDOW];  // bits | step << 8 | value << 16 of the next coefficient
  uint16_t leaps[1 << WINDOW];  // bits | step << 8 over all that the window holds of one block

  void prepare(const HuffmanSpecification& specification) {
    if (codes.same(specification)) return;
    codes.prepare(specification);
    for (int window = 0; window < 1 << WINDOW; window++) {
      Bits in = {uint64_t(window) << (64 - WINDOW), WINDOW, nullptr, nullptr};
      steps[window] = NOT_IN_TABLE << 8;
      const int symbol = codes.symbol(in), size = symbol & 15;
      if (symbol < 0 || in.count < size) continue;
      const int value = size ? in.receive(size) : 0, bits = WINDOW - in.count;
      const int step = size || symbol == 0xF0 ? (symbol >> 4) + 1 : int(END_OF_BLOCK);
      steps[window] = uint32_t(bits | step << 8) | uint32_t(value) << 16;
    }
    for (int window = 0; window < 1 << WINDOW; window++) {
      int bits = 0, step = 0;
      do {
        const uint32_t next = steps[(window << bits) & ((1 << WINDOW) - 1)];
        const int more = next & 63, forward = next >> 8 & 255;
        if (forward == NOT_IN_TABLE || bits + more > WINDOW || step + forward > 127) break;
        bits += more;
        step += forward;
      } while (step < END_OF_BLOCK);
      leaps[window] = uint16_t(bits ? bits | step << 8 : NOT_IN_TABLE << 8);
    }
  }

  // One coefficient that the table does not hold, after coefficient `k`, which moves on to 63 at the end of a block.
  __attribute__((noinline)) bool decode_one(Bits& in, int& k, int16_t* block) const {
    in.refill();
    const int symbol = codes.symbol(in), size = symbol & 15;
    if (symbol < 0) return false;
    if (!size && symbol != 0xF0) {
      k = 63;
      return true;
    }
    k += (symbol >> 4) + 1;
    const int value = size ? in.receive(size) : 0;
    if (k > 63) return false;
    block[ZIGZAG[k]] = int16_t(value);
    return true;
  }

  // Coefficients 1..63 of a block that holds zeros; false where they are not coded as they should be. `any`: whether
  // there are any.
  INLINE bool decode(Bits& in, int16_t* block, bool& any) const {
    int k = 0;
    uint32_t entry;
    while (true) {
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
      if (step == END_OF_BLOCK) {
        any = k != END_OF_BLOCK;
        return true;
      }
      if (step == NOT_IN_TABLE) {
        k -= NOT_IN_TABLE;
        if (!decode_one(in, k, block)) return false;
      } else if (k == 63) {
        block[63] = int16_t(entry >> 16);
      } else {
        return false;
      }
      if (k == 63) return any = true;
    }
  }

  // The same without the coefficients.
  INLINE bool skip(Bits& in) const {
    int k = 0;
    while (true) {
      in.refill();
      uint32_t entry;
      int step;
      for (int turn = 0; turn < 56 / WINDOW; turn++) {
        entry = leaps[in.peek(WINDOW)];
        step = entry >> 8;
        if (__builtin_expect(k + step >= 63, 0)) goto out;
        in.drop(entry & 63);
        k += step;
      }
      continue;
    out:
      // A leap to the end of the block, if the block had not ended before; or one that is too far.
      if ((step >= END_OF_BLOCK && step < NOT_IN_TABLE && k + step - END_OF_BLOCK < 63) || k + step == 63) {
        in.drop(entry & 63);
        return true;
      }
      int16_t unwanted[64];
      if (!decode_one(in, k, unwanted)) return false;
      if (k == 63) return true;
    }
  }
};
