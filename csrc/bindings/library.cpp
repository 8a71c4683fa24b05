// The library itself: threads from torch, the name of the instruction set for `doctor`, and the pool's release.
#include <torch/csrc/stable/ops.h>

#include "../common/block_pool.h"
#include "../common/isa.h"
#include "../common/parallel.h"

namespace ak {

int64_t thread_count() { return torch::stable::get_num_threads(); }

void parallel_for_impl(int64_t n, int64_t grain, void (*body)(int64_t, int64_t, void*), void* context) {
  torch::stable::parallel_for(0, n, grain, [&](int64_t begin, int64_t end) { body(begin, end, context); });
}

}  // namespace ak

#if defined(_WIN32)
#define AK_EXPORT extern "C" __declspec(dllexport)
#else
#define AK_EXPORT extern "C" __attribute__((visibility("default")))
#endif

AK_EXPORT const char* alphakernels_isa() { return ak::isa_name(); }
AK_EXPORT int64_t alphakernels_release_blocks() { return static_cast<int64_t>(ak::release_blocks()); }
