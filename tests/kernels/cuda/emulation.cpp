#include "emulation.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <random>
#include <string>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#define ST_ADDRESS_SANITIZER
#endif

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

extern "C" {
extern unsigned char __start_st_shared[] __attribute__((visibility("hidden"), weak));
extern unsigned char __stop_st_shared[] __attribute__((visibility("hidden"), weak));
}

#if defined(__x86_64__)
// Saves the callee's registers and the stack pointer, and goes on where another fibre did so. swapcontext would ask the
// system for the signal mask at each switch, some hundred times as slow.
extern "C" void st_switch_fibre(void** save, void* to);
asm(R"(
.text
.globl st_switch_fibre
.hidden st_switch_fibre
.type st_switch_fibre,@function
st_switch_fibre:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size st_switch_fibre, .-st_switch_fibre
)");
#endif

namespace emulation {
namespace {

constexpr size_t kStackBytes = 256 * 1024;

enum class State { kReady, kBlock, kWarp, kDone };

struct Fibre {
    dim3 index;
    State state = State::kReady;
    int line = 0;            // where it waits
    unsigned mask = 0;       // of the lanes it waits for
    unsigned exchanges = 0;  // it has taken part in
    unsigned char* stack = nullptr;
#if defined(__x86_64__)
    void* pointer = nullptr;
#else
    ucontext_t context;
#endif
    void* fake_stack = nullptr;
};

struct Warp {
    Exchange slots[2];  // a lane may be one exchange ahead of another that has yet to read
    unsigned arrived = 0;
};

struct Machine {
    const std::function<void()>* body = nullptr;
    const char* name = "";
    dim3 grid, block_size, block;
    std::vector<Fibre> fibres;
    std::vector<Warp> warps;
    Fibre* current = nullptr;
    std::vector<unsigned char*> stacks;
    std::map<std::string, int64_t> reached;
    std::mt19937 random{1};
    int64_t launches = 0;
#if defined(__x86_64__)
    void* pointer = nullptr;
#else
    ucontext_t context;
#endif
    void* fake_stack = nullptr;
    const void* own_stack = nullptr;
    size_t own_stack_bytes = 0;
};

Machine& machine() {
    static Machine one;
    return one;
}

struct Region {
    void* address;
    size_t bytes;
};
std::vector<Region>& regions() {
    static std::vector<Region> all;
    return all;
}

void protect(int access) {
    for (const Region& region : regions())
        if (mprotect(region.address, region.bytes, access) != 0) std::abort();
}

void switch_to(Fibre& fibre) {
    Machine& m = machine();
    m.current = &fibre;
#if defined(ST_ADDRESS_SANITIZER)
    __sanitizer_start_switch_fiber(&m.fake_stack, fibre.stack, kStackBytes);
#endif
#if defined(__x86_64__)
    st_switch_fibre(&m.pointer, fibre.pointer);
#else
    swapcontext(&m.context, &fibre.context);
#endif
#if defined(ST_ADDRESS_SANITIZER)
    __sanitizer_finish_switch_fiber(m.fake_stack, nullptr, nullptr);
#endif
    m.current = nullptr;
}

void switch_back(bool ends) {
    Machine& m = machine();
    Fibre& fibre = *m.current;
#if defined(ST_ADDRESS_SANITIZER)
    __sanitizer_start_switch_fiber(ends ? nullptr : &fibre.fake_stack, m.own_stack, m.own_stack_bytes);
#else
    (void)ends;
#endif
#if defined(__x86_64__)
    st_switch_fibre(&fibre.pointer, m.pointer);
#else
    swapcontext(&fibre.context, &m.context);
#endif
#if defined(ST_ADDRESS_SANITIZER)
    __sanitizer_finish_switch_fiber(fibre.fake_stack, nullptr, nullptr);
#endif
}

void run_fibre() {
    Machine& m = machine();
#if defined(ST_ADDRESS_SANITIZER)
    __sanitizer_finish_switch_fiber(nullptr, &m.own_stack, &m.own_stack_bytes);
#endif
    (*m.body)();
    m.current->state = State::kDone;
    switch_back(true);
    std::abort();
}

void prepare(Fibre& fibre) {
#if defined(__x86_64__)
    auto* top = reinterpret_cast<void**>(fibre.stack + kStackBytes);
    *--top = nullptr;  // as if called: 16-byte aligned before the return address
    *--top = reinterpret_cast<void*>(&run_fibre);
    for (int registers = 0; registers < 6; ++registers) *--top = nullptr;
    fibre.pointer = top;
#else
    getcontext(&fibre.context);
    fibre.context.uc_stack.ss_sp = fibre.stack;
    fibre.context.uc_stack.ss_size = kStackBytes;
    fibre.context.uc_link = nullptr;
    makecontext(&fibre.context, run_fibre, 0);
#endif
}

// Byte by byte, past AddressSanitizer: the redzones between variables are filled too.
__attribute__((no_sanitize("address"), noinline)) void fill_shared(unsigned char value) {
    for (volatile unsigned char* at = __start_st_shared; at < __stop_st_shared; ++at) *at = value;
}

[[noreturn]] void fail(const char* what) {
    Machine& m = machine();
    std::fprintf(stderr, "emulation: %s, block (%u, %u): %s\n", m.name, m.block.x, m.block.y, what);
    for (const Fibre& fibre : m.fibres)
        if (fibre.index.x % 32 == 0 || fibre.state != State::kDone)
            std::fprintf(stderr, "  thread %u: %s line %d, lanes %08x\n", fibre.index.x,
                         fibre.state == State::kBlock  ? "waits for the block,"
                         : fibre.state == State::kWarp ? "waits for its warp,"
                         : fibre.state == State::kDone ? "has ended, last waited in"
                                                       : "is ready,",
                         fibre.line, fibre.mask);
    std::abort();
}

// All threads that have not ended wait for the block: at one line, or the barrier has diverged.
void release_block() {
    Machine& m = machine();
    int line = 0;
    for (Fibre& fibre : m.fibres) {
        if (fibre.state == State::kDone) fail("a thread has ended before a barrier at which others wait");
        if (line != 0 && fibre.line != line) fail("threads wait at different barriers");
        line = fibre.line;
    }
    for (Fibre& fibre : m.fibres)
        if (fibre.state == State::kBlock) fibre.state = State::kReady;
}

void run_block(std::vector<unsigned>& order) {
    Machine& m = machine();
    fill_shared(static_cast<unsigned char>(m.random()));
    for (Fibre& fibre : m.fibres) {
        fibre.state = State::kReady;
        fibre.exchanges = 0;
        fibre.line = 0;
        prepare(fibre);
    }
    for (Warp& warp : m.warps) warp.arrived = 0;
    for (;;) {
        std::shuffle(order.begin(), order.end(), m.random);
        size_t ran = 0, waiting = 0, done = 0;
        for (const unsigned at : order) {
            Fibre& fibre = m.fibres[at];
            if (fibre.state == State::kReady) {
                switch_to(fibre);
                ran += 1;
            }
        }
        for (const Fibre& fibre : m.fibres) {
            waiting += fibre.state == State::kBlock;
            done += fibre.state == State::kDone;
        }
        if (done == m.fibres.size()) return;
        if (ran > 0 && waiting + done < m.fibres.size()) continue;
        if (waiting + done == m.fibres.size()) {
            release_block();
        } else {
            fail("threads wait for lanes that do not come");
        }
    }
}

}  // namespace

const dim3& thread_index() {
    return machine().current->index;
}
const dim3& block_index() {
    return machine().block;
}
const dim3& block_size() {
    return machine().block_size;
}
const dim3& grid_size() {
    return machine().grid;
}
void reached(const char* what) {
    machine().reached[what] += 1;
}

void wait_for_block(int line) {
    Fibre& fibre = *machine().current;
    fibre.state = State::kBlock;
    fibre.line = line;
    switch_back(false);
}

const Exchange& exchange(unsigned mask, const uint64_t (&words)[kWarpWords], int line) {
    Machine& m = machine();
    Fibre& fibre = *m.current;
    const unsigned lane = fibre.index.x % 32;
    Warp& warp = m.warps[fibre.index.x / 32];
    Exchange& slots = warp.slots[fibre.exchanges++ % 2];
    std::copy(words, words + kWarpWords, slots.words[lane]);
    fibre.line = line;
    fibre.mask = mask;
    if ((mask >> lane & 1) == 0) fail("a lane calls without being in its mask");
    if (warp.arrived == 0)
        warp.arrived = 1u << lane;
    else
        warp.arrived |= 1u << lane;
    if (warp.arrived != mask) {
        fibre.state = State::kWarp;
        switch_back(false);
        return slots;
    }
    for (unsigned l = 0; l < 32; ++l) {  // the last to come lets the others go
        const size_t at = fibre.index.x / 32 * 32 + l;
        if ((mask >> l & 1) == 0 || l == lane) continue;
        Fibre& other = m.fibres[at];
        if (other.line != line || other.mask != mask) fail("lanes of a warp wait at different lines");
        other.state = State::kReady;
    }
    warp.arrived = 0;
    return slots;
}

void launch(const char* name, const std::function<void()>& body, dim3 grid, int threads) {
    Machine& m = machine();
    if (grid.x == 0 || grid.y == 0) return;
    if (threads % 32 != 0 || threads > 1024 || grid.y > 65535) {
        std::fprintf(stderr, "emulation: %s: a launch that no device takes\n", name);
        std::abort();
    }
    m.launches += 1;
    m.name = name;
    m.body = &body;
    m.grid = grid;
    m.block_size = dim3(static_cast<unsigned>(threads));
    const auto count = static_cast<size_t>(threads);
    while (m.stacks.size() < count) {
        void* stack = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (stack == MAP_FAILED) std::abort();
        m.stacks.push_back(static_cast<unsigned char*>(stack));
    }
    m.fibres.assign(count, Fibre{});
    m.warps.resize(count / 32);
    std::vector<unsigned> order(count);
    for (unsigned t = 0; t < count; ++t) {
        order[t] = t;
        m.fibres[t].index = dim3(t, 0, 0);
        m.fibres[t].stack = m.stacks[t];
    }
    protect(PROT_READ | PROT_WRITE);
    std::vector<uint64_t> blocks(static_cast<size_t>(grid.x) * grid.y);
    for (size_t b = 0; b < blocks.size(); ++b) blocks[b] = b;
    std::shuffle(blocks.begin(), blocks.end(), m.random);
    for (const uint64_t b : blocks) {
        m.block = dim3(static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x), 0);
        run_block(order);
    }
    protect(PROT_NONE);
}

}  // namespace emulation

// For tests: how many kernels have been launched, how often a thread came by a mark, and memory that nothing but a
// kernel may touch.
extern "C" {

__attribute__((visibility("default"))) int64_t st_emulation_launches() {
    return emulation::machine().launches;
}

__attribute__((visibility("default"))) int64_t st_emulation_reached(const char* what) {
    return emulation::machine().reached[what];
}

__attribute__((visibility("default"))) void st_emulation_protect(void* address, uint64_t bytes) {
    emulation::regions().push_back({address, bytes});
    emulation::protect(PROT_NONE);
}

__attribute__((visibility("default"))) void st_emulation_unprotect() {
    emulation::protect(PROT_READ | PROT_WRITE);
    emulation::regions().clear();
}
}

// There is one device.
namespace silvertriton {
int32_t current_cuda_device() {
    return 0;
}
void set_cuda_device(int32_t) {}
}  // namespace silvertriton
