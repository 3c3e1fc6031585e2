#include "course.h"

#include <algorithm>
#include <stdexcept>

namespace ape::cpu {
namespace {

constexpr int kInput = 0;   // the buffer that holds the image
constexpr int kSlack = 32;  // low-resolution pixels that a tile moves before its window does

int ceil_div(int a, int b) { return (a + b - 1) / b; }

}  // namespace

int Move::radius() const {
  if (step.in.opcode != kUpsample) return step.in.kernel / 2;
  return step.in.interpolation() == kBicubic ? 2 : 0;
}

bool Move::has_source(int32_t buffer) const {
  if (step.in.opcode == kUpsample) return step.in.src == buffer;
  return std::find(step.sources.begin(), step.sources.end(), buffer) != step.sources.end();
}

bool Move::reads(int32_t buffer) const {
  const bool added = step.in.opcode != kUpsample && step.in.add == buffer;
  return has_source(buffer) || added || (!reconstructs() && carry == buffer && step.in.dst != buffer) ||
         (renews() && step.in.dst == buffer);
}

// The tail may read what the head made. That is made again right before, which is less work than handing it on for as
// many pixels as the tile has moved meanwhile.
Course::Course(const Program& program, const int32_t* sharing) {
  const size_t buffers = program.buffers.size();
  std::vector<bool> for_stages(buffers, false), for_tail(buffers, false), written(buffers, false);
  const auto note = [&](const std::vector<Step>& steps, std::vector<bool>& read) {
    for (const Step& step : steps) {
      const auto mark = [&](int32_t buffer) {
        if (buffer != kNoBuffer && !written[buffer]) read[buffer] = true;
      };
      for (int32_t source : step.sources) mark(source);
      if (step.in.opcode == kUpsample)
        mark(step.in.src);
      else
        mark(step.in.add);
      if (step.in.opcode != kReconstruct) written[step.in.dst] = true;
    }
  };
  for_stages[program.stages.front().src] = true;
  for (const Stage& stage : program.stages) note(stage.steps, for_stages);
  note(program.tail, for_tail);
  add_needed(program, sharing, for_stages);
  for (size_t i = 0; i < program.stages.size(); i++)
    for (const Step& step : program.stages[i].steps) add(program, sharing, step, Section::kStages, int(i));
  add_needed(program, sharing, for_tail);
  for (const Step& step : program.tail) add(program, sharing, step, Section::kTail, 0);
  set_shifts(buffers);
  set_keeps();
  set_window(buffers);
}

// The steps of the head that `needed` buffers come from.
void Course::add_needed(const Program& program, const int32_t* sharing, std::vector<bool> needed) {
  std::vector<const Step*> steps;
  for (auto step = program.head.rbegin(); step != program.head.rend(); ++step) {
    if (!needed[step->in.dst]) continue;
    steps.push_back(&*step);
    needed[step->in.dst] = false;
    for (int32_t source : step->sources) needed[source] = true;
    if (step->in.opcode == kUpsample) needed[step->in.src] = true;
    if (step->in.opcode == kConv && step->in.add != kNoBuffer) needed[step->in.add] = true;
  }
  std::for_each(steps.rbegin(), steps.rend(),
                [&](const Step* step) { add(program, sharing, *step, Section::kHead, 0); });
}

void Course::add(const Program& program, const int32_t* sharing, const Step& step, Section section, int stage) {
  if (step.in.opcode == kAttention || step.in.opcode == kModule)
    throw std::invalid_argument("table: row " + std::to_string(step.row) + ": reads the whole patch, not a part");
  Move move{};
  move.step = step;
  move.section = section;
  move.stage = stage;
  move.step.summed = false;
  move.resolution = program.buffers[move.reconstructs() ? step.in.src : step.in.dst].resolution;
  move.reach = sharing[2 * step.row];
  move.carry = sharing[2 * step.row + 1];
  if (move.reach < 0 || move.reach > 4096 || move.carry < kNoBuffer || move.carry >= program.buffer_count)
    throw std::invalid_argument("sharing: row " + std::to_string(step.row) + ": no such reach or buffer");
  moves.push_back(std::move(move));
}

// So far that what the step reads below and to the right of its tile is there, and no less far than the step before.
void Course::set_shifts(size_t buffers) {
  std::vector<const Move*> made(buffers, nullptr);
  int least = 0;  // low-resolution pixels
  for (Move& move : moves) {
    move.shift = least * move.resolution;
    for (size_t i = 0; i < buffers; i++) {
      const int32_t buffer = int32_t(i);
      if (buffer == kInput || made[i] == nullptr || !move.reads(buffer)) continue;
      int shift = made[i]->shift;
      if (move.has_source(buffer))
        shift = (shift + move.radius()) * move.factor();
      else if (move.reconstructs())
        shift = ceil_div(shift, move.step.in.upscale);
      move.shift = std::max(move.shift, shift);
    }
    least = move.shift / move.resolution;
    if (!move.reconstructs()) made[move.step.in.dst] = &move;
  }
}

void Course::set_keeps() {
  for (size_t i = 0; i + 1 < moves.size(); i++) {
    Move& move = moves[i];
    const int32_t buffer = move.step.in.dst;
    for (size_t j = i + 1; j < moves.size(); j++) {
      const Move& later = moves[j];
      int first = 0;  // pixel that is read, above and to the left of where tiles begin
      if (later.has_source(buffer))
        first = ceil_div(later.shift, later.factor()) + later.radius();
      else if (later.reads(buffer))
        first = later.reconstructs() ? later.shift * later.step.in.upscale : later.shift;
      move.keep = std::max(move.keep, first - move.shift);
      if (!later.reconstructs() && later.step.in.dst == buffer) break;
    }
  }
}

void Course::set_window(size_t buffers) {
  int around = 0, base = 0;
  for (size_t i = 0; i < moves.size(); i++) {
    Move& move = moves[i];
    around = std::max(around, ceil_div(move.keep, move.resolution) + ceil_div(move.radius(), move.resolution) + 1);
    if (ceil_div(move.shift, move.resolution) <= base + kSlack) continue;
    move.slide = move.shift / move.resolution - base;
    base += move.slide;
    for (int32_t buffer = 0; buffer < int32_t(buffers); buffer++) {
      if (buffer == kInput) continue;  // loaded again for each step that reads it
      for (size_t j = i; j < moves.size(); j++) {
        if (moves[j].reads(buffer)) {
          move.live.push_back(buffer);
          break;
        }
        if (!moves[j].reconstructs() && moves[j].step.in.dst == buffer) break;
      }
    }
  }
  lead = kSlack + around;
  rest = around;
}

}  // namespace ape::cpu
