// The twin of block.h's Block on a CPU: the threads of a block are fibers, each with its own stack, that take turns. A barrier waits
// for the whole block and an instruction of a warp for its 32 lanes, whose fragments it reads and writes in the layout that the PTX
// manual gives. Between two barriers each warp runs as far ahead as it can, in an order drawn from a seed: a barrier that is missing
// shows as numbers that depend on the seed. Shared memory starts as NaN.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "numbers.h"

namespace ak::cuda {

class HostBlock {
 public:
  HostBlock(int threads, size_t shared_bytes, uint32_t seed) : fibers_(threads), warps_((threads + 31) / 32), random_(seed) {
    if (threads % 32 != 0) throw std::logic_error("a block must be of whole warps");
    shared_.reset(static_cast<uint32_t*>(std::aligned_alloc(1024, (shared_bytes / 1024 + 1) * 1024)), std::free);
    words_ = shared_bytes / 4;
    for (Fiber& fiber : fibers_) fiber.stack.reset(new char[kStack]);
  }

  // Runs body(thread) on every thread, to the end.
  template <class Body>
  void run(const Body& body) {
    std::fill_n(shared_.get(), words_, 0x7fc00000u);
    body_ = [](const void* context, int thread) { (*static_cast<const Body*>(context))(thread); };
    context_ = &body;
    for (size_t i = 0; i < fibers_.size(); ++i) start(static_cast<int>(i));
    std::vector<int> order(warps_.size());
    for (bool running = true; running;) {
      shuffle(order);
      for (const int warp : order) run_ahead(warp);
      size_t waiting = 0, done = 0;
      for (const Fiber& fiber : fibers_) waiting += fiber.state == State::at_barrier, done += fiber.state == State::done;
      running = done < fibers_.size();
      if (running && waiting < fibers_.size()) throw std::logic_error("a barrier that not all threads of the block reach");
      for (Fiber& fiber : fibers_)
        if (fiber.state == State::at_barrier) fiber.state = State::ready;
    }
  }

  uint32_t* shared() const { return shared_.get(); }
  void barrier() { leave(State::at_barrier); }

  // `perform` on the arguments of all 32 lanes of the calling thread's warp, once they are all here.
  template <class Arguments, class Perform>
  void together(Arguments& arguments, const void* instruction, const Perform& perform) {
    Warp& warp = warps_[current_ / 32];
    if (warp.arrived == 0) warp.instruction = instruction;
    if (warp.instruction != instruction) throw std::logic_error("lanes of a warp at different instructions");
    warp.arguments[current_ % 32] = &arguments;
    if (++warp.arrived < 32) return leave(State::in_warp);
    warp.arrived = 0;
    Arguments* all[32];
    for (int i = 0; i < 32; ++i) all[i] = static_cast<Arguments*>(warp.arguments[i]);
    perform(all);
    for (int i = 0; i < 32; ++i) fibers_[current_ / 32 * 32 + i].state = State::ready;
  }

 private:
  static constexpr size_t kStack = 1 << 16;
  enum class State { ready, in_warp, at_barrier, done };
  struct Fiber {
    std::unique_ptr<char[]> stack;
    ucontext_t first;
    jmp_buf here;
    bool begun;
    State state;
  };
  struct Warp {
    int arrived = 0;
    const void* instruction = nullptr;
    void* arguments[32];
  };

  static HostBlock*& active() {
    static thread_local HostBlock* block = nullptr;
    return block;
  }
  static void enter() {
    HostBlock& block = *active();
    try {
      block.body_(block.context_, block.current_);
    } catch (...) {
      block.failure_ = std::current_exception();
    }
    block.leave(State::done);
  }
  void start(int thread) {
    Fiber& fiber = fibers_[thread];
    getcontext(&fiber.first);
    fiber.first.uc_stack = {fiber.stack.get(), 0, kStack};
    fiber.first.uc_link = nullptr;
    makecontext(&fiber.first, enter, 0);
    fiber.begun = false;
    fiber.state = State::ready;
  }
  // A first turn needs a new stack; later ones are jumps, which unlike swapcontext cost no system call.
  void resume(int thread) {
    Fiber& fiber = fibers_[thread];
    current_ = thread;
    active() = this;
    if (_setjmp(scheduler_) != 0) return;
    if (fiber.begun) _longjmp(fiber.here, 1);
    fiber.begun = true;
    setcontext(&fiber.first);
  }
  void leave(State state) {
    Fiber& fiber = fibers_[current_];
    fiber.state = state;
    if (_setjmp(fiber.here) == 0) _longjmp(scheduler_, 1);
  }
  // Until every lane waits for the block or is done. Lanes take turns in some order: all numbers first + odd * i modulo 32.
  void run_ahead(int warp) {
    for (bool ran = true; ran;) {
      ran = false;
      const uint32_t first = draw(), odd = draw() | 1;
      for (uint32_t i = 0; i < 32; ++i) {
        const int thread = 32 * warp + static_cast<int>((first + odd * i) % 32);
        if (fibers_[thread].state != State::ready) continue;
        resume(thread);
        ran = true;
        if (failure_) std::rethrow_exception(failure_);
      }
    }
    for (int lane = 0; lane < 32; ++lane)
      if (fibers_[32 * warp + lane].state == State::in_warp) throw std::logic_error("an instruction that not all lanes of a warp reach");
  }
  void shuffle(std::vector<int>& order) {
    for (size_t i = 0; i < order.size(); ++i) {
      order[i] = static_cast<int>(i);
      std::swap(order[i], order[draw() % (i + 1)]);
    }
  }
  uint32_t draw() { return (random_ = random_ * 1664525 + 1013904223) >> 16; }

  std::vector<Fiber> fibers_;
  std::vector<Warp> warps_;
  std::shared_ptr<uint32_t> shared_;
  size_t words_;
  uint32_t random_;
  void (*body_)(const void*, int) = nullptr;
  const void* context_ = nullptr;
  int current_ = 0;
  std::exception_ptr failure_;
  jmp_buf scheduler_;
};

struct Block {
  HostBlock* host;
  int64_t number;
  int id;

  int thread() const { return id; }
  int64_t index() const { return number; }
  void sync() const { host->barrier(); }
  uint32_t* shared() const { return host->shared(); }
  void prefetch(const void*) const {}
  uint32_t settled(uint32_t word) const { return word; }
  template <class T>
  T* settled(T* pointer) const {
    return pointer;
  }

  void load_matrices(const uint32_t* row, uint32_t (&words)[4]) const {
    static const char instruction = 0;
    struct Lane {
      const uint32_t* row;
      uint32_t* words;
    } mine{row, words};
    if (reinterpret_cast<uintptr_t>(row) % 16 != 0) throw std::logic_error("ldmatrix: a row must be aligned to 16 bytes");
    host->together(mine, &instruction, [](Lane* const (&lanes)[32]) {
      for (int i = 0; i < 32; ++i)
        for (int matrix = 0; matrix < 4; ++matrix) lanes[i]->words[matrix] = lanes[8 * matrix + i / 4]->row[i % 4];
    });
  }

  template <Product product>
  void multiply_add(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) const {
    static const char instruction = 0;
    struct Lane {
      float* c;
      const uint32_t *a, *b;
    } mine{c, a, b};
    host->together(mine, &instruction, [](Lane* const (&lanes)[32]) {
      constexpr int per = Operand<product>::kPerWord, depth = 8 * per;
      float left[16][depth], right[8][depth];
      for (int word = 0; word < 8; ++word) {
        for (int row = 0; row < 16; ++row) unpack<product>(lanes[row % 8 * 4 + word % 4]->a[word / 4 * 2 + row / 8], left[row] + word * per);
        for (int column = 0; column < 8; ++column) unpack<product>(lanes[column * 4 + word % 4]->b[word / 4], right[column] + word * per);
      }
      for (int row = 0; row < 16; ++row)
        for (int column = 0; column < 8; ++column) {
          float& sum = lanes[row % 8 * 4 + column / 2]->c[row / 8 * 2 + column % 2];
          for (int k = 0; k < depth; ++k) sum += left[row][k] * right[column][k];
        }
    });
  }

 private:
  // The one tf32 number, whose last 13 bits a tensor core does not read, or the two halves in a word.
  template <Product product>
  static void unpack(uint32_t word, float* to) {
    if constexpr (product == Product::tf32) {
      to[0] = float_of(word & 0xffffe000u);
    } else {
      using Half = typename Operand<product>::Storage;
      to[0] = to_float(Half{static_cast<uint16_t>(word)});
      to[1] = to_float(Half{static_cast<uint16_t>(word >> 16)});
    }
  }
};

}  // namespace ak::cuda
