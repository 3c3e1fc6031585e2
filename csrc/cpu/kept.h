// What one image leaves behind, so that of the next one only those tiles are computed for which something changed.
#pragma once

#include <cstdint>
#include <vector>

#include "memory.h"
#include "program.h"

namespace ape::cpu {

struct ImageArgs;

// The strips of all tiles of an image, and what they were computed from. It can be trusted after a run that ended well;
// else, and after one of another program, size or instruction set, the next run computes everything.
class Kept {
 public:
  // Share of the picture that the last run computed, from 0 to 1.
  double renewed() const { return renewed_; }

  // Begins a run, whose strips need so many elements. Whether what is kept can be trusted.
  bool begin(const Program& program, const ImageArgs& args, int64_t floats, int64_t rounded);
  // Ends one that went well. idle: of each tile, whether it computed nothing.
  void end(const ImageArgs& args, const std::vector<char>& idle, double renewed);

  // Whether these pixels of the image are as they were. `area` is of the program's input.
  bool same_image(const ImageArgs& args, const Area& area) const;
  // The same of what is interpolated from, which is not folded.
  bool same_colours(const ImageArgs& args, const Area& area) const;
  // Whether the cells of these pixels of the program's input run as far as before.
  bool same_cells(const ImageArgs& args, const Area& area) const;

  bool was_idle(int64_t tile) const { return idle_[tile] != 0; }
  float* floats() const { return floats_.get(); }
  bf16* rounded() const { return rounded_.get(); }

 private:
  // What must be equal so that anything can be kept.
  struct Form {
    int64_t floats, rounded;
    int channels, height, width, fold, cell, ring;  // channels: of the program's input
    bool planned, toned;
    const Kernels* kernels;

    bool operator==(const Form& other) const;
  };

  bool trusted_ = false;
  Form form_{};
  Memory<float> floats_;
  Memory<bf16> rounded_;
  std::vector<char> image_, colours_, idle_;
  std::vector<int64_t> exit_at_;
  double renewed_ = 1;
};

}  // namespace ape::cpu
