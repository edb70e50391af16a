// Structs that cross the C API, which may be longer or shorter than this library knows them.
#pragma once

#include <algorithm>
#include <cstring>

#include "api/report.h"
#include "base/status.h"
#include "kernels/kernels.h"

namespace selm::api {

// No struct will be larger: a size beyond it was never set.
inline constexpr size_t kMostStruct = 4096;

// A struct of a caller that may have been built against another header. Of an older one it is shorter: what
// it lacks stays as *options has it. Of a newer one it is longer: fields that this library does not know must
// be zero, so that none is ignored in silence.
template <class T>
Status read_options(const T* given, T* options) {
  if (given == nullptr) return {};
  const size_t size = given->struct_size;
  if (size <= sizeof(size_t)) {
    return error(Code::invalid_argument, "struct_size is %zu, not %zu: begin with the _INIT macro", size,
                 sizeof(T));
  }
  if (size > sizeof(T)) {
    const auto* bytes = reinterpret_cast<const unsigned char*>(given);
    if (size > kMostStruct ||
        std::any_of(bytes + sizeof(T), bytes + size, [](unsigned char b) { return b != 0; })) {
      return error(Code::unsupported, "an option of a newer selm.h is set; this library is %s", SELM_VERSION);
    }
  }
  std::memcpy(options, given, std::min(size, sizeof(T)));
  return {};
}

// The same for what is handed out: as much of it as the caller knows.
template <class T>
selm_status write_struct(const T& values, T* out) {
  if (out->struct_size <= sizeof(size_t)) {
    return report(error(Code::invalid_argument, "struct_size is %zu, not %zu: set it to the struct's size",
                        out->struct_size, sizeof(T)));
  }
  std::memcpy(reinterpret_cast<char*>(out) + sizeof(size_t),
              reinterpret_cast<const char*>(&values) + sizeof(size_t),
              std::min(out->struct_size, sizeof(T)) - sizeof(size_t));
  return SELM_OK;
}

// Copies as much as fits; *n is always the whole length.
template <class T>
selm_status copy_out(const T* values, size_t count, T* out, size_t capacity, size_t* n) {
  *n = count;
  if (out == nullptr) return SELM_OK;  // only the length was asked for
  if (count > 0) std::memcpy(out, values, std::min(count, capacity) * sizeof(T));
  if (count > capacity) {
    return report(
        selm::error(Code::buffer_too_small, "the buffer takes %zu; %zu are needed", capacity, count));
  }
  return SELM_OK;
}

// By name; NULL: SELM_ISA where that is set, else the best.
Result<const kernels::Table*> choose_kernels(const char* isa);

}  // namespace selm::api
