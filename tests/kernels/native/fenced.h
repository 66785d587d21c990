// Memory that faults where it ends.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <new>

namespace silvertriton {

// An array that ends where readable memory does: a read or write past its end is a fault.
template <typename T>
class Fenced {
  public:
    // `gap` bytes are left before the fence, for addresses that are aligned to nothing.
    explicit Fenced(size_t count, size_t gap = 0) : count_(count) {
        const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
        const size_t inside = (count * sizeof(T) + gap + page - 1) / page * page;
        mapped_ = inside + page;
        memory_ =
            static_cast<char*>(mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        if (memory_ == MAP_FAILED || mprotect(memory_ + inside, page, PROT_NONE) != 0) throw std::bad_alloc();
        data_ = reinterpret_cast<T*>(memory_ + inside - gap - count * sizeof(T));
    }
    ~Fenced() { munmap(memory_, mapped_); }
    Fenced(const Fenced&) = delete;
    Fenced& operator=(const Fenced&) = delete;

    T* data() { return data_; }
    T& operator[](size_t i) { return data_[i]; }
    T* begin() { return data_; }
    T* end() { return data_ + count_; }

  private:
    size_t count_, mapped_;
    char* memory_;
    T* data_;
};

}  // namespace silvertriton
