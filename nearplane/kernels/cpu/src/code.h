// Prefix codes of at most 5 or 6 bits, as tables that a window of the stream indexes.
#pragma once
#include <cstdint>
#include <vector>

#include "layout.h"

namespace nearplane {

// A code for the integers -reach .. reach; what lies outside is coded as the nearest of them and corrected.
struct Code {
  int reach = 0;
  std::vector<int> length;      // [2 * reach + 1]
  std::vector<uint16_t> word;   // the first bit of a code word is its lowest
  double stream = 0, bits = 0;  // of all counted integers: of their words, and with corrections
  int clipped(int v) const { return v < -reach ? -reach : v > reach ? reach : v; }
};

constexpr int kReach = 31, kBins = 2 * kReach + 1;  // a histogram's last bins count what lies beyond
constexpr int kWidest = 15;                         // integers up to here times a power of two leave 4 bits of a bf16
constexpr double kEscapeBits = 48;                  // a gap and a value of 8 bits each, what pads them, and their time

// Return the lengths of an optimal prefix code without words longer than `limit` [Larmore90].
std::vector<int> limited_lengths(const std::vector<uint64_t>& count, int limit);

// Return the cheapest code of words of at most `window` bits for a histogram of -kReach .. kReach.
Code fit_code(const uint64_t* bins, int window);

// Fill a table of 64: bf16 of integer * unit in the high 12 bits, the word's length in the low 4.
void fill_table(const Code& code, float unit, uint16_t* table);

}  // namespace nearplane
