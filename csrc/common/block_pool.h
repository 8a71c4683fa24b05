// Large memory handed from one training step to the next. The C library gives an allocation of more than 32 MB back to the system
// when it is freed, and the next step pays for the same pages again: the system clears them and, on a virtual machine, may fetch them
// from its host first. That was 10 to 40% of a recurrent training step which keeps 50 to 400 MB (Zen 5, virtual).
#pragma once

#include <cstddef>
#include <cstdint>

namespace ak {

// Whether memory of this size comes from the pool: smaller pieces the C library reuses by itself. Never where the system is not Linux,
// nor with ALPHAKERNELS_KEEP_MEMORY=0.
bool is_pooled(int64_t bytes);

// A block of the pool for as long as this lives: at least `bytes`, from the start of a huge page, not initialised. Throws std::bad_alloc.
class Block {
 public:
  explicit Block(int64_t bytes);
  ~Block();
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  void* data() const { return data_; }

 private:
  void* data_;
  size_t bytes_;
};

// Gives all that is not in use back to the system. Returns how many bytes.
size_t release_blocks();

}  // namespace ak
