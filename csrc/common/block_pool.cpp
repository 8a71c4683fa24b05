// The pool of large blocks. What it holds and what is in use are together never more than was in use at once, so that it raises no
// peak; a block that nobody asks for goes back to the system.
#include "block_pool.h"

#include <new>

#ifdef __linux__

#include <pthread.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <vector>

#include "huge_pages.h"

namespace ak {
namespace {

constexpr int64_t kReused = int64_t{1} << 25;  // what the C library reuses by itself: its largest threshold for mmap
constexpr size_t kPage = 4096, kHugePage = size_t{1} << 21;
constexpr uint64_t kPatience = 256;  // requests that a block waits for one it fits

size_t round_up(size_t n, size_t step) { return (n + step - 1) / step * step; }

struct Range {
  void* data;
  size_t bytes;
};

void unmap(const Range& block) { munmap(block.data, block.bytes); }

void* map(size_t bytes) {
  void* const found = mmap(nullptr, bytes + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (found == MAP_FAILED) return nullptr;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(found), start = round_up(begin, kHugePage), end = begin + bytes + kHugePage;
  if (start > begin) unmap({found, start - begin});
  if (end > start + bytes) unmap({reinterpret_cast<void*>(start + bytes), end - start - bytes});
  void* const data = reinterpret_cast<void*>(start);
  advise_huge_pages(data, bytes);
  return data;
}

class BlockPool {
 public:
  // One for the process, never destroyed: tensors may outlive static objects. A child of fork() finds the lock open.
  static BlockPool& instance() {
    static BlockPool* const pool = [] {
      pthread_atfork([] { instance().lock_.lock(); }, [] { instance().lock_.unlock(); }, [] { instance().lock_.unlock(); });
      return new BlockPool;
    }();
    return *pool;
  }

  Range take(size_t wanted) {
    Range block{nullptr, round_up(wanted, kPage)};
    std::vector<Range> stale;
    {
      const std::lock_guard<std::mutex> guard(lock_);
      ++requests_;
      auto best = idle_.end();
      for (auto it = idle_.begin(); it != idle_.end(); ++it)
        if (it->block.bytes >= block.bytes && it->block.bytes <= block.bytes + block.bytes / 4 &&
            (best == idle_.end() || it->block.bytes < best->block.bytes))
          best = it;
      if (best != idle_.end()) {
        block = best->block;
        idle_bytes_ -= block.bytes;
        idle_.erase(best);
      }
      used_bytes_ += block.bytes;
      peak_bytes_ = std::max(peak_bytes_, used_bytes_);
      while (!idle_.empty() && (used_bytes_ + idle_bytes_ > peak_bytes_ || idle_.front().since + kPatience < requests_)) {
        stale.push_back(idle_.front().block);  // the oldest
        idle_bytes_ -= stale.back().bytes;
        idle_.erase(idle_.begin());
      }
    }
    for (const Range& old : stale) unmap(old);
    if (block.data == nullptr) block.data = map(block.bytes);
    if (block.data != nullptr) return block;
    const std::lock_guard<std::mutex> guard(lock_);
    used_bytes_ -= block.bytes;
    throw std::bad_alloc();
  }

  void give(const Range& block) {
    const std::lock_guard<std::mutex> guard(lock_);
    used_bytes_ -= block.bytes;
    idle_bytes_ += block.bytes;
    idle_.push_back({block, requests_});
  }

  size_t release() {
    std::vector<Idle> idle;
    size_t bytes = 0;
    {
      const std::lock_guard<std::mutex> guard(lock_);
      idle.swap(idle_);
      std::swap(bytes, idle_bytes_);
      peak_bytes_ = used_bytes_;
    }
    for (const Idle& old : idle) unmap(old.block);
    return bytes;
  }

 private:
  struct Idle {
    Range block;
    uint64_t since;  // the request after which it was given back
  };
  std::mutex lock_;
  std::vector<Idle> idle_;  // the oldest first
  size_t used_bytes_ = 0, idle_bytes_ = 0, peak_bytes_ = 0;
  uint64_t requests_ = 0;
};

}  // namespace

bool is_pooled(int64_t bytes) {
  // Looked at once: the environment must not be read while another thread changes it.
  static const bool wanted = [] {
    const char* asked = std::getenv("ALPHAKERNELS_KEEP_MEMORY");
    return asked == nullptr || std::strcmp(asked, "0") != 0;
  }();
  return wanted && bytes > kReused;
}

Block::Block(int64_t bytes) {
  const Range taken = BlockPool::instance().take(static_cast<size_t>(bytes));
  data_ = taken.data;
  bytes_ = taken.bytes;
}

Block::~Block() { BlockPool::instance().give({data_, bytes_}); }

size_t release_blocks() { return BlockPool::instance().release(); }

}  // namespace ak

#else

namespace ak {

bool is_pooled(int64_t) { return false; }
Block::Block(int64_t) { throw std::bad_alloc(); }
Block::~Block() = default;
size_t release_blocks() { return 0; }

}  // namespace ak

#endif
