// New tensors for what a forward pass keeps for the backward pass.
#pragma once

#include <memory>

#include "../common/block_pool.h"
#include "stable.h"

#ifdef __linux__
// PyTorch's from 2.11 on; null in 2.10, which the library runs with too.
extern "C" __attribute__((weak)) AOTITorchError torch_from_blob(void* data, int64_t ndim, const int64_t* sizes, const int64_t* strides,
                                                                int64_t storage_offset, int32_t dtype, int32_t device_type,
                                                                int32_t device_index, AtenTensorHandle* result, int32_t layout,
                                                                const uint8_t* metadata, int64_t metadata_size,
                                                                void (*deleter)(void* data, void* context), void* context);
#endif

namespace ak::bind {

// A fresh tensor like `empty`'s; a large one is a block of the pool, and goes back there when the last reference to it is gone.
// For the ops whose training steps gain by it: recurrent and sfm; the encoders' and TabNet's measured the same without.
inline Tensor empty_kept(const Tensor& like, std::initializer_list<int64_t> shape) {
#ifdef __linux__
  const std::vector<int64_t> sizes(shape);
  std::vector<int64_t> strides(sizes.size());
  int64_t count = 1;
  for (size_t i = sizes.size(); i-- > 0; count *= sizes[i]) strides[i] = count;
  const int64_t bytes = count * item_bytes(like);
  if (torch_from_blob != nullptr && is_pooled(bytes)) {
    auto block = std::make_unique<Block>(bytes);
    const int32_t dtype = like.scalar_type() == ScalarType::Double ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32();
    AtenTensorHandle tensor = nullptr;
    TORCH_ERROR_CODE_CHECK(torch_from_blob(block->data(), static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), 0, dtype,
                                           aoti_torch_device_type_cpu(), -1, &tensor, aoti_torch_layout_strided(), nullptr, 0,
                                           [](void*, void* context) { delete static_cast<Block*>(context); }, block.get()));
    block.release();
    return Tensor(tensor);
  }
#endif
  return empty(like, shape);
}

}  // namespace ak::bind
