#include "image.h"

#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "course.h"
#include "interpolate.h"
#include "isa.h"
#include "parallel.h"
#include "regions.h"
#include "strips.h"
#include "workspace.h"

namespace ape::cpu {
namespace {

constexpr int kTile = 72;  // low-resolution pixels a side of tiles; docs/cpu.md has the measurements

// One run of a program on images of one size: what all workers share.
class Run {
 public:
  Run(const Program& program, const ImageArgs& args)
      : program_(program),
        args_(args),
        course_(program, args.sharing),
        tile_(image_tile(program)),
        fold_(program.upscale() / args.scale),
        // the tile that has moved furthest must still reach the image's end
        tile_rows_(tiles(args.height)),
        tile_columns_(tiles(args.width)),
        slots_(args.kept ? tile_rows_ : std::min<int64_t>(args.count * tile_rows_, 2 * int64_t(args.threads) + 2)),
        strips_(program, course_, tile_, tile_rows_, tile_columns_, args.kept ? 0 : int(slots_)),
        done_(args.count * tile_rows_ * tile_columns_),
        idle_(done_.size()) {
    for (int64_t i = 0; i < int64_t(idle_.size()); i++) idle_[i] = !runs(tile_at(i), i / tiles_per_image());
    order();
  }

  const Strips& strips() const { return strips_; }

  void run() {
    const int workers = int(std::min<int64_t>(args_.threads, int64_t(order_.size())));
    const int side = tile_ + course_.lead + course_.rest;
    std::vector<Workspace> spaces;
    for (int i = 0; i < workers; i++) spaces.emplace_back(program_, kernels(), args_.weights, side, side, false);
    std::vector<Floats> floats(workers);
    if (args_.watch != nullptr) __atomic_store_n(args_.watch + 1, int64_t(order_.size()), __ATOMIC_RELAXED);
    if (args_.kept != nullptr) {
      if (args_.count != 1) throw std::invalid_argument("kept: expected one image, got " + std::to_string(args_.count));
      trusted_ = args_.kept->begin(program_, args_, strips_.float_count(), strips_.rounded_count());
      strips_.lie(args_.kept->floats(), args_.kept->rounded());
      handed_ = std::vector<std::atomic<int>>(done_.size());
    }
    parallel(workers, int64_t(order_.size()), [&](int worker, int64_t i) {
      try {
        carry(order_[i], spaces[worker], floats[worker]);
        report();
      } catch (...) {
        stopped_ = true;
        throw;
      }
    });
    if (args_.kept != nullptr) {
      const int64_t q = course_.moves.back().resolution;
      args_.kept->end(args_, idle_, double(renewed_) / double(q * args_.height * q * args_.width));
    }
  }

 private:
  // Of one worker, where `levels` has the image and the picture.
  struct Floats {
    std::vector<float> image, picture;
  };

  void report() const {
    if (args_.watch == nullptr) return;
    __atomic_fetch_add(args_.watch, 1, __ATOMIC_RELAXED);
    if (__atomic_load_n(args_.watch + 2, __ATOMIC_RELAXED) != 0) throw std::runtime_error("stopped");
  }

  int tiles(int size) const {
    const Move& last = course_.moves.back();
    return (size + (last.shift + last.resolution - 1) / last.resolution + tile_ - 1) / tile_;
  }
  int64_t tiles_per_image() const { return int64_t(tile_rows_) * tile_columns_; }
  Tile tile_at(int64_t number) const {
    const int row = int(number / tile_columns_), column = int(number % tile_columns_);
    return {row, column, row % tile_rows_ * tile_, column * tile_};
  }
  Cells cells(int64_t image) const {
    const int rows = (args_.height + args_.cell - 1) / args_.cell;
    const int columns = (args_.width + args_.cell - 1) / args_.cell;
    return {args_.exit_at ? args_.exit_at + image * rows * columns : nullptr, rows, columns, args_.cell};
  }

  Area area_of(const Move& move, const Tile& tile) const {
    return tile_of(move, tile.top, tile.left, tile_, args_.height, args_.width);
  }

  // As far around a tile as cells decide what its steps compute, or what they read.
  Area around(const Tile& tile) const {
    const Move& last = course_.moves.back();
    const int moved = (last.shift + last.resolution - 1) / last.resolution + course_.rest;
    int around = args_.ring;
    for (const Move& move : course_.moves) around = std::max(around, args_.ring + move.reach + move.radius());
    const int side = moved + tile_ + 2 * around;
    return {tile.top - moved - around, tile.left - moved - around, side, side};
  }

  // Whether any step of the tile computes a pixel, or hands on one that a cell which runs may read.
  bool runs(const Tile& tile, int64_t image) const {
    if (args_.exit_at == nullptr) return true;
    const Area area = overlap(around(tile), {0, 0, args_.height, args_.width});
    return !active_parts(cells(image), 0, 0, area, 1).empty();
  }

  // Groups of rows of tiles, as many as have a slot; in a group from the top left on, so that what a tile waits for has
  // been taken before it, and mostly long before.
  void order() {
    order_.resize(done_.size());
    for (size_t i = 0; i < order_.size(); i++) order_[i] = int64_t(i);
    const auto key = [&](int64_t number) {
      const int64_t row = number / tile_columns_, column = number % tile_columns_;
      return std::make_pair(row / slots_, column + 2 * (row % slots_));
    };
    std::stable_sort(order_.begin(), order_.end(), [&](int64_t a, int64_t b) { return key(a) < key(b); });
  }

  // Until the tile has run as many steps.
  void wait(int64_t number, int steps) const {
    for (int turns = 0; done_[number].load(std::memory_order_acquire) < steps; turns++) {
      if (stopped_) throw std::runtime_error("another worker has failed");
      if (turns > 64) std::this_thread::yield();
    }
  }
  // The tiles whose strips this one reads, or writes over. Idle ones leave strips alone: the one before them counts.
  struct Before {
    int64_t above = -1, left = -1, slot = -1;
    bool takes_above = false, takes_left = false;
  };
  Before before(const Tile& tile) const {
    Before found;
    const auto number = [&](int row, int column) { return int64_t(row) * tile_columns_ + column; };
    for (int row = tile.row - 1; row >= 0 && found.above < 0; row--)
      if (!idle_[number(row, tile.column)]) found.above = number(row, tile.column);
    found.takes_above = found.above == number(tile.row - 1, tile.column) && tile.top > 0;
    for (int column = tile.column - 1; column >= 0 && found.left < 0; column--)
      if (!idle_[number(tile.row, column)]) found.left = number(tile.row, column);
    found.takes_left = found.left >= 0 && found.left == number(tile.row, tile.column - 1);
    for (int row = tile.row - int(slots_); row >= 0 && found.left < 0 && found.slot < 0; row -= int(slots_))
      for (int column = tile_columns_ - 1; column >= 0 && found.slot < 0; column--)
        if (!idle_[number(row, column)]) found.slot = number(row, column);
    return found;
  }

  // What a tile hands on, where strips are kept.
  enum Handed { kNotYet, kSame, kOther };

  // Whether anything changed that a tile is computed from, in the order in which that is known: what it reads of the
  // image, its cells, and what the tiles above and to the left hand on.
  bool changed(int64_t number, const Tile& tile) const {
    if (!trusted_ || changed_itself(number, tile)) return true;
    if (idle_[number]) return false;
    const int64_t above = tile.row > 0 ? number - tile_columns_ : -1, left = tile.column > 0 ? number - 1 : -1;
    for (int turns = 0;; turns++) {
      bool known = true;
      for (int64_t other : {above, left}) {
        const int handed = other < 0 ? kSame : handed_[other].load(std::memory_order_acquire);
        if (handed == kOther) return true;
        known &= handed == kSame;
      }
      if (known) return false;
      if (stopped_) throw std::runtime_error("another worker has failed");
      if (turns > 64) std::this_thread::yield();
    }
  }

  bool changed_itself(int64_t number, const Tile& tile) const {
    const Kept& kept = *args_.kept;
    if (!kept.same_cells(args_, around(tile))) return true;
    if (!idle_[number])
      for (const Move& move : course_.moves)
        if (reads_input(move))
          for (const Area& part : parts_of(0, move, area_of(move, tile)))
            if (!kept.same_image(args_, read_by(move, part))) return true;
    for (const Area& there : interpolated(0, area_of(course_.moves.back(), tile)))
      if (!kept.same_colours(args_, colours_around(there))) return true;
    return false;
  }

  // A tile through the whole network, and its part of the picture.
  void carry(int64_t number, Workspace& space, Floats& floats) {
    const Tile tile = tile_at(number);
    const int64_t image = number / tiles_per_image();
    const Area area = area_of(course_.moves.back(), tile);
    if (args_.kept != nullptr) {
      if (!changed(number, tile)) {
        done_[number].store(int(course_.moves.size()), std::memory_order_release);
        handed_[number].store(kSame, std::memory_order_release);
        return;
      }
      renewed_ += int64_t(area.height) * area.width;
      if (!trusted_ || args_.kept->was_idle(number) != bool(idle_[number])) handed_[number] = kOther;
    }
    compute(number, tile, image, area, space, floats);
    int not_yet = kNotYet;
    if (args_.kept != nullptr) handed_[number].compare_exchange_strong(not_yet, kSame);
  }

  void compute(int64_t number, const Tile& tile, int64_t image, const Area& area, Workspace& space, Floats& floats) {
    if (!idle_[number]) run_steps(number, tile, image, space, floats);
    const Move& last = course_.moves.back();
    const int s = last.step.in.upscale;
    const Area shown{area.y * s, area.x * s, area.height * s, area.width * s};
    const Planes<float> picture = this->picture(image, shown, floats);
    if (!idle_[number])
      for (const Area& part : parts_of(image, last, area)) {
        if (reads_input(last)) load(image, last, part, space, floats);
        space.reconstruct(last.step, part, picture);
      }
    for (const Area& there : interpolated(image, area)) {
      const Planes<const float> source = colours(image, colours_around(there), floats);
      interpolate(kernels(), source, args_.colour_channels, fold_ * args_.height, fold_ * args_.width, args_.scale,
                  there, picture);
    }
    if (args_.sr == nullptr) write_levels(picture, shown, args_.levels);
  }

  // The parts of a step's area that it computes.
  std::vector<Area> parts_of(int64_t image, const Move& move, const Area& area) const {
    const int ring = move.stage == 0 && move.section != Section::kTail ? args_.ring * move.resolution : 0;
    return active_parts(cells(image), move.stage, ring + move.reach, area, move.resolution);
  }

  // The parts of the picture that are interpolated, of those that come from `area` of the last step's source.
  std::vector<Area> interpolated(int64_t image, const Area& area) const {
    if (args_.exit_at == nullptr) return {};
    const Move& last = course_.moves.back();
    const int s = last.step.in.upscale;
    std::vector<Area> parts = other_parts(area, parts_of(image, last, area));
    for (Area& part : parts) part = {part.y * s, part.x * s, part.height * s, part.width * s};
    return parts;
  }

  // Where the pixels of `area` of a picture go before they are rounded, or for good.
  Planes<float> picture(int64_t image, const Area& area, Floats& floats) const {
    const int channels = program_.reconstruct().picture_channels();
    if (args_.sr != nullptr) return planes(args_.sr, channels, image, program_.upscale());
    const int64_t plane = int64_t(area.height) * area.width;
    floats.picture.resize(size_t(plane * channels));
    return {floats.picture.data() - int64_t(area.y) * area.width - area.x, plane, area.width};
  }

  // What `area` of an image, not folded, is interpolated from.
  Planes<const float> colours(int64_t image, const Area& area, Floats& floats) const {
    if (args_.colours == nullptr) return read_levels(args_.levels, 1, area, floats.image);
    return planes(args_.colours, args_.colour_channels, image, fold_);
  }

  // What interpolation of `area` of the picture reads of the image.
  Area colours_around(const Area& area) const {
    if (area.empty()) return {0, 0, 0, 0};
    const int y0 = area.y / args_.scale - 2, x0 = area.x / args_.scale - 2;
    const int y1 = (area.bottom() - 1) / args_.scale + 3, x1 = (area.right() - 1) / args_.scale + 3;
    return overlap({y0, x0, y1 - y0, x1 - x0}, {0, 0, fold_ * args_.height, fold_ * args_.width});
  }

  void run_steps(int64_t number, const Tile& tile, int64_t image, Workspace& space, Floats& floats) {
    const Before before = this->before(tile);
    Maps& maps = space.maps();
    maps.place(tile.top - course_.lead, tile.left - course_.lead, args_.height, args_.width);
    const int count = int(course_.moves.size()) - 1;
    for (int i = 0; i < count; i++) {
      const Move& move = course_.moves[i];
      if (move.slide > 0) maps.slide(move.slide, move.slide, move.live);
      const Area area = area_of(move, tile);
      if (!area.empty()) run_move(image, move, area, space, floats);
      if (move.keep == 0) continue;
      for (int64_t other : {before.above, before.left, before.slot})
        if (other >= 0) wait(other, i + 1);
      const FeatureMap& map = maps[move.step.in.dst];
      strips_.take(i, tile, before.takes_above, before.takes_left, map);
      const bool compare = args_.kept != nullptr && handed_[number] != kOther;
      if (strips_.give(i, tile, map, compare)) handed_[number] = kOther;
      done_[number].store(i + 1, std::memory_order_release);
    }
  }

  void run_move(int64_t image, const Move& move, const Area& area, Workspace& space, Floats& floats) {
    const std::vector<Area> parts = parts_of(image, move, area);
    if (reads_input(move))
      for (const Area& part : parts) load(image, move, part, space, floats);
    if (!parts.empty()) space.run(move.step, Areas(parts.data(), parts.size()));
    if (args_.exit_at == nullptr) return;
    const int32_t dst = move.step.in.dst;
    const bool carries = move.section == Section::kStages && move.carry != dst;
    // What nothing reads is left over from other tiles. In strips that are compared it must be the same each time.
    const bool clears = args_.kept != nullptr && !move.renews();
    if (!carries && !clears) return;
    const FeatureMap& map = space.maps()[dst];
    const Area below{area.bottom() - move.keep, area.x, move.keep, area.width};
    const Area right{area.y, area.right() - move.keep, area.height, move.keep};
    for (const Area& part : other_parts(area, parts)) {
      if (carries && move.carry != kNoBuffer) {
        copy(space.maps()[move.carry], map, part);
      } else if (carries || move.section == Section::kHead) {  // stages carry on what the head leaves
        clear(map, part);
      } else {
        clear(map, overlap(part, below));
        clear(map, overlap(part, right));
      }
    }
  }

  bool reads_input(const Move& move) const { return move.reads(0); }
  // What the step reads of the image to compute `part`.
  Area read_by(const Move& move, const Area& part) const {
    const int f = move.factor(), r = move.radius();
    const int y0 = part.y / f - r, x0 = part.x / f - r;
    const int y1 = (part.bottom() - 1) / f + 1 + r, x1 = (part.right() - 1) / f + 1 + r;
    return overlap({y0, x0, y1 - y0, x1 - x0}, {0, 0, args_.height, args_.width});
  }
  void load(int64_t image, const Move& move, const Area& part, Workspace& space, Floats& floats) const {
    const Area area = read_by(move, part);
    if (args_.folded == nullptr)
      space.load(0, read_levels(args_.levels, fold_, area, floats.image), area);
    else
      space.load(0, planes(args_.folded, program_.buffers[0].channels, image, 1), area);
  }

  template <class T>
  Planes<T> planes(T* data, int channels, int64_t image, int factor) const {
    const int64_t row = int64_t(args_.width) * factor, plane = int64_t(args_.height) * factor * row;
    return {data + image * channels * plane, plane, row};
  }

  const Program& program_;
  const ImageArgs& args_;
  const Course course_;
  const int tile_, fold_, tile_rows_, tile_columns_;
  const int64_t slots_;
  Strips strips_;
  std::vector<std::atomic<int>> done_;  // steps of each tile that others may rely on
  std::vector<char> idle_;              // whether a tile computes nothing
  std::vector<int64_t> order_;
  std::atomic<bool> stopped_{false};
  bool trusted_ = false;  // whether what is kept can be
  std::vector<std::atomic<int>> handed_;
  std::atomic<int64_t> renewed_{0};  // pixels of the picture's source, of all tiles that were computed
};

}  // namespace

// Fewer pixels where maps are larger than the image, and so the same memory.
int image_tile(const Program& program) {
  int most = 1;
  for (const BufferSpec& buffer : program.buffers)
    if (buffer.grouped) most = std::max(most, buffer.resolution);
  return most == 1 ? kTile : kTile * 2 / 3;
}

int64_t kept_bytes(const Program& program, const ImageArgs& args) {
  Kept kept;
  ImageArgs kept_args = args;
  kept_args.kept = &kept;
  const Run run(program, kept_args);
  return run.strips().float_count() * int64_t(sizeof(float)) + run.strips().rounded_count() * int64_t(sizeof(bf16));
}

void run_image(const Program& program, const ImageArgs& args) {
  if (args.count == 0) return;
  if (args.sr != nullptr) {
    const int64_t pixels = int64_t(args.height) * args.width * program.upscale() * program.upscale();
    prefer_huge_pages(args.sr, size_t(args.count * program.reconstruct().picture_channels() * pixels) * sizeof(float));
  }
  Run(program, args).run();
}

}  // namespace ape::cpu
