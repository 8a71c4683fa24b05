// Sequences in whatever layout: windows with a day's features side by side, or rows with a feature's days side by side.
#pragma once

#include <cstdint>

namespace ak {

// A sequence [B, T, columns] in whatever layout: element (b, t, j) is data[b * batch + t * step + j * column]. data may be null.
template <class T>
struct SequenceView {
  T* data;
  int64_t batch, step, column;
  T* at(int64_t b, int64_t t) const { return data + b * batch + t * step; }
};

}  // namespace ak
