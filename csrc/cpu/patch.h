// A piece of a sequence, some rows over some steps, copied to a tile of a kernel's own and back.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "../common/isa.h"
#include "sequence.h"

namespace ak::AK_ISA {
namespace {

// Batch rows of a block of whole sequences, by the sizes alone: enough steps for a matrix product, few enough to stay in L2.
inline int64_t block_rows(int64_t steps) { return std::clamp<int64_t>(192 / steps, 1, 64); }

// Rows [first, first + rows) of the batch and steps [begin, begin + steps) of time.
struct Patch {
  int64_t first, rows, begin, steps;
};

// Copies a patch of a sequence to [steps][rows][columns], rows `stride` elements apart.
template <class T>
void gather(const SequenceView<const T>& from, const Patch& p, int64_t columns, T* to, int64_t stride) {
  if (columns == 0) return;  // `from` may be null, which memcpy must not be given
  if (from.column == 1) {
    for (int64_t s = 0; s < p.steps; ++s)
      for (int64_t r = 0; r < p.rows; ++r)
        std::memcpy(to + (s * p.rows + r) * stride, from.at(p.first + r, p.begin + s), static_cast<size_t>(columns) * sizeof(T));
    return;
  }
  for (int64_t r = 0; r < p.rows; ++r)  // feature after feature, each over all steps: Alpha360's rows
    for (int64_t j = 0; j < columns; ++j) {
      const T* source = from.at(p.first + r, p.begin) + j * from.column;
      for (int64_t s = 0; s < p.steps; ++s) to[(s * p.rows + r) * stride + j] = source[s * from.step];
    }
}

// Windows that slide along a history hold the same days: a row's are the row's before one step earlier, which is found by comparing
// bits. Copies the distinct days of rows [first, first + rows) to `days`, writes to place[t * rows + r] which of them stands where, and
// returns their number: 0 where there are more than `most`, or where days are not side by side in memory.
template <class T>
int64_t distinct_days(const SequenceView<const T>& x, int64_t first, int64_t rows, int64_t steps, int64_t columns, int64_t most, T* days,
                      int32_t* place) {
  if (most == 0 || columns == 0 || x.column != 1) return 0;
  const size_t bytes = static_cast<size_t>(columns) * sizeof(T);
  int64_t count = 0;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t t = 0; t < steps; ++t) {
      const T* const day = x.at(first + r, t);
      if (r > 0 && t + 1 < steps && std::memcmp(day, x.at(first + r - 1, t + 1), bytes) == 0) {
        place[t * rows + r] = place[(t + 1) * rows + r - 1];
        continue;
      }
      if (count == most) return 0;
      std::memcpy(days + count * columns, day, bytes);
      place[t * rows + r] = static_cast<int32_t>(count++);
    }
  return count;
}

// The inverse of gather.
template <class T>
void scatter(const T* from, int64_t stride, const Patch& p, int64_t columns, const SequenceView<T>& to) {
  if (columns == 0) return;
  for (int64_t s = 0; s < p.steps; ++s)
    for (int64_t r = 0; r < p.rows; ++r) {
      T* row = to.at(p.first + r, p.begin + s);
      const T* source = from + (s * p.rows + r) * stride;
      if (to.column == 1)
        std::memcpy(row, source, static_cast<size_t>(columns) * sizeof(T));
      else
        for (int64_t j = 0; j < columns; ++j) row[j * to.column] = source[j];
    }
}

}  // namespace
}  // namespace ak::AK_ISA
