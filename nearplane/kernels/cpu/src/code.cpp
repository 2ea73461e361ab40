#include "code.h"

#include <algorithm>
#include <array>
#include <iterator>
#include <numeric>

namespace nearplane {

std::vector<int> limited_lengths(const std::vector<uint64_t>& count, int limit) {
  struct Package {
    uint64_t weight;
    std::array<uint8_t, 32> uses;
  };
  const int n = int(count.size());  // at most 31
  std::vector<int> length(n, 1);
  if (n == 1) return length;
  auto lighter = [](const Package& a, const Package& b) { return a.weight < b.weight; };
  std::vector<Package> leaves(n), row, pairs, merged;
  for (int i = 0; i < n; i++) {
    leaves[i] = {count[i], {}};
    leaves[i].uses[i] = 1;
  }
  std::stable_sort(leaves.begin(), leaves.end(), lighter);
  row = leaves;
  for (int level = 1; level < limit; level++) {
    pairs.clear();
    for (size_t i = 0; i + 1 < row.size(); i += 2) {
      pairs.push_back(row[i]);
      pairs.back().weight += row[i + 1].weight;
      for (int k = 0; k < 32; k++) pairs.back().uses[k] += row[i + 1].uses[k];
    }
    merged.clear();
    std::merge(leaves.begin(), leaves.end(), pairs.begin(), pairs.end(), std::back_inserter(merged), lighter);
    row.swap(merged);
  }
  for (int k = 0; k < n; k++) length[k] = 0;
  for (int i = 0; i < 2 * n - 2; i++)
    for (int k = 0; k < n; k++) length[k] += row[i].uses[k];
  return length;
}

// Canonical words, shorter first, each with its first bit lowest.
static std::vector<uint16_t> canonical_words(const std::vector<int>& length) {
  std::vector<int> order(length.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return length[a] < length[b]; });
  std::vector<uint16_t> word(length.size());
  uint32_t next = 0;
  int previous = length[order[0]];
  for (int symbol : order) {
    next <<= length[symbol] - previous;
    previous = length[symbol];
    for (int b = 0; b < previous; b++) word[symbol] |= uint16_t((next >> b & 1) << (previous - 1 - b));
    next++;
  }
  return word;
}

Code fit_code(const uint64_t* bins, int window) {
  Code best;
  const uint64_t total = std::accumulate(bins, bins + kBins, uint64_t(0));
  uint64_t inside = 0;
  for (int reach = 0; reach <= kWidest; reach++) {
    inside += bins[kReach - reach] + (reach ? bins[kReach + reach] : 0);
    if (2 * reach + 1 > 1 << window) break;
    // an alphabet that leaves more outside than one bit each could pay for is too small
    if (2 * reach + 3 <= 1 << window && reach < kWidest && (total - inside) * kEscapeBits > 7.0 * double(total))
      continue;
    std::vector<uint64_t> count(bins + kReach - reach, bins + kReach + reach + 1);
    for (int v = reach + 1; v <= kReach; v++) {
      count.front() += bins[kReach - v];
      count.back() += bins[kReach + v];
    }
    Code code;
    code.reach = reach;
    code.length = limited_lengths(count, window);
    for (size_t i = 0; i < count.size(); i++) code.stream += double(count[i]) * code.length[i];
    code.bits = code.stream + double(total - inside) * kEscapeBits;
    if (best.length.empty() || code.bits < best.bits) best = code;
    if (inside == total) break;
  }
  best.word = canonical_words(best.length);
  return best;
}

void fill_table(const Code& code, float unit, uint16_t* table) {
  for (int i = 0; i < int(code.length.size()); i++) {
    const int length = code.length[i];
    const uint16_t entry = uint16_t(float_to_bf16(float(i - code.reach) * unit) | length);
    for (int window = code.word[i]; window < kTable; window += 1 << length) table[window] = entry;
  }
  // one integer has the word 0 alone
  if (code.length.size() == 1)
    for (int window = 1; window < kTable; window += 2) table[window] = table[0];
}

}  // namespace nearplane
