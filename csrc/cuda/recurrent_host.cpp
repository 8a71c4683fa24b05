// The programs of the recurrences run on the CPU by host_block.h, for tests on machines without a GPU. Not part of any library that is
// installed: tests/ops/recurrent_on_host.py compiles it.
#include <string>

#include "block.h"

namespace ak::cuda {
namespace {

uint32_t order = 1;  // seed of the order in which threads take turns

template <class Program>
std::string launch(int64_t blocks, int64_t shared_bytes, const typename Program::Arguments& arguments, void*) {
  try {
    HostBlock host(Program::kThreads, static_cast<size_t>(shared_bytes), order);
    for (int64_t block = 0; block < blocks; ++block) host.run([&](int thread) { Program::run(Block{&host, block, thread}, arguments); });
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

}  // namespace
}  // namespace ak::cuda

#include "recurrent_programs.h"

namespace {

std::string message;
const char* kept(std::string text) {
  message = std::move(text);
  return message.c_str();
}

}  // namespace

extern "C" {
void set_order(uint32_t seed) { ak::cuda::order = seed; }
int64_t shared_bytes(int lstm, int precision, int64_t hidden, int backward) {
  return ak::cuda::recurrent_shared_bytes(lstm != 0, static_cast<ak::cuda::Precision>(precision), hidden, backward != 0);
}
const char* forward(int lstm, int precision, const ak::cuda::RecurrentForward* a) {
  return kept(ak::cuda::recurrent_layer(lstm != 0, static_cast<ak::cuda::Precision>(precision), *a, nullptr));
}
const char* backward(int lstm, int precision, const ak::cuda::RecurrentBackward* a) {
  return kept(ak::cuda::recurrent_layer_backward(lstm != 0, static_cast<ak::cuda::Precision>(precision), *a, nullptr));
}
const char* dropout(int precision, const ak::cuda::DropoutRows* a) {
  return kept(ak::cuda::dropout_rows(static_cast<ak::cuda::Precision>(precision), *a, nullptr));
}
void to_half(int precision, int64_t count, const float* from, uint16_t* to) {
  for (int64_t i = 0; i < count; ++i)
    to[i] = precision == 2 ? ak::cuda::rounded<ak::cuda::Bfloat16>(from[i]).bits : ak::cuda::rounded<ak::cuda::Float16>(from[i]).bits;
}
void from_half(int precision, int64_t count, const uint16_t* from, float* to) {
  for (int64_t i = 0; i < count; ++i)
    to[i] = precision == 2 ? ak::cuda::to_float(ak::cuda::Bfloat16{from[i]}) : ak::cuda::to_float(ak::cuda::Float16{from[i]});
}
}
