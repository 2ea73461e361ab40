#include "rans.h"

#include <algorithm>
#include <atomic>
#include <vector>

#include "parallel.h"

namespace nearplane {

namespace {

constexpr int kPrecision = 24, kBucketBits = 12;

// Cumulative frequencies, and for every bucket of remainders the first symbol that reaches into it.
class Model {
 public:
  Model(const int64_t* frequency, uint32_t symbols) : begin_(symbols + 1, 0), first_(1 << kBucketBits) {
    for (uint32_t k = 0; k < symbols; k++) begin_[k + 1] = begin_[k] + uint32_t(frequency[k]);
    uint32_t k = 0;
    for (uint32_t bucket = 0; bucket < first_.size(); bucket++) {
      while (begin_[k + 1] <= bucket << (kPrecision - kBucketBits)) k++;
      first_[bucket] = k;
    }
  }
  uint32_t find(uint32_t rest) const {
    uint32_t k = first_[rest >> (kPrecision - kBucketBits)];
    while (rest >= begin_[k + 1]) k++;
    return k;
  }
  uint32_t begin(uint32_t k) const { return begin_[k]; }

 private:
  std::vector<uint32_t> begin_, first_;
};

class Stack {
 public:
  Stack(const uint32_t* words, uint64_t count) : words_(words), left_(count) {
    good_ = count >= 2 && words[count - 1];
    if (!good_) return;
    left_ = count - 2;
    state_ = uint64_t(words[count - 1]) << 32 | words[count - 2];
  }
  uint32_t pop(const Model& model) {
    const uint32_t rest = uint32_t(state_) & ((1u << kPrecision) - 1), k = model.find(rest), begin = model.begin(k);
    state_ = (model.begin(k + 1) - begin) * (state_ >> kPrecision) + rest - begin;
    if (state_ >> 32 == 0 && left_) state_ = state_ << 32 | words_[--left_];
    return k;
  }
  bool good() const { return good_; }
  bool ended() const { return good_ && !left_ && state_ == uint64_t(1) << 32; }

 private:
  const uint32_t* words_;
  uint64_t left_, state_ = 0;
  bool good_;
};

std::vector<uint8_t> classes(Stack& stack, uint32_t count, const int64_t* frequency, uint32_t n) {
  std::vector<uint8_t> result(count, 0);
  if (n == 1) return result;
  const Model model(frequency, n);
  for (uint8_t& c : result) c = uint8_t(stack.pop(model));
  return result;
}

// The places of each class, in order.
std::vector<std::vector<uint32_t>> members(const uint8_t* classes, uint32_t count, uint32_t n, uint32_t offset) {
  std::vector<std::vector<uint32_t>> result(n);
  for (uint32_t i = 0; i < count; i++) result[classes[i]].push_back(offset + i);
  return result;
}

}  // namespace

bool decode_rans(const RansBands& in, int32_t* symbol) {
  std::vector<Model> models;
  for (uint32_t t = 0; t < in.tables; t++) models.emplace_back(in.frequency + uint64_t(t) * in.symbols, in.symbols);
  Stack first(in.stream[0], in.words[0]);
  if (!first.good()) return false;
  const auto row = classes(first, in.rows, in.row_frequency, in.row_classes);
  const auto column = classes(first, in.columns, in.column_frequency, in.column_classes);
  const auto columns = members(column.data(), in.columns, in.column_classes, 0);
  const uint32_t size = (in.rows + in.bands - 1) / in.bands;
  std::atomic<bool> whole{true};
  parallel_for(in.bands, [&](uint32_t band) {
    const uint64_t from = uint64_t(band) * size;
    if (from >= in.rows) {
      whole = false;
      return;
    }
    const uint32_t count = uint32_t(std::min<uint64_t>(size, in.rows - from));
    const auto rows = members(row.data() + from, count, in.row_classes, uint32_t(from));
    Stack stack = band ? Stack(in.stream[band], in.words[band]) : first;
    if (!stack.good()) {
      whole = false;
      return;
    }
    for (uint32_t a = 0; a < in.row_classes; a++)
      for (uint32_t b = 0; b < in.column_classes; b++) {
        const Model& model = models[in.table[a + b]];
        for (uint32_t i : rows[a])
          for (uint32_t j : columns[b]) symbol[uint64_t(i) * in.columns + j] = int32_t(stack.pop(model));
      }
    if (!stack.ended()) whole = false;
  });
  return whole;
}

}  // namespace nearplane
