#include "regions.h"

#include <algorithm>
#include <utility>

namespace ape::cpu {
namespace {

using Spans = std::vector<std::pair<int, int>>;  // [begin, end) along a row, in order, apart from each other

// Adds a span that begins no earlier than the last one.
void add(Spans& spans, int begin, int end) {
  if (begin >= end) return;
  if (!spans.empty() && begin <= spans.back().second)
    spans.back().second = std::max(spans.back().second, end);
  else
    spans.emplace_back(begin, end);
}

// Rectangles of the bands of rows between `edges`, of which `spans_of(y)` gives the spans; bands alike are joined.
template <class F>
std::vector<Area> rectangles(std::vector<int> edges, const Area& area, F spans_of) {
  for (int& y : edges) y = std::clamp(y, area.y, area.bottom());
  edges.push_back(area.y);
  edges.push_back(area.bottom());
  std::sort(edges.begin(), edges.end());
  edges.erase(std::unique(edges.begin(), edges.end()), edges.end());
  std::vector<Area> found;
  Spans open;
  int since = area.y;
  const auto close = [&](int y) {
    for (const auto& [begin, end] : open) found.push_back({since, begin, y - since, end - begin});
  };
  for (size_t i = 0; i + 1 < edges.size(); i++) {
    Spans spans = spans_of(edges[i]);
    if (spans == open) continue;
    close(edges[i]);
    open = std::move(spans);
    since = edges[i];
  }
  close(area.bottom());
  return found;
}

int floor_div(int a, int b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }

}  // namespace

std::vector<Area> active_parts(const Cells& cells, int64_t stage, int around, const Area& area, int resolution) {
  if (area.empty()) return {};
  if (cells.everywhere()) return {area};
  const int side = cells.size * resolution;
  const int first_row = std::max(0, floor_div(area.y - around, side));
  const int last_row = std::min(cells.rows - 1, floor_div(area.bottom() - 1 + around, side));
  const int first_column = std::max(0, floor_div(area.x - around, side));
  const int last_column = std::min(cells.columns - 1, floor_div(area.right() - 1 + around, side));
  std::vector<int> edges;
  for (int row = first_row; row <= last_row; row++) {
    edges.push_back(row * side - around);
    edges.push_back((row + 1) * side + around);
  }
  return rectangles(std::move(edges), area, [&](int y) {
    Spans spans;
    const int from = std::max(first_row, floor_div(y - around, side));
    const int to = std::min(last_row, floor_div(y + around, side));
    for (int column = first_column; column <= last_column; column++) {
      bool runs = false;
      for (int row = from; row <= to; row++) runs |= cells.exit_at[int64_t(row) * cells.columns + column] >= stage;
      if (runs)
        add(spans, std::max(area.x, column * side - around), std::min(area.right(), (column + 1) * side + around));
    }
    return spans;
  });
}

Area overlap(const Area& a, const Area& b) {
  const int y = std::max(a.y, b.y), x = std::max(a.x, b.x);
  return {y, x, std::min(a.bottom(), b.bottom()) - y, std::min(a.right(), b.right()) - x};
}

std::vector<Area> other_parts(const Area& area, const std::vector<Area>& parts) {
  std::vector<int> edges;
  for (const Area& part : parts) {
    edges.push_back(part.y);
    edges.push_back(part.bottom());
  }
  return rectangles(std::move(edges), area, [&](int y) {
    Spans taken, left;
    for (const Area& part : parts)
      if (part.y <= y && y < part.bottom()) taken.emplace_back(part.x, part.right());
    std::sort(taken.begin(), taken.end());
    int x = area.x;
    for (const auto& [begin, end] : taken) {
      add(left, x, begin);
      x = end;
    }
    add(left, x, area.right());
    return left;
  });
}

}  // namespace ape::cpu
