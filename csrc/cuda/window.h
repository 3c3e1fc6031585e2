// Whole images: a launch a row of the table, or a fused pair of them, over feature maps that all windows share.
//
// A thread block computes one window, up to 48 x 48 pixels of a map, as it would compute a patch. At the window's sides
// the convolutions see zeros, which spoils the outer `margin` pixels; those are not stored, the window beside computes
// them. At the image's sides the window ends with the image, and zeros are what the network itself sees there.
//
// A launch never writes a map of which it reads neighbouring pixels: where a pair writes the buffer that it reads, that
// buffer moves to the map of the hidden one between them (image.h). So windows may run in any order.
//
// Which pixels are computed is known before the run: those within `radius` of a cell that runs to `stage`, or of the
// `ring` around one. Elsewhere what `carry` names stands.
#pragma once

#include "worker.h"

namespace ape::cuda {

// The carrier of a window, or of the whole map for its border. AT: 16 bytes of shared memory for where it is, and a
// byte for each pixel after them.
template <class E, uint32_t AT>
struct Window : CarrierBase<E, ImageArgs> {
  using Base = CarrierBase<E, ImageArgs>;
  using Element = typename E::Element;
  using Base::args;
  using Base::w;
  enum Pixel : uint8_t { kLeft, kComputed, kCarried };  // not this window's; stored; taken from `carry`
  static constexpr uint32_t kPixels = AT + 16, kBytes = kPixels + kPairWidth * kPairWidth;

  FN Window(Warp& w_, const ImageArgs& args_) : Base{w_, args_} {}

  FN Feature<E> feature(int number) const { return view(number, args.place[number]); }
  FN Feature<E> target(int number) const { return view(number, args.target); }
  FN bool keeps(int y, int x) const { return pixel(y * kPairWidth + x) == kComputed; }
  FN int border(const Instruction&) const { return 0; }
  FN float* picture(int64_t number, int colors, int64_t pixels, int below, int s) const {
    const int from = static_cast<int>(where().r[0]);
    const int y = from / args.map_width, x = from % args.map_width;
    return args.output + number * colors * pixels + static_cast<int64_t>(y) * below + x * s;
  }
  FN bool takes(int turn) const {
    return turn % (args.border_blocks * kWarps) == (number() - windows()) * kWarps + w.id;
  }

  FN int windows() const { return args.across * args.down; }
  FN int64_t image() const { return w.block / (windows() + args.border_blocks); }
  FN int number() const { return w.block % (windows() + args.border_blocks); }
  FN bool is_border() const { return number() >= windows(); }

  // Finds out where the block is; whether it has pixels to compute. Ends with a barrier.
  FN bool open() const {
    const bool whole = is_border();
    const int side = kPairWidth - 2 * args.margin;
    const int y = whole ? 0 : number() / args.across * side, x = whole ? 0 : number() % args.across * side;
    const int end_y = whole ? args.map_height : least(y + side, args.map_height);
    const int end_x = whole ? args.map_width : least(x + side, args.map_width);
    const int top = most(y - args.margin, 0), left = most(x - args.margin, 0);
    const int bottom = least(end_y + args.margin, args.map_height);
    const int right = least(end_x + args.margin, args.map_width);
    this->once([&] {
      w.sts(AT, U4{{static_cast<uint32_t>(top * args.map_width + left), static_cast<uint32_t>(bottom - top),
                    static_cast<uint32_t>(right - left), 0u}});
    });
    const bool active = whole || runs(y, x, end_y - 1, end_x - 1);
    if (!whole) {
      const Instruction& in = this->row(args.last);
      const int border = in.opcode == kReconstruct && in.mode ? 1 : 0;  // Ring has them
      this->each(kPairWidth * kPairWidth, [&](int i) {
        const int at_y = top + i / kPairWidth, at_x = left + i % kPairWidth;
        const bool mine = at_y >= most(y, border) && at_y < least(end_y, args.map_height - border) &&
                          at_x >= most(x, border) && at_x < least(end_x, args.map_width - border);
        w.sts(kPixels + i, static_cast<uint8_t>(!mine ? kLeft : runs_at(at_y, at_x) ? kComputed : kCarried));
      });
    }
    w.sync();
    return active;
  }

  // Fills what is not computed.
  FN void carry() const {
    if (!args.exit_at || args.carry == kKeep) return;
    const int number = this->row(args.last).dst;
    const Feature<E> to = target(number), from = view(number, args.carry == kZeros ? 0 : args.carry);
    this->each(to.groups * kPairWidth * kPairWidth, [&](int i) {
      const int group = i / (kPairWidth * kPairWidth), at = i % (kPairWidth * kPairWidth);
      if (pixel(at) != kCarried) return;
      const int y = at / kPairWidth, x = at % kPairWidth;
      constexpr int kPart = 16 / sizeof(Element);
      UNROLL for (int part = 0; part < kCellChannels; part += kPart) {
        U4 bits{};
        if (args.carry != kZeros) bits = w.template load<U4>(from.cell(group, y, x) + part);
        w.store(to.cell(group, y, x) + part, bits);
      }
    });
  }

 private:
  static FN int least(int a, int b) { return a < b ? a : b; }
  static FN int most(int a, int b) { return a > b ? a : b; }

  FN U4 where() const { return w.template lds<U4>(AT); }
  FN uint8_t pixel(int at) const { return w.template lds<uint8_t>(kPixels + at); }

  FN Feature<E> view(int number, int place) const {
    const int channels = this->row(number).in_channels;
    const U4 at = where();
    const int64_t pixels = static_cast<int64_t>(args.height) * args.width;
    return {static_cast<Element*>(args.maps) + (image() * args.map_elements + place) * pixels +
                static_cast<int64_t>(at.r[0]) * kCellChannels,
            channels,
            padded(channels) / kCellChannels,
            static_cast<int>(at.r[1]),
            static_cast<int>(at.r[2]),
            args.map_width,
            args.map_height * args.map_width};
  }

  // The cells that pixels of the map are near to: rows and columns, first and last.
  struct Cells {
    int top, left, bottom, right;
    FN int across() const { return right - left + 1; }
    FN int count() const { return (bottom - top + 1) * across(); }
  };
  FN Cells near(int y, int x, int last_y, int last_x) const {
    const auto first = [&](int at) {
      return most(most(at - args.radius, 0) / args.resolution - args.ring, 0) / args.cell;
    };
    const auto last = [&](int at, int size) {
      return least((at + args.radius) / args.resolution + args.ring, size - 1) / args.cell;
    };
    return {first(y), first(x), last(last_y, args.height), last(last_x, args.width)};
  }
  FN bool runs_cell(const Cells& cells, int i) const {
    const int y = cells.top + i / cells.across(), x = cells.left + i % cells.across();
    const int64_t* of_image = args.exit_at + image() * args.cell_rows * args.cell_columns;
    return w.template load<int64_t>(of_image + y * args.cell_columns + x) >= args.stage;
  }
  // Whether one of these pixels is computed, the same in every lane.
  FN bool runs(int y, int x, int last_y, int last_x) const {
    if (!args.exit_at) return true;
    const Cells cells = near(y, x, last_y, last_x);
    PerLane<float> found;
    w.lanes([&](int l) {
      found[l] = 0.0f;
      ROLLED for (int i = l; i < cells.count(); i += kLanes) found[l] += runs_cell(cells, i) ? 1.0f : 0.0f;
    });
    return w.sum(found) > 0.0f;
  }
  FN bool runs_at(int y, int x) const {
    if (!args.exit_at) return true;
    const Cells cells = near(y, x, y, x);
    bool found = false;
    ROLLED for (int i = 0; i < cells.count() && !found; ++i) found = runs_cell(cells, i);
    return found;
  }
};

// What a thread block of a launch does.
template <class E, class Shapes>
struct ImageWorker {
  static constexpr uint32_t kTaken = Worker<E, Shapes>::kTaken;  // by the convolutions' rings
  using Carried = Window<E, kTaken>;
  static constexpr uint32_t kSharedBytes = Carried::kBytes;

  Carried b;

  FN ImageWorker(Warp& w, const ImageArgs& args) : b(w, args) {}

  FN void run() {
    const bool active = b.open();
    const Instruction& in = b.row(b.args.last);
    if (b.is_border()) return Ring<Carried>(b, in, b.image()).run();
    b.carry();
    if (!active) return;
    if (b.args.fused) {
      if constexpr (std::is_same_v<E, Half>) Shapes::run(b, b.args.first, false);
    } else if (b.args.first != b.args.last || !stream(b, in, b.image(), kTaken)) {
      Conv<Carried>(b, b.args.last, b.args.first, b.image()).run();
    }
  }
};

static_assert(ImageWorker<Half, Shapes227>::kSharedBytes <= 227 * 1024 &&
                  ImageWorker<Half, Shapes163>::kSharedBytes <= 163 * 1024 &&
                  ImageWorker<Half, Shapes99>::kSharedBytes <= 99 * 1024,
              "shared memory of a block: H100 227 KB, A100 163 KB, RTX 99 KB");

// Whether pairs of so many channels, padded, run in one pass on parts with so many KB of shared memory a block.
constexpr bool image_fuses(int channels, int kb) {
  return kb == 227 ? Shapes227::has(channels) : kb == 163 ? Shapes163::has(channels) : Shapes99::has(channels);
}

// As `shared_bytes_of`.
constexpr uint32_t image_shared_bytes_of(bool half, int arch) {
  const int kb = shared_kb_of(arch);
  return !half       ? ImageWorker<Float, Shapes99>::kSharedBytes
         : kb == 227 ? ImageWorker<Half, Shapes227>::kSharedBytes
         : kb == 163 ? ImageWorker<Half, Shapes163>::kSharedBytes
                     : ImageWorker<Half, Shapes99>::kSharedBytes;
}

}  // namespace ape::cuda
