// Which instruction set runs: probed once, overridable by SILVERTRITON_ISA.

#include "silvertriton/instruction_set.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <string>

#if defined(__aarch64__)
#include <sys/auxv.h>
#elif defined(__x86_64__)
#include <cpuid.h>
#endif

namespace silvertriton {
namespace {

struct Choice {
    const InstructionSet* set;
    bool (*supported)();
};

#if defined(__x86_64__)
// By hand: not every compiler that builds this knows F16C by name.
bool has_f16c() {
    unsigned int a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}
#endif

// Best first.
constexpr Choice kChoices[] = {
#if defined(__x86_64__)
    {&kAvx512Vnni,
     [] {
         return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("popcnt");
     }},
    {&kAvx2, [] { return __builtin_cpu_supports("avx2") && has_f16c() && __builtin_cpu_supports("popcnt"); }},
#elif defined(__aarch64__)
    {&kNeonDotprod, [] { return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0; }},
    {&kNeon, [] { return true; }},
#endif
    {&kPortable, [] { return true; }},
};

const InstructionSet& choose(const std::string& name, const char* origin) {
#if defined(__x86_64__)
    __builtin_cpu_init();
#endif
    std::string known, available;
    for (const Choice& choice : kChoices) {
        const bool supported = choice.supported();
        if (name.empty() ? supported : supported && name == choice.set->name) return *choice.set;
        known += (known.empty() ? "" : ", ") + std::string(choice.set->name);
        if (supported) available += (available.empty() ? "" : ", ") + std::string(choice.set->name);
    }
    throw std::runtime_error("silvertriton: " + std::string(origin) + ": got instruction set '" + name +
                             "', expected one this machine has: " + available + " (this build knows " + known +
                             "); leave it unset to take the best");
}

std::atomic<const InstructionSet*> current{nullptr};

}  // namespace

const InstructionSet& instruction_set() {
    const InstructionSet* set = current.load(std::memory_order_acquire);
    if (set != nullptr) return *set;
    const char* name = std::getenv("SILVERTRITON_ISA");
    set = &choose(name == nullptr ? "" : name, "SILVERTRITON_ISA");
    current.store(set, std::memory_order_release);
    return *set;
}

void force_instruction_set(const char* name) {
    current.store(*name == '\0' ? nullptr : &choose(name, "force_instruction_set"), std::memory_order_release);
}

}  // namespace silvertriton
