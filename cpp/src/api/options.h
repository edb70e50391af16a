// Structs that cross the C API, which may be longer or shorter than this library knows them.
#pragma once

#include <algorithm>
#include <cstring>

#include "api/report.h"
#include "base/status.h"
#include "kernels/kernels.h"

namespace selm::api {

// A struct of a caller that may have been built against a newer header, which is longer. Fields
// that this library does not know must then be zero, so that none is ignored in silence.
template <class T>
Status read_options(const T* given, T* options) {
  if (given == nullptr) return {};
  if (given->struct_size < sizeof(T)) {
    return error(Code::invalid_argument, "struct_size is %zu, not %zu: begin with the _INIT macro",
                 given->struct_size, sizeof(T));
  }
  const auto* bytes = reinterpret_cast<const unsigned char*>(given);
  if (std::any_of(bytes + sizeof(T), bytes + given->struct_size, [](unsigned char b) { return b != 0; })) {
    return error(Code::unsupported, "an option of a newer selm.h is set; this library is %s", SELM_VERSION);
  }
  std::memcpy(options, given, sizeof(T));
  return {};
}

// The same for what is handed out.
template <class T>
selm_status write_struct(const T& values, T* out) {
  if (out->struct_size < sizeof(T)) {
    return report(error(Code::invalid_argument, "struct_size is %zu, not %zu: set it to the struct's size",
                        out->struct_size, sizeof(T)));
  }
  std::memcpy(reinterpret_cast<char*>(out) + sizeof(size_t),
              reinterpret_cast<const char*>(&values) + sizeof(size_t), sizeof(T) - sizeof(size_t));
  return SELM_OK;
}

// By name; NULL: SELM_ISA where that is set, else the best.
Result<const kernels::Table*> choose_kernels(const char* isa);

}  // namespace selm::api
