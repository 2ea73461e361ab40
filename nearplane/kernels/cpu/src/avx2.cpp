// AVX2. The same layout without its instructions: 32 lanes are two registers (A and B), a shift by n is a
// multiplication by 2^(16 - n), a table of 64 bytes is four shuffles, and words are handed out to lanes by a table of
// shuffles.
#include <immintrin.h>

#include "kernels.h"

namespace nearplane {

namespace {

constexpr int kAhead = 256;
constexpr uint32_t kTogether = 4;

// For every set of 8 lanes that take a word: where in the next 8 words each finds its own.
struct Handout {
  alignas(16) uint8_t shuffle[256][16] = {};
  constexpr Handout() {
    for (int set = 0; set < 256; set++)
      for (int lane = 0, next = 0; lane < 8; lane++) {
        const bool takes = set >> lane & 1;
        shuffle[set][2 * lane] = takes ? uint8_t(2 * next) : 0x80;
        shuffle[set][2 * lane + 1] = takes ? uint8_t(2 * next + 1) : 0x80;
        next += takes;
      }
  }
};
constexpr Handout handout;

// A byte for every window: integer + 16 in the high 5 bits, the word's length in the low 3.
template <int Window>
struct Table {
  __m256i quarter[4];
  Table(const uint16_t* entries, int shift) {
    alignas(16) uint8_t byte[kTable];
    for (int w = 0; w < kTable; w++) {
      const float value = bf16_to_float(entries[w] & 0xFFF0) * bits_to_float(uint32_t(127 - shift) << 23);
      const int integer = value >= -16 && value <= 15 ? int(value) : 0;
      byte[w] = uint8_t((integer + 16) << 3 | (entries[w] & 7));
    }
    for (int q = 0; q < 4; q++)
      quarter[q] = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(byte + 16 * q)));
  }
};

// m = 2^(15 - at), of A and of B.
struct Streams {
  __m256i lo[2], hi[2], m[2];
  const uint16_t* next;
};

inline __m256i load16(const uint16_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }

inline Streams open(const LaneState& s) {
  Streams out;
  alignas(32) uint16_t m[kLanes];
  for (int lane = 0; lane < kLanes; lane++) m[lane] = uint16_t(0x8000 >> s.at[lane]);
  for (int h = 0; h < 2; h++) {
    out.lo[h] = load16(s.lo + 16 * h);
    out.hi[h] = load16(s.hi + 16 * h);
    out.m[h] = load16(m + 16 * h);
  }
  out.next = s.next;
  return out;
}

inline void close(const Streams& s, LaneState& to) {
  alignas(32) uint16_t m[kLanes];
  for (int h = 0; h < 2; h++) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to.lo + 16 * h), s.lo[h]);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to.hi + 16 * h), s.hi[h]);
    _mm256_store_si256(reinterpret_cast<__m256i*>(m + 16 * h), s.m[h]);
  }
  for (int lane = 0; lane < kLanes; lane++) to.at[lane] = uint16_t(15 - (31 - __builtin_clz(m[lane] | 1)));
  to.next = s.next;
}

// The 16 bits from bit `at` on.
inline __m256i window(__m256i lo, __m256i hi, __m256i m) {
  const __m256i twice = _mm256_add_epi16(m, m);
  const __m256i shifted = _mm256_or_si256(_mm256_mulhi_epu16(lo, twice), _mm256_mullo_epi16(hi, twice));
  return _mm256_or_si256(shifted, _mm256_and_si256(lo, _mm256_srai_epi16(m, 15)));  // at = 0: 2^16 is no uint16
}

// Entries for the windows' low bits: of A in the low bytes, of B in the high ones.
template <int Window>
inline __m256i look_up(const Table<Window>& t, __m256i a, __m256i b) {
  const __m256i index = _mm256_or_si256(_mm256_and_si256(a, _mm256_set1_epi16(63)),
                                        _mm256_and_si256(_mm256_slli_epi16(b, 8), _mm256_set1_epi16(63 << 8)));
  const __m256i bit4 = _mm256_slli_epi16(index, 3);
  const __m256i low =
      _mm256_blendv_epi8(_mm256_shuffle_epi8(t.quarter[0], index), _mm256_shuffle_epi8(t.quarter[1], index), bit4);
  if (Window == 5) return low;
  const __m256i high =
      _mm256_blendv_epi8(_mm256_shuffle_epi8(t.quarter[2], index), _mm256_shuffle_epi8(t.quarter[3], index), bit4);
  return _mm256_blendv_epi8(low, high, _mm256_slli_epi16(index, 2));
}

// 2^(16 - length) of A and of B.
inline void shifts(__m256i entries, __m256i& a, __m256i& b) {
  const __m256i powers =
      _mm256_broadcastsi128_si256(_mm_setr_epi8(0, char(128), 64, 32, 16, 8, 4, 2, 0, 0, 0, 0, 0, 0, 0, 0));
  const __m256i byte = _mm256_shuffle_epi8(powers, _mm256_and_si256(entries, _mm256_set1_epi8(7)));
  a = _mm256_slli_epi16(byte, 8);
  b = _mm256_and_si256(byte, _mm256_set1_epi16(short(0xFF00)));
}

// 16 words for the lanes in `dry`; bytes `low` and `high` of the mask are its halves.
inline __m256i hand_out(uint32_t low, uint32_t high, const uint16_t*& next) {
  const __m128i first = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(next)),
                                         _mm_load_si128(reinterpret_cast<const __m128i*>(handout.shuffle[low])));
  next += __builtin_popcount(low);
  const __m128i second = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(next)),
                                          _mm_load_si128(reinterpret_cast<const __m128i*>(handout.shuffle[high])));
  next += __builtin_popcount(high);
  return _mm256_inserti128_si256(_mm256_castsi128_si256(first), second, 1);
}

#define EACH(v) _Pragma("GCC unroll 8") for (int v = 0; v < V; v++)

// Take code words from every lane of V groups, stage by stage: a group alone would wait for itself most of the time.
template <int V, int Window>
INLINE void take(Streams* s, const Table<Window>& t, __m256i (*entry)[V]) {
  constexpr int kTake = 16 / Window;
  __m256i a[V], b[V], qa[V], qb[V], dry[V][2];
  EACH(v) {
    a[v] = window(s[v].lo[0], s[v].hi[0], s[v].m[0]);
    b[v] = window(s[v].lo[1], s[v].hi[1], s[v].m[1]);
  }
  for (int k = 0; k < kTake; k++) {
    EACH(v) entry[k][v] = look_up(t, a[v], b[v]);
    EACH(v) {
      __m256i pa, pb;
      shifts(entry[k][v], pa, pb);
      if (k + 1 < kTake) {
        a[v] = _mm256_mulhi_epu16(a[v], pa);
        b[v] = _mm256_mulhi_epu16(b[v], pb);
      }
      qa[v] = k ? _mm256_mulhi_epu16(qa[v], pa) : pa;
      qb[v] = k ? _mm256_mulhi_epu16(qb[v], pb) : pb;
    }
  }
  EACH(v) for (int h = 0; h < 2; h++) {
    const __m256i q = h ? qb[v] : qa[v], left = _mm256_mulhi_epu16(s[v].m[h], q);
    dry[v][h] = _mm256_cmpeq_epi16(left, _mm256_setzero_si256());
    s[v].m[h] = _mm256_or_si256(left, _mm256_mullo_epi16(s[v].m[h], q));
    s[v].lo[h] = _mm256_blendv_epi8(s[v].lo[h], s[v].hi[h], dry[v][h]);
    s[v].hi[h] = _mm256_andnot_si256(dry[v][h], s[v].hi[h]);
  }
  uint32_t set[V];
  EACH(v)
  set[v] = uint32_t(_mm256_movemask_epi8(_mm256_packs_epi16(dry[v][0], dry[v][1])));  // A low, B low, A high, B high
  EACH(v) {
    s[v].hi[0] = _mm256_or_si256(s[v].hi[0], hand_out(set[v] & 255, set[v] >> 16 & 255, s[v].next));
    s[v].hi[1] = _mm256_or_si256(s[v].hi[1], hand_out(set[v] >> 8 & 255, set[v] >> 24, s[v].next));
  }
}

// Integers as floats without a conversion: put below the exponent of 2^23 and subtract that. An entry's 32 bits are the
// even column of rows 0 .. 7 (A) and of 8 .. 15 (B), then the odd one; A's integer + 16 stands at bit 3, B's at bit 11.
constexpr int kPlaceA = 3, kPlaceB = 11;

template <int At>
inline __m256 integers(__m256i half) {
  const __m256i magic =
      _mm256_or_si256(_mm256_and_si256(half, _mm256_set1_epi32(31 << At)), _mm256_set1_epi32(0x4B000000));
  return _mm256_sub_ps(_mm256_castsi256_ps(magic), _mm256_set1_ps(8388608.0f + float(16 << At)));
}

struct Sum {
  __m256 low, high;
};  // of rows 0 .. 7 times 2^kPlaceA, of rows 8 .. 15 times 2^kPlaceB

inline void add(Sum& sum, __m256i entries, const float* pair) {
  const __m256 even = _mm256_broadcast_ss(pair), odd = _mm256_broadcast_ss(pair + 1);
  const __m256i behind = _mm256_srli_epi32(entries, 16);
  sum.low = _mm256_fmadd_ps(integers<kPlaceA>(entries), even, sum.low);
  sum.high = _mm256_fmadd_ps(integers<kPlaceB>(entries), even, sum.high);
  sum.low = _mm256_fmadd_ps(integers<kPlaceA>(behind), odd, sum.low);
  sum.high = _mm256_fmadd_ps(integers<kPlaceB>(behind), odd, sum.high);
}

// Sums of V groups over pairs j .. end - 1.
template <int V, int Window>
__attribute__((noinline)) void sum_pairs(Streams* state, Sum* sums, const Table<Window>& table, const float* place,
                                         uint32_t j, uint32_t end) {
  constexpr int kTake = 16 / Window;
  Streams s[V];
  Sum sum[V] = {};
  for (int v = 0; v < V; v++) s[v] = state[v];
  for (; j < end; j += kTake) {
    __m256i entry[kTake][V];
    EACH(v) _mm_prefetch(reinterpret_cast<const char*>(s[v].next) + kAhead, _MM_HINT_T0);
    take<V, Window>(s, table, entry);
    for (int k = 0; k < kTake; k++) EACH(v) add(sum[v], entry[k][v], place + 2 * (j + k));
  }
  for (int v = 0; v < V; v++) {
    state[v] = s[v];
    sums[v] = sum[v];
  }
}

template <int V, int Window>
void lanes_product_of(const View& view, uint32_t group, const uint8_t* cell, const Activations& x, float* acc) {
  const Header& head = view.head;
  const Book book(view);
  const uint32_t* border = view.at<uint32_t>(head.segment_at);
  Streams s[V];
  for (int v = 0; v < V; v++) {
    LaneState state;
    start_lanes(state, view.at<uint16_t>(head.stream_at) + view.at<uint32_t>(head.start_at)[group + v]);
    s[v] = open(state);
  }
  const float unit = float(1u << head.shift);
  const __m256 low = _mm256_set1_ps(unit / (1 << kPlaceA)), high = _mm256_set1_ps(unit / (1 << kPlaceB));
  for (uint32_t segment = 0; segment < head.segments; segment++) {
    const Table<Window> table(book.table(cell[segment]), book.shift);
    for (uint32_t j = border[segment], end; j < border[segment + 1]; j = end) {
      end = least(j + kSummed, border[segment + 1]);
      Sum sum[V];
      sum_pairs<V, Window>(s, sum, table, x.place, j, end);
      for (int v = 0; v < V; v++) {
        float* to = acc + v * kRows;
        _mm256_storeu_ps(to, _mm256_fmadd_ps(sum[v].low, low, _mm256_loadu_ps(to)));
        _mm256_storeu_ps(to + 8, _mm256_fmadd_ps(sum[v].high, high, _mm256_loadu_ps(to + 8)));
      }
    }
  }
}

template <int Window>
void lanes_product_window(const View& view, uint32_t block, const Activations& x, float* acc) {
  const uint32_t last = least(view.groups(), (block + 1) * kGroups);
  const uint8_t* cell = view.at<uint8_t>(view.head.cell_at) + uint64_t(block) * view.head.segments;
  for (uint32_t g = block * kGroups, n; g < last; g += n, acc += n * kRows) {
    n = least(uint32_t(together(last - g)), kTogether);
    if (n == 4)
      lanes_product_of<4, Window>(view, g, cell, x, acc);
    else if (n == 2)
      lanes_product_of<2, Window>(view, g, cell, x, acc);
    else
      lanes_product_of<1, Window>(view, g, cell, x, acc);
  }
}

void lanes_product(const View& view, uint32_t block, const Activations& x, float* acc) {
  if (view.head.window == 5)
    lanes_product_window<5>(view, block, x, acc);
  else
    lanes_product_window<6>(view, block, x, acc);
}

// Two columns of 8 rows as bf16; unit = 2^(shift - At).
template <int At>
inline __m256i pair_of(__m256i entries, __m256 unit) {
  const __m256i even = _mm256_castps_si256(_mm256_mul_ps(integers<At>(entries), unit));
  const __m256i odd = _mm256_castps_si256(_mm256_mul_ps(integers<At>(_mm256_srli_epi32(entries, 16)), unit));
  return _mm256_or_si256(_mm256_srli_epi32(even, 16), _mm256_and_si256(odd, _mm256_set1_epi32(int(0xFFFF0000))));
}

template <int Window>
void decode_lanes_window(LaneState* state, int groups, const Book& book, uint32_t number, int pairs, Tile* out) {
  constexpr int kTake = 16 / Window;
  const Table<Window> table(book.table(number), book.shift);
  const float unit = float(1u << book.shift);
  const __m256 low = _mm256_set1_ps(unit / (1 << kPlaceA)), high = _mm256_set1_ps(unit / (1 << kPlaceB));
  for (int g = 0; g < groups; g++, out += kChunk) {
    Streams s = open(state[g]);
    for (int j = 0; j < pairs; j += kTake) {
      __m256i entry[kTake][1];
      take<1, Window>(&s, table, entry);
      for (int k = 0; k < kTake; k++) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out[j + k]), pair_of<kPlaceA>(entry[k][0], low));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out[j + k] + 16), pair_of<kPlaceB>(entry[k][0], high));
      }
    }
    close(s, state[g]);
  }
}

void decode_lanes(LaneState* state, int groups, const Book& book, uint32_t table, int pairs, Tile* out) {
  if (book.window == 5)
    decode_lanes_window<5>(state, groups, book, table, pairs, out);
  else
    decode_lanes_window<6>(state, groups, book, table, pairs, out);
}

// Element k of a run, in the low bits of the low and of the high half of every 32 bits.
template <int W>
inline __m256i field(const __m256i* word, int k) {
  if (W != 3) return _mm256_srli_epi32(word[k * W / 16], k * W % 16);
  if (k < 15) return _mm256_srli_epi32(word[k / 5], 3 * (k % 5));
  const __m256i one = _mm256_set1_epi32(0x00010001);
  const __m256i top[3] = {_mm256_and_si256(_mm256_srli_epi32(word[0], 15), one),
                          _mm256_and_si256(_mm256_srli_epi32(word[1], 15), one),
                          _mm256_and_si256(_mm256_srli_epi32(word[2], 15), one)};
  return _mm256_or_si256(top[0], _mm256_or_si256(_mm256_slli_epi32(top[1], 1), _mm256_slli_epi32(top[2], 2)));
}

// What the low W bits of 32 stand for, as floats.
template <int W>
struct Values {
  __m256 table;
  __m256i low;
  float unit;
  explicit Values(const Plane& p) : table(), low(_mm256_set1_epi32(p.low / p.unit)), unit(float(p.unit)) {
    alignas(32) float values[8];
    for (int i = 0; i < 8; i++) values[i] = float(p.low + p.unit * (i & ((1 << W) - 1)));
    table = _mm256_load_ps(values);
  }
  __m256 operator()(__m256i code) const {
    if (W <= 3) return _mm256_permutevar8x32_ps(table, code);
    const __m256i integer = _mm256_add_epi32(_mm256_and_si256(code, _mm256_set1_epi32(15)), low);
    return _mm256_mul_ps(_mm256_cvtepi32_ps(integer), _mm256_set1_ps(unit));
  }
};

inline __m256 load_steps(const uint8_t* at, uint32_t type) {
  if (type == kF32) return _mm256_loadu_ps(reinterpret_cast<const float*>(at));
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
  if (type == kF16) return _mm256_cvtph_ps(half);
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

// Rows 8 * half .. of a run: use(k, even column, odd column).
template <int W, class Use>
INLINE void each_field(const uint8_t* words, const Values<W>& values, const Use& use) {
  __m256i word[W];
  for (int w = 0; w < W; w++) word[w] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(words + 64 * w));
  _Pragma("GCC unroll 16") for (int k = 0; k < kRun; k++) {
    const __m256i code = field<W>(word, k);
    use(k, values(code), values(_mm256_srli_epi32(code, 16)));
  }
}

template <int W>
void plane_product_of(const View& view, const Plane& plane, uint32_t group, const Activations& x, float* acc) {
  const Header& head = view.head;
  const Values<W> values(plane);
  const uint8_t* words = view.base + plane.at + group * view.plane_group_bytes(plane);
  const uint32_t across = view.column_groups(), width = uint32_t(view.step_bytes());
  const uint8_t* step = view.base + head.step_at + uint64_t(group) * across * kRows * width;
  __m256 total[2] = {_mm256_loadu_ps(acc), _mm256_loadu_ps(acc + 8)};
  uint32_t j = 0;
  for (uint32_t g = 0; g < across; g++, step += kRows * width) {
    __m256 sum[2][4] = {};
    for (uint32_t end = j + head.group_pairs; j < end; j += kRun, words += 64 * W) {
      _mm_prefetch(reinterpret_cast<const char*>(words) + 2048, _MM_HINT_T0);
      for (int h = 0; h < 2; h++)
        each_field<W>(words + 32 * h, values, [&](int k, __m256 even, __m256 odd) {
          const float* pair = x.place + 2 * (j + k);
          sum[h][k % 2] = _mm256_fmadd_ps(even, _mm256_broadcast_ss(pair), sum[h][k % 2]);
          sum[h][2 + k % 2] = _mm256_fmadd_ps(odd, _mm256_broadcast_ss(pair + 1), sum[h][2 + k % 2]);
        });
    }
    for (int h = 0; h < 2; h++) {
      const __m256 part = _mm256_add_ps(_mm256_add_ps(sum[h][0], sum[h][1]), _mm256_add_ps(sum[h][2], sum[h][3]));
      total[h] = head.step_at ? _mm256_fmadd_ps(load_steps(step + 8 * h * width, head.step_type), part, total[h])
                              : _mm256_add_ps(total[h], part);
    }
  }
  _mm256_storeu_ps(acc, total[0]);
  _mm256_storeu_ps(acc + 8, total[1]);
}

void plane_product(const View& view, const Plane& plane, uint32_t group, const Activations& x, float* acc) {
  if (plane.bits == 1)
    plane_product_of<1>(view, plane, group, x, acc);
  else if (plane.bits == 2)
    plane_product_of<2>(view, plane, group, x, acc);
  else if (plane.bits == 3)
    plane_product_of<3>(view, plane, group, x, acc);
  else
    plane_product_of<4>(view, plane, group, x, acc);
}

template <int W>
void decode_plane_of(const uint8_t* words, const Plane& plane, int runs, Tile* out) {
  const Values<W> values(plane);
  for (int r = 0; r < runs; r++, words += 64 * W, out += kRun)
    for (int h = 0; h < 2; h++)
      each_field<W>(words + 32 * h, values, [&](int k, __m256 even, __m256 odd) {
        const __m256i high = _mm256_and_si256(_mm256_castps_si256(odd), _mm256_set1_epi32(int(0xFFFF0000)));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out[k] + 16 * h),
                            _mm256_or_si256(_mm256_srli_epi32(_mm256_castps_si256(even), 16), high));
      });
}

void decode_plane(const uint8_t* words, const Plane& plane, int runs, Tile* out) {
  if (plane.bits == 1)
    decode_plane_of<1>(words, plane, runs, out);
  else if (plane.bits == 2)
    decode_plane_of<2>(words, plane, runs, out);
  else if (plane.bits == 3)
    decode_plane_of<3>(words, plane, runs, out);
  else
    decode_plane_of<4>(words, plane, runs, out);
}

template <int B>
void multiply_of(const Tile* tile, uint32_t first, int pairs, const Activations* x, float* acc, int stride) {
  for (int h = 0; h < 2; h++) {
    __m256 sum[B];
    for (int b = 0; b < B; b++) sum[b] = _mm256_setzero_ps();
    for (int j = 0; j < pairs; j++) {
      const __m256i pair = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(tile[j] + 16 * h));
      const __m256 even = _mm256_castsi256_ps(_mm256_slli_epi32(pair, 16));
      const __m256 odd = _mm256_castsi256_ps(_mm256_and_si256(pair, _mm256_set1_epi32(int(0xFFFF0000))));
      for (int b = 0; b < B; b++) {
        const float* at = x[b].place + 2 * (first + j);
        sum[b] =
            _mm256_fmadd_ps(odd, _mm256_broadcast_ss(at + 1), _mm256_fmadd_ps(even, _mm256_broadcast_ss(at), sum[b]));
      }
    }
    for (int b = 0; b < B; b++) {
      float* to = acc + b * stride + 8 * h;
      _mm256_storeu_ps(to, _mm256_add_ps(_mm256_loadu_ps(to), sum[b]));
    }
  }
}

void multiply(const Tile* tile, int groups, uint32_t first, int pairs, const Activations* x, int batch, float* acc,
              int stride) {
  for (int g = 0; g < groups; g++, tile += kChunk, acc += kRows)
    for (int b = 0, n; b < batch; b += n) {
      n = together(batch - b);
      if (n == 8)
        multiply_of<8>(tile, first, pairs, x + b, acc + b * stride, stride);
      else if (n == 4)
        multiply_of<4>(tile, first, pairs, x + b, acc + b * stride, stride);
      else if (n == 2)
        multiply_of<2>(tile, first, pairs, x + b, acc + b * stride, stride);
      else
        multiply_of<1>(tile, first, pairs, x + b, acc + b * stride, stride);
    }
}

void transpose(const Tile* tile, int pairs, uint32_t* out, size_t stride) { transpose_pairs(tile, pairs, out, stride); }

inline __m256 load_values(const uint8_t* at, uint32_t type) {
  if (type == kI8)
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(at))));
  return load_steps(at, type);
}

void sparse(const Sparse& s, const uint8_t* entries, uint32_t steps, float scale, const float* x, float* acc) {
  const uint32_t gaps = kRows * s.gap_bytes, width = s.value_bytes();
  for (int h = 0; h < 2; h++) {
    __m256i column = _mm256_setzero_si256();
    __m256 sum = _mm256_setzero_ps();
    const uint8_t* step = entries;
    for (uint32_t k = 0; k < steps; k++, step += s.step_bytes()) {
      const __m256i gap = s.gap_bytes == 1
                              ? _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(step + 8 * h)))
                              : _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(step + 16 * h)));
      column = _mm256_add_epi32(column, gap);
      sum = _mm256_fmadd_ps(load_values(step + gaps + 8 * h * width, s.type), _mm256_i32gather_ps(x, column, 4), sum);
    }
    _mm256_storeu_ps(acc + 8 * h, _mm256_fmadd_ps(sum, _mm256_set1_ps(scale), _mm256_loadu_ps(acc + 8 * h)));
  }
}

#include "tiles_avx2.inc"

// Compiled with the flags of this file.
void tile_integers(const float* place, uint32_t count, int16_t* whole, int8_t* high, int8_t* low, float* scale,
                   int32_t* sum) {
  tile_inputs(place, count, whole, high, low, scale, sum);
}

#define NEARPLANE_FMA 1
#include "leaf.inc"

}  // namespace

constexpr Kernels avx2_kernels{"avx2",    false,  arrange_plain, split_plain,   decode_lanes,  decode_plane,  multiply,
                               transpose, sparse, round_leaf,    lanes_product, plane_product, tile_integers, add_tile};

}  // namespace nearplane
