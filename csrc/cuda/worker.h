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
    for (int number; (number = take()) < b.args.count;) {
      if (b.args.active)
        run_stage(number);
      else
        run_patch(number);
    }
  }

  // The next patch's number, for the whole block.
  FN int take() {
    b.w.lanes([&](int l) {
      if (b.w.id == 0 && l == 0) b.w.sts(kTaken, b.w.atomic_add(b.args.queue, 1));
    });
    b.w.sync();
    return b.w.template lds<int>(kTaken);
  }

  FN void run_patch(int number) {
    begin(0, number, true);
    for (int row = b.args.first_row;; ++row) {
      const int opcode = b.row(row).opcode;
      if (opcode == STAGE || opcode == TAIL) {
        if (stage >= 0) decide(number, opcode == TAIL);
        if (stage >= 0 && leaves)
          row = b.args.tail_row;
        else
          ++stage;
        continue;
      }
      step(row, number);
      if (opcode == RECONSTRUCT) break;
    }
    finish(number);
    b.w.lanes([&](int l) {
      if (b.w.id == 0 && l == 0) b.w.store(b.args.exit_index + number, static_cast<int64_t>(stage));
    });
  }

  FN void run_stage(int number) {
    const int64_t input = b.w.template load<int64_t>(b.args.active + number);
    const bool inside = input >= 0 && input < b.args.input_rows;
    const int src = b.row(b.args.first_row).src, dst = b.row(b.args.first_row).dst;
    begin(src, inside ? input : 0, inside);
    stage = b.args.stage;
    int row = b.args.first_row + 1;
    for (; b.row(row).opcode != STAGE && b.row(row).opcode != TAIL; ++row) step(row, number);
    decide(inside ? input : 0, b.row(row).opcode == TAIL);
    const Feature<E> out = b.feature(dst);
    store_feature(b, out, b.args.output + static_cast<int64_t>(number) * out.channels * out.pixels());
    finish(number);
    b.w.lanes([&](int l) {
      if (b.w.id == 0 && l == 0) b.w.store(b.args.leaves + number, static_cast<uint8_t>(leaves));
    });
  }

  // Row `input` of the input to buffer `number`.
  FN void begin(int number, int64_t input, bool inside) {
    const Feature<E> to = b.feature(number);
    load_feature(b, b.args.input + input * to.channels * to.pixels(), to, inside);
    stage = -1;
    leaves = false;
    capacity = NAN;
    b.w.sync();
  }

  // Whether the patch, row `input` of the input, leaves after the stage that has ended.
  FN void decide(int64_t input, bool last) {
    if (b.args.exit_at) leaves = b.w.template load<int64_t>(b.args.exit_at + input) <= stage;
    leaves = leaves || last;
  }

  FN void finish(int number) {
    b.w.lanes([&](int l) {
      if (b.w.id == 0 && l == 0) b.w.store(b.args.capacity + number, capacity);
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
