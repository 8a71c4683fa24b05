// Scratch memory of one task: arrays on cache-line boundaries, so that no vector load straddles two lines.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>

namespace ak {

// Arrays of T taken one after the other from a single allocation, whose size the caller has counted with `padded`.
template <class T>
class Workspace {
 public:
  static constexpr int64_t kLine = 64;
  static constexpr int64_t padded(int64_t n) {
    constexpr int64_t per_line = kLine / static_cast<int64_t>(sizeof(T));
    return (n + per_line - 1) / per_line * per_line;
  }

  explicit Workspace(int64_t elements)
      : base_(static_cast<T*>(::operator new(static_cast<size_t>(elements) * sizeof(T), std::align_val_t{kLine}))), next_(base_) {}
  ~Workspace() { ::operator delete(base_, std::align_val_t{kLine}); }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  T* take(int64_t n) {
    T* array = next_;
    next_ += padded(n);
    return array;
  }

 private:
  T *base_, *next_;
};

}  // namespace ak
