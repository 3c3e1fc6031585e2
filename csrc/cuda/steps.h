// The steps that are no convolution: a pass over a buffer each, a cell at a time. Every one ends without a barrier.
#pragma once

#include "block.h"

namespace ape::cuda {

// float32 [C][height][width] to a feature buffer, rounded, its padding zero. A row outside the input gives NaN.
template <class E>
FN void load_feature(Carrier<E>& b, const float* from, const Feature<E>& to, bool inside) {
  const int pixels = to.pixels();
  b.each(to.groups * pixels, [&](int i) {
    const int group = i / pixels, pixel = i % pixels;
    float v[kCellChannels];
    UNROLL for (int c = 0; c < kCellChannels; ++c) {
      const int channel = group * kCellChannels + c;
      if (channel >= to.channels)
        v[c] = 0.0f;
      else
        v[c] = inside ? b.w.template load<float>(from + static_cast<int64_t>(channel) * pixels + pixel) : NAN;
    }
    E::store_cell(b.w, to.cell(group, pixel), v);
  });
}

// The way back.
template <class E>
FN void store_feature(Carrier<E>& b, const Feature<E>& from, float* to) {
  const int pixels = from.pixels();
  b.each(from.groups * pixels, [&](int i) {
    const int group = i / pixels, pixel = i % pixels;
    float v[kCellChannels];
    E::load_cell(b.w, from.cell(group, pixel), v);
    UNROLL for (int c = 0; c < kCellChannels; ++c) {
      const int channel = group * kCellChannels + c;
      if (channel < from.channels) b.w.store(to + static_cast<int64_t>(channel) * pixels + pixel, v[c]);
    }
  });
}

// PyTorch's bicubic interpolation: a = -0.75, half-pixel centres, indices clamped.
struct Cubic {
  int index[4];
  float weight[4];

  FN Cubic(int at, int factor, int size) {
    constexpr float a = -0.75f;
    const float source = (at + 0.5f) / factor - 0.5f;
    const float below = floorf(source);
    const float t = source - below;
    UNROLL for (int i = 0; i < 4; ++i) {
      const float d = i == 0 ? t + 1.0f : i == 1 ? t : i == 2 ? 1.0f - t : 2.0f - t;
      weight[i] = i == 1 || i == 2 ? ((a + 2.0f) * d - (a + 3.0f)) * d * d + 1.0f
                                   : ((a * d - 5.0f * a) * d + 8.0f * a) * d - 4.0f * a;
      const int wanted = static_cast<int>(below) - 1 + i;
      index[i] = wanted < 0 ? 0 : wanted >= size ? size - 1 : wanted;
    }
  }
};

// Eight channels of pixel (y, x) of `src` interpolated as an UPSAMPLE says. B: a carrier.
template <class B>
FN void upsample_cell(B& b, const Instruction& in, const typename B::Map& src, int group, int y, int x,
                      float (&v)[kCellChannels]) {
  const int factor = in.upscale;
  if (in.mode == kNearest) return B::Type::load_cell(b.w, src.cell(group, y / factor, x / factor), v);
  const Cubic rows(y, factor, src.height), columns(x, factor, src.width);
  UNROLL for (float& value : v) value = 0.0f;
  UNROLL for (int r = 0; r < 4; ++r) {
    UNROLL for (int c = 0; c < 4; ++c) {
      float cell[kCellChannels];
      B::Type::load_cell(b.w, src.cell(group, rows.index[r], columns.index[c]), cell);
      UNROLL for (int j = 0; j < kCellChannels; ++j) v[j] += rows.weight[r] * columns.weight[c] * cell[j];
    }
  }
}

template <class E>
FN void upsample(Carrier<E>& b, const Instruction& in) {
  const Feature<E> src = b.feature(in.src), dst = b.feature(in.dst);
  const int pixels = dst.pixels();
  b.each(dst.groups * pixels, [&](int i) {
    const int group = i / pixels, pixel = i % pixels;
    float v[kCellChannels];
    upsample_cell(b, in, src, group, pixel / dst.width, pixel % dst.width, v);
    E::store_cell(b.w, dst.cell(group, pixel), v);
  });
}

// Sums over the pixels of every channel, to kPooled. A warp owns a group of eight channels.
template <class E>
FN void pool(Carrier<E>& b, const Feature<E>& src) {
  for (int group = b.w.id; group < src.groups; group += kWarps) {
    PerLane<float> sums[kCellChannels];
    b.w.lanes([&](int l) {
      UNROLL for (auto& sum : sums) sum[l] = 0.0f;
      for (int pixel = l; pixel < src.pixels(); pixel += kLanes) {
        float v[kCellChannels];
        E::load_cell(b.w, src.cell(group, pixel), v);
        UNROLL for (int c = 0; c < kCellChannels; ++c) sums[c][l] += v[c];
      }
    });
    UNROLL for (int c = 0; c < kCellChannels; ++c) {
      const float total = b.w.sum(sums[c]);
      b.w.lanes([&](int l) {
        if (l == 0) b.w.sts(kPooled + (group * kCellChannels + c) * sizeof(float), total);
      });
    }
  }
  b.w.sync();
}

// dot(weight[count], the pooled sums), the same in every warp.
template <class E>
FN float dot_pooled(Carrier<E>& b, const float* weight, int count) {
  PerLane<float> part;
  b.w.lanes([&](int l) {
    part[l] = 0.0f;
    for (int c = l; c < count; c += kLanes)
      part[l] += b.w.template load<float>(weight + c) * b.w.template lds<float>(kPooled + c * sizeof(float));
  });
  return b.w.sum(part);
}

// The prediction of an EXIT whose features' sums are in kPooled.
template <class E>
FN float predict(Carrier<E>& b, const Instruction& in) {
  const float sum = dot_pooled(b, b.vector(in.weight), in.in_channels);
  return tanhf(sum / b.feature(in.src).pixels() + b.w.template load<float>(b.vector(in.bias)));
}

// Channel attention from the sums in kPooled: two small layers, then a pass over the features.
template <class E>
FN void attention(Carrier<E>& b, const Instruction& in) {
  const Feature<E> src = b.feature(in.src), dst = b.feature(in.dst);
  const int channels = in.in_channels, hidden = in.hidden, pixels = src.pixels();
  const uint32_t gates = kPooled + src.groups * kCellChannels * sizeof(float);
  const uint32_t squeezed = gates + src.groups * kCellChannels * sizeof(float);
  const float* squeeze = b.vector(in.weight);                               // [hidden][channels]
  const float* expand = squeeze + static_cast<int64_t>(hidden) * channels;  // [channels][hidden]
  const float* bias = b.vector(in.bias);                                    // [hidden], [channels]
  for (int h = b.w.id; h < hidden; h += kWarps) {
    const float sum = dot_pooled(b, squeeze + static_cast<int64_t>(h) * channels, channels);
    b.w.lanes([&](int l) {
      const float value = sum / pixels + b.w.template load<float>(bias + h);
      if (l == 0) b.w.sts(squeezed + h * sizeof(float), value > 0.0f ? value : 0.0f);
    });
  }
  b.w.sync();
  b.each(src.groups * kCellChannels, [&](int c) {
    float gate = 0.0f;
    if (c < channels) {
      gate = b.w.template load<float>(bias + hidden + c);
      for (int h = 0; h < hidden; ++h)
        gate += b.w.template load<float>(expand + static_cast<int64_t>(c) * hidden + h) *
                b.w.template lds<float>(squeezed + h * sizeof(float));
      gate = scale_of(in) / (1.0f + expf(-gate));
    }
    b.w.sts(gates + c * sizeof(float), gate);
  });
  b.w.sync();
  b.each(src.groups * pixels, [&](int i) {
    const int group = i / pixels, pixel = i % pixels;
    float v[kCellChannels], added[kCellChannels] = {};
    E::load_cell(b.w, src.cell(group, pixel), v);
    if (in.add != kNoBuffer) E::load_cell(b.w, b.feature(in.add).cell(group, pixel), added);
    UNROLL for (int c = 0; c < kCellChannels; ++c) {
      v[c] *= b.w.template lds<float>(gates + (group * kCellChannels + c) * sizeof(float));
      if (in.add != kNoBuffer) v[c] += added[c];
    }
    E::store_cell(b.w, dst.cell(group, pixel), v);
  });
}

}  // namespace ape::cuda
