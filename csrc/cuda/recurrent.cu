// The programs of the recurrences as kernels of a GPU.
#include <cuda_runtime.h>

#include <string>

#include "block.h"

namespace ak::cuda {
namespace {

template <class Program>
__global__ void __launch_bounds__(Program::kThreads, Program::kBlocks) kernel(const __grid_constant__ typename Program::Arguments arguments) {
  Program::run(Block{}, arguments);
}

template <class Program>
std::string launch(int64_t blocks, int64_t shared_bytes, const typename Program::Arguments& arguments, void* stream) {
  cudaError_t error = cudaSuccess;
  if (shared_bytes > 48 << 10)  // more than that a block gets only where it was asked for
    error = cudaFuncSetAttribute(kernel<Program>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
  if (error == cudaSuccess) {
    kernel<Program><<<static_cast<unsigned>(blocks), Program::kThreads, static_cast<size_t>(shared_bytes),
                      static_cast<cudaStream_t>(stream)>>>(arguments);
    error = cudaGetLastError();
  }
  if (error != cudaSuccess) cudaGetLastError();  // taken, or the next launch would report it
  return error == cudaSuccess ? "" : cudaGetErrorString(error);
}

}  // namespace
}  // namespace ak::cuda

#include "recurrent_programs.h"

// The CUDA version that this library was built with, or the newest that the driver runs (0 without one): 1000 major + 10 minor.
extern "C" __attribute__((visibility("default"))) int32_t alphakernels_cuda_version(int32_t of_driver) {
  int version = CUDART_VERSION;
  if (of_driver != 0 && cudaDriverGetVersion(&version) != cudaSuccess) version = 0;
  return version;
}

// Whether it holds code that the current device runs.
extern "C" __attribute__((visibility("default"))) int32_t alphakernels_cuda_runs_here() {
  cudaFuncAttributes attributes;
  const cudaError_t error = cudaFuncGetAttributes(&attributes, ak::cuda::kernel<ak::cuda::ScaleRows<float>>);
  if (error != cudaSuccess) cudaGetLastError();
  return error == cudaSuccess;
}
