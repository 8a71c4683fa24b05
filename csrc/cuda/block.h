// What a kernel sees of the block of threads that runs it: who a thread is, the block's shared memory, its barrier, and the two
// instructions of a warp that feed the tensor cores. A kernel is a Program, a type with `kThreads`, `kBlocks` (of a multiprocessor, at
// least), `Arguments` and `run(const Block&, const Arguments&)`, written against this alone: nvcc compiles it for a GPU, and host_block.h
// runs the same source on a CPU, thread by thread, where it can be tested without a GPU.
#pragma once

#include <cstddef>
#include <cstdint>

#include "numbers.h"

#ifndef __CUDACC__
#include "host_block.h"
#endif

namespace ak::cuda {

#ifdef __CUDACC__
struct Block {
  AK_DEVICE int thread() const { return static_cast<int>(threadIdx.x); }
  AK_DEVICE int64_t index() const { return blockIdx.x; }
  AK_DEVICE void sync() const { __syncthreads(); }
  AK_DEVICE uint32_t* shared() const {
    extern __shared__ __align__(16) uint32_t memory[];
    return memory;
  }

  // Brings a line of global memory nearer, for a load to come.
  AK_DEVICE void prefetch(const void* line) const { asm volatile("prefetch.global.L2 [%0];" ::"l"(line)); }

  // The pointer, of which the compiler knows nothing before this point: neither reads nor addresses made of it are moved up.
  template <class T>
  AK_DEVICE T* settled(T* pointer) const {
    asm volatile("" : "+l"(pointer)::"memory");
    return pointer;
  }

  // The word, made by here: a lane sends it to itself, past which the compiler cannot put off what it is made of.
  AK_DEVICE uint32_t settled(uint32_t word) const { return __shfl_sync(~0u, word, static_cast<int>(threadIdx.x % 32)); }

  // Four 8 x 8 matrices of 16-bit elements, which are 8 rows of 4 words: lane i gives the address of row i % 8 of matrix i / 8, and
  // takes word i % 4 of row i / 4 of each.
  AK_DEVICE void load_matrices(const uint32_t* row, uint32_t (&words)[4]) const {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
                 : "memory");
  }

  // c [16 x 8] += a [16 x 8 words] b [8 words x 8]: the fragments of mma.sync m16n8k8 (tf32) and m16n8k16 (bf16, fp16). With
  // g = lane / 4 and q = lane % 4: words q and q + 4 of row g (a[0], a[2]), of row g + 8 (a[1], a[3]), and of column g (b); sums of
  // rows g (c[0], c[1]) and g + 8 (c[2], c[3]) in columns 2q and 2q + 1.
  template <Product product>
  AK_DEVICE void multiply_add(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) const {
#define AK_MMA(shape_and_types)                                                                                                  \
  asm volatile("mma.sync.aligned." shape_and_types " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                                       \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
    if constexpr (product == Product::tf32)
      AK_MMA("m16n8k8.row.col.f32.tf32.tf32.f32");
    else if constexpr (product == Product::bf16)
      AK_MMA("m16n8k16.row.col.f32.bf16.bf16.f32");
    else
      AK_MMA("m16n8k16.row.col.f32.f16.f16.f32");
#undef AK_MMA
  }
};
#endif

}  // namespace ak::cuda
