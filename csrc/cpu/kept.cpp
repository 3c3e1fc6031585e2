#include "kept.h"

#include <algorithm>
#include <cstring>
#include <tuple>

#include "image.h"
#include "isa.h"

namespace ape::cpu {
namespace {

// Pixels as they lie in memory. Sizes and strides in bytes.
struct Bytes {
  const char* data;
  int64_t planes, rows, row, pixel;

  int64_t size() const { return planes * rows * row; }
  void copy(std::vector<char>& to) const { to.assign(data, data + size()); }
  bool equals(const std::vector<char>& other, const Area& area) const {
    for (int64_t plane = 0; plane < planes; plane++)
      for (int64_t y = area.y; y < area.bottom(); y++) {
        const int64_t first = (plane * rows + y) * row + area.x * pixel;
        if (std::memcmp(data + first, other.data() + first, size_t(area.width * pixel)) != 0) return false;
      }
    return true;
  }
};

Bytes floats_of(const float* data, int channels, int height, int width) {
  return {reinterpret_cast<const char*>(data), channels, height, int64_t(width) * int64_t(sizeof(float)),
          sizeof(float)};
}

Bytes levels_of(const ImageArgs& args, int fold) {
  const int64_t pixel = args.levels.channels * args.levels.bytes;
  return {static_cast<const char*>(args.levels.image), 1, int64_t(fold) * args.height, args.levels.width * pixel,
          pixel};
}

Bytes image_of(const ImageArgs& args, int channels, int fold) {
  if (args.folded == nullptr) return levels_of(args, fold);
  return floats_of(args.folded, channels, args.height, args.width);
}

Bytes colours_of(const ImageArgs& args, int fold) {
  return floats_of(args.colours, args.colour_channels, fold * args.height, fold * args.width);
}

int cells_along(int size, int cell) { return (size + cell - 1) / cell; }

}  // namespace

bool Kept::Form::operator==(const Form& other) const {
  const auto all = [](const Form& f) {
    return std::tie(f.floats, f.rounded, f.channels, f.height, f.width, f.fold, f.cell, f.ring, f.planned, f.toned,
                    f.kernels);
  };
  return all(*this) == all(other);
}

bool Kept::begin(const Program& program, const ImageArgs& args, int64_t floats, int64_t rounded) {
  const bool planned = args.exit_at != nullptr, toned = planned && args.colours != nullptr;
  const Form form{floats,      rounded,    program.buffers[0].channels,
                  args.height, args.width, program.upscale() / args.scale,
                  args.cell,   args.ring,  planned,
                  toned,       &kernels()};
  const size_t bytes = size_t(image_of(args, form.channels, form.fold).size());  // differ in levels and floats
  const bool trusted = trusted_ && form == form_ && image_.size() == bytes;
  trusted_ = false;
  if (floats != form_.floats || rounded != form_.rounded) {
    form_ = {};
    floats_.reset(), rounded_.reset();
    floats_ = allocate<float>(floats);
    rounded_ = allocate<bf16>(rounded);
  }
  form_ = form;
  return trusted;
}

void Kept::end(const ImageArgs& args, const std::vector<char>& idle, double renewed) {
  image_of(args, form_.channels, form_.fold).copy(image_);
  if (form_.planned) {
    if (form_.toned) colours_of(args, form_.fold).copy(colours_);
    exit_at_.assign(args.exit_at,
                    args.exit_at + int64_t(cells_along(args.height, args.cell)) * cells_along(args.width, args.cell));
  }
  idle_ = idle;
  renewed_ = renewed;
  trusted_ = true;
}

bool Kept::same_image(const ImageArgs& args, const Area& area) const {
  const int scale = args.folded == nullptr ? form_.fold : 1;
  const Area there{area.y * scale, area.x * scale, area.height * scale, area.width * scale};
  return image_of(args, form_.channels, form_.fold).equals(image_, there);
}

bool Kept::same_colours(const ImageArgs& args, const Area& area) const {
  if (form_.toned) return colours_of(args, form_.fold).equals(colours_, area);
  return levels_of(args, form_.fold).equals(image_, area);
}

bool Kept::same_cells(const ImageArgs& args, const Area& area) const {
  if (!form_.planned) return true;
  const int rows = cells_along(args.height, args.cell), columns = cells_along(args.width, args.cell);
  const int y1 = std::min(rows, cells_along(std::max(0, area.bottom()), args.cell));
  const int x0 = std::max(0, area.x) / args.cell;
  const int x1 = std::min(columns, cells_along(std::max(0, area.right()), args.cell));
  for (int y = std::max(0, area.y) / args.cell; y < y1; y++)
    if (x0 < x1 && !std::equal(args.exit_at + int64_t(y) * columns + x0, args.exit_at + int64_t(y) * columns + x1,
                               exit_at_.data() + int64_t(y) * columns + x0))
      return false;
  return true;
}

}  // namespace ape::cpu
