// A JPEG's headers, before its coded data (ITU-T T.81, annex B), as far as this decoder can read those: baseline or extended
// sequential Huffman coding of 8 bit, all components in one scan. The common kinds, which it decodes, are grey or YCbCr in
// 4:4:4, 4:2:2 or 4:2:0.
//
// Anything else, and anything odd that a forgiving reader would pass over, makes `read_frame` return false: what such a
// file means is left to that reader.

#pragma once

#include <cstdint>
#include <cstring>

struct HuffmanSpecification {
  uint8_t counts[16];  // codes of each length
  uint8_t symbols[256];
  bool defined;
};

struct QuantizationTable {
  int32_t steps[64];  // row by row
  bool defined;
};

struct Component {
  int id, horizontal, vertical;  // sampling factors
  int quantization, dc, ac;      // numbers of tables
};

struct Frame {
  int width, height, components;
  int across, down;  // blocks of a unit of the component with the most
  bool common;
  Component component[4];
  QuantizationTable quantization[4];
  HuffmanSpecification dc[4], ac[4];
  int restart_interval;
  const uint8_t* coded;  // where the scan's data begin
};

// Positions of the coefficients, which are coded along diagonals, in rows.
static const uint8_t ZIGZAG[64] = {0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33, 40, 48,
                                   41, 34, 27, 20, 13, 6,  7,  14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23,
                                   30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63};

enum Marker {
  SOF0 = 0xC0,
  SOF1 = 0xC1,
  DHT = 0xC4,
  RST0 = 0xD0,
  SOI = 0xD8,
  EOI = 0xD9,
  SOS = 0xDA,
  DQT = 0xDB,
  DRI = 0xDD,
  APP0 = 0xE0,
  APP14 = 0xEE,
  APP15 = 0xEF,
  COM = 0xFE
};

static int two_bytes(const uint8_t* at) { return at[0] << 8 | at[1]; }

static bool read_quantization(const uint8_t* at, const uint8_t* end, Frame& frame) {
  while (at < end) {
    const int bytes = (*at >> 4) + 1, number = *at & 15;
    at++;
    if (bytes > 2 || number > 3 || end - at < 64 * bytes) return false;
    QuantizationTable& table = frame.quantization[number];
    for (int k = 0; k < 64; k++, at += bytes) table.steps[ZIGZAG[k]] = bytes == 1 ? *at : two_bytes(at);
    table.defined = true;
  }
  return true;
}

static bool read_huffman(const uint8_t* at, const uint8_t* end, Frame& frame) {
  while (at < end) {
    const int kind = *at >> 4, number = *at & 15;
    if (kind > 1 || number > 3 || end - at < 17) return false;
    HuffmanSpecification& table = (kind ? frame.ac : frame.dc)[number];
    memcpy(table.counts, at + 1, 16);
    at += 17;
    int total = 0;
    for (int length = 1, code = 0; length <= 16; length++, code *= 2) {
      total += table.counts[length - 1];
      code += table.counts[length - 1];
      if (code >= 1 << length) return false;  // more codes than there are; the one of ones alone is none
    }
    if (total > 256 || end - at < total) return false;
    memset(table.symbols, 0, sizeof table.symbols);
    memcpy(table.symbols, at, total);
    at += total;
    if (!kind)
      for (uint8_t size : table.symbols)
        if (size > 15) return false;
    table.defined = true;
  }
  return true;
}

static bool read_sizes(const uint8_t* at, const uint8_t* end, Frame& frame) {
  if (frame.components || end - at < 6 || at[0] != 8) return false;
  frame.height = two_bytes(at + 1);
  frame.width = two_bytes(at + 3);
  frame.components = at[5];
  if (frame.height == 0 || frame.width == 0 || frame.height > 65500 || frame.width > 65500) return false;
  if (frame.components < 1 || frame.components > 4 || end - at != 6 + 3 * frame.components) return false;
  at += 6;
  int blocks = 0;
  for (int c = 0; c < frame.components; c++, at += 3) {
    Component& one = frame.component[c];
    one = {at[0], at[1] >> 4, at[1] & 15, at[2], 0, 0};
    if (one.horizontal < 1 || one.horizontal > 4 || one.vertical < 1 || one.vertical > 4 || at[2] > 3) return false;
    if (frame.components == 1) one.horizontal = one.vertical = 1;  // by itself it has one block, whatever the header has
    if (one.horizontal > frame.across) frame.across = one.horizontal;
    if (one.vertical > frame.down) frame.down = one.vertical;
    blocks += one.horizontal * one.vertical;
  }
  const Component &first = frame.component[0], &second = frame.component[1], &third = frame.component[2];
  const bool colours = second.horizontal * second.vertical == 1 && third.horizontal * third.vertical == 1;
  // libjpeg does not interpolate the colours of the narrowest images.
  const bool sampled = blocks == 3 || (first.horizontal == 2 && first.vertical < 3 && frame.width > 4);
  frame.common = frame.components == 1 || (frame.components == 3 && colours && sampled);
  return blocks <= 10;  // of a unit, by the standard
}

static bool read_scan(const uint8_t* at, const uint8_t* end, Frame& frame) {
  const int count = frame.components;
  if (!count || end - at != 4 + 2 * count || at[0] != count) return false;
  at++;
  for (int c = 0; c < count; c++, at += 2) {
    Component& component = frame.component[c];
    component.dc = at[1] >> 4;
    component.ac = at[1] & 15;
    if (at[0] != component.id || component.dc > 3 || component.ac > 3) return false;
    if (!frame.dc[component.dc].defined || !frame.ac[component.ac].defined) return false;
    if (!frame.quantization[component.quantization].defined) return false;
  }
  return at[0] == 0 && at[1] == 63 && at[2] == 0;
}

static bool read_frame(const uint8_t* data, int64_t bytes, Frame& frame) {
  memset(&frame, 0, sizeof frame);
  if (bytes < 4 || data[0] != 0xFF || data[1] != SOI) return false;
  const uint8_t *at = data + 2, *end = data + bytes;
  bool jfif = false, ycc = false, other = false;
  while (end - at >= 4) {
    const int marker = at[1], length = two_bytes(at + 2);
    const uint8_t *start = at + 4, *next = at + 2 + length;
    if (at[0] != 0xFF || length < 2 || length > end - at - 2) return false;
    const int64_t content = next - start;
    switch (marker) {
      case SOF0:
      case SOF1:
        if (!read_sizes(start, next, frame)) return false;
        break;
      case DHT:
        if (!read_huffman(start, next, frame)) return false;
        break;
      case DQT:
        if (!read_quantization(start, next, frame)) return false;
        break;
      case DRI:
        if (content != 2) return false;
        frame.restart_interval = two_bytes(start);
        break;
      case SOS: {
        const Component* c = frame.component;
        const bool numbered = c[0].id == 1 && c[1].id == 2 && c[2].id == 3;
        frame.coded = next;
        frame.common &= !other && (frame.components == 1 || jfif || ycc || numbered);
        return read_scan(start, next, frame);
      }
      default:
        if ((marker < APP0 || marker > APP15) && marker != COM) return false;
        if (marker == APP0 && content >= 14 && !memcmp(start, "JFIF", 5)) jfif = true;
        if (marker == APP14 && content >= 12 && !memcmp(start, "Adobe", 5)) {
          (start[11] == 1 ? ycc : other) = true;  // others are RGB, CMYK, or what no one defined
        }
    }
    at = next;
  }
  return false;
}
