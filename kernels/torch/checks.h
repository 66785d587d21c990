// Host checks of operator arguments, made before any work starts. A message names the operator, the argument, what it
// got, what it expected and what to do.
#pragma once

#include <torch/csrc/stable/device.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>

namespace silvertriton {

// One size of the contract, named by its letter. A free one takes its value from the first argument that has it;
// every later argument must agree.
class Dim {
  public:
    explicit Dim(const char* letter) : letter_(letter) {}
    Dim(const char* letter, int64_t value, const char* origin) : letter_(letter), origin_(origin), value_(value) {}

    int64_t value() const { return value_; }
    const char* letter() const { return letter_; }
    const char* origin() const { return origin_; }

    bool agrees(int64_t size, const char* argument) {
        if (value_ < 0) {
            value_ = size;
            origin_ = argument;
        }
        return value_ == size;
    }

  private:
    const char* letter_;
    const char* origin_ = nullptr;
    int64_t value_ = -1;
};

// Where an operator runs.
enum class Device { kCpu, kCuda };

class Checks {
  public:
    Checks(const char* name, Device device) : name_(name), device_(device) {}

    // Of the first tensor on a GPU.
    int32_t device_index() const { return device_index_ < 0 ? 0 : device_index_; }
    bool on_cuda() const { return device_ == Device::kCuda; }

    [[noreturn]] void fail(const std::string& argument, const std::string& got, const std::string& expected,
                           const std::string& fix) const {
        throw std::runtime_error("silvertriton::" + std::string(name_) + ": " + argument + ": got " + got +
                                 ", expected " + expected + "; " + fix);
    }

    // Device, dtype, rank, sizes and contiguity, in this order, so that the first message is the most telling.
    void tensor(const char* argument, const torch::stable::Tensor& tensor, torch::headeronly::ScalarType dtype,
                std::initializer_list<Dim*> dims) const {
        const auto layout = [&] { return std::string(torch::headeronly::toString(dtype)) + " " + letters(dims); };
        check_device(argument, tensor);
        if (tensor.scalar_type() != dtype)
            fail(argument, torch::headeronly::toString(tensor.scalar_type()), layout(), "convert it with .to(dtype)");
        if (tensor.dim() != static_cast<int64_t>(dims.size()))
            fail(argument, "rank " + std::to_string(tensor.dim()) + " " + sizes(tensor), layout(),
                 "see docs/operators.md");
        int64_t axis = 0;
        for (Dim* dim : dims) {
            if (!dim->agrees(tensor.size(axis), argument))
                fail(argument, sizes(tensor),
                     layout() + " with " + dim->letter() + " = " + std::to_string(dim->value()) + " as in " +
                         dim->origin(),
                     "pass tensors of one index and one batch");
            ++axis;
        }
        if (!tensor.is_contiguous()) fail(argument, "strides", "a contiguous tensor", "call .contiguous()");
    }

    // On a GPU the codes, scales and spreads of four rows are read at once. CPUs read codes at any address.
    void aligned(const char* argument, const torch::stable::Tensor& tensor) const {
        constexpr uintptr_t kBytes = 16;
        if (reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % kBytes != 0)
            fail(argument, "an address that is no multiple of " + std::to_string(kBytes), "whole fours of words",
                 "pass a tensor of its own: .clone()");
    }

    // Row offsets [n + 1] that must ascend from 0 to `end`.
    void offsets(const char* argument, const int32_t* values, int64_t count, int64_t end, bool strictly) const {
        const char* expected = strictly ? "offsets that rise strictly" : "offsets that never fall";
        // Counted, not left early: compilers vectorise it.
        int32_t falls = 0, stays = 0;
        for (int64_t i = 0; i < count; ++i) {
            falls |= values[i] > values[i + 1];
            stays |= values[i] == values[i + 1];
        }
        if (values[0] != 0 || values[count] != end || falls != 0 || (strictly && stays != 0))
            fail(argument, "offsets from " + std::to_string(values[0]) + " to " + std::to_string(values[count]),
                 std::string(expected) + " from 0 to " + std::to_string(end), kRebuild);
    }

    void range(const char* argument, int64_t value, int64_t low, int64_t high, const char* fix) const {
        if (value < low || value > high)
            fail(argument, std::to_string(value), std::to_string(low) + " to " + std::to_string(high), fix);
    }

    static constexpr const char* kRebuild = "the index contradicts itself, build the artifact again";

  private:
    void check_device(const char* argument, const torch::stable::Tensor& tensor) const {
        constexpr const char* kElsewhere = "a tensor on another device";
#if defined(ST_EMULATION)
        const bool expects_cuda = false;
#else
        const bool expects_cuda = on_cuda();
#endif
        if (!expects_cuda) {
            if (!tensor.is_cpu()) fail(argument, kElsewhere, "one on the CPU", "move it with .cpu()");
            return;
        }
        if (tensor.is_cuda() && device_index_ < 0) device_index_ = tensor.get_device_index();
        if (!tensor.is_cuda() || tensor.get_device_index() != device_index_)
            fail(argument, kElsewhere, "one on the GPU of the first tensor", "move it with .to(device)");
    }

    static std::string letters(std::initializer_list<Dim*> dims) {
        std::string text;
        for (const Dim* dim : dims) text += (text.empty() ? "" : ", ") + std::string(dim->letter());
        return "[" + text + "]";
    }

    static std::string sizes(const torch::stable::Tensor& tensor) {
        std::string text;
        for (int64_t axis = 0; axis < tensor.dim(); ++axis)
            text += (axis == 0 ? "" : ", ") + std::to_string(tensor.size(axis));
        return "[" + text + "]";
    }

    const char* name_;
    Device device_;
    mutable int32_t device_index_ = -1;
};

}  // namespace silvertriton
