#include "check.h"

#include <algorithm>
#include <vector>

#include "kernels.h"

namespace nearplane {

namespace {

// A section of `count` elements lies between header and slack; offset 0 is no section.
bool inside(const Header& h, uint64_t at, uint64_t count, uint64_t element) {
  if (!at) return true;
  const uint64_t limit = h.bytes - kSlack;
  return at % 64 == 0 && at >= sizeof(Header) && at <= limit && count <= (limit - at) / element;
}

const char* check_shape(const Header& h) {
  if (!h.rows || !h.columns || h.rows >> 31 || h.columns >> 31) return "rows or columns";
  if (!h.group_columns || h.group_columns > h.columns || !h.group_pairs) return "groups of columns";
  const uint64_t width = 2 * uint64_t(h.group_pairs), across = divide_up(h.columns, h.group_columns);
  if (width < h.group_columns || width >= uint64_t(h.group_columns) + 8 * kRun) return "padding of groups";
  if (h.pairs != across * h.group_pairs || h.pairs >> 30) return "pairs";
  if (!h.planes && !h.segments && !h.tile_places) return "the codes: there are none";
  if (h.planes > kPlanes || h.step_form > 2 || h.step_type > kBF16 || h.palette > 256 || h.shift > 16 ||
      h.factor_bits > 24)
    return "a field of the header";
  if ((h.step_form == 2) != (h.step_at != 0)) return "steps";
  if ((h.row_palette != 0) != (h.row_step_at != 0) || (h.row_palette != 0) != (h.row_palette_at != 0) ||
      h.row_palette > 256)
    return "the palette of row steps";
  if (h.row_palette && (h.step_form != 1 || h.outlier.at)) return "row steps";
  if ((h.palette != 0) != (h.palette_at != 0) || (h.palette && !h.factor_at)) return "the palette of steps";
  return nullptr;
}

const char* check_sections(const View& v) {
  const Header& h = v.head;
  const uint64_t groups = v.groups(), places = 2 * uint64_t(h.pairs);
  if (!inside(h, h.row_at, groups * kRows, 2)) return "the section of rows";
  if (!inside(h, h.column_at, places, 2)) return "the section of columns";
  if (!inside(h, h.factor_at, places, h.palette ? 1 : 4) || !inside(h, h.palette_at, h.palette, 4))
    return "the section of column steps";
  if (!inside(h, h.row_step_at, groups * kRows, 1) || !inside(h, h.row_palette_at, h.row_palette, 4))
    return "the section of row steps";
  if (!inside(h, h.step_at, groups * v.column_groups() * kRows, v.step_bytes())) return "the section of steps";
  for (uint32_t p = 0; p < h.planes; p++) {
    const Plane& plane = h.plane[p];
    if (plane.bits < 1 || plane.bits > 4 || h.group_pairs % kRun || !plane.at) return "a plane";
    if (std::abs(int64_t(plane.low)) > 1 << 20 || std::abs(int64_t(plane.unit)) > 1 << 20) return "a plane's values";
    if (plane.unit < 1 || plane.low % plane.unit) return "a plane's unit";
    if (!inside(h, plane.at, groups, v.plane_group_bytes(plane))) return "the section of a plane";
  }
  return nullptr;
}

// Tiles follow each other without gaps, as long as their widths say.
const char* check_tiles(const View& v) {
  const Header& h = v.head;
  if (!h.tile_places) return nullptr;
  if (h.input_bits != 15 && h.input_bits != 8) return "the bits of activations";
  if (h.segments || h.planes || h.shift || h.tile_places > kTilePlaces || h.tile_places % kTileChunk ||
      2 * uint64_t(h.group_pairs) % kTileChunk)
    return "the size of tiles";
  if (h.step_form == 2 && h.escape.at) return "escapes: they have no steps";
  const uint64_t groups = v.groups(), across = v.tiles_across();
  if (!h.tile_kind_at || !inside(h, h.tile_kind_at, groups * across, 1) || !h.tile_start_at ||
      !inside(h, h.tile_start_at, groups + 1, 4))
    return "the section of tiles";
  const uint8_t* kind = v.at<uint8_t>(h.tile_kind_at);
  const uint32_t* start = v.at<uint32_t>(h.tile_start_at);
  uint64_t words = 0;
  for (uint64_t g = 0; g <= groups; g++) {
    if (start[g] != words) return "the start of tiles";
    for (uint32_t t = 0; t < across && g < groups; t++) {
      const uint8_t own = kind[g * across + t];
      if (!valid_kind(own)) return "the form of a tile";
      words += tile_words(own, v.places_of(t));
    }
    if (words >> 32) return "the start of tiles";
  }
  return h.tile_at && inside(h, h.tile_at, words, 64) ? nullptr : "the section of tiles";
}

const char* check_order(const View& v) {
  const Header& h = v.head;
  if (h.row_at) {
    std::vector<bool> seen(h.rows, false);
    for (uint32_t i = 0; i < h.rows; i++) {
      const uint32_t row = v.row(i);
      if (row >= h.rows || seen[row]) return "the order of rows";
      seen[row] = true;
    }
  }
  if (const uint16_t* column = v.at<uint16_t>(h.column_at))
    for (uint64_t p = 0; p < 2 * uint64_t(h.pairs); p++)
      if (column[p] != kNoColumn && column[p] >= h.columns) return "the order of columns";
  if (h.row_palette) {
    const uint8_t* index = v.at<uint8_t>(h.row_step_at);
    for (uint64_t i = 0; i < uint64_t(v.groups()) * kRows; i++)
      if (index[i] >= h.row_palette) return "a row's step";
  }
  if (h.palette) {
    const uint8_t* index = v.at<uint8_t>(h.factor_at);
    for (uint64_t p = 0; p < 2 * uint64_t(h.pairs); p++)
      if (index[p] >= h.palette) return "a column's step";
  }
  return nullptr;
}

const char* check_sparse(const View& v, const Sparse& s, bool places) {
  if (!s.at) return nullptr;
  const uint32_t groups = v.groups();
  if ((s.type > kF16 && s.type != kI8) || s.gap_bytes < 1 || s.gap_bytes > 2 || s.places != uint32_t(places) ||
      !s.start_at || !inside(v.head, s.start_at, groups + 1, 4))
    return "sparse entries";
  const uint32_t* start = v.at<uint32_t>(s.start_at);
  if (start[0] || !std::is_sorted(start, start + groups + 1) || !inside(v.head, s.at, start[groups], s.step_bytes()))
    return "the section of sparse entries";
  const uint64_t limit = s.places ? 2 * uint64_t(v.head.pairs) : v.head.columns;
  const uint8_t* entry = v.base + s.at;
  for (uint32_t g = 0; g < groups; g++) {
    uint64_t at[kRows] = {};
    for (uint32_t k = start[g]; k < start[g + 1]; k++, entry += s.step_bytes())
      for (int i = 0; i < kRows; i++) {
        if ((at[i] += entry_gap(s, entry, i)) >= limit) return "a sparse entry's column";
        if (places && !(std::abs(entry_value(s, entry, i)) <= 0x1p40f)) return "an escape's value";
      }
  }
  return nullptr;
}

// Decode every stream once; before each piece, what it may read at most must be there.
const char* check_streams(const View& v) {
  const Header& h = v.head;
  const uint8_t* end = v.base + h.bytes;
  constexpr uint32_t kPiece = 6;  // two or three of what a window takes
  constexpr size_t kMost = (kPiece / 2 * kLanes + 2 * kLanes) * sizeof(uint16_t);
  static_assert(kMost + 2 * kLanes * sizeof(uint16_t) <= kSlack, "a whole stream must pass");
  const uint32_t* border = v.at<uint32_t>(h.segment_at);
  const Kernels& k = kernels();
  const Book book(v);
  LaneState state;
  std::vector<uint16_t> tile(kChunk * kLanes);
  for (uint32_t g = 0; g < v.groups(); g++) {
    const uint32_t start = v.at<uint32_t>(h.start_at)[g];
    if (start > h.stream_words) return "the start of a stream";
    const uint16_t* stream = v.at<uint16_t>(h.stream_at) + start;
    start_lanes(state, stream);
    for (uint32_t s = 0; s < h.segments; s++)
      for (uint32_t j = border[s]; j < border[s + 1]; j += kPiece) {
        if (size_t(end - reinterpret_cast<const uint8_t*>(state.next)) < kMost) return "a stream: it ends too late";
        const uint8_t cell = v.at<uint8_t>(h.cell_at)[uint64_t(g / kGroups) * h.segments + s];
        k.decode_lanes(&state, 1, book, cell, int(std::min(kPiece, border[s + 1] - j)),
                       reinterpret_cast<Tile*>(tile.data()));
      }
  }
  return nullptr;
}

const char* check_lanes(const View& v) {
  const Header& h = v.head;
  if (!h.segments) return nullptr;
  const uint64_t groups = v.groups(), cells = uint64_t(v.blocks()) * h.segments;
  if (h.window != 5 && h.window != 6) return "the window";
  const uint32_t take = uint32_t(pairs_taken(h.window));
  if (h.pairs % take || h.pairs != h.group_pairs || h.segments > h.pairs || !h.tables || h.tables > 256)
    return "segments";
  if (!h.segment_at || !inside(h, h.segment_at, uint64_t(h.segments) + 1, 4) || !h.cell_at ||
      !inside(h, h.cell_at, cells, 1))
    return "the section of segments";
  if (!h.table_at || !inside(h, h.table_at, h.tables, kTable * 2) || !h.start_at ||
      !inside(h, h.start_at, groups + 1, 4))
    return "the section of tables";
  if (!h.stream_at || !inside(h, h.stream_at, h.stream_words, 2)) return "the section of streams";
  const uint32_t* border = v.at<uint32_t>(h.segment_at);
  if (border[0] || border[h.segments] != h.pairs || !std::is_sorted(border, border + h.segments + 1))
    return "the borders of segments";
  for (uint32_t s = 0; s < h.segments; s++)
    if (border[s] % take) return "the borders of segments";
  const uint8_t* cell = v.at<uint8_t>(h.cell_at);
  if (std::any_of(cell, cell + cells, [&](uint8_t t) { return t >= h.tables; })) return "a table's number";
  const uint16_t* table = v.at<uint16_t>(h.table_at);
  const float most = float(15 << h.shift);
  for (uint32_t k = 0; k < h.tables * kTable; k++) {
    if ((table[k] & 15) < 1 || (table[k] & 15) > h.window) return "a table's lengths";
    if (!(std::abs(bf16_to_float(table[k] & 0xFFF0)) <= most)) return "a table's values";
  }
  return check_streams(v);
}

}  // namespace

const char* check(const void* bytes, size_t size) {
  if (size < sizeof(Header) + kSlack || reinterpret_cast<uintptr_t>(bytes) % 8) return "the size";
  const View v(bytes);
  if (std::memcmp(v.head.magic, "NPLC", 4) || v.head.version != 1 || v.head.bytes != size) return "the header";
  const char* wrong = check_shape(v.head);
  if (!wrong) wrong = check_sections(v);
  if (!wrong) wrong = check_tiles(v);
  if (!wrong) wrong = check_order(v);
  if (!wrong) wrong = check_sparse(v, v.head.escape, true);
  if (!wrong) wrong = check_sparse(v, v.head.outlier, false);
  return wrong ? wrong : check_lanes(v);
}

}  // namespace nearplane
