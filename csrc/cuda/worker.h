// The worker kernel: a thread block takes a patch from the queue, carries it through the program until it leaves, writes
// the result and takes the next.
//
// Grid       as many blocks of 8 warps as fit the device at once, no more than patches; see launch.h.
// Ownership  a block owns one arena of feature buffers in `scratch`, of which it alone reads and writes; patches do not
//            touch each other, so a result does not depend on which block runs it, nor on its company.
// Program    the rows of the instruction table, read as they stand (docs/program.md). Steps hand on through the arena,
//            which the L2 cache holds; one barrier after each.
// Shared     ConvShared<E>::kBytes for convolutions, in the same place floats for pooling; last 16 bytes the queue's
//            answer.
// Rounding   products take operands of type E, sums are float32; features are rounded to E where they are stored.
#pragma once

#include "conv.h"
#include "steps.h"

namespace ape::cuda {

template <class E>
struct Worker {
  static constexpr uint32_t kTaken = ConvShared<E>::kBytes;
  static constexpr uint32_t kSharedBytes = kTaken + 16;

  Carrier<E> b;
  int stage;        // being run, -1 before the first
  bool leaves;      // after the stage that has ended
  float capacity;   // 1 - the last prediction

  FN Worker(Warp& w, const WorkerArgs& args)
      : b{w, args, static_cast<typename E::Element*>(args.scratch) +
                       w.block * args.scratch_elements * args.height * args.width} {}

  FN void run() {
    for (int number; (number = take()) < b.args.count;) carry(number);
  }

  // The next patch's number, for the whole block.
  FN int take() {
    b.w.lanes([&](int l) {
      if (b.w.id == 0 && l == 0) b.w.sts(kTaken, b.w.atomic_add(b.args.queue, 1));
    });
    b.w.sync();
    return b.w.template lds<int>(kTaken);
  }

  // One patch, from the input to what it leaves behind.
  FN void carry(int number) {
    const bool whole = b.args.stage == WHOLE;
    const int64_t wanted = whole ? number : b.w.template load<int64_t>(b.args.active + number);
    const bool inside = wanted >= 0 && wanted < b.args.input_rows;
    const int64_t input = inside ? wanted : 0;
    const Feature<E> to = b.feature(whole ? 0 : b.row(b.args.first_row).src);
    load_feature(b, b.args.input + input * to.channels * to.pixels(), to, inside);
    b.w.sync();
    stage = b.args.stage;
    leaves = false;
    capacity = NAN;
    for (int row = b.args.first_row + (whole ? 0 : 1);; ++row) {
      const int opcode = b.row(row).opcode;
      if (opcode != STAGE && opcode != TAIL) {
        step(row, number);
        if (opcode == RECONSTRUCT) break;
        continue;
      }
      if (stage >= 0) {  // a stage has ended
        if (b.args.exit_at) leaves = b.w.template load<int64_t>(b.args.exit_at + input) <= stage;
        leaves = leaves || opcode == TAIL;
        if (!whole) break;
      }
      if (leaves)
        row = b.args.tail_row;
      else
        ++stage;
    }
    if (!whole) {
      const Feature<E> from = b.feature(b.row(b.args.first_row).dst);
      store_feature(b, from, b.args.output + static_cast<int64_t>(number) * from.channels * from.pixels());
    }
    b.w.lanes([&](int l) {
      if (b.w.id || l) return;
      b.w.store(b.args.capacity + number, capacity);
      if (whole)
        b.w.store(b.args.exit_index + number, static_cast<int64_t>(stage));
      else
        b.w.store(b.args.leaves + number, static_cast<uint8_t>(leaves));
    });
  }

  // Runs one row, up to and with the barrier that lets the next one see what it wrote.
  FN void step(int& row, int number) {
    const int first = row;
    while (b.row(row).opcode == SOURCE) ++row;
    const Instruction in = b.row(row);
    switch (in.opcode) {
      case CONV:
      case RECONSTRUCT: {
        Conv<E> conv(b, row, first, number);
        conv.run();
        if (in.opcode == RECONSTRUCT && in.mode) reconstruct_ring(b, in, number);
        break;
      }
      case UPSAMPLE:
        upsample(b, in);
        break;
      case ATTENTION:
        pool(b, b.feature(in.src));
        attention(b, in);
        break;
      case EXIT: {
        pool(b, b.feature(in.src));
        const float prediction = predict(b, in);
        capacity = 1.0f - prediction;
        leaves = prediction >= b.args.boundary;
        break;
      }
    }
    b.w.sync();
  }
};

}  // namespace ape::cuda
