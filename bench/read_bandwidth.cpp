// Reads memory as fast as it comes: the limit of every product that reads its weights once.
#include <cstdint>
#include <thread>
#include <vector>

typedef uint64_t Line __attribute__((vector_size(64)));

static uint64_t read_part(const Line* line, uint64_t count) {
  Line sum[8] = {};
  for (uint64_t i = 0; i + 8 <= count; i += 8)
    for (int k = 0; k < 8; ++k) sum[k] ^= line[i + k];
  uint64_t all = 0;
  for (auto& each : sum)
    for (int k = 0; k < 8; ++k) all ^= each[k];
  return all;
}

// threads of its own: one that ends takes no core from what is measured next
extern "C" uint64_t read_all(const char* bytes, uint64_t size, unsigned threads) {
  const Line* line = reinterpret_cast<const Line*>((uintptr_t(bytes) + 63) / 64 * 64);
  uint64_t each = (size / 64 - 1) / threads;
  std::vector<uint64_t> sums(threads * 8);
  std::vector<std::thread> others;
  for (unsigned t = 1; t < threads; ++t)
    others.emplace_back([=, &sums] { sums[8 * t] = read_part(line + t * each, each); });
  sums[0] = read_part(line, each);
  for (auto& other : others) other.join();
  uint64_t all = 0;
  for (auto sum : sums) all ^= sum;
  return all;
}
