#include "quant/types.h"

namespace selm::quant {
namespace {

constexpr Support kRead = Support::read;
constexpr Support kOther = Support::other;
constexpr Support kRemoved = Support::removed;
constexpr Support kRuntime = Support::runtime_only;

// Indexed by id. Sizes: sizeof the blocks of ggml-common.h; the removed ones have none.
constexpr KnownType kTypes[kTypeLimit] = {
    {{"F32", 1, 4}, kRead},            // 0
    {{"F16", 1, 2}, kRead},            // 1
    {{"Q4_0", 32, 18}, kRead},         // 2
    {{"Q4_1", 32, 20}, kRead},         // 3
    {{"Q4_2", 0, 0}, kRemoved},        // 4
    {{"Q4_3", 0, 0}, kRemoved},        // 5
    {{"Q5_0", 32, 22}, kRead},         // 6
    {{"Q5_1", 32, 24}, kRead},         // 7
    {{"Q8_0", 32, 34}, kRead},         // 8
    {{"Q8_1", 32, 36}, kRuntime},      // 9
    {{"Q2_K", 256, 84}, kRead},        // 10
    {{"Q3_K", 256, 110}, kRead},       // 11
    {{"Q4_K", 256, 144}, kRead},       // 12
    {{"Q5_K", 256, 176}, kRead},       // 13
    {{"Q6_K", 256, 210}, kRead},       // 14
    {{"Q8_K", 256, 292}, kRuntime},    // 15
    {{"IQ2_XXS", 256, 66}, kOther},    // 16
    {{"IQ2_XS", 256, 74}, kOther},     // 17
    {{"IQ3_XXS", 256, 98}, kOther},    // 18
    {{"IQ1_S", 256, 50}, kOther},      // 19
    {{"IQ4_NL", 32, 18}, kRead},       // 20
    {{"IQ3_S", 256, 110}, kOther},     // 21
    {{"IQ2_S", 256, 82}, kOther},      // 22
    {{"IQ4_XS", 256, 136}, kRead},     // 23
    {{"I8", 1, 1}, kOther},            // 24
    {{"I16", 1, 2}, kOther},           // 25
    {{"I32", 1, 4}, kOther},           // 26
    {{"I64", 1, 8}, kOther},           // 27
    {{"F64", 1, 8}, kOther},           // 28
    {{"IQ1_M", 256, 56}, kOther},      // 29
    {{"BF16", 1, 2}, kRead},           // 30
    {{"Q4_0_4_4", 0, 0}, kRemoved},    // 31
    {{"Q4_0_4_8", 0, 0}, kRemoved},    // 32
    {{"Q4_0_8_8", 0, 0}, kRemoved},    // 33
    {{"TQ1_0", 256, 54}, kOther},      // 34
    {{"TQ2_0", 256, 66}, kOther},      // 35
    {{"IQ4_NL_4_4", 0, 0}, kRemoved},  // 36
    {{"IQ4_NL_4_8", 0, 0}, kRemoved},  // 37
    {{"IQ4_NL_8_8", 0, 0}, kRemoved},  // 38
    {{"MXFP4", 32, 17}, kOther},       // 39
    {{"NVFP4", 64, 36}, kOther},       // 40
    {{"Q1_0", 128, 18}, kOther},       // 41
    {{"Q2_0", 0, 0}, kOther},          // 42: too new for its layout to be relied on
};

}  // namespace

KnownType known_type(uint32_t id) {
  return id < kTypeLimit ? kTypes[id] : KnownType{{nullptr, 0, 0}, Support::unknown};
}

const TypeInfo* type_info(uint32_t id) {
  return id < kTypeLimit && kTypes[id].support == Support::read ? &kTypes[id].info : nullptr;
}

}  // namespace selm::quant
