// Ghost batches: how [rows] is cut into virtual batches, and each of those into blocks of rows that one task sums.
// The cut depends on sizes alone, never on the number of threads, so every sum has one fixed tree.
#pragma once

#include <cstdint>

namespace ak {

struct Chunks {
  int64_t rows;   // B
  int64_t size;   // rows of a chunk (the last may have fewer)
  int64_t count;  // number of chunks

  // As torch.chunk(x, B // virtual_batch_size) in Qlib's GBN; a last chunk of one row, which has no variance, joins the
  // chunk before it.
  static Chunks of(int64_t rows, int64_t virtual_batch_size) {
    if (rows <= virtual_batch_size) return {rows, rows, 1};
    const int64_t pieces = rows / virtual_batch_size;
    const int64_t size = (rows + pieces - 1) / pieces;
    int64_t count = (rows + size - 1) / size;
    if (count > 1 && size > 1 && rows - (count - 1) * size == 1) --count;
    return {rows, size, count};
  }
  // `some` chunks from `first` on, as if they were all.
  Chunks part(int64_t first, int64_t some) const { return {end(first + some - 1) - begin(first), size, some}; }
  int64_t begin(int64_t chunk) const { return chunk * size; }
  int64_t end(int64_t chunk) const { return chunk + 1 == count ? rows : (chunk + 1) * size; }

  static constexpr int64_t kBlock = 32;
  int64_t blocks_per_chunk() const {
    const int64_t last = end(count - 1) - begin(count - 1);
    return ((last > size ? last : size) + kBlock - 1) / kBlock;
  }
  int64_t blocks() const { return blocks_per_chunk() * count; }
  int64_t chunk_of_block(int64_t block) const { return block / blocks_per_chunk(); }
  int64_t block_begin(int64_t block) const {
    return begin(chunk_of_block(block)) + block % blocks_per_chunk() * kBlock;
  }
  int64_t block_end(int64_t block) const {
    const int64_t stop = end(chunk_of_block(block)), e = block_begin(block) + kBlock;
    return e < stop ? e : stop;
  }
};

}  // namespace ak
