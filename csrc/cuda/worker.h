// The worker kernel: a thread block takes a patch from the queue, carries it through the program until it leaves,
// writes the result and takes the next.
//
// Grid       as many blocks of 8 warps as fit the device at once, no more than patches; see launch.h.
// Ownership  a block owns one arena of feature buffers in `scratch`, of which it alone reads and writes; patches do not
//            touch each other, so a result does not depend on which block runs it, nor on its company. Blocks share
//            the queue's counter alone, which orders nothing else: no fence is needed between them.
// Program    the rows of the instruction table, read as they stand (docs/program.md). Steps hand on through the arena,
//            in the L2 cache where that holds the arenas of all blocks (docs/kernels.md); one barrier after each.
// Shared     one place for the rings of convolutions (conv.h, pair.h, stream.h) and the floats of pooling (steps.h);
//            after it 16 bytes for the queue's answer and 3 KB of where each warp stands. 227 KB parts: 206 864 B,
//            163 KB: 165 904 B, 99 KB: 97 296 B; Float: 81 424 B.
// Arithmetic at the head of pair.h, stream.h and conv.h, by tap.
// Registers  up to 255 a thread: what a patch has come to is looked up, in shared memory and in the table, not held.
// Rounding   products take operands of type E, sums are float32; features are rounded to E where they are stored.
#pragma once

#include <algorithm>

#include "steps.h"
#include "stream.h"

namespace ape::cuda {

// The fused pair's shapes, one for each number of channels that it takes.
template <class... S>
struct PairShapes {
  static constexpr uint32_t kBytes = std::max({S::kBytes...});

  APE_HD static constexpr bool has(int channels) { return ((channels == S::kChannels) || ...); }
  template <class B>
  static FN void run(B& b, int row, bool sums) {
    // the table is asked again for every shape, so that nothing is kept while one runs
    static_cast<void>(
        ((padded(b.row(row).out_channels) == S::kChannels && (Pair<S, B>(b, row, sums).run(), true)) || ...));
  }
};
// For parts with 227 KB of shared memory a block, with 163 KB and with 99 KB.
using Shapes227 = PairShapes<PairShape<16, 8, 3, 3>, PairShape<32, 8, 3, 3>, PairShape<48, 8, 3, 3>,
                             PairShape<64, 8, 3, 3>, PairShape<96, 4, 1, 4>>;
using Shapes163 = PairShapes<PairShape<16, 8, 1, 4>, PairShape<32, 8, 1, 4>, PairShape<48, 8, 1, 4>,
                             PairShape<64, 8, 1, 4>, PairShape<96, 4, 1, 2>>;
using Shapes99 = PairShapes<PairShape<16, 8, 1, 4>, PairShape<32, 8, 1, 4>, PairShape<64, 4, 1, 2>>;
template <class E, class Shapes>
struct Worker {
  static constexpr bool kFuses = std::is_same_v<E, Half>;
  static constexpr uint32_t kTaken =
      kFuses && Shapes::kBytes > ConvShared<E>::kBytes ? Shapes::kBytes : ConvShared<E>::kBytes;
  static constexpr uint32_t kKept = kLanes * sizeof(int);  // of shared memory, for a number that a warp keeps
  static constexpr uint32_t kProgress = kTaken + 16, kSharedBytes = kProgress + 3 * kWarps * kKept;
  static_assert(kPoolBytes <= kTaken, "pooled sums lie where the rings are");

  Carrier<E> b;

  FN Worker(Warp& w, const WorkerArgs& args) : b(w, args) {}

  FN void run() {
    while (take()) carry();
  }

  // The patch that the block carries. Read anew wherever it is needed: a register less while convolutions run.
  FN int number() const { return b.w.template lds<int>(kTaken); }

  // What each warp knows of the patch's way is kept in shared memory for the same reason.
  FN uint32_t progress(int what) const {
    b.w.forget();
    return kProgress + (what * kWarps + b.w.id) * kKept;
  }
  // The stage being run, -1 before the first.
  FN int stage() const { return b.w.kept(progress(0)); }
  FN void set_stage(int stage) const { b.w.keep(progress(0), stage); }
  // Whether the patch leaves after the stage that has ended.
  FN bool leaves() const { return b.w.kept(progress(1)) != 0; }
  FN void set_leaves(bool leaves) const { b.w.keep(progress(1), leaves ? 1 : 0); }

  // The row of the table that runs or, after it, ran.
  FN int row() const { return b.w.kept(progress(2)); }
  FN void set_row(int row) const { b.w.keep(progress(2), row); }

  // Takes the next patch for the whole block; false when there is none left.
  FN bool take() {
    b.w.sync();  // every warp has read the number before
    b.once([&] { b.w.sts(kTaken, b.w.atomic_add(b.args.queue, 1)); });
    b.w.sync();
    return number() < b.args.count;
  }

  // The row of the input that the patch is; 0 for one that is out of range.
  FN int64_t input_row() const {
    if (!b.args.active) return number();
    return in_range() ? b.w.template load<int64_t>(b.args.active + number()) : 0;
  }
  FN bool in_range() const {
    if (!b.args.active) return true;
    const int64_t input = b.w.template load<int64_t>(b.args.active + number());
    return input >= 0 && input < b.args.input_rows;
  }

  // One patch, from the input to what it leaves behind.
  FN void carry() {
    const bool whole = b.args.stage == kWhole;
    const Feature<E> to = b.feature(whole ? 0 : b.row(b.args.first_row).src);
    load_feature(b, b.args.input + input_row() * to.channels * to.pixels(), to, in_range());
    b.once([&] { b.w.store(b.args.capacity + number(), NAN); });
    b.w.sync();
    set_stage(b.args.stage);
    set_leaves(false);
    for (set_row(b.args.first_row + (whole ? 0 : 1));; set_row(row() + 1)) {
      const int opcode = b.row(row()).opcode;
      if (opcode != kStage && opcode != kTail) {
        step();
        if (b.row(row()).opcode == kReconstruct) break;
        continue;
      }
      if (stage() >= 0) {  // a stage has ended
        if (b.args.exit_at) set_leaves(b.w.template load<int64_t>(b.args.exit_at + input_row()) <= stage());
        if (opcode == kTail) set_leaves(true);
        if (!whole) break;
      }
      if (leaves())
        set_row(b.args.tail_row);
      else
        set_stage(stage() + 1);
    }
    if (!whole) {
      const Feature<E> from = b.feature(b.row(b.args.first_row).dst);
      store_feature(b, from, b.args.output + static_cast<int64_t>(number()) * from.channels * from.pixels());
    }
    b.once([&] {
      if (whole)
        b.w.store(b.args.exit_index + number(), static_cast<int64_t>(stage()));
      else
        b.w.store(b.args.leaves + number(), static_cast<uint8_t>(leaves()));
    });
  }

  // Runs one row, or two that are fused, up to and with the barrier that lets the next one see what they wrote.
  FN void step() {
    b.w.forget();
    const int first = row();
    int last = first;
    while (b.row(last).opcode == kSource) ++last;
    set_row(last);
    const Instruction& in = b.row(last);
    switch (in.opcode) {
      case kConv:
      case kReconstruct:
        if (fuses(in))
          run_pair();
        else if (first != last || !stream(b, in, number(), kTaken))
          Conv<Carrier<E>>(b, last, first, number()).run();
        if (b.row(row()).opcode == kReconstruct && b.row(row()).mode) Ring<Carrier<E>>(b, b.row(row()), number()).run();
        break;
      case kUpsample:
        upsample(b, in);
        break;
      case kAttention:
        if (!is_pooled(last)) pool(b, b.feature(in.src));
        attention(b, in);
        break;
      case kExit: {
        if (!is_pooled(last)) pool(b, b.feature(in.src));
        const float prediction = predict(b, in);
        b.once([&] { b.w.store(b.args.capacity + number(), 1.0f - prediction); });
        set_leaves(prediction >= b.args.boundary);
        break;
      }
    }
    b.w.sync();
  }

  // Whether the two rows before `row` ran as a fused pair and left in kPooled the sums that `row` begins with.
  FN bool is_pooled(int row) const {
    return row >= 2 && b.row(row - 2).opcode == kConv && fuses(b.row(row - 2)) && sums_follow(row - 2);
  }
  FN bool sums_follow(int pair) const {
    const Instruction& after = b.row(pair + 2);
    return (after.opcode == kExit || after.opcode == kAttention) && after.src == b.row(pair + 1).dst;
  }

  FN bool fuses(const Instruction& in) const {
    return kFuses && in.fused && b.feature(in.src).width <= kPairWidth && Shapes::has(padded(in.out_channels));
  }

  FN void run_pair() {
    if constexpr (kFuses) Shapes::run(b, row(), sums_follow(row()));
    set_row(row() + 1);
  }
};

// KB of shared memory that a block may ask for on a device of compute capability `arch` (80, 120, ...), rounded down to
// one for which there are shapes.
constexpr int shared_kb_of(int arch) {
  return arch / 10 == 9 || arch / 10 == 10 ? 227 : arch == 80 || arch == 87 ? 163 : 99;
}
template <int KB>
using ShapesOf = std::conditional_t<KB == 227, Shapes227, std::conditional_t<KB == 163, Shapes163, Shapes99>>;

static_assert(Worker<Half, Shapes227>::kSharedBytes <= 227 * 1024 &&
                  Worker<Half, Shapes163>::kSharedBytes <= 163 * 1024 &&
                  Worker<Half, Shapes99>::kSharedBytes <= 99 * 1024,
              "shared memory of a block: H100 227 KB, A100 163 KB, RTX 99 KB");

// Shared memory that a block of the kernel compiled for `arch` asks for.
constexpr uint32_t shared_bytes_of(bool half, int arch) {
  const int kb = shared_kb_of(arch);
  return !half       ? Worker<Float, Shapes99>::kSharedBytes
         : kb == 227 ? Worker<Half, Shapes227>::kSharedBytes
         : kb == 163 ? Worker<Half, Shapes163>::kSharedBytes
                     : Worker<Half, Shapes99>::kSharedBytes;
}

}  // namespace ape::cuda
