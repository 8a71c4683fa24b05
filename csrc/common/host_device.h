// Marks what the kernels of the CPU and of the GPU share.
#pragma once

#ifdef __CUDACC__
#define AK_HOST_DEVICE __host__ __device__ inline
#else
#define AK_HOST_DEVICE inline
#endif
