// Work cut over torch's own threads. Kernels see only this declaration; the library defines it with PyTorch's
// parallel_for, and a kernel tested alone can define it as a plain loop.
#pragma once

#include <cstdint>

namespace ak {

// Torch's number of threads, for cutting work evenly; never for deciding what is computed.
int64_t thread_count();

void parallel_for_impl(int64_t n, int64_t grain, void (*body)(int64_t, int64_t, void*), void* context);

// body(begin, end) over [0, n) in pieces of at least `grain`. What a piece computes must not depend on where it was cut:
// that is what makes every result the same for any number of threads.
template <class F>
void parallel_for(int64_t n, int64_t grain, const F& body) {
  if (n <= 0) return;
  parallel_for_impl(
      n, grain < 1 ? 1 : grain,
      [](int64_t begin, int64_t end, void* f) { (*static_cast<const F*>(f))(begin, end); },
      const_cast<void*>(static_cast<const void*>(&body)));
}

// At most `most` groups to be summed in order, at least one: a power of two, which most numbers of threads share evenly.
inline int64_t even_groups(int64_t most) {
  int64_t groups = 1;
  while (2 * groups <= most) groups *= 2;
  return groups;
}

}  // namespace ak
