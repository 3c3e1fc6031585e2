// Whole images: one launch per row of the table or fused pair, over feature maps that all windows share.
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

// The carrier of a window, or of the whole map for its border. AT: 32 bytes of shared memory for where it is, and a
// byte for each pixel after them.
template <class E, uint32_t AT>
struct Window : CarrierBase<E, ImageArgs> {
  static constexpr int kRingUnits = E::kMostUnits5 > 2 ? 2 : 1;  // for more there are not the registers
  using Base = CarrierBase<E, ImageArgs>;
  using Map = Feature<E, true>;
  using Element = typename E::Element;
  using Base::args;
  using Base::w;
  enum Pixel : uint8_t { kLeft, kComputed, kCarried };  // left as it is; stored; taken from `carry`
  static constexpr uint32_t kPixels = AT + 32, kBytes = kPixels + kPairWidth * kPairWidth;

  FN Window(Warp& w_, const ImageArgs& args_) : Base{w_, args_} {}

  FN Map feature(int number) const { return view(number, args.place[number]); }
  FN int plane(int, int) const { return args.map_height * args.map_width; }
  FN Map target(int number) const { return view(number, args.target); }
  FN bool keeps(int y, int x) const { return pixel(y * kPairWidth + x) == kComputed; }
  FN int border(const Instruction&) const { return 0; }
  FN float* picture(int64_t number, int colors, int64_t pixels, int below, int s) const {
    return args.output + number * colors * pixels + static_cast<int64_t>(top()) * below + left() * s;
  }
  FN Map added(int number, int below, int s) const {
    return view(number, args.place[number], top() * below + left() * s, height() * s, width() * s, below / s,
                args.map_height * below);
  }
  // All of a buffer, of 1 / `factor` of the map's resolution.
  FN Map whole(int number, int factor) const {
    const int height = args.map_height / factor, width = args.map_width / factor;
    return view(number, args.place[number], 0, height, width, width, height * width);
  }
  // The window's first pixel in the map.
  FN int top() const { return w.template lds<int>(AT + 4); }
  FN int left() const { return w.template lds<int>(AT + 8); }
  FN bool takes(int turn) const {
    return turn % (args.border_blocks * kWarps) == (number() - windows()) * kWarps + w.id;
  }

  FN int windows() const { return args.across * args.down; }
  FN int64_t image() const { return w.template lds<int>(AT + 12); }
  FN int number() const { return w.block % (windows() + args.border_blocks); }
  FN bool is_border() const { return number() >= windows(); }

  // Finds out where the block is and what it has to do; the same for all warps. Ends with a barrier, unless for
  // nothing.
  enum Work { kNothing, kToCarry, kToCompute };
  FN Work open() const {
    const bool whole = is_border();
    const int y = whole ? 0 : number() / args.across * args.side_y,
              x = whole ? 0 : number() % args.across * args.side_x;
    const int end_y = whole ? args.map_height : least(y + args.side_y, args.map_height);
    const int end_x = whole ? args.map_width : least(x + args.side_x, args.map_width);
    const int top = most(y - args.margin, 0), left = most(x - args.margin, 0);
    const int bottom = least(end_y + args.margin, args.map_height);
    const int right = least(end_x + args.margin, args.map_width);
    const int image = w.block / (windows() + args.border_blocks);
    this->once([&] {
      w.sts(AT, U4{{static_cast<uint32_t>(top * args.map_width + left), static_cast<uint32_t>(top),
                    static_cast<uint32_t>(left), static_cast<uint32_t>(image)}});
      w.sts(AT + 16, U4{{static_cast<uint32_t>(bottom - top), static_cast<uint32_t>(right - left), 0u, 0u}});
    });
    const bool active = whole || runs(computed(image), y, x, end_y - 1, end_x - 1);
    if (!active && (args.carry == kKeep || !runs(carried(image), y, x, end_y - 1, end_x - 1))) return kNothing;
    if (!whole) {
      const Instruction& in = this->row(args.last);
      const int border = in.opcode == kReconstruct && in.mode ? 1 : 0;  // Ring has them
      this->each(kPairWidth * kPairWidth, [&](int i) {
        const int at_y = top + i / kPairWidth, at_x = left + i % kPairWidth;
        const bool mine = at_y >= most(y, border) && at_y < least(end_y, args.map_height - border) &&
                          at_x >= most(x, border) && at_x < least(end_x, args.map_width - border);
        const Pixel what = !mine                                  ? kLeft
                           : runs_at(computed(image), at_y, at_x) ? kComputed
                           : runs_at(carried(image), at_y, at_x)  ? kCarried
                                                                  : kLeft;
        w.sts(kPixels + i, static_cast<uint8_t>(what));
      });
    }
    w.sync();
    return active ? kToCompute : kToCarry;
  }

  // Fills what is not computed.
  FN void carry() const {
    if (args.carry == kKeep) return;
    const int number = this->row(args.last).dst;
    const Map to = target(number), from = view(number, args.carry == kZeros ? 0 : args.carry);
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

  FN int height() const { return w.template lds<int>(AT + 16); }
  FN int width() const { return w.template lds<int>(AT + 20); }
  FN uint8_t pixel(int at) const { return w.template lds<uint8_t>(kPixels + at); }

  // A window of map `place`, which holds a buffer like `number`; at: its first pixel.
  FN Map view(int number, int place) const {
    return view(number, place, w.template lds<int>(AT), height(), width(), args.map_width,
                args.map_height * args.map_width);
  }
  FN Map view(int number, int place, int at, int height, int width, int pitch, int plane) const {
    const int channels = this->row(number).in_channels;
    const int64_t pixels = static_cast<int64_t>(args.height) * args.width;
    Element* maps = static_cast<Element*>(args.maps) + (image() * args.map_elements + place) * pixels;
    return {maps + static_cast<int64_t>(at) * kCellChannels,
            channels,
            padded(channels) / kCellChannels,
            height,
            width,
            plane,
            pitch};
  }

  // Pixels so far around cells that run to `stage`, and around their ring; kNever: all pixels.
  struct Which {
    int stage, radius, ring;
    int64_t image;
  };
  FN Which computed(int64_t image) const { return {args.exit_at ? args.stage : kNever, args.radius, args.ring, image}; }
  FN Which carried(int64_t image) const { return {args.carry_stage, 0, args.carry_ring, image}; }

  // The cells that pixels of the map are near to: rows and columns, first and last.
  struct Cells {
    int top, left, bottom, right;
    FN int across() const { return right - left + 1; }
    FN int count() const { return (bottom - top + 1) * across(); }
  };
  FN Cells near(const Which& which, int y, int x, int last_y, int last_x) const {
    const auto first = [&](int at) {
      return most(most(at - which.radius, 0) / args.resolution - which.ring, 0) / args.cell;
    };
    const auto last = [&](int at, int size) {
      return least((at + which.radius) / args.resolution + which.ring, size - 1) / args.cell;
    };
    return {first(y), first(x), last(last_y, args.height), last(last_x, args.width)};
  }
  FN bool runs_cell(const Which& which, const Cells& cells, int i) const {
    const int y = cells.top + i / cells.across(), x = cells.left + i % cells.across();
    const int64_t* of_image = args.exit_at + which.image * args.cell_rows * args.cell_columns;
    return w.template load<int64_t>(of_image + y * args.cell_columns + x) >= which.stage;
  }
  // Whether one of these pixels is among them, the same in every lane.
  FN bool runs(const Which& which, int y, int x, int last_y, int last_x) const {
    if (which.stage == kNever) return true;
    const Cells cells = near(which, y, x, last_y, last_x);
    PerLane<float> found;
    w.lanes([&](int l) {
      found[l] = 0.0f;
      ROLLED for (int i = l; i < cells.count(); i += kLanes) found[l] += runs_cell(which, cells, i) ? 1.0f : 0.0f;
    });
    return w.sum(found) > 0.0f;
  }
  FN bool runs_at(const Which& which, int y, int x) const {
    if (which.stage == kNever) return true;
    const Cells cells = near(which, y, x, y, x);
    bool found = false;
    ROLLED for (int i = 0; i < cells.count() && !found; ++i) found = runs_cell(which, cells, i);
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

  // A fused pair.
  FN void run_pair() {
    if (begin()) Shapes::run(b, b.args.first, false);
  }

  // Any other row.
  FN void run() {
    if (!begin()) return;
    const Instruction& in = b.row(b.args.last);
    if (b.is_border())
      Ring<Carried>(b, in, b.image()).run();
    else if (in.opcode == kUpsample)
      upsample(in);
    else if (b.args.first != b.args.last || !stream(b, in, b.image(), kTaken))
      Conv<Carried>(b, b.args.last, b.args.first, b.image()).run();
  }

  // Whether there is something to compute.
  FN bool begin() {
    const auto work = b.open();
    if (work != Carried::kNothing && !b.is_border()) b.carry();
    return work == Carried::kToCompute;
  }

  FN void upsample(const Instruction& in) {
    const typename Carried::Map src = b.whole(in.src, in.upscale), dst = b.target(in.dst);
    const int top = b.top(), left = b.left();
    b.each(dst.groups * kPairWidth * kPairWidth, [&](int i) {
      const int group = i / (kPairWidth * kPairWidth), y = i / kPairWidth % kPairWidth, x = i % kPairWidth;
      if (!b.keeps(y, x)) return;
      float v[kCellChannels];
      upsample_cell(b, in, src, group, top + y, left + x, v);
      E::store_cell(b.w, dst.cell(group, y, x), v);
    });
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

// The same for the kernels of images as `shared_bytes_of` for the worker.
constexpr uint32_t image_shared_bytes_of(bool half, int arch) {
  const int kb = shared_kb_of(arch);
  return !half       ? ImageWorker<Float, Shapes99>::kSharedBytes
         : kb == 227 ? ImageWorker<Half, Shapes227>::kSharedBytes
         : kb == 163 ? ImageWorker<Half, Shapes163>::kSharedBytes
                     : ImageWorker<Half, Shapes99>::kSharedBytes;
}

}  // namespace ape::cuda
